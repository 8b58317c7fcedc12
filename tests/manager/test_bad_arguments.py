"""Bad arguments: wrong types and policies are one typed error each, and nothing is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.errors import ConfigError
from tests.helpers import MakeManager, ids, save


class _Stateless:
    """Not a model."""


@pytest.mark.parametrize(
    "options",
    [
        {"epoch": "1"},
        {"epoch": -1},
        {"epoch": True},
        {"epoch": 1.0},
        {"epoch": None},
        {"epoch": 10**18},
        {"step": "1"},
        {"step": -1},
        {"step": False},
        {"step": None},
        {"model": None},
        {"model": _Stateless()},
        {"model": {"weight": 1}},
        {"optimizer": _Stateless()},
        {"scheduler": "cosine"},
        {"config": [1]},
        {"config": "lr=1"},
        {"config": {"lr": 1j}},
        {"config": {"model": nn.Linear(2, 1)}},
        {"config": {"path": "caf\udce9"}},
        {"extra_state": 5},
        {"extra_state": [("a", 1)]},
        {"idempotency_key": 5},
        {"idempotency_key": "caf\udce9"},
        {"idempotency_key": "a\nb"},
    ],
    ids=lambda options: ascii(options)[:40],
)
@pytest.mark.parametrize("interval", [1, 50])
def test_wrong_types_of_a_save(make_manager: MakeManager, options: dict[str, Any], interval: int) -> None:
    """Each wrong argument is one ConfigError, at once: also in an epoch that the policy would not save."""
    manager = make_manager(save_interval=interval)
    with pytest.raises(ConfigError):
        manager.save_checkpoint(**{"model": nn.Linear(2, 1), "epoch": 1, **options})
    assert not Path(manager.config.checkpoint_dir).exists()


def test_deep_configurations_are_refused_at_the_door(filled: CheckpointManager) -> None:
    """A configuration deeper than a manifest can hold is refused; one of 50 levels is stored."""

    def nested(levels: int) -> dict[str, Any]:
        value: dict[str, Any] = {"end": 1}
        for _ in range(levels):
            value = {"a": value}
        return value

    for levels in (150, 300, 5_000):
        with pytest.raises(ConfigError):
            save(filled, 3, config=nested(levels))


@pytest.mark.parametrize("config", [5, "checkpoints", {"checkpoint_dir": "x"}, CheckpointConfig])
def test_a_manager_wants_a_config(config: Any) -> None:
    """Anything but a CheckpointConfig is refused by name."""
    with pytest.raises(ConfigError, match="CheckpointConfig"):
        CheckpointManager(config, "run")


@pytest.mark.parametrize("policy", ["newest", 5, object()])
def test_policies_of_another_type(filled: CheckpointManager, policy: Any) -> None:
    """What is no policy is refused when it is given, and not when it is first needed."""
    with pytest.raises(ConfigError, match="policy"):
        CheckpointManager(filled.config, "run", save_policy=policy)
    with pytest.raises(ConfigError, match="policy"):
        CheckpointManager(filled.config, "run", retention_policy=policy)
    with pytest.raises(ConfigError, match="policy"):
        filled.cleanup_checkpoints(policy=policy)


@pytest.mark.parametrize(
    "query", [{"limit": -1}, {"limit": "5"}, {"min_epoch": "1"}, {"max_epoch": 1.5}, {"search": 5}, {"sort_by": 5}]
)
def test_queries_of_another_type(filled: CheckpointManager, query: dict[str, Any]) -> None:
    """A wrong bound or order is refused, and does not quietly give another list."""
    with pytest.raises(ConfigError):
        filled.list_checkpoints(**query)


def test_a_policy_that_fails_does_not_fail_the_save(store_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever a retention policy of the caller's raises: the checkpoint is safe already, and is acknowledged."""

    class Broken:
        def reasons(self, records: Any) -> dict[str, str]:
            raise KeyError("a mistake in it")

    policy: Any = Broken()
    manager = CheckpointManager(CheckpointConfig(checkpoint_dir=str(store_path)), "run", retention_policy=policy)
    saved = save(manager, 1)
    assert ids(manager) == [saved]
    assert "deleting old checkpoints failed" in caplog.text
