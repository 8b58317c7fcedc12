"""Everyday values: stored as plain ones, or refused before training with their place."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import enum
import json
import math
import pathlib
import uuid
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from torch import nn

from ckpt_lib.analysis.plots import metrics_figure
from ckpt_lib.core.plain import MAX_ELEMENTS, MAX_LEVELS, MAX_VALUES, plain_mapping
from ckpt_lib.errors import CheckpointError, ConfigError, UnsupportedStateError
from tests.core.examples import nested_lists
from tests.helpers import MakeManager, ids


class Mode(enum.Enum):
    FAST = "fast"


@dataclasses.dataclass
class Options:
    rate: float = 0.1
    mode: Mode = Mode.FAST


class Settings(BaseModel):
    path: pathlib.Path = pathlib.Path("data")


@pytest.mark.parametrize(
    ("given_value", "stored"),
    [
        (pathlib.PurePosixPath("a/b"), "a/b"),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.array(0.5), 0.5),
        (np.arange(3), [0, 1, 2]),
        (torch.tensor(1.5), 1.5),
        (torch.tensor([[1, 2]]), [[1, 2]]),
        (torch.float32, "torch.float32"),
        (torch.device("cpu"), "cpu"),
        (np.dtype("int8"), "int8"),
        (Mode.FAST, "fast"),
        (Options(), {"rate": 0.1, "mode": "fast"}),
        (Settings(), {"path": "data"}),
        (argparse.Namespace(a=1), {"a": 1}),
        (datetime.date(2026, 1, 2), "2026-01-02"),
        (datetime.timedelta(seconds=90), "0:01:30"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        ((1, (2,)), [1, [2]]),
        ({"b", "a"}, ["a", "b"]),
        ({1: "x", None: "y", 0.5: "w"}, {"1": "x", "None": "y", "0.5": "w"}),
        (math.nan, "NaN"),
        (-math.inf, "-Infinity"),
        (10**30, 10**30),
    ],
)
def test_values_that_training_scripts_have(make_manager: MakeManager, given_value: Any, stored: Any) -> None:
    """Each is stored as a plain value, and read back as that."""
    assert plain_mapping({"v": given_value}, "config") == {"v": stored}
    manager = make_manager(backup_checkpoints=False)
    manager.save_checkpoint(model=nn.Linear(1, 1), epoch=1, config={"v": given_value})
    assert manager.list_checkpoints()[0].config == {"v": stored}
    assert manager.load_checkpoint()["config"] == {"v": stored}


@pytest.mark.parametrize(
    ("config", "place"),
    [
        ({"optimizer": {"schedule": [1, 2, {3: object()}]}}, r"config\.optimizer\.schedule\[2\]\.3"),
        ({"model": nn.Linear(1, 1)}, r"config\.model"),
        ({"loss": print}, r"config\.loss"),
        ({"table": np.zeros(MAX_ELEMENTS + 1)}, r"config\.table is too large"),
        ({1: "a", "1": "b"}, "two keys"),
        ({"a": {(1, 2): 3}}, r"config\.a has a key"),
        ({"deep": nested_lists(MAX_LEVELS + 1)}, "nested too deeply"),
        ("text", "config must be a mapping"),
        ([1], "config must be a mapping"),
    ],
)
def test_what_cannot_be_stored_is_named_before_training(make_manager: MakeManager, config: Any, place: str) -> None:
    """`check` raises what a save would raise, with the path of the value, and neither writes anything."""
    manager = make_manager()
    model = nn.Linear(1, 1)
    for call in (manager.check, lambda **given: manager.save_checkpoint(epoch=1, **given)):
        with pytest.raises(ConfigError, match=place):
            call(model=model, config=config)
    assert ids(manager) == []
    manager.check(model=model, config={"fine": 1})
    assert ids(manager) == []


def test_values_that_change_are_named_once(make_manager: MakeManager, caplog: pytest.LogCaptureFixture) -> None:
    """What is stored as something else than was given is told at the first save, and what stays is not."""
    manager, model = make_manager(), nn.Linear(1, 1)
    manager.save_checkpoint(model=model, epoch=1, config={"lr": 0.1, "layers": [1, 2], "seed": np.int64(3), "deep": {}})
    assert caplog.messages == []
    changing = {"betas": (0.9, 0.99), "limit": float("nan"), "ids": {3: "a"}, "seen": {1}}
    for epoch in (2, 3):
        manager.save_checkpoint(model=model, epoch=epoch, config=changing)
    assert caplog.messages == [
        "stored as JSON holds it: config.betas: tuple as list, config.limit: nan as str, "
        "config.ids.3: key of type int as str and 1 more"
    ]


def test_lists_that_hold_each_other_are_refused_at_once(make_manager: MakeManager) -> None:
    """A few lists may stand for a thousand million values."""
    value: Any = [1] * 10
    for _ in range(8):
        value = [value] * 10
    with pytest.raises(ConfigError, match=f"more than {MAX_VALUES} values"):
        make_manager().check(model=nn.Linear(1, 1), config={"lists": value})


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
        max_leaves=20,
    )
)
def test_json_is_kept(value: Any) -> None:
    """What JSON holds already stays as it is, but for NaN and infinities; and the result is JSON."""
    found = plain_mapping({"v": value}, "config")["v"]
    json.dumps(found, allow_nan=False)
    assert plain_mapping({"v": found}, "config")["v"] == found
    if "NaN" not in repr(found) and "Infinity" not in repr(found):
        assert found == value


@pytest.mark.parametrize(
    "part",
    [
        {"model": None},
        {"model": nn.Linear(1, 1), "tags": ["best"]},
        {"model": nn.Linear(1, 1), "metrics": {"a": object()}},
        {"model": nn.Linear(1, 1), "extra_state": {"f": print}},
        {"model": nn.Linear(1, 1), "extra_state": {"a": np.array(["x"])}},
        {"model": nn.Linear(1, 1), "description": "\x00"},
        {"model": nn.Linear(1, 1), "optimizer": 3},
    ],
)
def test_a_check_refuses_what_a_save_refuses(make_manager: MakeManager, part: Any) -> None:
    """Every argument is looked at, with the same error from both."""
    manager = make_manager()
    with pytest.raises(CheckpointError) as checked:
        manager.check(**part)
    with pytest.raises(CheckpointError) as saved:
        manager.save_checkpoint(**part, epoch=1)
    assert (type(checked.value), str(checked.value)) == (type(saved.value), str(saved.value))
    assert ids(manager) == []


def test_arrays_in_extra_state_become_tensors(make_manager: MakeManager, tmp_path: pathlib.Path) -> None:
    """The state of NumPy's generator is stored without code, and restores the generator."""
    before = np.random.get_state()  # the global one is what scripts have
    manager = make_manager()
    manager.save_checkpoint(model=nn.Linear(1, 1), epoch=1, extra_state={"numpy": before})
    drawn = np.random.rand(3)
    kind, keys, *rest = manager.load_checkpoint()["extra_state"]["numpy"]
    np.random.set_state((kind, keys.numpy(), *rest))
    assert np.array_equal(np.random.rand(3), drawn)
    payload = torch.load(manager.export_checkpoint("latest", tmp_path), weights_only=True)
    assert torch.equal(payload["extra_state"]["numpy"][1], keys)
    with pytest.raises(UnsupportedStateError, match="type without a tensor"):
        manager.save_checkpoint(model=nn.Linear(1, 1), epoch=1, extra_state={"a": np.array(["x"])})


@pytest.mark.parametrize("values", [{"$x_{$": 1.0}, {"cost_$_per_$": 1.0}, {"m": 1e308}, {"m": 1e99}])
def test_any_metric_is_drawn_or_left_out(make_manager: MakeManager, tmp_path: Any, values: dict[str, Any]) -> None:
    """Names are no formulas, and numbers that no axis can hold are left out with a word."""
    manager = make_manager(backup_checkpoints=False)
    for sign in (1, -1):
        metrics = {name: sign * value for name, value in values.items()}
        manager.save_checkpoint(model=nn.Linear(1, 1), epoch=1, metrics=metrics)
    figure = metrics_figure(manager.list_checkpoints())
    figure.savefig(tmp_path / "plot.svg")
    is_left_out = "left out" in figure.axes[-1].get_xlabel()
    assert is_left_out == any(abs(value) > 1e100 for value in values.values())
