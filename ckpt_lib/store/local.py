"""The local store: a folder of a POSIX or Windows file system.

Files are written under a temporary name, made durable and only then renamed, so that a name either stands for a whole
file or for none. The owner of a temporary file holds an operating-system lock on it; the kernel drops that lock when
the owner dies, however it dies, which is how leftovers are told from files being written.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from filelock import FileLock, Timeout
from fsspec.implementations.local import LocalFileSystem

from ckpt_lib.errors import (
    CheckpointExistsError,
    NotAStoreError,
    StorageFullError,
    StoreError,
    StorePermissionError,
    StoreUnavailableError,
)
from ckpt_lib.store.base import Entry
from ckpt_lib.store.direct import Output
from ckpt_lib.store.patching import overwrite
from ckpt_lib.stream.digests import Buffer

LOCK_NAME = ".ckpt.lock"
LOCK_TIMEOUT_SECONDS = 60.0
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.ckpt-tmp")


def _codes(*names: str) -> frozenset[int]:
    """The numbers of these errors, as far as this platform knows them."""
    return frozenset(getattr(errno, name) for name in names if hasattr(errno, name))


_FULL = _codes("ENOSPC", "EDQUOT", "EFBIG")
_FORBIDDEN = _codes("EACCES", "EPERM", "EROFS")
_TRANSIENT = _codes(
    *("EAGAIN", "EBUSY", "EINTR", "EMFILE", "ENFILE", "ENOLCK", "ESTALE", "ETIMEDOUT"),
    *("ECONNRESET", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH"),
)


class LocalStore:
    """A store in a local folder, which is created by the first write."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._root = Path(LocalFileSystem._strip_protocol(url))

    def __repr__(self) -> str:
        return f"LocalStore({self.url!r})"

    def _path(self, path: str) -> Path:
        return self._root.joinpath(*path.split("/")) if path else self._root

    def location(self, path: str) -> str:
        return str(self._path(path))

    def entries(self, folder: str) -> list[Entry]:
        target = self._path(folder)
        try:
            with _typed_errors(target), os.scandir(target) as found:
                entries = [entry for item in found if (entry := _entry(item.name, _lstat(item))) is not None]
        except FileNotFoundError:
            return []
        return sorted(entries, key=lambda entry: entry.name)

    def stat(self, path: str) -> Entry | None:
        target = self._path(path)
        try:
            with _typed_errors(target):
                entry = _entry(target.name, os.lstat(target))
        except FileNotFoundError:
            return None
        return entry if entry and not entry.is_folder else None

    def open_read(self, path: str) -> BinaryIO:
        target = self._path(path)
        with _typed_errors(target):
            return cast(BinaryIO, _Reader(target))

    def open_write(self, path: str, *, replace: bool = False) -> LocalPendingFile:
        target = self._path(path)
        with _typed_errors(target):
            _make_folder(target.parent)
            return LocalPendingFile(target, replace=replace)

    def patch(self, path: str, pieces: Iterable[tuple[int, Buffer]], *, size_bytes: int) -> None:
        target = self._path(path)
        with _typed_errors(target):
            overwrite(target, pieces, size_bytes)

    def delete(self, path: str) -> None:
        target = self._path(path)
        with _typed_errors(target), contextlib.suppress(FileNotFoundError):
            target.unlink()

    def sync(self, folder: str) -> None:
        with _typed_errors(self._path(folder)):
            _sync_folder(self._path(folder))

    def sweep(self, folder: str) -> list[str]:
        swept = []
        for entry in self.entries(folder):
            if _TEMPORARY.fullmatch(entry.name) and not entry.is_folder:
                temporary = self._path(folder) / entry.name
                with _typed_errors(temporary):
                    if _remove_if_dead(temporary):
                        swept.append(entry.name)
        return swept

    @contextmanager
    def lock(self, folder: str) -> Iterator[None]:
        target = self._path(folder)
        with _typed_errors(target):
            _make_folder(target)
            lock = FileLock(target / LOCK_NAME, timeout=LOCK_TIMEOUT_SECONDS, poll_interval=0.005)
            try:
                lock.acquire()
            except Timeout as error:
                raise StoreUnavailableError(
                    f"another process has held the folder's lock for {LOCK_TIMEOUT_SECONDS:.0f} s",
                    path=str(target),
                    hint="The lock of a dead process is free at once: look for one that hangs.",
                ) from error
        try:
            yield
        finally:
            lock.release()


