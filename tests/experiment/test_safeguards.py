"""Safeguards of the protocol that only matter when two processes meet, or one was killed, at just that step."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from itertools import count
from pathlib import Path

import pytest

from ckpt_lib.core.manifest import Manifest
from ckpt_lib.core.names import CheckpointId
from ckpt_lib.errors import (
    CheckpointError,
    CheckpointExistsError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    StorageFullError,
    StoreUnavailableError,
    VersionConflictError,
)
from ckpt_lib.experiment import claims, commit, copies, deletion, edits, keys, pointers
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.experiment.layout import CLOCK_NAME, key_name, manifest_name
from ckpt_lib.experiment.sweep import sweep
from ckpt_lib.store.base import ABSENT, Entry, Upload
from ckpt_lib.store.checks import OWN_FOLDER
from ckpt_lib.store.local import LocalStore
from ckpt_lib.store.local.folder_lock import FolderLock, open_lock
from ckpt_lib.store.local.system import System
from ckpt_lib.store.memory import ALL, MemoryStore
from ckpt_lib.stream.digests import Buffer
from ckpt_lib.testing.faulty_store import FaultPlan, FaultyStore
from tests.experiment.small import CHECKPOINT_ID, DATA, MOMENT, Clock, draft, names, new_store, save, state_of, write


def watched(store: MemoryStore, between: Callable[[str, str], object]) -> Experiment:
    """An experiment before each of whose operations another process may act."""
    return Experiment(FaultyStore(store, FaultPlan(between=between)), "e", "e")


def tag(experiment: Experiment, checkpoint_id: str, name: str = "t") -> Manifest:
    return edits.edit(experiment, checkpoint_id, lambda item: item.changed(tags=(*item.tags, name)))


def leave(experiment: Experiment, checkpoint_id: str) -> None:
    """Begin a deletion, and die."""
    found = experiment.read(checkpoint_id)
    assert isinstance(found.record, Manifest)
    experiment.put_record(found.record.changed(state="leaving"), found.version)


# Writes


def test_a_lock_that_nobody_gives_up_is_waited_for_once(tmp_path: Path) -> None:
    """A write that surely did not happen is not looked for, and not made again: each time is half a minute."""
    plan = FaultPlan()
    store = LocalStore(str(tmp_path), patience_seconds=0.01)
    experiment = Experiment(FaultyStore(store, plan), "e", "e")
    made = save(experiment)
    found, system = experiment.read(made.checkpoint_id), System()
    with open_lock(tmp_path / "e" / OWN_FOLDER, system) as file, FolderLock(file, system, patience_seconds=1.0):
        plan.calls.clear()
        with pytest.raises(StoreUnavailableError, match="locked by process"):
            experiment.put_record(made.changed(pinned=True), found.version)
    assert [call.split()[0] for call in plan.calls] == ["put"]


def test_what_another_cleanup_deletes_is_not_called_kept(clock: Clock) -> None:
    """A deletion that has to refrain says of each checkpoint what became of it."""
    store = new_store(clock)
    here = Experiment(store, "e", "e")
    kept, doomed = save(here), save(here, 2)

    def interfere(operation: str, key: str) -> None:
        if (
            operation == "open_read"
            and key.endswith(f"{kept.checkpoint_id}.json")
            and state_of(here, doomed.checkpoint_id) == "leaving"
        ):
            deletion.delete_all(here, [doomed.checkpoint_id])
            deletion.delete_all(here, [kept.checkpoint_id])

    outcome = deletion.delete_all(watched(store, interfere), [doomed.checkpoint_id], relied_on=[kept.checkpoint_id])
    assert outcome.deleted == []
    assert isinstance(outcome.refused[doomed.checkpoint_id], CheckpointNotFoundError)


def test_a_single_writer_compares_versions_itself(clock: Clock) -> None:
    """Where the store has no conditions: a change of what was read before is refused all the same."""
    poor = replace(ALL, create_if_absent=False, replace_if_version=False, delete_if_version=False)
    alone = Experiment(new_store(clock, poor), "e", "e", single_writer=True)
    made = save(alone)
    found = alone.read(made.checkpoint_id)
    tag(alone, made.checkpoint_id)
    with pytest.raises(VersionConflictError):
        alone.put_record(made.changed(description="stale"), found.version)
    assert alone.get(made.checkpoint_id).tags == ("t",)


def test_a_write_without_an_answer_gives_way_to_anothers(store: MemoryStore) -> None:
    """Nobody answered, and someone else has written since: the write is refused at once, and not repeated."""
    plain = Experiment(store, "e", "e")
    made = save(plain)
    found = plain.read(made.checkpoint_id)
    plan = FaultPlan(fail_at=1, error=StoreUnavailableError, only=frozenset({"put"}))
    plan.between = lambda *_: tag(plain, made.checkpoint_id)
    with pytest.raises(VersionConflictError):
        Experiment(FaultyStore(store, plan), "e", "e").put_record(made.changed(description="mine"), found.version)
    assert plan.calls == [f"put e/{made.checkpoint_id}.json"]
    assert plain.get(made.checkpoint_id).tags == ("t",)


def test_a_full_store_does_not_hide_a_write_without_an_answer(store: MemoryStore) -> None:
    """The first may still come, so the error says that it may have happened: nobody takes its files away."""
    plan = FaultPlan(fail_at=1, error=StoreUnavailableError, only=frozenset({"put"}))

    def full(*_: str) -> None:
        if plan.calls:
            raise StorageFullError("no space")

    plan.between = full
    held = claims.claim_new(Experiment(store, "e", "e"), CheckpointId(1, 100, MOMENT), "a" * 32, ".pt")
    ended = held.claim.changed(state="abandoned")
    with pytest.raises(StoreUnavailableError):
        Experiment(FaultyStore(store, plan), "e", "e").put_record(ended, held.found.version)


def test_what_lost_bytes_is_not_complete(experiment: Experiment) -> None:
    """A payload that is there, and too short, is not whole."""
    made = save(experiment)
    assert experiment.is_complete(made)
    experiment.store.put(experiment.key(made.payload.name), DATA[:-1])
    assert not experiment.is_complete(made)


class _Losing:
    """An upload that counts one byte less than it was given when it is committed."""

    def __init__(self, upload: Upload, aborted: list[str]) -> None:
        self._upload = upload
        self._aborted = aborted

    def write(self, data: Buffer, /) -> int:
        return self._upload.write(data)

    def commit(self) -> Entry:
        entry = self._upload.commit()
        return replace(entry, size_bytes=entry.size_bytes - 1)

    def abort(self) -> None:
        self._aborted.append("aborted")
        self._upload.abort()


class _LosingStore(FaultyStore):
    """A store that lost a byte of each upload, and says so."""

    def __init__(self, store: MemoryStore) -> None:
        super().__init__(store, FaultPlan())
        self.aborted: list[str] = []

    def open_write(self, key: str) -> Upload:
        return _Losing(super().open_write(key), self.aborted)


def test_an_upload_that_lost_bytes_is_refused(store: MemoryStore) -> None:
    """By the count that the store gives: nothing is read back for it."""
    experiment = Experiment(_LosingStore(store), "e", "e")
    with pytest.raises(CorruptCheckpointError, match="6 bytes in the store, not 7"):
        save(experiment)
    assert state_of(experiment, CHECKPOINT_ID) == "gone"


def test_a_serializer_that_fails_leaves_no_upload_open(store: MemoryStore) -> None:
    """It is aborted, so that the store can forget its parts."""
    losing = _LosingStore(store)

    def fail(payload: commit.Payload) -> None:
        with payload.open():
            raise ValueError

    with pytest.raises(ValueError, match=r"^$"):
        commit.save(Experiment(losing, "e", "e"), draft(), fail, format_name="torch", suffix=".pt")
    assert losing.aborted


# Edits and deletions


def test_an_edit_keeps_what_was_about_to_leave(experiment: Experiment) -> None:
    """Whoever wanted it gone did not know of the edit, and its deletion is refused then."""
    made = save(experiment)
    leave(experiment, made.checkpoint_id)
    tag(experiment, made.checkpoint_id)
    assert state_of(experiment, made.checkpoint_id) == "live"


def test_a_release_cites_what_was_read(experiment: Experiment) -> None:
    """A manifest that changed since it was verified is left alone."""
    made = save(experiment)
    edits.quarantine(experiment, experiment.read(made.checkpoint_id), {"files": []})
    found = experiment.read(made.checkpoint_id)
    tag(experiment, made.checkpoint_id)
    assert edits.release(experiment, found) is None
    assert experiment.get(made.checkpoint_id).tags == ("t",)


def test_the_newest_comes_back_after_a_quarantine(experiment: Experiment) -> None:
    """When the last valid one is set aside: of those that were deleted, the one saved last."""
    made = [save(experiment, epoch) for epoch in (1, 2, 3)]
    deletion.delete_all(experiment, [item.checkpoint_id for item in made[:2]])
    edits.quarantine(experiment, experiment.read(made[2].checkpoint_id), {"files": []})
    assert [item.epoch for item in experiment.index.view().valid] == [2]


def test_a_deletion_whose_support_is_gone_never_hides_its_victim(store: MemoryStore) -> None:
    """It looks before it deletes: a reader in between would find nothing."""
    experiment = Experiment(store, "e", "e")
    victim, support = save(experiment), save(experiment, 2)
    deletion.delete_all(experiment, [support.checkpoint_id])
    seen: list[str | None] = []
    deleting = watched(store, lambda *_: seen.append(state_of(experiment, victim.checkpoint_id)))
    outcome = deletion.delete_all(deleting, [victim.checkpoint_id], relied_on=[support.checkpoint_id])
    assert list(outcome.refused) == [victim.checkpoint_id]
    assert set(seen) == {"live", "leaving"}


def test_what_a_dead_deletion_left_counts_when_another_relies_on_it(experiment: Experiment) -> None:
    """It is taken back: else no cleanup would ever delete anything again."""
    victim, support = save(experiment), save(experiment, 2)
    leave(experiment, support.checkpoint_id)
    outcome = deletion.delete_all(experiment, [victim.checkpoint_id], relied_on=[support.checkpoint_id])
    assert [item.uid for item in outcome.deleted] == [victim.uid]
    assert state_of(experiment, support.checkpoint_id) == "live"


@pytest.mark.parametrize("moment", range(1, 14))
def test_what_comes_back_while_others_are_purged_stays(store: MemoryStore, moment: int) -> None:
    """Undeleted at any step of a purge: it is there in the end with its file, or the undeletion was refused."""
    plain = Experiment(store, "e", "e")
    made = save(plain)
    save(plain, 2)
    deletion.delete_all(plain, [made.checkpoint_id])
    step, back = count(1), list[Manifest]()

    def undelete(*_: str) -> None:
        if next(step) == moment:
            with suppress(CheckpointError):
                back.append(deletion.undelete(plain, made.checkpoint_id))

    deletion.purge(watched(store, undelete), grace_seconds=0)
    assert next(step) > moment
    assert not back or plain.is_complete(plain.get(made.checkpoint_id))


def test_what_was_deleted_anew_has_a_grace_period_of_its_own(store: MemoryStore, clock: Clock) -> None:
    """Though a purge has listed it as deleted long ago."""
    plain = Experiment(store, "e", "e")
    made, _ = save(plain), save(plain, 2)
    deletion.delete_all(plain, [made.checkpoint_id])
    clock.now += timedelta(days=2)
    listed = count()

    def delete_anew(operation: str, key: str) -> None:
        if operation == "put" and key.endswith(CLOCK_NAME) and next(listed) == 0:
            deletion.undelete(plain, made.checkpoint_id)
            deletion.delete_all(plain, [made.checkpoint_id])

    assert deletion.purge(watched(store, delete_anew), grace_seconds=86_400) == []
    assert state_of(plain, made.checkpoint_id) == "deleted"


# Sweeps


def test_a_sweep_reads_the_record_after_it_listed_the_file(store: MemoryStore) -> None:
    """A checkpoint that came to be after the listing keeps the file that the sweep had found without a name."""
    plain = Experiment(store, "e", "e")
    held = claims.claim_new(plain, CheckpointId(1, 100, MOMENT), "a" * 32, ".pt")
    plain.store.put(plain.key(held.claim.files[0]), DATA)
    sweep(plain)
    assert f"e/{held.claim.files[0]}" in names(plain)


def test_a_sweep_leaves_what_an_unreadable_manifest_may_name(experiment: Experiment) -> None:
    """Its payload may be all that is left: it is not removed."""
    made = save(experiment)
    experiment.store.put(experiment.key(manifest_name(made.checkpoint_id)), b"{")
    assert sweep(experiment).files == []
    assert experiment.store.stat(experiment.key(made.payload.name))


# Copies and keys


def test_a_copy_under_way_is_not_taken_over(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process lives: another copier waits, is refused in the end, and the first one ends well."""
    monkeypatch.setattr(claims, "PATIENCE_SECONDS", 0.2)
    made, target = save(experiment), Experiment(experiment.store, "b", "e")
    held = claims.claim_over(target, made.checkpoint_id, made.uid, ".pt")
    assert held
    with pytest.raises(CheckpointExistsError):
        copies.copy(experiment, made, target)
    assert target.read(made.checkpoint_id).version == held.found.version


