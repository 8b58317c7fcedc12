"""Bad metrics: what is no number is refused, what does not compare is never the best, unknown ones are named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ckpt_lib import CheckpointManager
from ckpt_lib.errors import InvalidMetricError, UnknownMetricError
from tests.helpers import MakeManager, save


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), None, "diverged", "NaN"], ids=repr)
@pytest.mark.parametrize("mode", ["min", "max"])
def test_values_that_do_not_compare_are_stored_and_never_best(make_manager: MakeManager, value: Any, mode: str) -> None:
    """They come back as they were, in metadata and payload, and lose against any number."""
    manager = make_manager(monitor_mode=mode)
    saved = [save(manager, 1, value), save(manager, 2, 1e300), save(manager, 3, -1e300), save(manager, 4, value)]
    expected = float("nan") if value == "NaN" else value
    for found in (
        manager.get_checkpoint(saved[0]).metrics["val_loss"],
        manager.load_checkpoint(saved[3])["metrics"]["val_loss"],
    ):
        assert repr(found) == repr(expected)
    best = manager.get_best_checkpoint()
    assert best is not None
    assert best.checkpoint_id == saved[2 if mode == "min" else 1]
    assert manager.get_checkpoint_summary()["statistics"]["val_loss"]["not_comparable"] == 2


@pytest.mark.parametrize(
    "value",
    [
        [0.1],
        (0.1,),
        {"a": 1},
        torch.ones(2),
        torch.ones(2, 2),
        np.ones(3),
        object(),
        1 + 2j,
        b"0.1",
        10**400,
        10**5000,
        "a\nb",
        "\x1b[31m",
        torch.ones((), device="meta"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_metrics_that_are_no_number_are_refused(filled: CheckpointManager, value: Any) -> None:
    """Lists, vectors, objects and numbers beyond any float are refused by name."""
    with pytest.raises(InvalidMetricError, match="odd_one"):
        save(filled, 3, metrics={"val_loss": 1.0, "odd_one": value})


@pytest.mark.parametrize(
    "metrics", [[("val_loss", 1)], 5, "val_loss", {5: 1.0}, {"": 1.0}, {"a\nb": 1.0}, {"x" * 101: 1}]
)
def test_metrics_that_are_no_mapping_of_names(filled: CheckpointManager, metrics: Any) -> None:
    """Neither other containers nor names that cannot be printed are taken."""
    with pytest.raises(InvalidMetricError):
        save(filled, 3, metrics=metrics)


def test_numbers_of_libraries_become_plain(manager: CheckpointManager) -> None:
    """0-d tensors and NumPy scalars are stored as the numbers they hold."""
    given = {"t": torch.tensor(0.5), "n": np.float32(0.25), "i": np.int64(3), "b": True, "h": torch.tensor(7)}
    saved = save(manager, 1, metrics=given)
    found = manager.get_checkpoint(saved).metrics
    assert found == {"t": 0.5, "n": 0.25, "i": 3, "b": 1, "h": 7}
    assert {type(value) for value in found.values()} == {int, float}


def test_unknown_metrics(filled: CheckpointManager) -> None:
    """A metric nobody recorded is an error that lists those there are, in each call that takes one."""
    for call in (
        lambda: filled.get_best_checkpoint("val_los", "min"),
        lambda: filled.list_checkpoints(sort_by="val_los"),
        lambda: filled.compare_checkpoints(["latest", "best"], metrics=["val_los"]),
    ):
        with pytest.raises(UnknownMetricError, match="val_loss"):
            call()
