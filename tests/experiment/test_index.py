"""The index: what a folder holds, from one listing and the records that changed."""

from __future__ import annotations

import json
import threading
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_lib.core.manifest import Manifest, Record, new_token
from ckpt_lib.core.monitor import Monitor
from ckpt_lib.errors import CorruptManifestError, StoreError, UnsupportedSchemaError
from ckpt_lib.experiment import deletion, edits
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.experiment.index import snapshot
from ckpt_lib.store.memory import MemoryStore
from ckpt_lib.testing.faulty_store import FaultPlan, FaultyStore
from tests.experiment.contents import U, W, X, Y, manifest

_numbers = count()


@pytest.fixture
def experiment() -> Experiment:
    return fresh()


def fresh(store: MemoryStore | FaultyStore | None = None) -> Experiment:
    return Experiment(store or MemoryStore(f"index-{next(_numbers)}"), "e", "e")


def put(experiment: Experiment, *manifests: Manifest) -> None:
    for item in manifests:
        experiment.store.put(experiment.key(f"{item.checkpoint_id}.json"), item.to_bytes())
        experiment.store.put(experiment.key(item.files[0].name), item.uid.encode())


@given(
    st.lists(
        st.tuples(st.sampled_from([0.5, 0.25, 0.1, float("nan"), None]), st.booleans(), st.integers(-2, 3)), max_size=8
    )
)
def test_what_a_save_adds_is_what_a_listing_shows(saves: list[tuple[float | None, bool, int]]) -> None:
    """The whole checkpoints and the best of them, kept from save to save, are those of a new listing.

    That holds for ties, NaN, a monitor that changes its direction, unhealthy ones, and an order that is not that of
    the saves.
    """
    here = fresh()
    assert isinstance(here.store, MemoryStore)
    here.index.view()
    for number, (value, is_max, back) in enumerate(saves, start=1):
        saved = manifest(
            X.replace("0001", f"{number:04d}"),
            uid=f"{number:032x}",
            revision=new_token(),
            sequence=max(1, 2 * number - 3 * (back < 0)),
            metrics={} if value is None else {"val_loss": value},
            monitor=Monitor(mode="max" if is_max else "min"),
            unhealthy="NaN in the weights" if back == 3 else None,
        )
        put(here, saved)
        here.index.note_saved(saved, str(here.read(saved.checkpoint_id).version))
        noted, listed = here.index.last, fresh(here.store).index.view()
        assert noted is not None
        assert noted.best == listed.best or str(noted.best) == str(listed.best)
        assert [item.uid for item in noted.whole] == [item.uid for item in listed.whole] != []


STEPS = st.lists(
    st.tuples(st.sampled_from(["put", "edit", "delete", "undelete", "purge"]), st.integers(1, 4)), max_size=12
)


@given(STEPS)
def test_an_old_index_answers_like_a_new_one(steps: list[tuple[str, int]]) -> None:
    """After any sequence of changes, by others as well, a cached index and a rebuilt one agree."""
    old = fresh()
    assert isinstance(old.store, MemoryStore)
    for step, epoch in steps:
        other = fresh(old.store)
        checkpoint_id = X.replace("0001", f"{epoch:04d}")
        known = {item.checkpoint_id for item in other.index.manifests()}
        if step == "put" and checkpoint_id not in known:
            put(other, manifest(checkpoint_id, revision=new_token()))
        elif step == "edit" and checkpoint_id in known:
            edits.edit(other, checkpoint_id, lambda item: item.changed(pinned=not item.pinned))
        elif step == "delete":
            deletion.delete_all(other, [checkpoint_id])
        elif step == "undelete" and checkpoint_id in {item.checkpoint_id for item in other.index.view().deleted}:
            deletion.undelete(other, checkpoint_id)
        elif step == "purge":
            deletion.purge(other, grace_seconds=0)
        assert old.index.view() == fresh(old.store).index.view()


def test_an_empty_or_missing_folder_has_nothing(experiment: Experiment) -> None:
    """And asking creates nothing."""
    assert experiment.index.manifests() == []
    assert experiment.store.list("", recursive=True) == []


def test_order_is_by_sequence_whatever_clocks_and_names_say(experiment: Experiment) -> None:
    """Epochs that go backwards do not reorder history; where two saves tie, time stamp and ``uid`` decide."""
    put(experiment, manifest(X, W, sequence=2), manifest(Y, U, sequence=1))
    assert [item.checkpoint_id for item in experiment.index.manifests()] == [Y, X]
    put(experiment, manifest(X, W, sequence=1, revision=new_token()))
    assert [item.uid for item in experiment.index.manifests()] == [U, W]