def test_a_claim_after_another_one_leaves_a_record_on_a_full_store(experiment: Experiment) -> None:
    """Whoever saw the earlier one end may remove files of the plain name later: the id must not begin anew."""
    made, target = save(experiment), Experiment(experiment.store, "b", "e")
    first = claims.claim_over(target, made.checkpoint_id, made.uid, ".pt")
    assert first
    claims.give_up(first)
    again = claims.claim_over(target, made.checkpoint_id, made.uid, ".pt", target.read(made.checkpoint_id))
    assert again
    assert not again.has_plain_name
    claims.give_up(again, StorageFullError("no space"))
    assert state_of(target, made.checkpoint_id) in ("abandoned", "gone")


def test_a_save_of_a_key_does_not_wait_for_ever(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process is saving with the key: this save waits, is refused in the end, and leaves that one alone."""
    polls = iter(range(100))
    monkeypatch.setattr("time.sleep", lambda _: next(polls))
    monkeypatch.setattr(claims, "PATIENCE_SECONDS", 0.0)
    held = claims.claim_new(experiment, CheckpointId(1, 100, MOMENT), "a" * 32, ".pt")
    assert keys.take(held, "k") is None
    with pytest.raises(CheckpointExistsError, match="still saving with this idempotency key"):
        save(experiment, 2, idempotency_key="k")
    assert experiment.read(held.checkpoint_id).version == held.found.version


def test_a_copy_of_damage_leaves_no_claim(experiment: Experiment) -> None:
    """Its id is free again, as far as ids ever are, and no file is left."""
    made, target = save(experiment), Experiment(experiment.store, "b", "e")
    experiment.store.put(experiment.key(made.payload.name), b"other!!")
    with pytest.raises(CorruptCheckpointError):
        copies.copy(experiment, made, target)
    assert state_of(target, made.checkpoint_id) == "gone"
    assert not [name for name in names(target) if name.startswith("b/") and name.endswith(".pt")]


def test_a_copy_keeps_what_a_newer_version_wrote(experiment: Experiment) -> None:
    """Fields that this version does not know survive, those of the manifest and those of its files."""
    made, target = save(experiment), Experiment(experiment.store, "b", "e")
    file = made.payload.model_copy(update={"later": 1})
    edits.edit(experiment, made.checkpoint_id, lambda item: item.changed(files=(file,), newer="x"))
    copies.copy(experiment, experiment.get(made.checkpoint_id), target)
    extra = target.get(made.checkpoint_id)
    assert (extra.model_extra, extra.payload.model_extra) == ({"newer": "x"}, {"later": 1})


def test_a_key_that_points_to_another_checkpoint_answers_nothing(experiment: Experiment) -> None:
    """An id says less than a ``uid``: the checkpoint that the key was of is gone."""
    made = save(experiment)
    pointer = pointers.Pointer(checkpoint_id=made.checkpoint_id, uid="f" * 32)
    pointers.put(experiment, key_name("k"), pointer, ABSENT)
    assert keys.find(experiment, "k") is None
    again = commit.save(experiment, draft(2, idempotency_key="k"), write, format_name="torch", suffix=".pt")
    assert again.uid != made.uid


def test_a_copy_that_was_purged_meanwhile_stays_away(store: MemoryStore, clock: Clock) -> None:
    """A copier that slept for days between its pointer and its claim looks at the pointer again."""
    home, target = Experiment(store, "e", "e"), Experiment(store, "b", "e")
    made = save(home)
    record, lives = target.key(manifest_name(made.checkpoint_id)), list[Manifest]()

    def live_and_die(operation: str, key: str) -> None:
        if (operation, key) == ("put", record) and not lives:
            copied = copies.copy(home, made, target)
            assert copied
            lives.append(copied)
            deletion.delete_all(target, [made.checkpoint_id])
            deletion.purge(target, grace_seconds=0, asked=True)
            clock.now += timedelta(days=2)
            sweep(target)

    sleeping = Experiment(FaultyStore(store, FaultPlan(between=live_and_die)), "b", "e")
    assert copies.copy(home, made, sleeping) is None
    assert lives
    assert target.index.manifests() == []