class _Reader(io.FileIO):
    """An unbuffered file whose failures are those of the store."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._path = path

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]
        with _typed_errors(self._path):
            return super().readinto(buffer) or 0

    def read(self, size: int | None = -1, /) -> bytes:
        with _typed_errors(self._path):
            return super().read(-1 if size is None else size) or b""

    def readall(self) -> bytes:
        with _typed_errors(self._path):
            return super().readall() or b""


class LocalPendingFile:
    """A file under a temporary name in the target's own folder, locked by this process."""

    def __init__(self, target: Path, *, replace: bool) -> None:
        self._target = target
        self._replace = replace
        self._temporary = target.with_name(f".{target.name}.ckpt-tmp")
        self._descriptor: int | None = _claim(self._temporary, target, replace=replace)
        self._output = Output(self._descriptor)
        self._published = False
        if not replace and os.path.lexists(target):
            self.discard()
            raise _taken(target)

    def write(self, data: Buffer) -> int:
        if self._descriptor is None:
            raise ValueError("the file was published or discarded")
        view = memoryview(data).cast("B")
        with _typed_errors(self._target):
            self._output.write(view)
        return len(view)

    def sync(self) -> None:
        assert self._descriptor is not None, "the file was published or discarded"
        with _typed_errors(self._target):
            self._output.sync()

    def publish(self) -> None:
        with _typed_errors(self._target):
            if os.name == "nt":  # it renames no open file; the folder's lock keeps sweepers out until that is done
                self._close()
            try:
                if self._replace:
                    os.replace(self._temporary, self._target)
                else:
                    _rename_exclusively(self._temporary, self._target)
            except FileNotFoundError as error:
                raise StoreError("someone removed the unfinished file", path=str(self._target)) from error
        self._published = True
        # Only now: a writer who wants the same name takes over any temporary file that no one holds.
        with contextlib.suppress(OSError):
            self._close()

    def discard(self) -> None:
        if self._published:
            return
        # POSIX unlinks open files, and the lock then covers the unlinking; Windows must close first.
        steps = (self._close, self._temporary.unlink) if os.name == "nt" else (self._temporary.unlink, self._close)
        for step in steps:
            with contextlib.suppress(OSError):
                step()

    def _close(self) -> None:
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            os.close(descriptor)


def _claim(temporary: Path, target: Path, *, replace: bool) -> int:
    """Create ``temporary`` and lock it, taking over from a dead owner; return its descriptor."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    while True:
        try:
            descriptor = os.open(temporary, flags, 0o666)
        except FileExistsError:
            if not _remove_if_dead(temporary):
                raise _busy(target) if replace else _taken(target) from None
            continue
        try:
            if _lock(descriptor) and _is_named(descriptor, temporary):
                return descriptor
        except BaseException:
            temporary.unlink(missing_ok=True)
            os.close(descriptor)
            raise
        # A sweeper found it in the instant between creation and lock, and has removed it.
        os.close(descriptor)


def _remove_if_dead(temporary: Path) -> bool:
    """Remove a temporary file that no living process holds; return whether it is gone."""
    try:
        descriptor = os.open(temporary, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
    except FileNotFoundError:
        return True
    try:
        if os.name == "nt":
            os.close(descriptor)
            descriptor = -1
        elif not (_lock(descriptor) and _is_named(descriptor, temporary)):
            return False
        temporary.unlink()
    except PermissionError:
        if os.name == "nt":  # a living owner has it open
            return False
        raise
    finally:
        if descriptor >= 0:
            os.close(descriptor)
    return True


if sys.platform == "win32":

    def _lock(_descriptor: int) -> bool:
        """Nothing to do: Windows removes no file that a process has open, which is the lock."""
        return True

else:
    import fcntl

    def _lock(descriptor: int) -> bool:
        """Lock the open file for this process; ``False`` when another holds it."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def _is_named(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one at ``path``."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def _rename_exclusively(source: Path, target: Path) -> None:
    if os.name == "nt":
        source.rename(target)  # refuses an existing target, as POSIX does not
        return
    try:
        os.link(source, target, follow_symlinks=False)
    except FileExistsError:
        raise _taken(target) from None
    except OSError as error:
        if error.errno not in {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}:
            raise
        # No hard links here (FAT, some network file systems): the folder's lock keeps our own writers apart.
        if os.path.lexists(target):
            raise _taken(target) from None
        source.rename(target)
        return
    with contextlib.suppress(OSError):  # published already; what cannot be removed now is swept later
        source.unlink()


def _busy(target: Path) -> StoreUnavailableError:
    return StoreUnavailableError(
        f"{target.name} is being written by another process", path=str(target), hint="Try again when that is done."
    )


def _taken(target: Path) -> CheckpointExistsError:
    return CheckpointExistsError(f"{target.name} exists or is being written", path=str(target))


def _lstat(item: os.DirEntry[str]) -> os.stat_result | None:
    try:
        return item.stat(follow_symlinks=False)
    except FileNotFoundError:
        return None


def _entry(name: str, found: os.stat_result | None) -> Entry | None:
    """The entry of a regular file or folder; links and devices are never ours, so they have none."""
    if found is None or not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        return None
    # The change time cannot be set back as the modification time can.
    version = f"{found.st_mtime_ns:x}-{found.st_ctime_ns:x}-{found.st_size:x}-{found.st_ino:x}"
    return Entry(name, found.st_size, version, stat.S_ISDIR(found.st_mode))


def _make_folder(folder: Path) -> None:
    """Create ``folder`` and what is missing above it, durably."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    with contextlib.suppress(FileExistsError):
        folder.mkdir()
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":  # Windows opens no folders; it makes names durable with the files
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _typed_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system raises into errors of this library; a missing file stays as it is."""
    try:
        yield
    except (FileNotFoundError, CheckpointExistsError, StoreError):
        raise
    except NotADirectoryError as error:
        raise NotAStoreError(
            "a file is where a folder should be", path=str(path), hint="Choose another checkpoint_dir."
        ) from error
    except OSError as error:
        raise _store_error(error, str(path)) from error


def _store_error(error: OSError, path: str) -> StoreError:
    reason = error.strerror or str(error)
    if error.errno in _FULL:
        return StorageFullError(
            f"the store is full: {reason}", path=path, hint="Free some space: `ckpt cleanup` shows what may go."
        )
    if error.errno in _FORBIDDEN:
        return StorePermissionError(f"the store refuses access: {reason}", path=path)
    if error.errno in _TRANSIENT:
        return StoreUnavailableError(f"the store did not answer: {reason}", path=path)
    return StoreError(f"the store failed: {reason}", path=path)