def test_an_unreadable_manifest_is_told_and_hides_no_other(experiment: Experiment) -> None:
    """Torn, newer, another's: each with its reason and id; what is readable stays listed."""
    put(experiment, manifest(X))
    newer = json.dumps({"schema_version": 99}).encode()
    ids = [X.replace("0001", f"{number:04d}") for number in (2, 3, 4)]
    for checkpoint_id, data in zip(ids, [b"{", newer, manifest(X).to_bytes()], strict=True):
        experiment.store.put(experiment.key(f"{checkpoint_id}.json"), data)
    errors = experiment.index.unreadable()
    assert [type(error) for error in errors] == [CorruptManifestError, UnsupportedSchemaError, CorruptManifestError]
    assert [error.checkpoint_id for error in errors] == ids
    assert [item.checkpoint_id for item in experiment.index.manifests()] == [X]


def test_a_sequence_is_not_given_twice_while_a_manifest_is_unreadable(experiment: Experiment) -> None:
    """The damaged one may come back from a backup, and then be neither newer nor equal to what was saved since."""
    put(experiment, manifest(X, sequence=5))
    experiment.store.put(experiment.key(f"{Y}.json"), b"{")
    assert experiment.index.next_sequence() == 7


def test_what_is_deleted_keeps_its_sequence(experiment: Experiment) -> None:
    """It may come back beside what was saved since; so does what was seen in another place."""
    put(experiment, manifest(X, state="deleted", sequence=5))
    assert experiment.index.next_sequence() == 6
    experiment.index.note(9)
    assert experiment.index.next_sequence() == 10


def test_what_is_no_record_of_ours_is_not_read(experiment: Experiment) -> None:
    """Foreign JSON, folders and names that merely resemble ids are nobody's business."""
    for name in ("notes.json", f"{X}.json/part", f"{X}-copy.json", f"{X.upper()}.json", "checkpoint_metadata.json"):
        experiment.store.put(experiment.key(name), b"{")
    view = experiment.index.view()
    assert (view.manifests, view.unreadable, view.claims) == ((), (), ())


def test_a_giant_manifest_does_not_fill_the_memory(experiment: Experiment) -> None:
    """Only as much is read of it as a manifest may have, and it is refused."""
    plan, asked = FaultPlan(), []
    store = FaultyStore(experiment.store, plan)
    experiment.store.put(experiment.key(f"{X}.json"), b" " * (Record.MAX_BYTES + 100))
    watched = fresh(store)
    found = watched.read_small(f"{X}.json", Record.MAX_BYTES + 1)
    asked.append(found and len(found[0]))
    assert asked == [Record.MAX_BYTES + 1]
    assert [type(error) for error in watched.index.unreadable()] == [CorruptManifestError]


def test_questions_are_answered_while_others_write(experiment: Experiment) -> None:
    """Readers of one index and a writer: each answer is whole and in order."""
    problems: list[object] = []

    def ask() -> None:
        for _ in range(30):
            sequences = [item.sequence for item in experiment.index.manifests()]
            if sequences != sorted(sequences):
                problems.append(sequences)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(1, 30):
        put(fresh(experiment.store), manifest(X.replace("0001", f"{number:04d}"), sequence=number))  # type: ignore[arg-type]
    for thread in threads:
        thread.join()
    assert problems == []
    assert len(experiment.index.manifests()) == 29


def test_only_what_changed_is_read_again(experiment: Experiment) -> None:
    """One listing, and the records of new versions; a record that could not be read is read again when it heals."""
    put(experiment, manifest(X), manifest(Y, W))
    plan = FaultPlan(fail_at=3, error=StoreError)
    watched = fresh(FaultyStore(experiment.store, plan))
    assert [item.checkpoint_id for item in watched.index.manifests()] == [Y]
    assert [error.checkpoint_id for error in watched.index.unreadable()] == []
    del plan.calls[:]
    assert len(watched.index.manifests()) == 2
    assert plan.calls == ["list e"]


def test_the_snapshot_holds_every_manifest_for_people() -> None:
    """Strict JSON, oldest first, and nothing in it that can go stale."""
    content = json.loads(snapshot([manifest(X), manifest(Y, W)], "e"))
    assert [item["checkpoint_id"] for item in content["checkpoints"]] == [X, Y]
    assert not {"is_best", "is_latest", "is_complete"} & {*content["checkpoints"][0]}
