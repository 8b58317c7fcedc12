"""Comparing checkpoints: metrics, configuration, tags and tensors."""

from __future__ import annotations

import json

import pytest
import torch
from pydantic import TypeAdapter
from torch import nn

from ckpt_lib import CheckpointComparison, CheckpointManager, ExperimentSummary
from ckpt_lib.analysis.compare import compare_tensors, metrics_frame
from ckpt_lib.errors import (
    CheckpointNotFoundError,
    ConfigError,
    CorruptCheckpointError,
    ExperimentNotFoundError,
    UnknownMetricError,
)
from tests.helpers import flip_bit, payload_path, save


def test_every_list_is_in_the_order_of_the_ids(manager: CheckpointManager) -> None:
    """Metrics, tags and facts line up with checkpoint_ids, whichever way these are named."""
    first = save(manager, 1, 0.5, tags=["a", "b"])
    second = save(manager, 2, 0.25, tags=["b"])
    comparison = manager.compare_checkpoints(["latest", first])
    assert comparison["checkpoint_ids"] == [second, first]
    assert comparison["metrics_comparison"] == {"val_loss": [0.25, 0.5]}
    assert comparison["tags_comparison"] == {"a": [False, True], "b": [True, True]}
    facts = comparison["metadata_comparison"]
    assert facts["epoch"] == [2, 1]
    assert facts["is_latest"] == [True, False]
    assert facts["is_best"] == [True, False]
    json.dumps(comparison)


def test_names_of_other_experiments(manager: CheckpointManager) -> None:
    """A name may begin with another experiment of the store, which its id then shows; an unknown one is an error."""
    saved = save(manager, 1, 0.5)
    other = CheckpointManager(manager.config, "other")
    elsewhere = save(other, 2, 0.25)
    found = manager.compare_checkpoints([f"{manager.experiment_name}/latest", "other/best"], tensors=True)
    assert found["checkpoint_ids"] == [saved, f"other/{elsewhere}"]
    assert found["metrics_comparison"] == {"val_loss": [0.5, 0.25]}
    assert found["metadata_comparison"]["is_best"] == [True, True]
    assert list(found["tensors_comparison"]) == [f"other/{elsewhere}"]
    with pytest.raises(ExperimentNotFoundError, match="othre"):
        manager.compare_checkpoints(["latest", "othre/best"])
    with pytest.raises(CheckpointNotFoundError):
        manager.compare_checkpoints(["latest", "other/epoch_7"])


def test_only_differing_configuration_is_shown(manager: CheckpointManager) -> None:
    """Nested options are named by their path; equal ones are left out, and absent ones are None."""
    configs = ({"lr": 0.1, "seed": 1, "net": {"depth": 2, "act": "relu"}}, {"lr": 0.2, "seed": 1, "net": {"depth": 2}})
    saved = [save(manager, epoch, config=config) for epoch, config in enumerate(configs)]
    found = manager.compare_checkpoints(saved)["config_comparison"]
    assert found == {"lr": [0.1, 0.2], "net.act": ["relu", None]}


def test_metrics_may_be_chosen(manager: CheckpointManager) -> None:
    """Only the metrics asked for are shown, in that order; one that none of them has is an error."""
    saved = [save(manager, epoch, metrics={"a": epoch, "b": -epoch, "c": 0}) for epoch in (1, 2)]
    found = manager.compare_checkpoints(saved, metrics=["b", "a"])["metrics_comparison"]
    assert list(found.items()) == [("b", [-1, -2]), ("a", [1, 2])]
    assert manager.compare_checkpoints(saved, metrics=[])["metrics_comparison"] == {}
    with pytest.raises(UnknownMetricError):
        manager.compare_checkpoints(saved, metrics=["d"])


def test_the_frame_shows_the_change(manager: CheckpointManager) -> None:
    """The change is that from the first to the last; what has no difference is NaN, and an empty table is one."""
    rows = ({"loss": 0.5, "note": "x", "gone": 1}, {"loss": None, "note": "y"}, {"loss": 0.25, "note": "z", "new": 2})
    saved = [save(manager, epoch, metrics=metrics) for epoch, metrics in enumerate(rows)]
    frame = metrics_frame(manager.compare_checkpoints(saved))
    assert list(frame.columns) == [*saved, "change"]
    assert frame.loc["loss", "change"] == -0.25
    assert frame["change"].isna().to_dict() == {"loss": False, "note": True, "gone": True, "new": True}
    assert metrics_frame(manager.compare_checkpoints(saved, metrics=[])).empty


