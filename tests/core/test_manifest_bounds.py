"""What a writer refuses, a reader refuses too: quickly, and by one typed error."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from ckpt_lib import CheckpointManager
from ckpt_lib.core.manifest import Manifest, _canonical, parse_record
from ckpt_lib.errors import CheckpointError, ConfigError, CorruptManifestError, InvalidMetricError, InvalidNameError
from tests.core.examples import ID, example, nested_lists
from tests.helpers import MakeManager, experiment_folder

TOO_MUCH: dict[str, dict[str, Any]] = {
    "a metric beyond floats": {"metrics": {"a": 10**300}},
    "a metric beyond 64 bits": {"metrics": {"a": 2**63}},
    "a metric beyond 64 bits below zero": {"metrics": {"a": -(2**63)}},
    "hidden characters in a metric": {"metrics": {"a": "\x1b[31m"}},
    "a metric without a name": {"metrics": {"": 1}},
    "a metric of a long name": {"metrics": {"a" * 101: 1}},
    "a hundred thousand metrics": {"metrics": {str(number): 1 for number in range(100_000)}},
    "a hundred thousand metrics of the wrong type": {"metrics": {str(number): [] for number in range(100_000)}},
    "a hundred thousand tags": {"tags": [str(number) for number in range(100_000)]},
    "a hundred thousand keys": {"config": {str(number): 1 for number in range(100_000)}},
    "a hundred thousand values": {"config": {"a": list(range(100_000))}},
    "a config of two megabytes": {"config": {"a": "x" * 2**21}},
    "a deep config": {"config": {"a": nested_lists(101)}},
    "a hundred thousand libraries": {"libraries": {str(number): 1 for number in range(100_000)}},
    "a description of a megabyte": {"description": "x" * 2**20},
    "an epoch of a thousand digits": {"epoch": 10**1000},
    "a step of nineteen digits": {"step": 10**18},
    "a sequence beyond 64 bits": {"sequence": 2**63},
    "the year 10000": {"timestamp": "10000-01-01T00:00:00Z"},
    "the year 10000 in UTC": {"timestamp": "9999-12-31T23:59:59-14:00"},
    "the year 0": {"timestamp": "0000-01-01T00:00:00Z"},
    "the year 0 in UTC": {"timestamp": "0001-01-01T00:00:00+14:00"},
    "a moment beyond numbers": {"timestamp": 10**300},
}


def fields() -> dict[str, Any]:
    return example().model_dump(mode="json")


@pytest.mark.parametrize("what", TOO_MUCH)
def test_a_reader_refuses_it_at_once(what: str) -> None:
    """The digests fit, so only the bounds stand between such a file and whatever would be made of it."""
    data = _canonical({**fields(), **TOO_MUCH[what]})
    start = time.thread_time()
    with pytest.raises(CorruptManifestError) as refused:
        parse_record(data, path="x.json")
    assert time.thread_time() - start < 10  # without bounds, nested lists took 33 s
    assert len(str(refused.value)) < 2_000


def test_each_of_the_bounds_lets_pass_what_lies_within() -> None:
    """They are far above what runs record."""
    within = {
        "metrics": {**{str(number): 0.5 for number in range(9_998)}, "a": 2**63 - 1, "b": 1 - 2**63},
        "tags": [str(number) for number in range(1_000)],
        "config": {str(number): number for number in range(10_000)},
        "timestamp": "9999-12-31T23:59:59Z",
        "epoch": 10**18 - 1,
    }
    found = parse_record(_canonical({**fields(), **within}), path="x.json")
    assert isinstance(found, Manifest)
    assert len(found.metrics) == 10_000
    assert found.metrics["a"] == 2**63 - 1


@pytest.mark.parametrize(
    ("facts", "error"),
    [
        ({"metrics": {"a": 10**300}}, InvalidMetricError),
        ({"metrics": {str(number): 1 for number in range(10_001)}}, InvalidMetricError),
        ({"tags": [str(number) for number in range(1_001)]}, InvalidNameError),
        ({"config": {str(number): 1 for number in range(10_001)}}, ConfigError),
        ({"config": {"a": [0] * 100_000}}, ConfigError),
        ({"config": {"a": "x" * 2**21}}, ConfigError),
        ({"config": {"a": nested_lists(101)}}, ConfigError),
    ],
)
def test_a_writer_refuses_it_before_anything_is_written(
    manager: CheckpointManager, store_path: Path, facts: dict[str, Any], error: type[CheckpointError]
) -> None:
    """One more than a reader takes is refused by name."""
    with pytest.raises(error):
        manager.save_checkpoint(model=nn.Linear(1, 1), epoch=1, **facts)
    assert not list(store_path.rglob("*.pt"))


def test_such_a_manifest_hides_no_other(make_manager: MakeManager) -> None:
    """It is listed as one that cannot be read, and summaries and lists of the others work."""
    manager = make_manager()
    saved = manager.save_checkpoint(model=nn.Linear(1, 1), epoch=1, metrics={"val_loss": 1.0})
    path = experiment_folder(manager) / f"{ID}.json"
    path.write_bytes(_canonical({**fields(), "metrics": {"val_loss": 10**300}}))
    assert [item.checkpoint_id for item in manager.list_checkpoints()] == [saved]
    assert [item.checkpoint_id for item in manager.list_unreadable()] == [ID]
    assert manager.get_checkpoint_summary()["best_checkpoint"] == saved
    assert json.loads(path.read_bytes())["metrics"]["val_loss"] == 10**300
