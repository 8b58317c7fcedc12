"""``View``: what one browser looks at."""

from __future__ import annotations

import threading
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, Self

PAGE_SIZE = 50
MOST_COMPARED = 6


@dataclass(frozen=True)
class Search:
    """What is looked for in all experiments."""

    text: str = ""
    where: str = ""
    sort_by: str = "timestamp"
    descending: bool = True
    cursors: tuple[str, ...] = ()
    """Where each page before this one ended."""

    def with_(self, **changes: Any) -> Self:
        """Return the search with some facts changed, at its first page unless pages are turned."""
        return replace(self, **{"cursors": (), **changes})

    def sorted_by(self, name: str) -> Self:
        """Return the search sorted by a column: its largest first, or the other way round if it was already."""
        return self.with_(sort_by=name, descending=name != self.sort_by or not self.descending)

    def conditions(self) -> list[str]:
        """Return the conditions that were typed, with commas between them."""
        return _conditions(self.where)

    @property
    def is_on(self) -> bool:
        """Tell whether anything is looked for."""
        return bool(self.text.strip() or self.conditions())


@dataclass(frozen=True)
class Files:
    """What one browser has sent, and what is done with it."""

    uploads: tuple[str, ...] = ()
    """The ids of the uploads; whoever does not know them cannot find the files."""
    name: str = ""
    """That of the file, or of the folder that all of them are in."""
    told: str = ""
    """What the files hold, as HTML."""
    is_one: bool = False
    """Whether they are one checkpoint, which can be converted."""
    job: str = ""
    """The id of the import."""
    conversion: str = ""


@dataclass(frozen=True)
class View:
    """What one browser looks at: an experiment, a part of its list, and perhaps one checkpoint."""

    tab: str = ""
    """Empty until the page has loaded."""
    experiment: str = ""
    opened: str = ""
    """The id of the checkpoint that is shown in detail; empty for the list."""
    asked: str = ""
    """What a person is to confirm, such as ``delete`` of it or ``cleanup``, or has asked for, such as ``why``."""
    planned: int | None = None
    """How many checkpoints are to stay by the cleanup that is shown; ``None`` without one."""
    search: str = ""
    where: str = ""
    tags: tuple[str, ...] = ()
    sort_by: str = "sequence"
    descending: bool = True
    cursors: tuple[str, ...] = ()
    """Where each page before this one ended."""
    selected: tuple[str, ...] = ()
    """What is to be compared."""
    metrics: tuple[str, ...] = ()
    """What is drawn; empty for the monitored metric."""
    axis: str = "epoch"
    everywhere: Search = Search()
    """What is looked for on the first screen."""
    files: Files = Files()

    def with_(self, **changes: Any) -> Self:
        """Return the view with some facts changed; any of them but the pages turned leads to the first page."""
        filters = {"search", "where", "tags", "sort_by", "descending", "experiment"}
        if filters & changes.keys():
            changes = {"cursors": (), "asked": "", **changes}
        return replace(self, **changes)

    def of_experiment(self, name: str) -> Self:
        """Return the view of another experiment."""
        if name == self.experiment:
            return self
        return type(self)(tab=self.tab, experiment=name, everywhere=self.everywhere, files=self.files)

    def sorted_by(self, name: str) -> Self:
        """Return the view sorted by a column: its largest first, or the other way round if it was already."""
        return self.with_(sort_by=name, descending=name != self.sort_by or not self.descending)

    def toggled(self, checkpoint_id: str) -> Self:
        """Return the view with a checkpoint taken up for comparison, or not any more."""
        if checkpoint_id in self.selected:
            return self.with_(selected=tuple(name for name in self.selected if name != checkpoint_id))
        return self.with_(selected=(*self.selected, checkpoint_id)[-MOST_COMPARED:])

    def with_tag(self, tag: str) -> Self:
        """Return the view restricted to a tag, or not any more; where tags are chosen, more of them can be."""
        tags = tuple(name for name in self.tags if name != tag)
        asked = "tags" if self.asked == "tags" else ""
        return self.with_(tags=tags if tag in self.tags else (*tags, tag), asked=asked)

    def with_metric(self, name: str, drawn: Collection[str]) -> Self:
        """Return the view with a metric drawn as well, or not any more."""
        metrics = tuple(item for item in drawn if item != name)
        return self.with_(metrics=metrics if name in drawn else (*metrics, name))

    def conditions(self) -> list[str]:
        """Return the conditions that were typed, with commas between them."""
        return _conditions(self.where)

    @property
    def goes_by_metrics(self) -> bool:
        """Tell whether a list may go by a metric that nobody has recorded any more."""
        return self != self.without_metrics()

    def without_metrics(self) -> Self:
        """Return the view without its conditions, in the orders that it began with."""
        everywhere = self.everywhere.with_(where="", sort_by=Search.sort_by, descending=Search.descending)
        return self.with_(where="", sort_by="sequence", descending=True, everywhere=everywhere)

    @property
    def is_filtered(self) -> bool:
        """Tell whether the list leaves something out."""
        return bool(self.search or self.where or self.tags)


class CurrentView:
    """The view of one browser's page. One event after the other changes it, each from where the last one led."""

    def __init__(self) -> None:
        self.view = View()
        self.lock = threading.Lock()

    def __deepcopy__(self, _: dict[int, Any]) -> Self:
        """Return the view of another page: Gradio makes each page's state from a copy of the first."""
        return type(self)()


def _conditions(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
