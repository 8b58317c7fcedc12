"""A folder of this machine with all that is in it, and which of that are checkpoints of some program."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from ckpt_lib.core.names import is_checkpoint_id
from ckpt_lib.errors import CheckpointError, NotACheckpointError
from ckpt_lib.foreign.opening import kind_of
from ckpt_lib.foreign.sources import MAX_FILES, MAX_LEVELS, FoundFiles
from ckpt_lib.store.identity import IDENTITY_NAME

MAX_TREE_FILES = 1_000_000
SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors")
"""What the names of checkpoints end with, also of those that are damaged."""
_OTHER_SUFFIXES = (".bin", ".tar", ".pkl", ".th", ".model", ".weights")
"""What those of some checkpoints end with. Of files with another name, only large ones are looked into."""
_LARGE_BYTES = 2**20
_ALL_LEVELS = 200
_NUMBERED = re.compile(r"(checkpoint|ckpt)[-_]\d+")
_ONE_OF_SEVERAL = re.compile(r"(global_step|iter_)\d+")
_UNFINISHED = re.compile(r"(?i)(tmp[-_.].*|\.tmp.*|.*\.(tmp|temp|part|partial|incomplete)([-_.]\w+)?)")
_OF_CHECKPOINTS = re.compile(r"(?i).*(ckpt|checkpoint|\.pt|safetensors|model|weights|optim|state).*")


@dataclass(frozen=True)
class TreeFile:
    """A regular file; links are none."""

    size_bytes: int
    modified_seconds: float
    inode: tuple[int, int]
    link_count: int


@dataclass
class Folder:
    """One folder, by names."""

    path: str
    """Below the root, with ``/`` between names; empty for the root."""
    files: dict[str, TreeFile] = field(default_factory=dict)
    folders: dict[str, Folder] = field(default_factory=dict)

    def below(self, name: str) -> str:
        return f"{self.path}/{name}" if self.path else name

    def all_files(self, levels: int = MAX_LEVELS, before: str = "") -> Iterator[tuple[str, TreeFile]]:
        """Yield the files below this folder by their names from here."""
        for name in sorted(self.files):
            yield before + name, self.files[name]
        if levels > 1:
            for name in sorted(self.folders):
                yield from self.folders[name].all_files(levels - 1, f"{before}{name}/")


@dataclass
class Tree:
    """All folders and files below a root. Links are not followed: what they point to is noted."""

    root: str
    top: Folder
    linked: set[str] = field(default_factory=set)
    """The paths that links lead to, without links."""
    stores: list[str] = field(default_factory=list)
    """Folders that are stores of this library, which were not looked into."""
    unreadable: list[str] = field(default_factory=list)

    def full(self, path: str) -> str:
        return os.path.join(self.root, path) if path else self.root

    def is_linked(self, path: str) -> bool:
        """Tell whether a link leads to a file or folder, or into it."""
        return self.linked_to.get(path, False) if self.linked else False

    @cached_property
    def linked_to(self) -> dict[str, bool]:
        """What links in this tree lead to, and the folders above that, by path below the root."""
        start = os.path.realpath(self.root).rstrip(os.sep) + os.sep
        found: dict[str, bool] = {}
        for target in self.linked:
            path = target.removeprefix(start).replace(os.sep, "/") if target.startswith(start) else ""
            while path:
                found[path] = True
                path = path.rpartition("/")[0]
        return found


@dataclass(frozen=True)
class FoundCheckpoint:
    """A file, or a folder, that is a checkpoint; ``files`` are its names from the root."""

    path: str
    files: dict[str, TreeFile]
    is_unfinished: bool = False
    is_alone: bool = True
    """Whether nothing else lies in the folder."""

    @property
    def removable(self) -> tuple[str, ...]:
        """The paths to remove: the folder or, where something else lies in it, the files."""
        return (self.path,) if self.is_alone and self.path else tuple(self.files)

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files.values())

    @property
    def modified_seconds(self) -> float:
        return max((file.modified_seconds for file in self.files.values()), default=0.0)


def read_tree(root: str) -> Tree:
    """List all that is below a folder. Raises :class:`~ckpt_lib.errors.NotACheckpointError` where there is none."""
    if not os.path.isdir(root):
        raise NotACheckpointError("there is no folder at this path", path=root, expected="a folder of checkpoints")
    tree = Tree(root, Folder(""))
    waiting, count = [tree.top], 0
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(tree.full(folder.path)) as found:
                items = list(found)
        except OSError:
            tree.unreadable.append(folder.path)
            continue
        if _is_store(items):
            tree.stores.append(folder.path)
            continue
        waiting += [inner for item in items if (inner := _note(tree, folder, item)) is not None]
        count += len(folder.files)
        if count > MAX_TREE_FILES:
            raise NotACheckpointError(f"the folder holds more than {MAX_TREE_FILES:,} files", path=root)
    return tree


def _is_store(items: Sequence[os.DirEntry[str]]) -> bool:
    """Tell whether a folder is a store, or an experiment's folder in one: their files have records."""
    return any(
        item.name == IDENTITY_NAME
        or (item.name.endswith(".json") and is_checkpoint_id(item.name.removesuffix(".json")))
        for item in items
    )


