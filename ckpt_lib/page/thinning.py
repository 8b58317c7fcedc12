"""Which checkpoints of a list would keep only their weights, and what that frees."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial

from markupsafe import Markup

from ckpt_lib.advice.savings import Savings
from ckpt_lib.core.metadata import CheckpointMetadata
from ckpt_lib.core.wording import count_of, listed, size_text
from ckpt_lib.manager import CheckpointManager
from ckpt_lib.page.markup import NOTHING, button, question, warning
from ckpt_lib.page.view import View
from ckpt_lib.web.managers import home_of
from ckpt_lib.web.seen import fingerprint_of

_MOST_AT_ONCE = 1_000
"""How many checkpoints one job takes."""


@dataclass(frozen=True)
class Thinning:
    """What thinning the checkpoints that meet the conditions of a list would do."""

    thinned: tuple[CheckpointMetadata, ...]
    """Oldest first."""
    freed_bytes: int
    """About so many, once the trash is emptied."""
    left_out: Mapping[str, int]
    """How many stay as they are, by the reason."""
    resumed_from: tuple[str | None, str | None]
    """The checkpoint that a run would go on from, before and after."""

    @property
    def ids(self) -> list[str]:
        """The ids of those that would be thinned."""
        return [item.checkpoint_id for item in self.thinned]

    @property
    def fingerprint(self) -> str:
        """Stands for what was shown: these checkpoints as they are."""
        return fingerprint_of((item.checkpoint_id, item.checksum) for item in self.thinned)


def planned_thinning(manager: CheckpointManager, view: View) -> Thinning:
    """Return what would be thinned of the checkpoints that the list shows, on all of its pages. Nothing is changed."""
    selected = manager.list_checkpoints(where=view.conditions(), tags=view.tags, search=view.search.strip())
    home = home_of(manager)
    savings, left_out = Savings(home), Counter[str]()
    thinned: list[CheckpointMetadata] = []
    freed_bytes = 0
    for item in selected:
        if reason := _reason_to_stay(item, is_full=len(thinned) == _MOST_AT_ONCE):
            left_out[reason] += 1
        elif dropped_bytes := savings.bytes_of(home.get(item.checkpoint_id)):
            thinned.append(item)
            freed_bytes += dropped_bytes
        else:
            left_out["with nothing to drop"] += 1
    resumed_from = (_resumed_from(manager, ()), _resumed_from(manager, {item.checkpoint_id for item in thinned}))
    return Thinning(tuple(thinned), freed_bytes, left_out, resumed_from)


def _reason_to_stay(item: CheckpointMetadata, *, is_full: bool) -> str:
    if item.is_thinned:
        return "thinned already"
    if item.pinned:
        return "pinned"
    if not item.is_complete:
        return "incomplete"
    return f"more than the {_MOST_AT_ONCE:,} of one job" if is_full else ""


def _resumed_from(manager: CheckpointManager, thinned: Collection[str]) -> str | None:
    """Return the newest checkpoint that a run would go on from, once those ``thinned`` are."""
    newest_first = partial(manager.list_checkpoints, where=["healthy=true"], descending=True, limit=_MOST_AT_ONCE)
    found = newest_first()
    while found:
        for item in found:
            if not item.is_thinned and item.checkpoint_id not in thinned:
                return item.checkpoint_id
        found = newest_first(after=found[-1].checkpoint_id)
    return None


def offer_html() -> Markup:
    """Return the button that asks about the checkpoints of a list."""
    label = "Keep only their weights…"
    return Markup('<p class="ck-bar">{}</p>').format(
        button("ask-thin", "", label, title="Drop what only resuming needs, such as the state of the optimizer")
    )


def thinning_html(plan: Thinning, trash_time: str) -> Markup:
    """Ask whether to thin, naming what is thinned, what that frees, and what stays as it is.

    ``trash_time`` is how long the rest can be brought back; empty where it cannot.
    """
    count = count_of(len(plan.thinned), "checkpoint")
    stays = ", ".join(f"{number:,} {reason}" for reason, number in plan.left_out.items())
    stays = f"These stay as they are: {stays}." if stays else ""
    if not plan.thinned:
        return warning(Markup("None of them can be thinned. {} {}").format(stays, button("keep", "", "Close")))
    freed = f"Keep only the weights of {count}? That frees about {size_text(plan.freed_bytes)}"
    freed += ", once the trash is emptied." if trash_time else "."
    back = f"What they lose can be brought back for {trash_time}." if trash_time else "It cannot be brought back."
    before, after = plan.resumed_from
    resumes = f"A run would go on from {after}." if after else "No checkpoint is left for a run to go on from."
    return question(
        "Keep only the weights?",
        [
            freed,
            Markup('<span class="ck-id">{}</span>').format(listed(plan.ids, most=5)),
            Markup("<strong>{}</strong>").format(resumes) if after != before else NOTHING,
            f"{back} {stays}",
        ],
        button("thin", plan.fingerprint, f"Thin {count}", kind="ck-danger"),
        button("keep", "", "Keep everything"),
    )
