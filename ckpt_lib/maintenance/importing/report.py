"""``ImportReport``: what an import found, and what became of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from ckpt_lib.core import html
from ckpt_lib.core.manifest import Manifest
from ckpt_lib.core.wording import count_of, size_text

UNPROVEN_TAG = "adopted"
"""The tag of a checkpoint that came without proof of what was saved."""
Counted = Callable[[int, int], object]
"""Is told how many of how many checkpoints are done."""
Result = Literal["imported", "already there", "refused", "damaged", "no checkpoint", "not tried"]


class ImportedItem(BaseModel):
    """What was found at one place in a tree, and what became of it."""

    model_config = ConfigDict(frozen=True)

    path: str
    """Below the folder that was named; empty for that folder itself."""
    title: str
    """What it is, for a person."""
    result: Result
    checkpoint_id: str | None = None
    """Which checkpoint it became."""
    epoch: int | None = None
    step: int | None = None
    size_bytes: int = 0
    reason: str | None = None
    """Why it was not imported, and what to do."""
    left_out: tuple[str, ...] = ()
    """What was not imported of it, and what it does not say: one sentence each."""


@dataclass(frozen=True)
class Imported:
    """What an import made of a checkpoint."""

    manifest: Manifest
    title: str
    """What it was, for a person."""
    is_new: bool
    """False for one that was imported before."""
    left_out: tuple[str, ...] = ()
    """What was not imported of it, and what it does not say: one sentence each."""

    def item(self) -> ImportedItem:
        """Return what a report says of it."""
        return ImportedItem(
            path="",
            title=self.title,
            result="imported" if self.is_new else "already there",
            checkpoint_id=self.manifest.checkpoint_id,
            epoch=self.manifest.epoch,
            step=self.manifest.step,
            size_bytes=self.manifest.size_bytes,
            left_out=self.left_out,
        )


class ImportReport(BaseModel):
    """What an import of a tree found and did; true unless a checkpoint could not be imported."""

    model_config = ConfigDict(frozen=True)

    experiment_name: str
    items: tuple[ImportedItem, ...] = ()
    """Checkpoints in the order in which they were imported; at the end what is none."""

    def __bool__(self) -> bool:
        return not self.failed

    def of(self, *results: Result) -> tuple[ImportedItem, ...]:
        """Return what came to one of these results."""
        return tuple(item for item in self.items if item.result in results)

    @property
    def failed(self) -> tuple[ImportedItem, ...]:
        """The checkpoints that were not imported."""
        return self.of("refused", "damaged", "not tried")

    @property
    def checkpoint_ids(self) -> tuple[str, ...]:
        """The ids of what is there now, in the order in which it was imported."""
        return tuple(dict.fromkeys(item.checkpoint_id for item in self.items if item.checkpoint_id))

    @property
    def message(self) -> str:
        """One line for a table or a log."""
        found = {result: len(self.of(result)) for result in _RESULTS}
        told = [f"{count} {result}" for result, count in found.items() if count]
        return f"{count_of(len(self.items), 'item')}: {', '.join(told)}" if told else "nothing was found"

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        yield "experiment_name", self.experiment_name
        yield "message", self.message

    def _repr_html_(self) -> str:
        rows = [
            (item.result, item.path or ".", item.title, item.checkpoint_id, size_text(item.size_bytes), item.reason)
            for item in sorted(self.items, key=lambda item: item not in self.failed)
        ]
        header = ("result", "path", "what", "checkpoint", "size", "why")
        return html.block(
            f"Import into {self.experiment_name}", html.table(header, rows, numeric=("size",)), detail=self.message
        )


_RESULTS: tuple[Result, ...] = ("imported", "already there", "refused", "damaged", "not tried", "no checkpoint")
