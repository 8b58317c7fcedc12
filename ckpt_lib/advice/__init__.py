"""What can go, and what that frees: advice about checkpoints in a store, and in folders of any program."""

from __future__ import annotations

import os

from ckpt_lib.advice.results import Advice
from ckpt_lib.errors import ConfigError
from ckpt_lib.stream import Progress

__all__ = ["advise"]


def advise(folder: str | os.PathLike[str], *, progress: Progress | None = None) -> Advice:
    """Return what can go in a folder of checkpoints of any program, what that frees, and what stays.

    All folders below are looked into, and links are not followed. A folder that is one checkpoint counts as one, and
    the checkpoints of one folder as those of one run. Metrics come from the checkpoints, and from the logs of trainers
    beside them. No code that a checkpoint holds is run, and only those are read whole that may be the same.
    ``progress`` is told how many bytes of these were read. Stores are left out: ``CheckpointManager.advise`` knows
    more of them. Raises :class:`~ckpt_lib.errors.NotACheckpointError` where there is no folder, and
    :class:`~ckpt_lib.errors.ConfigError` for one that is not of this machine.
    """
    from ckpt_lib.advice.folders import FolderAdvisor  # torch, only where it is used
    from ckpt_lib.advice.trees import read_tree
    from ckpt_lib.store.registry import scheme_of, url_text

    text = url_text(folder)
    if scheme_of(text) != "file":
        raise ConfigError(
            "only folders of this machine are looked into",
            got=text,
            hint="For a store, use CheckpointManager.advise().",
        )
    tree = read_tree(text.removeprefix("file://"))
    return FolderAdvisor(tree, progress).advise(text)
