"""Which files and folders of a tree are checkpoints of some program, and which are parts of one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from ckpt_lib.errors import CheckpointError
from ckpt_lib.foreign.opening import kind_of
from ckpt_lib.foreign.sources import MAX_FILES, MAX_LEVELS, FoundFiles

CERTAIN_SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors")
"""What the names of checkpoints end with, also of those that are damaged."""
LIKELY_SUFFIXES = (*CERTAIN_SUFFIXES, ".bin", ".tar")
POSSIBLE_SUFFIXES = (*LIKELY_SUFFIXES, ".pkl", ".th", ".model", ".weights")

_ALL_LEVELS = 200
_SAID = r"(checkpoint|ckpt|epoch|step)[-_=]?\d+"
_FOLDER_BY_ITSELF = re.compile(rf"(?i){_SAID}([-_]{_SAID})*")
_FILE_BY_ITSELF = re.compile(rf"(?i)(\d+|{_SAID}([-_.]{_SAID})*|best|last)\.(pt|pth|ckpt|safetensors|bin|tar)")
_ONE_OF_SEVERAL = re.compile(r"(global_step|iter_)\d+")
_POINTERS = {"latest", "latest_checkpointed_iteration.txt"}
"""What DeepSpeed and Megatron have beside those folders."""
_WEIGHTS = {name + end for name in ("model.safetensors", "pytorch_model.bin") for end in ("", ".index.json")}
_BESIDE_WEIGHTS = re.compile(
    r"(model|pytorch_model|adapter|optimizer|scheduler|scaler|sampler|dl_state|rng_state|random_state|training_args"
    r"|custom_checkpoint)"
)
"""How the names of files begin that Transformers and Accelerate have beside their weights."""
_PART = re.compile(r"(global_step|iter_)\d+|release|mp_rank_\w+|(pytorch_model|model|optimizer)\w*_\d+|\d+_\w+")
"""Folders within checkpoints of processes, and of the modules of one model."""


@dataclass
class Folder:
    """One folder, by names."""

    path: str
    """Below the root, with ``/`` between names; empty for the root."""
    files: dict[str, int] = field(default_factory=dict)
    """The size of each file."""
    folders: dict[str, Folder] = field(default_factory=dict)

    def below(self, name: str) -> str:
        return f"{self.path}/{name}" if self.path else name

    def all_files(self, levels: int = MAX_LEVELS, before: str = "") -> Iterator[tuple[str, int]]:
        """Yield the files below this folder by their names from here, and their sizes."""
        for name in sorted(self.files):
            yield before + name, self.files[name]
        if levels > 1:
            for name in sorted(self.folders):
                yield from self.folders[name].all_files(levels - 1, f"{before}{name}/")


@dataclass(frozen=True)
class Found:
    """A file, or a folder that is one checkpoint with those of its files that belong to it."""

    path: str
    names: tuple[str, ...]
    """Of its files, from the root."""
    is_folder: bool = False
    is_alone: bool = True
    """Whether nothing else lies in the folder."""


OpenFiles = Callable[[str, Mapping[str, int]], FoundFiles]
"""Opens the files in a folder by its path, and the sizes of those that count by their names from there."""


def tree_of(sizes_bytes: Mapping[str, int]) -> Folder:
    """Return the folder that files lie in, by their names from there."""
    top = Folder("")
    for path, size_bytes in sizes_bytes.items():
        folder = top
        *parents, name = path.split("/")
        for parent in parents:
            folder = folder.folders.setdefault(parent, Folder(folder.below(parent)))
        folder.files[name] = size_bytes
    return top


def candidates_in(top: Folder, open_files: OpenFiles, *, is_whole: Callable[[str], bool]) -> Iterator[Found]:
    """Yield each folder that is a checkpoint, and each file that is part of none, in no order.

    A folder that is a checkpoint counts as one, and what is in it by itself only if its name says that it is one, as
    ``checkpoint-500`` and ``epoch=3.ckpt`` do. A folder whose path ``is_whole`` is not looked into.
    """
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        inner, apart = _inner_folders(folder, open_files), _files_apart(folder)
        sizes = {name: size for name, size in folder.all_files() if name.partition("/")[0] not in inner}
        if folder.path and sizes and is_whole(folder.path):
            yield _found(folder, sizes)
            continue
        sizes = {name: size for name, size in sizes.items() if name not in apart}
        is_one = _is_one(folder, sizes, open_files)
        if is_one:
            yield _found(folder, sizes)
        waiting += [item for name, item in folder.folders.items() if name in inner or not is_one]
        for name in folder.files:
            if (name in apart and name not in _POINTERS) or not is_one:
                yield Found(folder.below(name), (folder.below(name),))


def _inner_folders(folder: Folder, open_files: OpenFiles) -> set[str]:
    """Return which folders in this one are looked into by themselves, even if this one is a checkpoint.

    The folder of a training has its last model beside them. DeepSpeed and Megatron have a folder for each step, of
    which a checkpoint of another program holds one at most. At the top of a tree, all may that are no parts by name.
    """
    named = {name for name in folder.folders if _FOLDER_BY_ITSELF.fullmatch(name)}
    if not folder.path and _is_one(folder, folder.files, open_files):
        named |= {name for name in folder.folders if not _PART.fullmatch(name)}
    return named | _several(folder)


def _several(folder: Folder) -> set[str]:
    found = {name for name in folder.folders if _ONE_OF_SEVERAL.fullmatch(name)}
    return found if len(found) > 1 else set()


def _files_apart(folder: Folder) -> set[str]:
    """Return which files are no parts of a checkpoint that the folder is."""
    pointers = _POINTERS if _several(folder) else set()
    apart = {name for name in folder.files if _FILE_BY_ITSELF.fullmatch(name)}
    if _WEIGHTS & folder.files.keys():
        apart |= {name for name in folder.files if name.endswith(CERTAIN_SUFFIXES) and not _BESIDE_WEIGHTS.match(name)}
    return pointers | apart


def _found(folder: Folder, names: Mapping[str, int]) -> Found:
    is_alone = sum(1 for _ in folder.all_files(levels=_ALL_LEVELS)) == len(names)
    return Found(folder.path, tuple(map(folder.below, names)), is_folder=True, is_alone=is_alone)


def _is_one(folder: Folder, sizes_bytes: Mapping[str, int], open_files: OpenFiles) -> bool:
    return 0 < len(sizes_bytes) <= MAX_FILES and is_known(lambda: open_files(folder.path, sizes_bytes))


def is_known(open_files: Callable[[], FoundFiles]) -> bool:
    """Tell whether a known program writes such files; those that cannot be read are none of its."""
    with suppress(CheckpointError, OSError), open_files() as files:  # they have just gone, or may not be read
        return kind_of(files) is not None
    return False
