"""Selecting from what is there: conditions, order and pages."""

from __future__ import annotations

import base64
import math
import operator
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_lib.core.metadata import CheckpointMetadata
from ckpt_lib.errors import CheckpointNotFoundError, ConfigError, UnknownMetricError
from ckpt_lib.index.conditions import Condition, Operator
from ckpt_lib.index.places import SORTABLE, Place
from ckpt_lib.index.selection import select

MOMENT = datetime(2026, 11, 1, tzinfo=UTC)
COMPARE: dict[Operator, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">=": operator.ge,
    ">": operator.gt,
}


def checkpoint(sequence: int = 1, **facts: Any) -> CheckpointMetadata:
    return CheckpointMetadata(
        **{
            "checkpoint_id": f"checkpoint_epoch_{sequence:04}_step_000000_20261101_000000",
            "timestamp": MOMENT,
            "epoch": sequence,
            "step": 0,
            "model_name": "Net",
            "experiment_name": "e",
            "sequence": sequence,
            "file_size": 1000,
            "uncompressed_size": 1000,
            "checksum": "0" * 64,
            **facts,
        }
    )


KNOWN = [
    checkpoint(1, metrics={"loss": 0.5, "note": "good"}, pinned=True),
    checkpoint(2, metrics={"loss": math.nan}, timestamp=MOMENT + timedelta(days=1), unhealthy="NaN in weight"),
    checkpoint(3, metrics={"loss": 0.25}, file_size=2_000_000_000, model_name="Other"),
    checkpoint(4, metrics={"note": "bad"}, run_id="r"),
    checkpoint(5, metrics={"loss": "0.25", "epoch": 9.0}),
]


@pytest.mark.parametrize(
    ("where", "sequences"),
    [
        ([], [1, 2, 3, 4, 5]),
        (["loss<0.3"], [3]),
        (["loss <= 0.5"], [1, 3]),
        (["loss!=0.5"], [3]),
        (["loss>0.1", "epoch<3"], [1]),
        (["metrics.loss=0.25"], [3]),
        (["metrics.epoch>=9"], [5]),
        (["epoch>=4"], [4, 5]),
        (["sequence==2"], [2]),
        (["file_size>1GB"], [3]),
        (["file_size<=1000"], [1, 2, 4, 5]),
        (["timestamp>2026-11-01"], [2]),
        (["timestamp<30min", "timestamp<1.5h", "timestamp<7d", "timestamp<1w"], [1, 2, 3, 4, 5]),
        (["timestamp>=7d"], []),
        (["timestamp<2026-11-01T12:30+01:00"], [1, 3, 4, 5]),
        (["pinned=true"], [1]),
        (["healthy=False"], [2]),
        (["model_name=Other"], [3]),
        (["run_id!=x"], [4]),
        (["note=good"], [1]),
        (["note!=good"], [4]),
        ([Condition("epoch", "<", 2)], [1]),
        ((condition for condition in ["epoch<2"]), [1]),
    ],
)
def test_all_conditions_are_met(where: Any, sequences: list[int]) -> None:
    """NaN, text and what was not recorded meet no condition on a number; a metric may have the name of a fact."""
    assert [item.sequence for item in select(KNOWN, where=where)] == sequences


@given(
    st.lists(st.none() | st.floats() | st.integers(-3, 3) | st.sampled_from(["", "3"]), max_size=8),
    st.sampled_from([*COMPARE]),
    st.floats(allow_nan=False, allow_infinity=False) | st.integers(-3, 3),
)
def test_numbers_compare_as_python_compares_them(values: list[Any], sign: Operator, number: float) -> None:
    """For every finite number among the values, and for nothing else; spelled out or not."""
    known = [checkpoint(at, metrics={"m": value}) for at, value in enumerate(values, start=1)]
    wanted = [
        item.sequence
        for item in known
        if isinstance(found := item.metrics["m"], int | float) and math.isfinite(found) and COMPARE[sign](found, number)
    ]
    for condition in (Condition("m", sign, number), f"m{sign}{number!r}"):
        assert [item.sequence for item in select(known, where=[condition])] == wanted


@pytest.mark.parametrize(
    "where",
    [
        "loss<0.3",
        3,
        None,
        [""],
        ["loss"],
        ["<3"],
        ["loss<"],
        ["loss<<3"],
        ["loss<nan"],
        ["loss<inf"],
        ["loss<low"],
        ["epoch>=ten"],
        ["epoch=nan"],
        ["file_size>big"],
        ["timestamp>yesterday"],
        ["timestamp>7"],
        ["timestamp>-7d"],
        ["timestamp>9999999999999d"],
        [f"timestamp>{10**400}d"],
        ["pinned=maybe"],
        ["pinned>true"],
        ["model_name<Net"],
        [3],
        [None],
    ],
)
def test_what_is_no_condition_is_refused(where: Any) -> None:
    """A misspelt condition must not select everything, or nothing."""
    with pytest.raises(ConfigError):
        select(KNOWN, where=where)