def _note(tree: Tree, folder: Folder, item: os.DirEntry[str]) -> Folder | None:
    """Take an item into its folder; return it if it is a folder itself."""
    try:
        if item.is_symlink():
            tree.linked.add(os.path.realpath(item.path))
            return None
        if item.is_dir(follow_symlinks=False):
            inner = Folder(folder.below(item.name))
            folder.folders[item.name] = inner
            return inner
        found = item.stat(follow_symlinks=False)
    except OSError:  # it has just gone
        return None
    if stat.S_ISREG(found.st_mode):
        inode = (found.st_dev, found.st_ino)
        folder.files[item.name] = TreeFile(found.st_size, found.st_mtime, inode, found.st_nlink)
    return None


def checkpoints_in(tree: Tree) -> Iterator[FoundCheckpoint]:
    """Yield the checkpoints of a tree. A folder that is one counts as one, and nothing in it by itself."""
    waiting = [tree.top]
    while waiting:
        folder = waiting.pop()
        inner = _inner_checkpoints(folder)
        names = {name: file for name, file in folder.all_files() if name.partition("/")[0] not in inner}
        if folder.path and _is_unfinished(folder.path) and names:
            yield _found(folder, names, is_unfinished=True)
            continue
        if len(names) <= MAX_FILES and _is_checkpoint(tree.full(folder.path), names):
            yield _found(folder, names)
            waiting += [folder.folders[name] for name in inner]
            continue
        waiting += folder.folders.values()
        for name, file in sorted(folder.files.items()):
            path = folder.below(name)
            if _is_unfinished(path):
                yield FoundCheckpoint(path, {path: file}, is_unfinished=True)
            elif name.endswith(SUFFIXES) or (_may_be_one(name, file) and _is_checkpoint(tree.full(path), {"": file})):
                yield FoundCheckpoint(path, {path: file})


def _may_be_one(name: str, file: TreeFile) -> bool:
    return file.size_bytes >= _LARGE_BYTES or name.endswith(_OTHER_SUFFIXES)


def _inner_checkpoints(folder: Folder) -> set[str]:
    """Return which folders in this one are checkpoints by themselves.

    The folder of a training has its last model beside them. DeepSpeed and Megatron have a folder for each step, of
    which a checkpoint of another program holds one at most.
    """
    several = {name for name in folder.folders if _ONE_OF_SEVERAL.fullmatch(name)}
    numbered = {name for name in folder.folders if _NUMBERED.fullmatch(name)}
    return numbered | several if len(several) > 1 else numbered


def _is_unfinished(path: str) -> bool:
    name = path.rpartition("/")[2]
    return _UNFINISHED.fullmatch(name) is not None and _OF_CHECKPOINTS.fullmatch(name) is not None


def _found(folder: Folder, names: dict[str, TreeFile], *, is_unfinished: bool = False) -> FoundCheckpoint:
    files = {folder.below(name): file for name, file in names.items()}
    is_alone = sum(1 for _ in folder.all_files(levels=_ALL_LEVELS)) == len(files)
    return FoundCheckpoint(folder.path, files, is_unfinished, is_alone)


def files_of(path: str, files: dict[str, TreeFile]) -> FoundFiles:
    """Return files for a kind to read; the name of a single file is empty."""
    sizes = {name: file.size_bytes for name, file in files.items()}
    title = os.path.basename(os.path.abspath(path))
    return FoundFiles(path, sizes, lambda name: open(os.path.join(path, name) if name else path, "rb", 0), title=title)


def _is_checkpoint(path: str, files: dict[str, TreeFile]) -> bool:
    if not files:
        return False
    try:
        with files_of(path, files) as found:
            return kind_of(found) is not None
    except (CheckpointError, OSError):  # it has just gone, or may not be read
        return False
