"""Metrics and run configurations: plain values that a manifest can hold, or a typed error."""

from __future__ import annotations

import enum
import math
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckpt_lib.core.metadata import check_metrics
from ckpt_lib.core.plain import MAX_LEVELS, check_run_config
from ckpt_lib.errors import ConfigError, InvalidMetricError
from tests.core.examples import bits, example, json_values, metric_values, read, visible


class _Word(enum.StrEnum):
    GOOD = "good"


class _Number(enum.IntEnum):
    TWO = 2


@pytest.mark.parametrize(
    ("given_value", "stored"),
    [
        (None, None),
        (True, 1),
        (False, 0),
        (3, 3),
        (2**63 - 1, 2**63 - 1),
        (1 - 2**63, 1 - 2**63),
        (0.5, 0.5),
        (math.inf, math.inf),
        ("text", "text"),
        ("NaN", math.nan),
        ("-Infinity", -math.inf),
        (np.float32(0.5), 0.5),
        (np.float64(0.5), 0.5),
        (np.float16(0.5), 0.5),
        (np.longdouble(0.5), 0.5),
        (np.int8(-3), -3),
        (np.uint64(2**63 - 1), 2**63 - 1),
        (np.bool_(True), 1),
        (np.str_("text"), "text"),
        (np.array(2.5), 2.5),
        (np.array([2.5]), 2.5),
        (torch.tensor(0.5), 0.5),
        (torch.tensor([0.5]), 0.5),
        (torch.tensor(3), 3),
        (torch.tensor(True), 1),
        (torch.tensor(0.5, dtype=torch.bfloat16), 0.5),
        (torch.tensor(0.5, requires_grad=True), 0.5),
        (torch.tensor(math.nan), math.nan),
        (torch.nn.Parameter(torch.tensor(0.5)), 0.5),
        (Fraction(1, 2), 0.5),
        (_Word.GOOD, "good"),
        (_Number.TWO, 2),
    ],
    ids=repr,
)
def test_a_metric_becomes_a_plain_value(given_value: object, stored: object) -> None:
    """Whatever number training code has at hand is stored as a number of Python's own, and nothing else."""
    found = check_metrics({"m": given_value})["m"]
    assert (type(found), bits(found)) == (type(stored), bits(stored))
    assert bits(read(example(metrics={"m": found}).to_bytes()).metrics["m"]) == bits(stored)


@pytest.mark.parametrize(
    "value",
    [
        *([], [1.0], (1,), {}, {"a": 1}, object(), 1j, b"1"),
        *(np.array([1.0, 2.0]), np.array([]), np.datetime64("2020-01-01"), np.complex64(1)),
        *(torch.tensor([1.0, 2.0]), torch.tensor([]), torch.tensor(1j), torch.ones((), device="meta")),
        *(Decimal(1), 2**63, -(2**63), np.uint64(2**64 - 1), 10**300, 10**400, -(10**5000), Fraction(10**400)),
        *("a\nb", "a\0", "\x1b[31m", "\ud800", lambda: 1, float),
    ],
    ids=lambda value: ascii(type(value)),
)
def test_what_is_no_metric_is_refused_by_name(value: object) -> None:
    """The error names the metric, so that a person finds it among twenty."""
    with pytest.raises(InvalidMetricError, match="val_loss"):
        check_metrics({"fine": 1.0, "val_loss": value})


@pytest.mark.parametrize("name", ["", None, 1, "a\nb", "\ud800", "\u202ea", "x" * 101, ("a",)], ids=ascii)
def test_a_metric_needs_a_name_that_can_be_stored(name: object) -> None:
    """Names become columns, table cells and file content."""
    with pytest.raises(InvalidMetricError):
        check_metrics({name: 1.0})  # type: ignore[dict-item]


@pytest.mark.parametrize("metrics", [[("a", 1)], "a", 1, {"a"}])
def test_metrics_are_a_mapping(metrics: object) -> None:
    """And are refused as a whole otherwise."""
    with pytest.raises(InvalidMetricError):
        check_metrics(metrics)  # type: ignore[arg-type]


def test_no_metrics_and_no_config_are_empty() -> None:
    """``None`` stands for nothing given."""
    assert check_metrics(None) == {}
    assert check_run_config(None) == {}


@given(st.dictionaries(visible.filter(str.isprintable), metric_values, max_size=5))
def test_checked_metrics_survive_the_manifest(metrics: dict[str, Any]) -> None:
    """Whatever passes the door is the same after a trip through the file."""
    checked = check_metrics(metrics)
    found = read(example(metrics=checked).to_bytes()).metrics
    assert {name: bits(value) for name, value in found.items()} == {name: bits(v) for name, v in checked.items()}


@given(st.dictionaries(st.text(max_size=5), json_values, max_size=4))
def test_a_checked_config_survives_the_manifest(config: dict[str, Any]) -> None:
    """JSON values pass the door unchanged, as a copy, and are the same after a trip through the file."""
    checked = check_run_config(config)
    assert checked == config
    assert read(example(config=checked).to_bytes()).config == config
    checked["changed later"] = True
    assert "changed later" not in config


def _nested(levels: int) -> dict[str, Any]:
    config: dict[str, Any] = {"leaf": 1}
    for _ in range(levels - 1):
        config = {"a": config}
    return config


def _cyclic() -> dict[str, Any]:
    config: dict[str, Any] = {}
    config["self"] = config
    return config


@pytest.mark.parametrize(
    "config",
    [
        {"a": object()},
        {"a": b"x"},
        {"a": "\ud800"},
        {"\udfff": 1},
        {("a",): 1},
        {"a": 10**5000},
        _nested(MAX_LEVELS + 1),
        _nested(900),
        _nested(50_000),
        _cyclic(),
        [("a", 1)],
        "a: 1",
    ],
    ids=lambda config: ascii(config)[:40] if not isinstance(config, dict) or "a" not in config else "nested",
)
def test_a_config_json_cannot_hold_is_refused(config: object) -> None:
    """Refused at the door, because a manifest that cannot be written or read comes too late."""
    with pytest.raises(ConfigError):
        check_run_config(config)


def test_a_config_may_nest_to_its_limit() -> None:
    """The limit itself is fine, all the way through a manifest."""
    config = _nested(MAX_LEVELS)
    assert read(example(config=check_run_config(config)).to_bytes()).config == config
