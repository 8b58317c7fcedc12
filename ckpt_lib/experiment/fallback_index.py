"""``FallbackIndex``: the index of a folder whose checkpoints will move to a primary one."""

from __future__ import annotations

from ckpt_lib.core.manifest import Manifest
from ckpt_lib.core.names import CheckpointId
from ckpt_lib.experiment.index import LAST_SEQUENCE, Index
from ckpt_lib.experiment.layout import CheckpointFolder


class FallbackIndex(Index):
    """The index of a fallback folder. Its checkpoints get the sequence that they would have had in the primary folder.

    Where this process has not seen that yet, a sequence beyond :data:`LAST_SEQUENCE` says so.
    """

    def __init__(self, folder: CheckpointFolder) -> None:
        super().__init__(folder)
        self.primary: Index | None = None

    def next_place(self, wanted: CheckpointId, suffix: str, *, is_known: bool = False) -> tuple[str, int]:
        checkpoint_id, sequence = super().next_place(wanted, suffix, is_known=is_known)
        seen = self.primary is not None and self.primary.last_view() is not None
        return checkpoint_id, sequence if seen else max(sequence, LAST_SEQUENCE + 1)

    def backed_up(self) -> list[Manifest]:
        """What is in the primary folder, as far as known: it counts like backups, from which an id may come back."""
        view = self.primary.last_view() if self.primary else None
        return [*view.manifests, *view.deleted, *self.primary.backed_up()] if self.primary and view else []
