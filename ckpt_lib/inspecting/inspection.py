"""``inspect_checkpoint``: tells what a checkpoint holds, whoever wrote it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ckpt_lib.errors import (
    CheckpointError,
    IntegrityError,
    NotACheckpointError,
    NotAStoreError,
    StoreError,
    UnsafePayloadError,
    UnsupportedSchemaError,
)
from ckpt_lib.inspecting.results import Inspection

if TYPE_CHECKING:
    from ckpt_lib.foreign import FoundFiles
    from ckpt_lib.stream import Progress

_UNKNOWN = "no program is known that writes such checkpoints"
_SEVERAL = "If the folder holds several, `ckpt import --tree` and `ckpt advise` look into it."


def inspect_checkpoint(
    path: str | os.PathLike[str], *, stats: bool = False, progress: Progress | None = None
) -> Inspection:
    """Tell what the checkpoint at a path or URL holds, ours or another program's. No code of it runs.

    Without ``stats``, no tensor is read. With it, each tensor is read once, in blocks, and ``progress`` is called with
    the bytes done since its last call. Of a checkpoint in a store or an export, whose manifest, payload or folder may
    be named, the answer holds what its manifest says; what was imported in place is named by its manifest for that.

    What is damaged, would run code to be told, or is no checkpoint is an :class:`Inspection` with a ``problem`` and
    what can still be said. Raises :class:`~ckpt_lib.errors.NotACheckpointError` where there is nothing at all, and the
    errors of the store. Nothing is written, so a crash leaves nothing.
    """
    from ckpt_lib.experiment.at_path import manifest_at
    from ckpt_lib.foreign import found_files
    from ckpt_lib.inspecting.stored import inspect_stored
    from ckpt_lib.inspecting.summary import summary_of_unreadable
    from ckpt_lib.store.registry import url_text

    findings: tuple[str, ...] = ()
    try:
        if stored := manifest_at(url_text(path)):
            return inspect_stored(*stored, stats=stats, progress=progress)
    except NotAStoreError:  # something else is where its folder should be
        pass
    except (NotACheckpointError, IntegrityError, UnsupportedSchemaError) as error:
        with found_files(path) as files:
            if not files.is_one_file or files.title.endswith(".json"):
                return summary_of_unreadable(files, error, needs=("repair",))
        findings = (f"Its manifest does not help: {error.message}.",)
    with found_files(path, headers_only=not stats) as files:
        return _inspect_files(files, findings, stats=stats, progress=progress)


def _inspect_files(files: FoundFiles, findings: Sequence[str], *, stats: bool, progress: Progress | None) -> Inspection:
    """Inspect files of any program, by what their kind tells; ``findings`` are added to those about them."""
    from ckpt_lib.foreign.opening import kind_of
    from ckpt_lib.inspecting.summary import summary_of, summary_of_unreadable

    try:
        kind = kind_of(files)
        if kind is None:
            problem = _UNKNOWN if files.is_one_file else f"{_UNKNOWN}. {_SEVERAL}"
            return summary_of_unreadable(files, problem, needs=("program",))
        return summary_of(kind.open(files), stats=stats, progress=progress, more_findings=findings)
    except StoreError:
        raise
    except UnsafePayloadError as error:
        return summary_of_unreadable(files, error, needs=("trust_pickle",))
    except CheckpointError as error:
        return summary_of_unreadable(files, error, needs=("repair",))
