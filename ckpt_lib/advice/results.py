"""What an advisor returns."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, computed_field

from ckpt_lib.core import html
from ckpt_lib.core.monitor import Mode
from ckpt_lib.core.wording import size_text

Kind = Literal["leftover", "trash", "damaged", "duplicate", "dominated", "optimizer state"]
Certainty = Literal["certain", "likely", "unsure"]
Action = Literal["delete", "empty_trash", "quarantine", "repair", "thin"]
"""What is to be done in a store: the beginnings of the names of the manager's methods."""
KINDS: tuple[Kind, ...] = ("leftover", "trash", "damaged", "duplicate", "dominated", "optimizer state")
"""The order in which suggestions are listed: what is missed the least comes first."""
POLICY_COUNTS = (10, 5, 3)
"""The values of ``max_checkpoints`` whose outcome is told."""
_MAX_NAMES = 100
"""How many names one command has at most."""


class Suggestion(BaseModel):
    """One thing that can go, and why."""

    model_config = ConfigDict(frozen=True)

    kind: Kind
    name: str
    """An id, the name of a file, or a path below the folder."""
    why: str
    freed_bytes: int
    """What that frees, once the trash is emptied; 0 where it only begins with this."""
    certainty: Certainty
    """``"certain"`` where nothing is lost, ``"likely"`` where metrics or order say so, and else ``"unsure"``."""
    action: Action | None = None
    """What frees them; ``None`` outside of stores."""
    paths: tuple[str, ...] = ()
    """Outside of stores, the files and folders to remove; empty where a file would have to be written anew."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def command(self) -> str | None:
        """The command that does it, without the options that name the store; ``None`` outside of stores."""
        return None if self.action is None else _command(self.action, [self.name])


class KeptCheckpoint(BaseModel):
    """A checkpoint that stays, and what it costs once all suggestions are followed."""

    model_config = ConfigDict(frozen=True)

    name: str
    size_bytes: int
    share: float
    """Of all bytes that are there now: from 0 to 1."""
    reason: str


class PolicyOutcome(BaseModel):
    """What a retention policy would do, by itself."""

    model_config = ConfigDict(frozen=True)

    policy: str
    kept_count: int
    deleted_count: int
    freed_bytes: int
    command: str | None = None


class BestValue(BaseModel):
    """Whether the best value of a metric that is known belongs to a checkpoint that can be loaded."""

    model_config = ConfigDict(frozen=True)

    metric: str
    mode: Mode
    saved_value: float | None = None
    """The best of those that can be loaded."""
    saved_name: str | None = None
    value: float | None = None
    """The best that is known at all."""
    step: int | None = None
    epoch: int | None = None
    is_saved: bool | None = None
    """``None`` when it cannot be told: where no log of the training is there, a better value may have been seen."""
    message: str


class Advice(BaseModel):
    """What can go in one place, what stays, and what each costs. Each byte is counted once.

    ``freed_bytes`` and the sizes of all ``kept`` add up to ``total_bytes``.
    """

    model_config = ConfigDict(frozen=True)

    place: str
    """The name of the experiment, or the folder."""
    total_bytes: int
    backup_bytes: int = 0
    """What the backups hold, which is not part of the other sums."""
    suggestions: tuple[Suggestion, ...] = ()
    kept: tuple[KeptCheckpoint, ...] = ()
    """What stays, newest first."""
    policies: tuple[PolicyOutcome, ...] = ()
    best: tuple[BestValue, ...] = ()
    remarks: tuple[str, ...] = ()
    """What else is worth knowing."""

    @property
    def freed_bytes(self) -> int:
        return sum(item.freed_bytes for item in self.suggestions)

    @property
    def kept_bytes(self) -> int:
        return sum(item.size_bytes for item in self.kept)

    def of_kind(self, kind: Kind) -> tuple[Suggestion, ...]:
        return tuple(item for item in self.suggestions if item.kind == kind)

    @property
    def commands(self) -> tuple[str, ...]:
        """The commands of all suggestions; one command has many names."""
        return tuple(line for kind in KINDS for line in joined(self.of_kind(kind)))

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        yield "place", self.place
        yield "suggestions", len(self.suggestions)
        yield "freed", size_text(self.freed_bytes)
        yield "kept", size_text(self.kept_bytes)

    def _repr_html_(self) -> str:
        found = [
            (item.kind, item.name, size_text(item.freed_bytes), item.certainty, item.why) for item in self.suggestions
        ]
        stays = [(item.name, size_text(item.size_bytes), f"{item.share:.0%}", item.reason) for item in self.kept]
        return html.block(
            self.place,
            html.table(("can go", "name", "frees", "how sure", "why"), found, numeric=("frees",)),
            html.table(("stays", "size", "share", "why"), stays, numeric=("size", "share")),
            *(html.paragraph(text) for text in (*(item.message for item in self.best), *self.remarks)),
            detail=f"{size_text(self.freed_bytes)} of {size_text(self.total_bytes)} can go",
        )


def joined(suggestions: Iterable[Suggestion]) -> Iterator[str]:
    """Yield commands that do what these suggestions say, with many names each."""
    names: dict[Action, list[str]] = {}
    for item in suggestions:
        if item.action is not None:
            names.setdefault(item.action, []).append(item.name)
    for action, found in sorted(names.items()):
        for start in range(0, 1 if action in _WITHOUT_NAMES else len(found), _MAX_NAMES):
            yield _command(action, found[start : start + _MAX_NAMES])


def _command(action: Action, names: Sequence[str]) -> str:
    return _WITHOUT_NAMES.get(action) or shlex.join(["ckpt", action, *names])


_WITHOUT_NAMES: dict[Action, str] = {"empty_trash": "ckpt trash --empty"}


def kept_of(sizes: Iterable[tuple[str, int, str]], total_bytes: int) -> tuple[KeptCheckpoint, ...]:
    """Return what stays, from names, sizes and reasons."""
    return tuple(
        KeptCheckpoint(name=name, size_bytes=size, share=size / total_bytes if total_bytes else 0.0, reason=reason)
        for name, size, reason in sizes
    )
