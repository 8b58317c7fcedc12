"""Why there is no newer checkpoint: every way in which a save makes none has its reason, in numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.advice.unsaved import reasons_stored
from ckpt_lib.core.not_saved import NotSaved
from ckpt_lib.errors import StorageFullError, StoreUnavailableError, UnknownMetricError
from ckpt_lib.policies.saving import AllOf, AnyOf, EveryEpochs, EverySeconds, EverySteps, OnImprovement, When
from ckpt_lib.saving.policy_check import REFUSALS_TO_WARN
from tests.helpers import MakeManager, save
from tests.saving.failing_stores import AWAY, failing
from tests.saving.under_way import Gate, start

pytestmark = pytest.mark.usefixtures("_no_waiting")
FULL = StorageFullError("the disk is full")


def attempt(manager: CheckpointManager, epoch: int, loss: float = 0.5, **options: Any) -> str | None:
    return manager.save_checkpoint(model=nn.Linear(2, 1), epoch=epoch, metrics={"val_loss": loss}, **options)


def only(manager: CheckpointManager) -> NotSaved:
    (reason,) = manager.why_not_saved()
    return reason


def test_before_the_first_save(manager: CheckpointManager) -> None:
    """Nobody asked for a checkpoint yet, which is another thing than a refusal."""
    assert only(manager).kind == "never_asked"


def test_a_checkpoint_needs_no_reason(manager: CheckpointManager) -> None:
    """After a save that made one, there is nothing to explain."""
    save(manager, 1)
    assert manager.why_not_saved() == ()


def test_an_interval_names_the_next_epoch(make_manager: MakeManager) -> None:
    """Between two saves the reason says which epoch is next, and that epoch is saved."""
    manager = make_manager(save_interval=5)
    save(manager, 5)
    assert attempt(manager, 7) is None
    reason = only(manager)
    assert (reason.kind, reason.epoch, reason.next_epoch) == ("interval", 7, 10)
    assert "epoch 10" in str(reason)
    assert attempt(manager, 10) is not None
    assert manager.why_not_saved() == ()


def test_a_metric_that_is_no_better_names_the_best(make_manager: MakeManager) -> None:
    """With save_best_only, the reason has the value of the save and the one to beat; NaN is never better."""
    manager = make_manager(save_best_only=True)
    save(manager, 1, 0.2)
    assert attempt(manager, 2, 0.3) is None
    reason = only(manager)
    assert (reason.kind, reason.metric, reason.value, reason.best) == ("not_better", "val_loss", 0.3, 0.2)
    assert attempt(manager, 3, float("nan")) is None
    assert "never better" in only(manager).message


def test_all_policies_that_refuse_are_named(store_path: Path) -> None:
    """A combination gives the reasons of its parts that refuse, and of no other."""
    policy = AllOf(EverySeconds(3600), AnyOf(EverySteps(100), OnImprovement()), When(lambda context: context.epoch < 3))
    manager = CheckpointManager(CheckpointConfig(checkpoint_dir=str(store_path)), "run", save_policy=policy)
    assert attempt(manager, 1, 0.5, step=100) is not None
    assert attempt(manager, 2, 0.7, step=150) is None
    by_kind = {reason.kind: reason for reason in manager.why_not_saved()}
    assert by_kind.keys() == {"too_soon", "interval", "not_better"}
    assert 0 < (by_kind["too_soon"].seconds_left or 0) <= 3600
    assert by_kind["interval"].next_step == 200
    assert attempt(manager, 3, 0.1, step=200) is None
    assert {reason.kind for reason in manager.why_not_saved()} == {"too_soon", "policy"}


def test_a_policy_of_the_user_may_explain_itself(store_path: Path) -> None:
    """Its own words are passed on; one that cannot explain itself does not hide that it refused."""

    class Never(EveryEpochs):
        def should_save(self, context: object) -> bool:
            return False

    class Worded(Never):
        def why_not(self, context: object) -> tuple[NotSaved, ...]:
            return (NotSaved(kind="policy", message="the moon is not full"),)

    class Broken(Never):
        def why_not(self, context: object) -> tuple[NotSaved, ...]:
            raise RuntimeError("no idea")

    for policy, words in ((Worded(), "the moon is not full"), (Broken(), "no idea")):
        manager = CheckpointManager(CheckpointConfig(checkpoint_dir=str(store_path)), "run", save_policy=policy)
        assert attempt(manager, 1) is None
        assert (only(manager).kind, only(manager).epoch) == ("policy", 1)
        assert words in only(manager).message


def test_a_failure_outlives_later_refusals(make_manager: MakeManager) -> None:
    """A failed save is the first reason until a checkpoint is made, although the policy refused since."""
    manager = make_manager(save_best_only=True, on_save_failure="warn")
    save(manager, 1, 0.5)
    with failing(manager, FULL, "open_write"):
        assert attempt(manager, 2, 0.3) is None
    assert attempt(manager, 3, 0.6) is None
    failure, refusal = manager.why_not_saved()
    assert (failure.kind, failure.epoch, failure.error) == ("no_space", 2, "StorageFullError")
    assert "ckpt advise" in str(failure)
    assert (refusal.kind, refusal.epoch) == ("not_better", 3)
    assert attempt(manager, 4, 0.2) is not None
    assert manager.why_not_saved() == ()


def test_a_forced_save_ends_a_refusal(make_manager: MakeManager) -> None:
    """The checkpoint is there, so nothing is left to explain."""
    manager = make_manager(save_best_only=True)
    save(manager, 1, 0.1)
    assert attempt(manager, 2, 0.3) is None
    assert attempt(manager, 2, 0.3, force=True) is not None
    assert manager.why_not_saved() == ()


def test_the_warning_of_many_refusals_needs_no_metric(
    make_manager: MakeManager, caplog: pytest.LogCaptureFixture
) -> None:
    """A run without metrics that the policy refuses for long is warned once, and goes on."""
    manager = make_manager(save_interval=1000)
    for _ in range(REFUSALS_TO_WARN + 1):
        assert manager.save_checkpoint(model=nn.Linear(2, 1), epoch=7) is None
    assert [record.message for record in caplog.records if "nothing has been saved for" in record.message] != []
    assert only(manager).next_epoch == 1000


def test_an_error_that_was_raised_is_remembered(make_manager: MakeManager) -> None:
    """Refused arguments and a missing metric are reasons as well; the error is raised as before."""
    manager = make_manager(save_best_only=True)
    with pytest.raises(UnknownMetricError):
        manager.save_checkpoint(model=nn.Linear(2, 1), epoch=1, metrics={"los": 0.1})
    assert (only(manager).kind, only(manager).error) == ("failed", "UnknownMetricError")
    with pytest.raises(ValueError, match="epoch"):
        manager.save_checkpoint(model=nn.Linear(2, 1), epoch="one")  # type: ignore[arg-type]
    assert (only(manager).error, only(manager).epoch) == ("ConfigError", None)


def test_a_repeat_names_the_checkpoint(manager: CheckpointManager) -> None:
    """A save under a taken key made nothing new, and the reason says which checkpoint has the key."""
    first = save(manager, 1, idempotency_key="once")
    assert attempt(manager, 1, idempotency_key="once") == first
    assert (only(manager).kind, only(manager).checkpoint_id) == ("already_saved", first)


def test_the_fallback_folder_is_a_reason(make_safe: MakeManager) -> None:
    """A checkpoint in the fallback folder is not in the store, and the reason says where it is."""
    manager = make_safe()
    with failing(manager, FULL, "open_write"):
        stranded = save(manager, 1)
    assert (only(manager).kind, only(manager).checkpoint_id) == ("in_fallback", stranded)


def test_the_background_is_explained(make_manager: MakeManager, gate: Gate) -> None:
    """A save that is being written is a reason of its own, and its failure is known before the next call raises it."""
    manager = make_manager()
    gate.open.clear()
    gate.error = AWAY
    handle = start(manager, 4)
    assert (only(manager).kind, only(manager).epoch) == ("under_way", 4)
    gate.open.set()
    with pytest.raises(StoreUnavailableError):
        handle.result()
    assert (only(manager).kind, only(manager).epoch) == ("failed", 4)


def test_what_is_stranded_is_told(make_safe: MakeManager) -> None:
    """The newest checkpoint is in the fallback folder, where nobody looks for it."""
    manager = make_safe()
    save(manager, 1)
    with failing(manager, FULL, "open_write"):
        stranded = save(manager, 2)
    first = reasons_stored(manager._locations)[0]
    assert (first.kind, first.checkpoint_id) == ("in_fallback", stranded)
    found = manager.why_not_loaded(stranded)
    assert (found.state, found.commands) == ("in fallback", ("ckpt reconcile",))
