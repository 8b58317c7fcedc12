"""Which checkpoints another one makes superfluous, over all that could be there."""

from __future__ import annotations

import math
import shlex
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_lib.advice.directions import Directions
from ckpt_lib.advice.results import Action, Suggestion, joined
from ckpt_lib.advice.rules import Candidate, dominated, duplicates
from ckpt_lib.core.metadata import Metric
from ckpt_lib.core.monitor import Monitor

VALUES = st.one_of(st.integers(0, 4), st.sampled_from([0.5, 1.5, math.nan, math.inf, "text", None]))
DIRECTIONS = (Monitor(metric="val_loss", mode="min"), Monitor(metric="quality", mode="max"))


@st.composite
def histories(draw: st.DrawFn) -> list[Candidate]:
    """Some checkpoints with few different values, so that many are alike."""
    count = draw(st.integers(0, 6))
    return [
        Candidate(
            name=f"c{number}",
            order=number,
            epoch=draw(st.integers(0, 3)),
            step=draw(st.integers(0, 3)),
            metrics=draw(st.dictionaries(st.sampled_from(["val_loss", "quality", "odd", "lr"]), VALUES)),
            content=draw(st.sampled_from([None, "a", "b"])),
            is_full=draw(st.booleans()),
            healthy=draw(st.booleans()),
            group=draw(st.sampled_from(["", "other"])),
        )
        for number in range(count)
    ]


def is_worse(item: Candidate, other: Candidate) -> bool:
    """The definition, one pair at a time."""
    if other.group != item.group or not other.healthy or other.epoch < item.epoch or other.step < item.step:
        return False
    finite = [
        name
        for name in ("val_loss", "quality")
        if isinstance(item.metrics.get(name), int | float) and math.isfinite(item.metrics[name])  # type: ignore[arg-type]
    ]
    odd, other_odd = (repr(each.metrics["odd"]) if "odd" in each.metrics else "none" for each in (item, other))
    if not finite or (float(odd) if odd.isdigit() else odd) != (float(other_odd) if other_odd.isdigit() else other_odd):
        return False
    for name in finite:
        theirs, own = other.metrics.get(name), item.metrics[name]
        if not isinstance(theirs, int | float) or not math.isfinite(theirs):
            return False
        assert isinstance(own, int | float)
        if not (theirs < own if name == "val_loss" else theirs > own):
            return False
    return True


@settings(max_examples=60)
@given(histories(), st.sets(st.sampled_from([f"c{number}" for number in range(6)])))
def test_what_goes_is_worse_than_something_that_stays(candidates: list[Candidate], protected: set[str]) -> None:
    """All that are worse than a healthy one go, unless protected, and each names one that is itself not worse."""
    found = dominated(candidates, protected, Directions(DIRECTIONS))
    items = {item.name: item for item in candidates}
    worse = {item.name for item in candidates if any(is_worse(item, other) for other in candidates)}
    assert found.keys() == worse - protected
    for name, (other, metrics) in found.items():
        assert is_worse(items[name], items[other])
        assert other not in worse
        assert set(metrics) <= {"val_loss", "quality"}


@settings(max_examples=60)
@given(histories(), st.sets(st.sampled_from([f"c{number}" for number in range(6)])))
def test_of_equal_ones_one_stays(candidates: list[Candidate], protected: set[str]) -> None:
    """What goes has an equal that stays, is full if it is, and has all of its metrics; what is protected stays."""
    found = duplicates(candidates, protected)
    items = {item.name: item for item in candidates}
    assert not found.keys() & protected
    for name, other in found.items():
        assert other not in found
        assert items[name].content == items[other].content is not None
        assert items[other].is_full or not items[name].is_full
        for key, value in items[name].metrics.items():
            assert items[other].metrics[key] == value or repr(items[other].metrics[key]) == repr(value)


def test_a_copy_without_other_metrics_goes() -> None:
    """The newest of equal ones stays; one with a metric that the newest lacks stays as well."""
    measured: list[dict[str, Metric]] = [{"loss": math.nan}, {"acc": 1}, {"loss": math.nan}]
    first, second, third = (
        Candidate(f"c{number}", number, 0, 0, metrics=metrics, content="same")
        for number, metrics in enumerate(measured)
    )
    assert duplicates([first, second, third], ()) == {"c0": "c2"}


@pytest.mark.parametrize(
    ("metric", "mode"),
    [
        ("val_loss", "min"),
        ("eval/Loss", "min"),
        ("metrics/mAP50-95(B)", "max"),
        ("valAccuracy", "max"),
        ("test_acc1", "max"),
        ("lr", None),
        ("eval_runtime", None),
        ("best_acc", None),
        ("quality", None),
    ],
)
def test_names_tell_directions(metric: str, mode: str | None) -> None:
    """The usual names of metrics tell whether lower is better; a learning rate tells nothing."""
    assert Directions().mode(metric) == mode
    assert Directions([Monitor(metric=metric, mode="max")]).mode(metric) == "max"


def test_ten_thousand_are_compared_in_seconds() -> None:
    """Also where none is worse than a later one, so that each is compared with all."""
    falling = [Candidate(f"c{n}", n, n, n, metrics={"val_loss": n / 10_000, "acc": -n}) for n in range(10_000)]
    rising = [Candidate(f"c{n}", n, n, n, metrics={"val_loss": -n, "acc": n, "lr": n}) for n in range(10_000)]
    started = time.monotonic()
    assert dominated(falling, (), Directions()) == {}
    assert len(dominated(rising, (), Directions())) == 9_999
    assert time.monotonic() - started < 20


def test_commands_are_joined() -> None:
    """Commands of one verb take many names at once, quoted; one without names is there once."""

    def suggested(name: str, action: Action | None) -> Suggestion:
        return Suggestion(kind="trash", name=name, why="", freed_bytes=1, certainty="certain", action=action)

    deletions = [suggested(f"c {number}", "delete") for number in range(101)]
    others = [suggested("x", "empty_trash"), suggested("y", "empty_trash"), suggested("file.pt", None)]
    lines = list(joined([*others, *deletions]))
    assert [len(shlex.split(line)) for line in lines] == [102, 3, 3]
    assert lines[1:] == ["ckpt delete 'c 100'", "ckpt trash --empty"]
