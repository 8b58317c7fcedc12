"""Every error this library raises on purpose, in one tree.

::

    CheckpointError
    ├── ConfigError (ValueError)                  an option that cannot work
    ├── InvalidNameError (ValueError)             experiment name, checkpoint id, tag, description
    ├── InvalidMetricError (ValueError)           a metric that is neither number, text nor None
    ├── MetricConflictError (ValueError)          a metric that has another value already
    ├── UnknownMetricError (KeyError)             a metric no checkpoint has recorded
    ├── EvaluationError (RuntimeError)            an evaluation that failed or returned no metrics
    ├── UnsupportedStateError (TypeError)         state that could not be read back as it is
    ├── StateChangedError (RuntimeError)          state that changed before a background save had copied it
    ├── StateMismatchError (ValueError)           state that does not fit the model, optimizer or scheduler
    ├── RankError (RuntimeError)                  the ranks of a distributed training do not act together
    ├── CheckpointNotFoundError (FileNotFoundError)
    ├── ExperimentNotFoundError (FileNotFoundError)
    ├── NotAStoreError (ValueError)               a folder that holds no checkpoints of ours
    ├── NotACheckpointError (ValueError)          a file that is not a checkpoint of ours
    ├── CheckpointExistsError (FileExistsError)   a different checkpoint already has that name
    ├── ProtectedCheckpointError (PermissionError)
    ├── UnsafePayloadError (ValueError)           loading it would run code, or cost out of proportion
    ├── UnsupportedSchemaError (ValueError)       written by a newer version of this library
    ├── UnsupportedFormatError (ValueError)       no installed format reads or writes it
    ├── LaunchError (RuntimeError)                a launched command could not start, or did not get done
    ├── AlreadyRunningError (RuntimeError)        another launch of the experiment has not ended
    ├── RunUnavailableError (ConnectionError)     a live run that has ended, or does not answer in time
    ├── JobNotFoundError (LookupError)            no job of a server has that id
    ├── UploadNotFoundError (FileNotFoundError)   no upload of a server has that id
    ├── UploadConflictError (ValueError)          an upload is not as far, as whole or as named as it must be
    ├── ExportNotFoundError (FileNotFoundError)   no export of a server has that id, or no such file
    ├── LimitError (RuntimeError)                 as many are there as are allowed at a time
    ├── IdempotencyKeyError (ValueError)          a key that another request was sent with before
    ├── IntegrityError (ValueError)
    │   ├── CorruptCheckpointError                the payload differs from its digests, or is missing
    │   ├── CorruptManifestError                  the manifest differs from its own digest
    │   └── NoValidCheckpointError                nothing is left that verifies
    └── StoreError (OSError)
        ├── StorageFullError                      no space, quota or inodes left
        ├── StorePermissionError (PermissionError) read-only or forbidden
        ├── VersionConflictError                  someone else wrote the key first
        ├── NotDurableError                       written, but power loss may undo it
        └── StoreUnavailableError                 a transient failure: trying again may help

Each has the attributes ``checkpoint_id``, ``path``, ``expected``, ``got`` and ``hint`` (what to do next), as far as
they are known, and says them in its message. Errors can be pickled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ckpt_lib.core.damage import Damage
    from ckpt_lib.launch.report import LaunchReport

_DETAILS = ("checkpoint_id", "path", "expected", "got", "hint")


class CheckpointError(Exception):
    """Base of every error this library raises on purpose."""

    def __init__(
        self,
        message: str,
        *,
        checkpoint_id: str | None = None,
        path: str | None = None,
        expected: object = None,
        got: object = None,
        hint: str | None = None,
    ) -> None:
        self.message = message
        self.checkpoint_id = checkpoint_id
        self.path = path
        self.expected = expected
        self.got = got
        self.hint = hint
        super().__init__(self._text())

    def _text(self) -> str:
        parts = [self.message.rstrip(".")]
        if self.checkpoint_id and self.checkpoint_id not in self.message:
            parts.append(f"checkpoint {self.checkpoint_id}")
        if self.path and self.path not in self.message:
            parts.append(f"path {self.path}")
        if self.expected is not None:
            parts.append(f"expected {self.expected}")
        if self.got is not None:
            parts.append(f"got {self.got}")
        text = "; ".join(parts) + "."
        return f"{text} {self.hint}" if self.hint else text

    def __str__(self) -> str:
        # KeyError would print the repr of its argument, and OSError its errno.
        return self._text()

    def __reduce__(self) -> tuple[Any, ...]:
        details = {name: getattr(self, name) for name in _DETAILS}
        return _rebuild, (type(self), self.message, details, dict(self.__dict__))


def _rebuild(
    cls: type[CheckpointError], message: str, details: dict[str, Any], state: dict[str, Any]
) -> CheckpointError:
    error = cls(message, **details)
    error.__dict__.update(state)
    return error


class ConfigError(CheckpointError, ValueError):
    """An option or argument cannot work; nothing was written."""


class InvalidNameError(CheckpointError, ValueError):
    """An experiment name, checkpoint id, tag or description is not allowed; nothing was written."""


class InvalidMetricError(CheckpointError, ValueError):
    """A metric that is neither a number, a text nor ``None``; nothing was written."""


class MetricConflictError(CheckpointError, ValueError):
    """A metric to be added has another value already; nothing was written."""


class UnknownMetricError(CheckpointError, KeyError):
    """No checkpoint has recorded the requested metric."""


class EvaluationError(CheckpointError, RuntimeError):
    """The function that evaluates a checkpoint raised, or returned no metrics; nothing was recorded."""


class UnsupportedStateError(CheckpointError, TypeError):
    """State holds an object that could not be read back as it is; nothing was written.

    Where there are several, ``refusals`` has an error for each of their places, and the message tells of all.
    """

    refusals: Sequence[UnsupportedStateError] = ()


class StateChangedError(CheckpointError, RuntimeError):
    """State changed before a background save with ``overlap_copy`` had copied it; nothing was saved."""


class StateMismatchError(CheckpointError, ValueError):
    """The stored state does not fit the model, optimizer or scheduler; nothing was changed."""


class RankError(CheckpointError, RuntimeError):
    """The ranks of a distributed training do not act together: one made another call, failed, or has ended."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """No checkpoint has that id or tag, or is meant by that keyword."""


class ExperimentNotFoundError(CheckpointError, FileNotFoundError):
    """The store has no experiment of that name."""


class NotAStoreError(CheckpointError, ValueError):
    """The path is not a folder, is missing or empty, or holds nothing that this library wrote."""


class NotACheckpointError(CheckpointError, ValueError):
    """The file or folder is not a checkpoint with its manifest."""


class CheckpointExistsError(CheckpointError, FileExistsError):
    """The name is taken by something else, which was left unchanged."""


class ProtectedCheckpointError(CheckpointError, PermissionError):
    """The checkpoint is pinned, in use or intact, and was left unchanged."""


class UnsafePayloadError(CheckpointError, ValueError):
    """Loading the payload would run stored code or cost out of proportion; nothing was loaded."""


class UnsupportedSchemaError(CheckpointError, ValueError):
    """The manifest was written by a newer version of this library."""


class UnsupportedFormatError(CheckpointError, ValueError):
    """No installed format reads or writes this payload."""


class LaunchError(CheckpointError, RuntimeError):
    """A launched command could not be started, or ended before it was done. ``report`` tells of its attempts."""

    def __init__(self, message: str, *, report: LaunchReport | None = None, **details: Any) -> None:
        self.report = report
        super().__init__(message, **details)


class AlreadyRunningError(CheckpointError, RuntimeError):
    """A launch of the experiment is running on this machine, or its processes have not ended; nothing was started."""


class RunUnavailableError(CheckpointError, ConnectionError):
    """A live run has ended, or did not answer in time; what it was asked for was not done."""


class JobNotFoundError(CheckpointError, LookupError):
    """No job of the server has that id: there was none, or it was forgotten."""


class UploadNotFoundError(CheckpointError, FileNotFoundError):
    """No upload of the token has that id: it was imported or deleted, or has expired."""


class UploadConflictError(CheckpointError, ValueError):
    """An upload goes on at another byte, lacks bytes, differs from its digest, or has a name twice; nothing changed."""


class ExportNotFoundError(CheckpointError, FileNotFoundError):
    """No export of the server has that id, or none of its files that name."""


class LimitError(CheckpointError, RuntimeError):
    """As many are there as are allowed at a time; nothing was begun. ``retry_seconds`` says when to try again."""

    def __init__(self, message: str, *, retry_seconds: int = 5, **details: Any) -> None:
        self.retry_seconds = retry_seconds
        super().__init__(message, **details)


class IdempotencyKeyError(CheckpointError, ValueError):
    """The key of a request belongs to another request; nothing was started."""


class IntegrityError(CheckpointError, ValueError):
    """Base of errors about damage: stored bytes differ from what was saved."""


class CorruptCheckpointError(IntegrityError):
    """The payload is missing or differs from its digests. ``damages`` says where; nothing was loaded."""

    def __init__(self, message: str, *, damages: Sequence[Damage] = (), **details: Any) -> None:
        self.damages = tuple(damages)
        super().__init__(message, **details)


class CorruptManifestError(IntegrityError):
    """The manifest cannot be read or differs from its own digest."""


class NoValidCheckpointError(IntegrityError):
    """There are or were checkpoints, but none verifies."""


class StoreError(CheckpointError, OSError):
    """The store failed. Nothing has changed, unless the subclass says otherwise."""


class StorageFullError(StoreError):
    """The store has no space, quota or inodes left; the unfinished file was removed."""


class StorePermissionError(StoreError, PermissionError):
    """The store is read-only or refuses access."""


class VersionConflictError(StoreError):
    """Another version of the key is there than was expected: someone else was faster. Nothing was written."""


class NotDurableError(StoreError):
    """The write has happened and others see it, but the store could not make it durable: power loss may undo it."""


class StoreUnavailableError(StoreError):
    """The store did not answer; the same call may succeed later."""

    may_have_happened: bool = True
    """``False`` if nothing was changed for sure."""


def is_store_failure(error: BaseException) -> bool:
    """Return whether the store caused an error, rather than an argument or a stored checkpoint.

    That includes errors of the operating system, and a store whose folder is no longer a folder.
    """
    if isinstance(error, CheckpointError):
        return isinstance(error, StoreError | NotAStoreError)
    return isinstance(error, OSError)
