"""What the operating system raises, as errors of this library."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ckpt_lib.errors import (
    CheckpointError,
    NotAStoreError,
    StorageFullError,
    StoreError,
    StorePermissionError,
    StoreUnavailableError,
)


def _codes(*names: str) -> frozenset[int]:
    """The numbers of these errors, as far as this platform knows them."""
    return frozenset(getattr(errno, name) for name in names if hasattr(errno, name))


_FULL = _codes("ENOSPC", "EDQUOT")
_TOO_LARGE = _codes("EFBIG")
_FORBIDDEN = _codes("EACCES", "EPERM", "EROFS")
_TRANSIENT = _codes(
    *("EAGAIN", "EBUSY", "EINTR", "EMFILE", "ENFILE", "ENOLCK", "ESTALE", "ETIMEDOUT"),
    *("ECONNRESET", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH", "ENOTCONN"),
)


@contextmanager
def typed_errors(path: Path | str) -> Iterator[None]:
    """Turn what the operating system raises into errors of this library; a missing file stays as it is."""
    try:
        yield
    except (FileNotFoundError, CheckpointError):
        raise
    except NotADirectoryError as error:
        raise NotAStoreError(
            "a file or a link is where a folder should be", path=str(path), hint="Choose another checkpoint_dir."
        ) from error
    except OSError as error:
        raise _store_error(error, str(path)) from error


@contextmanager
def errors_of_writing(path: Path | str) -> Iterator[None]:
    """Do as :func:`typed_errors`, where the folder is made if it is missing: it may be taken away at any moment."""
    try:
        with typed_errors(path):
            yield
    except FileNotFoundError as error:
        raise StoreUnavailableError(
            "the folder is not there: it, or one above it, was moved or could not be made",
            path=str(path),
            hint="Try again.",
        ) from error


def _store_error(error: OSError, path: str) -> StoreError:
    reason = error.strerror or str(error)
    if error.errno in _FULL:
        return StorageFullError(
            f"the store is full: {reason}", path=path, hint="Free some space: `ckpt cleanup` shows what may go."
        )
    if error.errno in _TOO_LARGE:
        return StoreError(
            f"the file is larger than is allowed: {reason}",
            path=path,
            hint="Raise the limit of the process, `ulimit -f`, or use a file system that takes larger files.",
        )
    if error.errno in _FORBIDDEN:
        return StorePermissionError(
            f"the store refuses access: {reason}",
            path=path,
            hint="Give this user access to the folder, or choose another one.",
        )
    if error.errno in _TRANSIENT:
        return StoreUnavailableError(
            f"the store did not answer: {reason}",
            path=path,
            hint="Try again; if it fails again, check the disk or its network.",
        )
    return StoreError(f"the store failed: {reason}", path=path, hint="Check the disk and the system's log.")
