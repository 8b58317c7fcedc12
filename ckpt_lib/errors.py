"""Every error this library raises on purpose, in one tree.

::

    CheckpointError
    ├── ConfigError (ValueError)                  an option that cannot work
    ├── InvalidNameError (ValueError)             experiment name, checkpoint id, tag, description
    ├── InvalidMetricError (ValueError)           a metric that is neither number, text nor None
    ├── UnknownMetricError (KeyError)             a metric no checkpoint has recorded
    ├── UnsupportedStateError (TypeError)         state that plain ``torch.load`` could not read back
    ├── StateChangedError (RuntimeError)          state that changed before a background save had copied it
    ├── StateMismatchError (ValueError)           state that does not fit the model, optimizer or scheduler
    ├── CheckpointNotFoundError (FileNotFoundError)
    ├── ExperimentNotFoundError (FileNotFoundError)
    ├── NotAStoreError (ValueError)               a folder that holds no checkpoints of ours
    ├── NotACheckpointError (ValueError)          a file that is not a checkpoint of ours
    ├── CheckpointExistsError (FileExistsError)   a different checkpoint already has that name
    ├── ProtectedCheckpointError (PermissionError)
    ├── UnsafePayloadError (ValueError)           loading it would run code, or cost out of proportion
    ├── UnsupportedSchemaError (ValueError)       written by a newer version of this library
    ├── UnsupportedFormatError (ValueError)       no installed format reads or writes it
    ├── IntegrityError (ValueError)
    │   ├── CorruptCheckpointError                the payload differs from its digests, or is missing
    │   ├── CorruptManifestError                  the manifest differs from its own digest
    │   └── NoValidCheckpointError                nothing is left that verifies
    └── StoreError (OSError)
        ├── StorageFullError                      no space, quota or inodes left
        ├── StorePermissionError (PermissionError) read-only or forbidden
        └── StoreUnavailableError                 a transient failure: trying again may help
            └── LeaseLostError                    this process stood still too long, and others went on

Each carries what is known of ``checkpoint_id``, ``path``, ``expected``, ``got`` and ``hint`` (what to do
next), both as attributes and in its message, and survives pickling.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ckpt_lib.core.damage import Damage

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
        # KeyError would print the repr of its argument, OSError its errno: the message is ours to print.
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
    """A configuration that cannot work; nothing was written."""


class InvalidNameError(CheckpointError, ValueError):
    """An experiment name, checkpoint id, tag or description outside its grammar; nothing was written."""


class InvalidMetricError(CheckpointError, ValueError):
    """A metric that is neither a number, a text nor ``None``; nothing was written."""


class UnknownMetricError(CheckpointError, KeyError):
    """A metric was asked for that none of the checkpoints has recorded."""


class UnsupportedStateError(CheckpointError, TypeError):
    """State holds an object that ``torch.load(weights_only=True)`` could not read back; nothing was written."""


class StateChangedError(CheckpointError, RuntimeError):
    """State changed before a background save with ``overlap_copy`` had copied it; nothing was saved."""


class StateMismatchError(CheckpointError, ValueError):
    """The stored state does not fit what it was to be restored into; nothing was changed."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """No checkpoint answers to that id, tag or keyword."""


class ExperimentNotFoundError(CheckpointError, FileNotFoundError):
    """The store has no experiment of that name."""


class NotAStoreError(CheckpointError, ValueError):
    """The path is no folder, is missing or empty, or holds nothing this library wrote."""


class NotACheckpointError(CheckpointError, ValueError):
    """The file or folder is not a checkpoint with its manifest."""


class CheckpointExistsError(CheckpointError, FileExistsError):
    """Something else already has that name; it was left as it was."""


class ProtectedCheckpointError(CheckpointError, PermissionError):
    """The checkpoint is pinned, in use or intact; it was left as it is."""


class UnsafePayloadError(CheckpointError, ValueError):
    """Reading the payload would run code stored in it, or cost out of proportion; nothing of it was read."""


class UnsupportedSchemaError(CheckpointError, ValueError):
    """The manifest was written by a newer version of this library."""


class UnsupportedFormatError(CheckpointError, ValueError):
    """No installed format reads or writes this payload."""


class IntegrityError(CheckpointError, ValueError):
    """Base of everything that says: these bytes are not the bytes that were saved."""


class CorruptCheckpointError(IntegrityError):
    """The payload is missing or differs from its digests. ``damages`` says where; nothing was handed out."""

    def __init__(self, message: str, *, damages: Sequence[Damage] = (), **details: Any) -> None:
        self.damages = tuple(damages)
        super().__init__(message, **details)


class CorruptManifestError(IntegrityError):
    """The manifest cannot be read or differs from its own digest."""


class NoValidCheckpointError(IntegrityError):
    """There were checkpoints, but not one is left that verifies."""


class StoreError(CheckpointError, OSError):
    """The store failed; what was there before is unchanged."""


class StorageFullError(StoreError):
    """The store has no space, quota or inodes left; the unfinished file was removed."""


class StorePermissionError(StoreError, PermissionError):
    """The store is read-only or refuses access."""


class StoreUnavailableError(StoreError):
    """The store did not answer; the same call may succeed later."""


class LeaseLostError(StoreUnavailableError):
    """This process stood still for longer than its lease, so others went on; it changed nothing since."""


def is_store_failure(error: BaseException) -> bool:
    """Whether the store is to blame, and neither what was passed nor what is stored in it.

    Its own errors, those of the operating system that came through untyped, and a store whose folder is none any more.
    """
    if isinstance(error, CheckpointError):
        return isinstance(error, StoreError | NotAStoreError)
    return isinstance(error, OSError)
