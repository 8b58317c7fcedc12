"""Files of a local folder that are being written and have no name yet."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from ckpt_lib.errors import CheckpointExistsError
from ckpt_lib.store.direct import Output
from ckpt_lib.store.directory import IS_POSIX, Directory, open_directory
from ckpt_lib.store.leases import Lease, leases
from ckpt_lib.store.os_errors import errors_of_writing, typed_errors
from ckpt_lib.store.reading import LocalReader
from ckpt_lib.stream.digests import Buffer
from ckpt_lib.stream.page_cache import forget

_NEW_FILE = os.O_RDWR | os.O_CREAT | os.O_EXCL


class LocalPendingFile:
    """A file under a name that goes with this process's lease; see :class:`ckpt_lib.store.base.PendingFile`."""

    def __init__(self, directory: Directory) -> None:
        self.directory = directory.again()
        self._lease: Lease | None = None
        self._descriptor: int | None = None
        self._name: str | None = None
        try:
            self._lease = leases.take(self.directory)
            name = self._lease.new_name()
            self._descriptor = self.directory.open(name, _NEW_FILE)
            self._name = name
        except BaseException:
            self._end()
            raise
        self._output = Output(self._descriptor)

    def write(self, data: Buffer) -> int:
        if self._descriptor is None:
            raise ValueError("the file was published or discarded")
        view = memoryview(data).cast("B")
        with typed_errors(self.directory.path):
            self._output.write(view)
        return len(view)

    def sync(self) -> None:
        assert self._descriptor is not None, "the file was published or discarded"
        with typed_errors(self.directory.path):
            self._output.sync()

    def open_read(self) -> BinaryIO:
        assert self._descriptor is not None, "the file was published or discarded"
        assert self._name is not None
        with typed_errors(self.directory.path):
            file = LocalReader(self.directory, self._name)
            forget(file.fileno(), 0, 0)  # what is durable is read from the disk again
        return cast(BinaryIO, file)

    def move(self, name: str) -> None:
        """Rename the file to where its name will be given from; raises ``OSError``."""
        if self._name is None:
            raise ValueError("the file was published or discarded")
        if not IS_POSIX:  # Windows renames no open file
            self._close()
        self.directory.rename(self._name, name)
        self._name = name

    @property
    def is_lost(self) -> bool:
        """Whether the lease ended under which it was begun, and the file with it."""
        return self._lease is None or not self._lease.is_there

    def published(self) -> None:
        """The file has a name that is not ours to remove."""
        self._name = None
        self._end()

    def discard(self) -> None:
        if self._name is not None:
            name, self._name = self._name, None
            if not IS_POSIX:
                self._close()
            with contextlib.suppress(OSError):
                if self._lease is not None and self._lease.is_ours:
                    self.directory.unlink(name)
        self._end()

    def _end(self) -> None:
        self._close()
        if self._lease is not None:
            lease, self._lease = self._lease, None
            leases.give_back(lease)
        self.directory.close()

    def _close(self) -> None:
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            with contextlib.suppress(OSError):
                os.close(descriptor)


class _Writer:
    """Appends to a file; what the operating system raises becomes an error of this library."""

    def __init__(self, path: Path, output: Output) -> None:
        self._path = path
        self._output = output

    def write(self, data: Buffer) -> int:
        view = memoryview(data).cast("B")
        with typed_errors(self._path):
            self._output.write(view)
        return len(view)


@contextmanager
def new_file(path: Path) -> Iterator[_Writer]:
    """Write a file in a folder that is not ours, where neither a lease nor a lock should be.

    It gets its name, durably, when the context has come to its end. Until then, and after an error, there is none;
    killed on the way, a file ``.ckpt-export-*`` is left. Raises :class:`~ckpt_lib.errors.CheckpointExistsError` when
    the name is taken.
    """
    staged = f".ckpt-export-{secrets.token_hex(8)}"
    with errors_of_writing(path.parent):
        directory = open_directory(path.parent, (), create=True)
    with directory:
        with errors_of_writing(path.parent):
            descriptor = directory.open(staged, _NEW_FILE)
        try:
            try:
                output = Output(descriptor)
                yield _Writer(path, output)
                with typed_errors(path):
                    output.sync()
            finally:
                os.close(descriptor)
            with errors_of_writing(path.parent):
                _give_free_name(directory, staged, path)
                directory.sync()
        finally:
            with contextlib.suppress(OSError):
                directory.unlink(staged)


def _give_free_name(directory: Directory, staged: str, path: Path) -> None:
    taken = CheckpointExistsError("another file has that name there", path=str(path), hint="It was left as it is.")
    try:
        directory.link(staged, path.name)
    except FileExistsError:
        raise taken from None
    except OSError:  # no hard links here
        if directory.exists(path.name):
            raise taken from None
        directory.rename(staged, path.name)


def write_all(directory: Directory, name: str, content: bytes, *, durable: bool) -> None:
    """Write a small file at once; with ``durable``, its bytes survive power loss from then on. Raises ``OSError``."""
    descriptor = directory.open(name, _NEW_FILE)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(descriptor, view) :]
        found = os.fstat(descriptor).st_size
        if found != len(content):
            raise OSError(errno.EIO, f"the file system kept {found} of {len(content)} bytes")
        if durable:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
