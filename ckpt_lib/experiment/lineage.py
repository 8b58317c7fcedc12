"""``Lineage``: the checkpoint and the run that the next save descends from."""

from __future__ import annotations

import uuid
from collections.abc import Mapping

from ckpt_lib.core.manifest import Manifest


class Lineage:
    """The checkpoint that a run goes on from."""

    def __init__(self, run_id: str | None = None) -> None:
        self.parent_id: str | None = None
        self.run_id = run_id or uuid.uuid4().hex
        self.only_run_id = run_id
        """The only run to go on with; ``None`` if any will do."""

    @property
    def in_use(self) -> dict[str, str]:
        """The id that no cleanup may delete, with the reason; nothing before the first save or load."""
        return {} if self.parent_id is None else {self.parent_id: "in use: loaded or saved last by this process"}

    def go_on_from(self, manifest: Manifest) -> None:
        """Let the next saves descend from a loaded checkpoint, and belong to its run unless a run was given."""
        self.parent_id = manifest.checkpoint_id
        self.run_id = self.only_run_id or manifest.run_id or self.run_id

    def remap(self, moved: Mapping[str, str]) -> None:
        """Go on from where checkpoints are now: ``moved`` maps old ids to new ones."""
        if self.parent_id is not None:
            self.parent_id = moved.get(self.parent_id, self.parent_id)
