"""How people name a checkpoint: by an id or a short form of it, by ``latest``, ``best`` or a tag, and by how many back.

===============  =====================================================================================
``latest``       the newest
``best``         the best by the monitored metric
``@tag``, tag    the newest with this tag; with ``@``, a word is nothing else
an id            that checkpoint
``epoch_12``     the only one of epoch 12, and ``epoch_12_step_300`` the only one of that step
``latest~2``     the second before ``latest``: what is saved before it, or ranks behind ``best``; after any
===============  =====================================================================================
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

from ckpt_lib.core.names import is_checkpoint_id

LATEST, BEST = "latest", "best"

_BACK = re.compile(r"(.*)~(\d{1,9})", re.DOTALL)
_SHORT_ID = re.compile(r"(?:checkpoint_)?epoch_(\d{1,18})(?:_step_(\d{1,18})(?:_(\d[\d_]{0,30}))?)?")


class Named(Protocol):
    """What people can name: a manifest, or the metadata that they see of one."""

    @property
    def checkpoint_id(self) -> str: ...

    @property
    def tags(self) -> Collection[str]: ...


N = TypeVar("N", bound=Named)


@dataclass(frozen=True)
class Selector:
    """A name in its parts. Any text is one: whether something answers to it is another question."""

    name: str
    back: int = 0
    """How many come before the one that is meant."""
    is_tag: bool = False
    """Whether it was written with ``@``, and so is nothing but a tag."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Take a name apart."""
        match = _BACK.fullmatch(text)
        name, back = (match[1], int(match[2])) if match else (text, 0)
        return cls(unicodedata.normalize("NFC", name.removeprefix("@")), back, is_tag=name.startswith("@"))

    @property
    def is_id(self) -> bool:
        """Whether it names one checkpoint by its whole id."""
        return not self.is_tag and is_checkpoint_id(self.name)

    @property
    def is_latest(self) -> bool:
        return not self.is_tag and self.name == LATEST

    @property
    def is_best(self) -> bool:
        return not self.is_tag and self.name == BEST

    def named(self, checkpoints: Sequence[N]) -> list[N]:
        """Return the checkpoints that carry it as a tag or, if none does, those whose id it is, whole or in short."""
        return ([] if self.is_id else self.tagged(checkpoints)) or self.matching_ids(checkpoints)

    def tagged(self, checkpoints: Sequence[N]) -> list[N]:
        """Return the checkpoints that carry it as a tag."""
        return [item for item in checkpoints if self.name in item.tags]

    def matching_ids(self, checkpoints: Sequence[N]) -> list[N]:
        """Return the checkpoints whose id it is, whole or in short.

        Numbers are compared as numbers: ``epoch_12`` is no short form of an id of epoch 120.
        """
        if self.is_tag:
            return []
        if self.is_id:
            return [item for item in checkpoints if item.checkpoint_id == self.name]
        start = _start_of_ids(self.name)
        return [item for item in checkpoints if start and item.checkpoint_id.startswith(start)]


def _start_of_ids(short: str) -> str | None:
    """Return how all ids begin that ``short`` may stand for; ``None`` if it is no short form of an id.

    An id spells each number in one way only, so thousands of ids are compared as texts, which is faster than parsing.
    """
    match = _SHORT_ID.fullmatch(short)
    if match is None:
        return None
    epoch, step, rest = match.groups()
    start = f"checkpoint_epoch_{int(epoch):04d}_step_"
    return start if step is None else f"{start}{int(step):06d}_{rest or ''}"


def split_experiment(text: str) -> tuple[str | None, str]:
    """Return the experiment in a name, as in ``run-7/best``, and what follows it.

    More slashes make a path, to which nothing answers.
    """
    experiment, slash, rest = text.partition("/")
    is_path = "/" in rest or experiment in ("", ".", "..", "~") or not rest
    return (None, text) if is_path or not slash else (experiment, rest)