@pytest.mark.parametrize(
    ("name", "sign", "value"),
    [
        ("epoch", "~", 3),
        ("epoch", "<", "3"),
        ("epoch", "<", True),
        ("loss", "<", math.nan),
        ("loss", "<", None),
        ("timestamp", ">", datetime(2026, 11, 1)),  # noqa: DTZ001 - of no zone
        ("pinned", "==", 1),
        ("model_name", "==", 3),
    ],
)
def test_a_condition_of_the_wrong_type_is_refused(name: str, sign: Any, value: Any) -> None:
    """It could never be met, and would select nothing without a word."""
    with pytest.raises(ConfigError):
        Condition(name, sign, value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("val_loss<<0.5", "a number; or = or != before a text"), ("pinned<true", "= or !="), ("run_id>b", "= or !=")],
)
def test_what_has_no_order_is_told_what_it_can_be_compared_with(text: str, expected: str) -> None:
    """A doubled sign leaves a text, where a number was meant."""
    with pytest.raises(ConfigError, match="have no order") as refused:
        Condition.parse(text)
    assert refused.value.expected == expected


def test_a_metric_that_none_has_recorded_is_refused() -> None:
    """A misspelt one must not look as if nothing met it."""
    with pytest.raises(UnknownMetricError, match="los"):
        select(KNOWN, where=["los<3"])
    assert select([], where=["los<3"]) == []


@given(st.sampled_from([*SORTABLE, "loss"]), st.booleans(), st.integers(1, 4))
def test_pages_add_up_to_the_whole(sort_by: str, descending: bool, limit: int) -> None:
    """Each begins after the last of the one before, in any order, also among equals."""
    whole = select(KNOWN, sort_by=sort_by, descending=descending)
    pages: list[CheckpointMetadata] = []
    while page := select(
        KNOWN,
        sort_by=sort_by,
        descending=descending,
        limit=limit,
        after=pages[-1].checkpoint_id if pages else None,
    ):
        pages += page
    assert pages == whole


@given(st.sampled_from([*SORTABLE, "loss"]), st.booleans(), st.integers(0, len(KNOWN) - 1), st.booleans())
def test_a_place_outlasts_its_checkpoint(sort_by: str, descending: bool, at: int, in_all: bool) -> None:
    """The page after a place goes on behind it, whether its checkpoint is there or was deleted meanwhile."""
    whole = select(KNOWN, sort_by=sort_by, descending=descending)
    place = Place.of(whole[at], sort_by, in_all=in_all)
    rest = [item for item in KNOWN if item != whole[at]]
    for after in (place, str(place)):
        assert select(KNOWN, sort_by=sort_by, descending=descending, after=after) == whole[at + 1 :]
        assert select(rest, sort_by=sort_by, descending=descending, after=after) == whole[at + 1 :]


@given(st.sampled_from(["epoch", "step", "file_size", "loss"]), st.booleans(), st.data())
def test_a_place_outlasts_its_value(sort_by: str, descending: bool, data: st.DataObject) -> None:
    """The page goes on where the checkpoint was: behind its new place, what lies between would be skipped."""
    whole = select(KNOWN, sort_by=sort_by, descending=descending)
    moved, other = (whole[data.draw(st.integers(0, len(KNOWN) - 1))] for _ in range(2))
    place = replace(Place.of(moved, sort_by), value=Place.of(other, sort_by).value)
    if place != Place.of(moved, sort_by):
        expected = [item for item in whole if place.precedes(item, descending=descending)]
        assert select(KNOWN, sort_by=sort_by, descending=descending, after=str(place)) == expected


@pytest.mark.parametrize("sort_by", ["sequence", "checkpoint_id", "timestamp", "loss"])
def test_a_text_that_is_no_place_of_the_order_is_refused(sort_by: str) -> None:
    """Cut off, changed, or of a page in another order: the list would begin anywhere."""
    other = str(Place.of(KNOWN[0], "epoch"))
    wrong = ["~", "~x", other, other[:-4], "~" + "A" * 300]
    values = ('"a"', "1" + "0" * 400, "1e999", "true", "[]", "null" if sort_by != "loss" else "1", "0.5")
    for value in values[: 6 if sort_by == "loss" else 7]:
        if sort_by == "checkpoint_id" and value == '"a"':
            continue
        text = f'{{"by":"{sort_by}","value":{value},"experiment":"","id":"x","sequence":1,"at":0}}'
        wrong.append("~" + base64.urlsafe_b64encode(text.encode()).decode().rstrip("="))
    for after in wrong:
        with pytest.raises(ConfigError, match="cannot begin after"):
            select(KNOWN, sort_by=sort_by, after=after)


def test_a_page_after_what_is_not_there_is_refused() -> None:
    """Deleted meanwhile, or not among what was asked for: the page would begin anywhere."""
    with pytest.raises(CheckpointNotFoundError, match="cannot begin after"):
        select(KNOWN, where=["epoch>=4"], after=KNOWN[0].checkpoint_id)
