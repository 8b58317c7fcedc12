"""``thin_after``: of what a cleanup keeps, all but the newest keep only their weights."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_lib import CheckpointManager
from ckpt_lib.core.monitor import Monitor
from ckpt_lib.errors import ConfigError
from ckpt_lib.maintenance import thin as thinning
from ckpt_lib.policies.ranking import ranked
from ckpt_lib.policies.retention import KeepNewest, RetentionRecord, plan_retention
from tests.experiment.small import MOMENT
from tests.helpers import MakeManager, build, flip_bit, payload_path
from tests.maintenance.test_thin import home_of, named, payloads

LOSS = Monitor(metric="val_loss", mode="min")


def save_with(manager: CheckpointManager, losses: list[float], **options: Any) -> list[str]:
    """Save a checkpoint with each of the losses, from which no run goes on."""
    parts, made = build(), []
    for epoch, loss in enumerate(losses, start=1):
        metrics = {"val_loss": loss}
        made.append(str(manager.save_checkpoint(**parts.kwargs(), epoch=epoch, metrics=metrics, **options)))
    return made


def thinned_of(manager: CheckpointManager) -> list[str]:
    return [item.checkpoint_id for item in manager.list_checkpoints() if item.is_thinned]


@pytest.fixture
def cleaner(make_manager: MakeManager) -> CheckpointManager:
    """A manager that keeps all, the newest two of them whole; it saves nothing itself."""
    return make_manager(backup_checkpoints=False, max_checkpoints=100, thin_after=2)


def test_the_older_ones_keep_their_weights(cleaner: CheckpointManager, unlimited: CheckpointManager) -> None:
    """All but the newest two, the best and the pinned ones; a dry run says so and does nothing."""
    first, best, pinned, fourth, _, _ = save_with(unlimited, [0.9, 0.1, 0.5, 0.6, 0.7, 0.8])
    unlimited.pin_checkpoint(pinned)
    old_bytes = unlimited.get_checkpoint(first).file_size
    planned = cleaner.cleanup_checkpoints(dry_run=True)
    assert planned.plan.thinned_ids == (fourth, first)
    assert thinned_of(unlimited) == []
    report = cleaner.cleanup_checkpoints()
    assert report.thinned_ids == (first, fourth)
    assert report.deleted_ids == ()
    assert report.spared == {}
    assert thinned_of(unlimited) == [first, fourth]
    assert best not in report.thinned_ids
    new_bytes = unlimited.get_checkpoint(first).file_size
    assert (report.trashed_bytes, report.freed_bytes) == (2 * (old_bytes - new_bytes), 0)
    assert not unlimited.unthin_checkpoint(first).is_thinned
    assert cleaner.cleanup_checkpoints().thinned_ids == (first,)
    assert cleaner.cleanup_checkpoints(dry_run=True).plan.thinned_ids == ()


def test_a_save_thins_and_frees_at_once(make_manager: MakeManager) -> None:
    """As it deletes at once: on a local disk, the trash would hold what the next saves need."""
    manager = make_manager(backup_checkpoints=False, max_checkpoints=100, thin_after=2)
    made = save_with(manager, [0.1, 0.5, 0.4, 0.6, 0.7])
    assert thinned_of(manager) == made[1:3]
    assert manager.dropped_bytes() == {}
    assert payloads(manager) == named(manager)
    assert all(manager.validate_all())


def test_it_goes_with_retention(make_manager: MakeManager) -> None:
    """What retention gives up is deleted, and not thinned before."""
    manager = make_manager(backup_checkpoints=False, max_checkpoints=3, thin_after=1)
    made = save_with(manager, [0.1, 0.5, 0.4, 0.6, 0.7])
    assert [item.checkpoint_id for item in manager.list_checkpoints()] == [made[0], made[3], made[4]]
    assert thinned_of(manager) == [made[3]]


def test_the_one_that_a_run_goes_on_from_stays(cleaner: CheckpointManager, unlimited: CheckpointManager) -> None:
    """Loaded by this process, or resumed from by any."""
    first, second, third, *_ = save_with(unlimited, [0.9, 0.8, 0.7, 0.6, 0.5])
    cleaner.load_checkpoint(first)
    home = home_of(unlimited)
    found = home.read(second)
    until = home.now() + timedelta(hours=1)
    home.put_record(found.manifest.changed(in_use_until=until), found.version)
    assert cleaner.cleanup_checkpoints().thinned_ids == (third,)


def test_what_has_nothing_to_drop_is_not_planned(cleaner: CheckpointManager, unlimited: CheckpointManager) -> None:
    """And is looked at only once by a process."""
    for epoch in range(5):
        unlimited.save_checkpoint(model=build().model, epoch=epoch)
    assert cleaner.cleanup_checkpoints().plan.thinned_ids == ()
    assert thinned_of(unlimited) == []
    assert unlimited.resume() is not None


def test_a_damaged_one_spares_itself_alone(cleaner: CheckpointManager, unlimited: CheckpointManager) -> None:
    """It is found while it is read, and the report says why; the others are thinned."""
    first, second, *_ = save_with(unlimited, [0.9, 0.8, 0.7, 0.6, 0.5])
    flip_bit(payload_path(unlimited, first), -2_000)
    report = cleaner._cleaner.clean_quickly()
    assert second in report.thinned_ids
    assert first not in report.thinned_ids
    assert first in report.spared


def test_what_is_pinned_after_the_plan_is_spared(
    cleaner: CheckpointManager, unlimited: CheckpointManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest that is replaced decides."""
    first, second, *_ = save_with(unlimited, [0.9, 0.8, 0.7, 0.6])
    original = thinning._compare

    def pinned(*arguments: Any) -> None:
        unlimited.pin_checkpoint(first)
        original(*arguments)

    monkeypatch.setattr(thinning, "_compare", pinned)
    report = cleaner.cleanup_checkpoints()
    assert first in report.spared
    assert report.thinned_ids == (second,)
    assert payloads(unlimited) >= named(unlimited)


