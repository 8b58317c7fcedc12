"""``Lineage``: the checkpoint and the run that the next save descends from."""

from __future__ import annotations

import uuid
import weakref
from collections.abc import Mapping
from contextlib import ExitStack

from ckpt_lib.core.manifest import Manifest
from ckpt_lib.experiment.layout import CheckpointFolder

_REASON = "in use: loaded"


class Lineage:
    """What a run goes on from. The checkpoint that it loaded is held until another one is, or this object is gone."""

    def __init__(self) -> None:
        self.parent_id: str | None = None
        self.run_id = uuid.uuid4().hex
        self._loaded_id: str | None = None
        self._hold = ExitStack()
        weakref.finalize(self, self._hold.close)

    @property
    def in_use(self) -> dict[str, str]:
        """The id that no cleanup may delete, with the reason; nothing before the first save or load."""
        return {} if self.parent_id is None else {self.parent_id: "in use: loaded or saved last by this process"}

    @staticmethod
    def hold(folder: CheckpointFolder, checkpoint_id: str) -> ExitStack:
        """Keep everyone, in whatever process, from deleting a checkpoint until the returned stack is closed."""
        stack = ExitStack()
        stack.enter_context(folder.hold(checkpoint_id, _REASON))
        return stack

    def go_on_from(self, manifest: Manifest, hold: ExitStack) -> None:
        """Let the next saves descend from a loaded checkpoint, and belong to its run; take its ``hold`` over."""
        self.parent_id, self.run_id = manifest.checkpoint_id, manifest.run_id or self.run_id
        self._loaded_id = manifest.checkpoint_id
        self._take(hold)

    def remap(self, moved: Mapping[str, str], folder: CheckpointFolder) -> None:
        """Go on from where checkpoints are now: ``moved`` maps ids to ids in ``folder``."""
        if self.parent_id is not None:
            self.parent_id = moved.get(self.parent_id, self.parent_id)
        if self._loaded_id is not None and self._loaded_id in moved:
            self._loaded_id = moved[self._loaded_id]
            self._take(self.hold(folder, self._loaded_id))

    def _take(self, hold: ExitStack) -> None:
        earlier = self._hold.pop_all()
        self._hold.push(hold)
        earlier.close()
