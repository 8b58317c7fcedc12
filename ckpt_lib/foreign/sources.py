"""The files of a checkpoint that may be of any program: one file, or all files of a folder."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import BinaryIO, Self

from ckpt_lib.core.manifest import FileEntry
from ckpt_lib.core.wording import shown
from ckpt_lib.errors import CorruptCheckpointError, NotACheckpointError
from ckpt_lib.store import open_store
from ckpt_lib.store.checks import OWN_FOLDER
from ckpt_lib.store.file import StoredFile
from ckpt_lib.store.registry import scheme_of, url_text
from ckpt_lib.stream import VerifiedFile
from ckpt_lib.stream.chunks import local_size_bytes
from ckpt_lib.stream.mapping import FetchedFile, Memory

MAX_FILES = 20_000
"""How many files a folder may hold. A checkpoint of more is none, or the wrong folder was named."""
MAX_LEVELS = 6
"""How deep below the folder its files may lie."""


class _FoundFile(VerifiedFile):
    """A file that may have no digests. Then, in a store without descriptors, only what is asked for is read."""

    def _open_memory(self, entry: FileEntry | None) -> Memory:
        is_read_whole = entry is not None or local_size_bytes(self._source) is not None
        return super()._open_memory(entry) if is_read_whole else FetchedFile(self._source)


class FoundFiles:
    """The files at a path or URL, which are opened when they are asked for. Used as a context, which closes them.

    It is a :class:`~ckpt_lib.formats.PayloadSource`: of one file, the name is empty. Nothing is compared with a digest.
    Memory that tensors share outlives the context.
    """

    def __init__(
        self,
        path: str,
        sizes_bytes: Mapping[str, int],
        open_file: Callable[[str], BinaryIO],
        *,
        title: str,
        modified_seconds: Mapping[str, float] | None = None,
    ) -> None:
        self.path = path
        """The path or URL, as it was given."""
        self.title = title
        """The name of the file or folder, without the path to it."""
        self.sizes_bytes = sizes_bytes
        """The size of each file by its name below the folder, such as ``model/weights.bin``."""
        self.modified_seconds = modified_seconds or {}
        """When each file was last written, in seconds since 1970, where that is known."""
        self._open_file = open_file
        self._entries: Mapping[str, FileEntry] = {}
        self._opened: dict[str, VerifiedFile] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def is_one_file(self) -> bool:
        """Tell whether a file was named, and no folder."""
        return tuple(self.sizes_bytes) == ("",)

    @property
    def names(self) -> Sequence[str]:
        return tuple(self.sizes_bytes)

    @property
    def size_bytes(self) -> int:
        """The size of all files together."""
        return sum(self.sizes_bytes.values())

    def open(self, name: str = "") -> VerifiedFile:
        """Return a file at its start, the same one each time.

        Raises :class:`~ckpt_lib.errors.CorruptCheckpointError` for a name that is not there, and the errors of the
        store or the operating system.
        """
        if name not in self.sizes_bytes:
            raise CorruptCheckpointError(f"there is no file {shown(name)} in it", path=self.path)
        if name not in self._opened:
            self._opened[name] = self._stack.enter_context(_FoundFile(self._open_file(name), self._entries.get(name)))
        file = self._opened[name]
        file.seek(0)
        return file

    def verified(self, entries: Mapping[str, FileEntry]) -> FoundFiles:
        """Return the same files, each byte of which is compared with the digests of its entry before it is used."""
        same = FoundFiles(
            self.path, self.sizes_bytes, self._open_file, title=self.title, modified_seconds=self.modified_seconds
        )
        same._entries = entries
        return same

    def where(self, wanted: Callable[[str], bool]) -> FoundFiles:
        """Return those of the files whose names are ``wanted``, to open them there. Closing this one closes that."""
        sizes = {name: size for name, size in self.sizes_bytes.items() if wanted(name)}
        times = {name: time for name, time in self.modified_seconds.items() if name in sizes}
        inner = FoundFiles(self.path, sizes, self._open_file, title=self.title, modified_seconds=times)
        return self._stack.enter_context(inner)

    def start(self, name: str = "", size_bytes: int = 64) -> bytes:
        """Return the first bytes of a file."""
        file = self.open(name)
        with file.view(0, min(size_bytes, file.size_bytes)) as view:
            return bytes(view)

    def below(self, folder: str) -> FoundFiles:
        """Return the files of a folder in this one, to open them there. Closing this one closes that."""
        start = f"{folder}/"
        sizes = {name.removeprefix(start): size for name, size in self.sizes_bytes.items() if name.startswith(start)}
        times = {name: self.modified_seconds[start + name] for name in sizes if start + name in self.modified_seconds}
        inner = FoundFiles(
            f"{self.path}/{folder}",
            sizes,
            lambda name: self._open_file(start + name),
            title=folder.rpartition("/")[2],
            modified_seconds=times,
        )
        inner._entries = {name: self._entries[start + name] for name in sizes if start + name in self._entries}
        return self._stack.enter_context(inner)


def found_files(path: str | os.PathLike[str], *, headers_only: bool = False) -> FoundFiles:
    """Return the file at a path or URL, or the files in the folder there.

    ``headers_only`` asks the system not to read ahead: a page of a large file is all that is wanted here and there.
    Links are followed in folders of this machine, as caches of models need them to be. Raises
    :class:`~ckpt_lib.errors.NotACheckpointError` where there is nothing, or something else than files and folders.
    """
    text = url_text(path)
    open_file = _open_for_headers if headers_only else _open_local
    return _local(text.removeprefix("file://"), open_file) if scheme_of(text) == "file" else _stored(text)


def _local(path: str, open_file: Callable[[str], BinaryIO]) -> FoundFiles:
    title = os.path.basename(os.path.abspath(path))
    if os.path.isdir(path):
        sizes, times = _sizes_and_times(_local_files(path))
        return FoundFiles(
            path, sizes, lambda name: open_file(os.path.join(path, name)), title=title, modified_seconds=times
        )
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise NotACheckpointError("there is nothing at this path", path=path) from None
    if not stat.S_ISREG(found.st_mode):
        raise NotACheckpointError(
            "a device, a pipe or a socket is at this path", path=path, expected="a file or folder"
        )
    sizes, times = _sizes_and_times({"": found})
    return FoundFiles(path, sizes, lambda _: open_file(path), title=title, modified_seconds=times)


def _sizes_and_times(found: Mapping[str, os.stat_result]) -> tuple[dict[str, int], dict[str, float]]:
    return (
        {name: item.st_size for name, item in found.items()},
        {name: item.st_mtime for name, item in found.items()},
    )


def _local_files(path: str) -> dict[str, os.stat_result]:
    """Return what is known of each file in a folder of this machine by its name below it, in order."""
    files: dict[str, os.stat_result] = {}
    above: dict[str, tuple[tuple[int, int], ...]] = {}  # which folders are on the way to each, to end circles of links
    for folder, folders, names in os.walk(path, followlinks=True):
        above[folder] = (*above.get(os.path.dirname(folder), ()), _identity(folder))
        below = os.path.relpath(folder, path)
        parts = [] if below == os.curdir else below.split(os.sep)
        if len(parts) >= MAX_LEVELS:
            folders.clear()
        folders[:] = sorted(
            name
            for name in folders
            if name != OWN_FOLDER and _identity(os.path.join(folder, name)) not in above[folder]
        )
        for name in names:
            found = _stat(os.path.join(folder, name))
            if found is not None and stat.S_ISREG(found.st_mode):
                files["/".join((*parts, name))] = found
        if len(files) + len(above) > MAX_FILES:
            raise _too_many(path)
    return dict(sorted(files.items()))


def _identity(path: str) -> tuple[int, int]:
    found = _stat(path)
    return (found.st_dev, found.st_ino) if found else (0, 0)


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except OSError:  # a link to nothing, or a file that has just gone
        return None


def _open_local(path: str) -> BinaryIO:
    return open(path, "rb", buffering=0)


def _open_for_headers(path: str) -> BinaryIO:
    file = _open_local(path)
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):  # it is only advice
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
    return file


def _stored(url: str) -> FoundFiles:
    """Return what lies at a URL. A store is a folder, so a file is found in the folder that it lies in."""
    url = url.rstrip("/")
    parent, _, title = url.rpartition("/")
    if "/" in url.partition("://")[2]:
        folder = open_store(parent)
        if (found := folder.stat(title)) is not None:
            return FoundFiles(
                url,
                {"": found.size_bytes},
                lambda _: StoredFile(folder.open_read(title)),
                title=title,
                modified_seconds={"": found.modified_seconds},
            )
    store = open_store(url)
    entries = store.list("", recursive=True)
    sizes = {entry.key: entry.size_bytes for entry in entries}
    if len(sizes) > MAX_FILES:
        raise _too_many(url)
    if not sizes:
        raise NotACheckpointError("there is nothing at this URL", path=url)
    return FoundFiles(
        url,
        sizes,
        lambda name: StoredFile(store.open_read(name)),
        title=title,
        modified_seconds={entry.key: entry.modified_seconds for entry in entries},
    )


def _too_many(path: str) -> NotACheckpointError:
    return NotACheckpointError(
        f"more than {MAX_FILES} files and folders are in it",
        path=path,
        hint="Name the folder of one checkpoint.",
    )
