"""State that cannot be saved or given back: refused by its place, and never called damage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from ckpt_lib import CheckpointManager
from ckpt_lib.core.manifest import Record
from ckpt_lib.errors import ConfigError, UnsupportedStateError
from tests.helpers import ids, save


@pytest.mark.parametrize(
    "make",
    [
        lambda: {"extra_state": {"callback": lambda: None}},
        lambda: {"extra_state": {"deep": [{"in": (object(),)}]}},
        lambda: {"extra_state": {"array": np.array(["x"])}},
        lambda: {"extra_state": {"key": {torch.ones(1): 1}}},
        lambda: {"extra_state": {"storage": torch.ones(1).untyped_storage()}},
        lambda: {"scheduler": _SchedulerWithObject()},
        lambda: {"extra_state": _endless()},
    ],
)
def test_state_that_plain_torch_could_not_read_is_refused(
    filled: CheckpointManager, make: Callable[[], dict[str, Any]]
) -> None:
    """A checkpoint that only our code, or only a trusting reader, could load is never written."""
    with pytest.raises(UnsupportedStateError) as caught:
        save(filled, 3, **make())
    assert isinstance(caught.value, TypeError)


class _SchedulerWithObject:
    """A scheduler that keeps an object of its own class in its state."""

    def state_dict(self) -> dict[str, Any]:
        return {"last_epoch": 1, "anneal": self}

    def load_state_dict(self, state: Any) -> None: ...


def _endless() -> dict[str, Any]:
    state: dict[str, Any] = {}
    state["self"] = state
    return state


def test_the_place_of_unstorable_state_is_named(filled: CheckpointManager) -> None:
    """The message leads to the object, through every container."""
    with pytest.raises(UnsupportedStateError, match=r"extra_state\['deep'\]\[0\]\['in'\]\[1\]"):
        save(filled, 3, extra_state={"deep": [{"in": (1, object())}]})


def test_a_manifest_that_could_not_be_read_again_is_not_written(
    filled: CheckpointManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A configuration that makes the manifest too large fails the save instead of making it unreadable."""
    monkeypatch.setattr(Record, "MAX_BYTES", 10_000)
    before = ids(filled)
    with pytest.raises(ConfigError, match="too large"):
        save(filled, 9, config={"text": "x" * 10_000})
    assert ids(filled) == before
    assert not filled.list_unreadable()


@pytest.mark.parametrize("state", [None, [1], "text"])
def test_a_state_that_is_no_mapping_is_refused(filled: CheckpointManager, state: Any) -> None:
    """Saved, it could not be told from a part that was left out."""

    class Odd:
        def state_dict(self) -> Any:
            return state

        def load_state_dict(self, state_dict: Any) -> None: ...

    with pytest.raises(UnsupportedStateError, match="not a mapping"):
        filled.save_checkpoint(model=Odd(), epoch=9)


@pytest.mark.parametrize("map_location", [0, 3.5, ["cpu"]])
def test_a_wrong_map_location_is_not_called_damage(filled: CheckpointManager, map_location: Any) -> None:
    """Taken for damage, it would make resuming pass every checkpoint over."""
    for call in (filled.load_checkpoint, filled.resume):
        with pytest.raises(ConfigError, match="map_location"):
            call(map_location=map_location)


def test_a_lack_of_memory_is_not_called_damage(filled: CheckpointManager, monkeypatch: pytest.MonkeyPatch) -> None:
    """Taken for damage, it would make resuming go back to an older, perhaps smaller, checkpoint."""

    def fail(*_arguments: Any, **_options: Any) -> Any:
        return torch.empty(10**16)

    monkeypatch.setattr(torch, "load", fail)
    for call in (filled.load_checkpoint, filled.resume):
        with pytest.raises(MemoryError):
            call(map_location={})  # what only torch itself can do


def test_a_warning_that_is_an_error_is_not_called_damage(
    filled: CheckpointManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under ``python -W error``, what PyTorch warns of must not make resuming pass a sound checkpoint over."""

    def warn(*_arguments: Any, **_options: Any) -> Any:
        raise UserWarning("this is experimental")

    monkeypatch.setattr(torch, "load", warn)
    for call in (filled.load_checkpoint, filled.resume):
        with pytest.raises(UserWarning, match="experimental"):
            call(map_location={})  # what only torch itself can do