def test_none_is_thinned_when_no_whole_one_is_left(
    cleaner: CheckpointManager, unlimited: CheckpointManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A person may have deleted the newest ones since the plan."""
    made = save_with(unlimited, [0.5, 0.6, 0.7, 0.8])
    original = thinning._compare

    def deleted(*arguments: Any) -> None:
        for checkpoint_id in (made[0], *made[2:]):
            unlimited.delete_checkpoint(checkpoint_id)
        original(*arguments)

    monkeypatch.setattr(thinning, "_compare", deleted)
    report = cleaner.cleanup_checkpoints()
    assert report.thinned_ids == ()
    assert "no valid checkpoint with all of its state" in report.spared[made[1]]
    assert unlimited.resume(**build().kwargs()) is not None


def test_a_byte_budget_counts_what_they_hold_now(make_manager: MakeManager, unlimited: CheckpointManager) -> None:
    """Thinned checkpoints take their new size of it."""
    save_with(unlimited, [0.5] * 5)
    before = sum(item.file_size for item in unlimited.list_checkpoints())
    make_manager(backup_checkpoints=False, max_checkpoints=100, thin_after=1, trash_seconds=0).cleanup_checkpoints()
    after = sum(item.file_size for item in unlimited.list_checkpoints())
    report = unlimited.cleanup_checkpoints(dry_run=True)
    assert sum(item.size_bytes for item in report.plan.decisions) == after < before


def test_less_than_one_whole_checkpoint_is_refused(make_manager: MakeManager) -> None:
    """A run must have one to go on from."""
    with pytest.raises(ConfigError, match="thin_after"):
        make_manager(thin_after=0)


facts = st.tuples(
    st.booleans(), st.booleans(), st.booleans(), st.sampled_from(["valid", "unverified", "damaged"]), st.floats(0, 1)
)


@given(st.lists(facts, max_size=12), st.integers(1, 5), st.integers(0, 12), st.sets(st.integers(1, 12)))
def test_a_plan_never_thins_what_is_needed(
    found: list[tuple[bool, bool, bool, Any, float]], thin_after: int, keep: int, in_use: set[int]
) -> None:
    """Of any history: only what stays, is whole, not pinned and not in use; neither the newest ones nor the best."""
    records = [
        RetentionRecord(
            checkpoint_id=str(number),
            sequence=number,
            epoch=number,
            step=0,
            timestamp=MOMENT,
            size_bytes=10,
            metrics={"val_loss": loss},
            pinned=pinned,
            healthy=healthy,
            thinned=thinned,
            status=status,
        )
        for number, (pinned, healthy, thinned, status, loss) in enumerate(found, start=1)
    ]
    protected = {str(number): "in use" for number in in_use}
    options: Any = {"now": MOMENT, "monitors": [LOSS], "protected": protected}
    plan = plan_retention(records, KeepNewest(count=keep), thin_after=thin_after, **options)
    assert plan.kept_ids == plan_retention(records, KeepNewest(count=keep), **options).kept_ids
    by_id = {record.checkpoint_id: record for record in records}
    thin = [by_id[name] for name in plan.thinned_ids]
    assert set(plan.thinned_ids) <= set(plan.kept_ids) - protected.keys()
    assert not any(record.pinned or record.thinned or record.status == "damaged" for record in thin)
    whole = [record for record in records[::-1] if not record.thinned and record.status != "damaged"]
    for status in ("valid", "unverified"):
        good = [record for record in whole if record.healthy and (status != "valid" or record.status == "valid")]
        assert not set(plan.thinned_ids) & {record.checkpoint_id for record in good[:1]}
        assert not set(plan.thinned_ids) & {record.checkpoint_id for record in ranked(good, LOSS)[:1]}
    kept_whole = [item for item in whole if item.checkpoint_id in plan.kept_ids and item.healthy]
    assert not set(plan.thinned_ids) & {record.checkpoint_id for record in kept_whole[:thin_after]}