def test_tensors_are_compared_with_the_first(manager: CheckpointManager) -> None:
    """Each further checkpoint is set against the first; a missing or reshaped tensor shows its shapes."""

    def stored(weight: torch.Tensor, bias: bool = True) -> str:
        model = nn.Linear(weight.shape[1], weight.shape[0], bias=bias)
        with torch.no_grad():
            model.weight.copy_(weight)
            if bias:
                model.bias.zero_()
        saved = manager.save_checkpoint(model=model, epoch=1)
        assert saved is not None
        return saved

    ones = torch.ones(2, 2)
    saved = [stored(ones), stored(ones), stored(ones * 1.5), stored(torch.ones(3, 2), bias=False)]
    found = manager.compare_checkpoints(saved, tensors=True)["tensors_comparison"]
    assert list(found) == saved[1:]
    same = {"max_abs_difference": 0.0, "relative_l2": 0.0}
    assert found[saved[1]] == {"weight": same, "bias": same}
    assert found[saved[2]]["weight"] == {"max_abs_difference": 0.5, "relative_l2": 0.5}
    assert found[saved[3]] == {"weight": {"shapes": [[2, 2], [3, 2]]}, "bias": {"shapes": [[2], None]}}
    json.dumps(found)


@pytest.mark.parametrize(
    ("first", "second", "distance"),
    [
        (torch.tensor([3 + 4j]), torch.tensor([3 - 4j]), 8.0),
        (torch.tensor([2.0]), torch.tensor([2 + 1j]), 1.0),
        (torch.tensor([True, False]), torch.tensor([True, True]), 1.0),
        (torch.tensor([2**40]), torch.tensor([2**40 + 1]), 1.0),
        (torch.tensor([1.0], dtype=torch.bfloat16), torch.tensor([1.5]), 0.5),
        (torch.tensor([250], dtype=torch.uint8), torch.tensor([5], dtype=torch.uint8), 245.0),
        (torch.zeros(0), torch.zeros(0), 0.0),
        (torch.tensor(1.0), torch.tensor(3.0), 2.0),
    ],
    ids=["complex", "mixed", "bool", "large", "bfloat16", "uint8", "empty", "scalar"],
)
def test_differences_of_every_type_of_tensor(first: torch.Tensor, second: torch.Tensor, distance: float) -> None:
    """Neither an overflow nor a lost imaginary part hides or invents a difference."""
    payloads = [{"model_state_dict": {"t": tensor}} for tensor in (first, second)]
    assert compare_tensors(payloads[0], payloads[1])["t"]["max_abs_difference"] == distance


def test_a_difference_from_zero_is_not_divided_by_it() -> None:
    """Against an all-zero reference, the relative distance is 1, and 0 when there is none."""
    zero, one = {"model_state_dict": {"t": torch.zeros(2)}}, {"model_state_dict": {"t": torch.ones(2)}}
    assert compare_tensors(zero, one)["t"]["relative_l2"] == 1.0
    assert compare_tensors(zero, zero)["t"]["relative_l2"] == 0.0


def test_bad_comparisons(manager: CheckpointManager) -> None:
    """Too few, wrongly typed, unknown and damaged checkpoints are each one typed error."""
    saved = [save(manager, epoch) for epoch in (1, 2)]
    for wrong in ([], saved[:1], "latest", None, 5):
        with pytest.raises(ConfigError):
            manager.compare_checkpoints(wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError):
        manager.compare_checkpoints(saved, metrics="val_loss")
    with pytest.raises(CheckpointNotFoundError):
        manager.compare_checkpoints([saved[0], "nobody"])
    flip_bit(payload_path(manager, saved[1]), 128)
    assert manager.compare_checkpoints(saved)["metrics_comparison"]
    with pytest.raises(CorruptCheckpointError):
        manager.compare_checkpoints(saved, tensors=True)


def test_the_same_checkpoint_may_be_named_twice(manager: CheckpointManager) -> None:
    """Comparing latest with best works while they are one and the same."""
    saved = save(manager, 1)
    comparison = manager.compare_checkpoints(["latest", "best"], tensors=True)
    assert comparison["checkpoint_ids"] == [saved, saved]
    assert all(item["max_abs_difference"] == 0 for item in comparison["tensors_comparison"][saved].values())


def test_what_is_returned_has_the_declared_keys_and_types(manager: CheckpointManager) -> None:
    """Comparison and summary validate strictly against their types, which know every key, and give a JSON schema."""
    assert_declared(ExperimentSummary, manager.get_checkpoint_summary())
    save(manager, 1, metrics={"val_loss": 0.5, "note": "text"}, tags=["a"], config={"lr": 0.1})
    manager.save_checkpoint(model=nn.Linear(4, 4), epoch=2, metrics={"val_loss": None})
    assert_declared(ExperimentSummary, manager.get_checkpoint_summary())
    found = manager.list_checkpoints()
    for tensors in (False, True):
        comparison = manager.compare_checkpoints([item.checkpoint_id for item in found], tensors=tensors)
        assert_declared(CheckpointComparison, comparison)


def assert_declared(declared: type, value: object) -> None:
    adapter: TypeAdapter[object] = TypeAdapter(declared)
    assert adapter.validate_python(value, strict=True, extra="forbid") == value
    assert set(adapter.json_schema()["required"]) <= set(adapter.json_schema()["properties"])
