"""A folder of this machine with all that is in it, and which of that are checkpoints of some program."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from ckpt_lib.core.names import is_checkpoint_id
from ckpt_lib.errors import NotACheckpointError
from ckpt_lib.foreign.sources import FoundFiles
from ckpt_lib.foreign.trees import CERTAIN_SUFFIXES, POSSIBLE_SUFFIXES, Folder, candidates_in, is_known
from ckpt_lib.store.identity import IDENTITY_NAME

MAX_TREE_FILES = 1_000_000
_LARGE_BYTES = 2**20
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
class Tree:
    """All folders and files below a root. Links are not followed: what they point to is noted."""

    root: str
    top: Folder
    files: dict[str, TreeFile] = field(default_factory=dict)
    """All files, by path below the root."""
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
    waiting = [tree.top]
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
        if len(tree.files) > MAX_TREE_FILES:
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
        folder.files[item.name] = found.st_size
        tree.files[folder.below(item.name)] = TreeFile(found.st_size, found.st_mtime, inode, found.st_nlink)
    return None


def checkpoints_in(tree: Tree) -> Iterator[FoundCheckpoint]:
    """Yield the checkpoints of a tree. A folder that is one counts as one, and nothing in it by itself."""

    def open_files(path: str, sizes_bytes: Mapping[str, int]) -> FoundFiles:
        return files_of(tree.full(path), sizes_bytes)

    for found in candidates_in(tree.top, open_files, is_whole=_is_unfinished):
        is_unfinished = bool(found.path) and _is_unfinished(found.path)
        if found.is_folder or is_unfinished or _is_checkpoint(tree, found.path):
            files = {name: tree.files[name] for name in found.names}
            yield FoundCheckpoint(found.path, files, is_unfinished, found.is_alone)


def _is_checkpoint(tree: Tree, path: str) -> bool:
    """Tell whether a file is a checkpoint, or was one. Of files with another name, only large ones are looked into."""
    if path.endswith(CERTAIN_SUFFIXES):
        return True
    size_bytes = tree.files[path].size_bytes
    may_be_one = size_bytes >= _LARGE_BYTES or path.endswith(POSSIBLE_SUFFIXES)
    return may_be_one and is_known(lambda: files_of(tree.full(path), {"": size_bytes}))


def _is_unfinished(path: str) -> bool:
    name = path.rpartition("/")[2]
    return _UNFINISHED.fullmatch(name) is not None and _OF_CHECKPOINTS.fullmatch(name) is not None


def files_of(path: str, sizes_bytes: Mapping[str, int]) -> FoundFiles:
    """Return files for a kind to read; the name of a single file is empty."""
    title = os.path.basename(os.path.abspath(path))
    return FoundFiles(
        path, sizes_bytes, lambda name: open(os.path.join(path, name) if name else path, "rb", 0), title=title
    )
