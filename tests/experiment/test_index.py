"""The index: a cache that never answers anything but what the folder holds now."""

from __future__ import annotations

import json
import os
import shutil
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckpt_lib.core.manifest import Manifest
from ckpt_lib.core.names import CheckpointId
from ckpt_lib.errors import CheckpointNotFoundError, CorruptManifestError, StoreError, UnsupportedSchemaError
from ckpt_lib.experiment import commit
from ckpt_lib.experiment.index import Index, snapshot
from ckpt_lib.experiment.layout import CheckpointFolder
from tests.experiment.test_commit import contents, folder_at, keep, save

WANTED = CheckpointId(1, 2, datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC))

SHARED_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def folder(tmp_path: Path) -> CheckpointFolder:
    return folder_at(tmp_path)


def uids(index: Index) -> list[str]:
    return [manifest.uid for manifest in index.manifests()]


steps = st.lists(
    st.tuples(st.sampled_from(["save", "delete", "pin", "damage", "restore file", "foreign"]), st.integers(0, 9)),
    max_size=12,
)


@SHARED_FOLDER
@given(steps=steps)
def test_an_old_index_answers_like_a_new_one(tmp_path: Path, steps: list[tuple[str, int]]) -> None:
    """After any sequence of changes, by others as well, a cached index and a rebuilt one agree."""
    shutil.rmtree(tmp_path / "e", ignore_errors=True)
    folder = folder_at(tmp_path)
    old = Index(folder)
    lost: dict[Path, bytes] = {}
    for what, number in steps:
        ids = sorted(folder.manifest_entries())
        chosen = ids[number % len(ids)] if ids else None
        if what == "save" or chosen is None:
            save(folder, number)
        elif what == "delete" and chosen not in {path.stem for path in lost}:
            commit.delete(folder, chosen, unless=keep)
        elif what == "pin" and chosen not in {path.stem for path in lost}:
            commit.edit(folder, chosen, lambda manifest: manifest.changed(pinned=not manifest.pinned))
        elif what == "damage":
            path = tmp_path / "e" / f"{chosen}.json"
            lost.setdefault(path, path.read_bytes())
            path.write_bytes(path.read_bytes()[: 20 + number])
        elif what == "restore file" and lost:
            path, data = lost.popitem()
            path.write_bytes(data)
        else:
            (tmp_path / "e" / f"foreign{number}.json").write_text("{}")
        new = Index(folder)
        assert old.manifests() == new.manifests()
        assert [(type(e), e.checkpoint_id) for e in old.unreadable()] == [
            (type(e), e.checkpoint_id) for e in new.unreadable()
        ]
        assert len(old.manifests()) + len(old.unreadable()) == len(folder.manifest_entries())


def test_an_empty_or_missing_folder_has_nothing(folder: CheckpointFolder) -> None:
    """And asking creates nothing."""
    index = Index(folder)
    assert (index.manifests(), index.unreadable(), index.next_place(WANTED, ".pt")) == (
        [],
        [],
        (str(WANTED), 1),
    )
    assert index.with_uid("0" * 32) is None
    assert index.with_idempotency_key("k") is None
    assert folder.store.entries("") == []


def test_order_is_by_sequence_whatever_clocks_and_names_say(tmp_path: Path, folder: CheckpointFolder) -> None:
    """Epochs that go backwards and files touched in another order do not reorder history."""
    saved = [save(folder, epoch) for epoch in (9, 1, 5, 1)]
    for number, path in enumerate(sorted((tmp_path / "e").glob("*.json"))):
        os.utime(path, (1000 - number, 1000 - number))
    assert uids(Index(folder)) == [manifest.uid for manifest in saved]


def test_an_unreadable_manifest_is_told_and_hides_no_other(tmp_path: Path, folder: CheckpointFolder) -> None:
    """Torn, newer, another's: each with its reason and id; what is readable stays listed."""
    saved = [save(folder, epoch) for epoch in range(4)]
    paths = [tmp_path / "e" / f"{manifest.checkpoint_id}.json" for manifest in saved]
    paths[0].write_bytes(b"")
    paths[1].write_bytes(paths[1].read_bytes().replace(b'"schema_version": 1', b'"schema_version": 2'))
    paths[2].write_bytes(paths[3].read_bytes())
    index = Index(folder)
    assert uids(index) == [saved[3].uid]
    assert {(error.checkpoint_id, type(error)) for error in index.unreadable()} == {
        (saved[0].checkpoint_id, CorruptManifestError),
        (saved[1].checkpoint_id, UnsupportedSchemaError),
        (saved[2].checkpoint_id, CorruptManifestError),
    }


def test_a_sequence_is_not_given_twice_while_a_manifest_is_unreadable(tmp_path: Path, folder: CheckpointFolder) -> None:
    """The damaged ones may come back from a backup, and then be neither newer nor equal to what was saved since."""
    saved = [save(folder, epoch) for epoch in range(3)]
    whole = [(tmp_path / "e" / f"{item.checkpoint_id}.json").read_bytes() for item in saved[1:]]
    for manifest in saved[1:]:
        (tmp_path / "e" / f"{manifest.checkpoint_id}.json").write_bytes(b"torn")
    later = save(folder, 9)
    for manifest, data in zip(saved[1:], whole, strict=True):
        (tmp_path / "e" / f"{manifest.checkpoint_id}.json").write_bytes(data)
    assert uids(Index(folder)) == [item.uid for item in (*saved, later)]


def test_a_deleted_checkpoint_that_has_a_backup_keeps_its_sequence_and_id(tmp_path: Path) -> None:
    """It may be restored beside what was saved since."""
    folder, backups = folder_at(tmp_path), folder_at(tmp_path, "e/backups")
    index = Index(folder, Index(backups))
    first = save(folder, index=index)
    commit.copy(folder, first, backups)
    commit.delete(folder, first.checkpoint_id, unless=keep)
    second = save(folder, index=index)
    assert second.checkpoint_id != first.checkpoint_id
    assert second.sequence > first.sequence
    commit.copy(backups, first, folder)
    assert uids(index) == [first.uid, second.uid]


def test_one_checkpoint_is_read_from_the_store_each_time(tmp_path: Path, folder: CheckpointFolder) -> None:
    """``get`` never answers from memory: decisions that destroy ask it."""
    manifest = save(folder)
    index = Index(folder)
    assert index.get(manifest.checkpoint_id) == manifest
    path = tmp_path / "e" / f"{manifest.checkpoint_id}.json"
    status = path.stat()
    path.write_bytes(path.read_bytes().replace(b'"epoch": 1', b'"epoch": 2'))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(CorruptManifestError):
        index.get(manifest.checkpoint_id)
    path.unlink()
    with pytest.raises(CheckpointNotFoundError):
        index.get(manifest.checkpoint_id)


def test_what_is_no_manifest_of_ours_is_not_read(tmp_path: Path, folder: CheckpointFolder) -> None:
    """Foreign JSON, folders, links and names that merely resemble ids are nobody's business."""
    manifest = save(folder)
    e = tmp_path / "e"
    (e / "checkpoint_metadata.json").write_text("not json")
    (e / "config.json").write_text("{}")
    (e / f"{manifest.checkpoint_id}_2.json").mkdir()
    (e / f"{manifest.checkpoint_id}_3.json").symlink_to(e / f"{manifest.checkpoint_id}.json")
    (e / f"{manifest.checkpoint_id}.json.bak").write_text("{}")
    (e / manifest.checkpoint_id.replace("0001", "00001")).with_suffix(".json").write_text("{}")
    index = Index(folder)
    assert (index.manifests(), index.unreadable()) == ([manifest], [])


def test_a_giant_manifest_does_not_fill_the_memory(tmp_path: Path, folder: CheckpointFolder) -> None:
    """A sparse file of a terabyte under a manifest's name is refused after its first megabytes."""
    manifest = save(folder)
    with open(tmp_path / "e" / f"{manifest.checkpoint_id}.json", "r+b") as file:
        file.truncate(2**40)
    (error,) = Index(folder).unreadable()
    assert "too large" in error.message


def test_questions_are_answered_while_others_write(tmp_path: Path, folder: CheckpointFolder) -> None:
    """Eight readers of one index and a writer: each answer is a state that was, whole and in order."""
    stop = threading.Event()
    problems: list[object] = []
    index = Index(folder)
    save(folder)

    def ask() -> None:
        while not stop.is_set():
            try:
                found = [manifest.sequence for manifest in index.manifests()]
                if found != sorted(found) or not found or index.unreadable():
                    problems.append(found)
            except BaseException as error:
                problems.append(error)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for epoch in range(8):
        kept = save(folder, epoch)
        commit.edit(folder, kept.checkpoint_id, lambda manifest: manifest.changed(pinned=True))
        for manifest in Index(folder).manifests()[:-2]:
            commit.delete(folder, manifest.checkpoint_id, unless=keep)
    stop.set()
    for thread in threads:
        thread.join()
    assert problems == []


def test_the_snapshot_holds_every_manifest_for_people(tmp_path: Path, folder: CheckpointFolder) -> None:
    """Strict JSON, oldest first, and nothing in it that can go stale."""
    saved = [save(folder, epoch, metrics={"a": float("nan")}) for epoch in (2, 1)]

    def refuse(literal: str) -> None:
        raise AssertionError(literal)

    content = json.loads(snapshot(Index(folder).manifests(), "e"), parse_constant=refuse)
    assert (content["schema_version"], content["experiment_name"]) == (1, "e")
    assert [item["checkpoint_id"] for item in content["checkpoints"]] == [item.checkpoint_id for item in saved]
    assert [item["checksum"] for item in content["checkpoints"]] == [item.payload.sha256 for item in saved]
    assert not {"is_best", "is_latest"} & set(content["checkpoints"][0])


def test_asking_changes_nothing(tmp_path: Path, folder: CheckpointFolder) -> None:
    """Not a byte and not a name."""
    save(folder)
    before = contents(tmp_path)
    index = Index(folder)
    (
        index.manifests(),
        index.unreadable(),
        index.next_place(WANTED, ".pt"),
        snapshot(index.manifests(), "e"),
    )
    assert contents(tmp_path) == before


def test_manifests_of_equal_sequence_have_one_order(folder: CheckpointFolder, tmp_path: Path) -> None:
    """Two copied together from different experiments: by id then, the same each time."""
    one, other = save(folder_at(tmp_path, "a")), save(folder_at(tmp_path, "b"), 2)
    for manifest, name in ((other, "b"), (one, "a")):
        commit.copy(folder_at(tmp_path, name), manifest, folder)
    found: list[Manifest] = Index(folder).manifests()
    assert [manifest.checkpoint_id for manifest in found] == sorted([one.checkpoint_id, other.checkpoint_id])


def test_one_manifest_that_cannot_be_read_hides_no_other(
    folder: CheckpointFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bad sector under one manifest is reported as that one's, and read again when it heals."""
    first, second = save(folder, 1), save(folder, 2)
    real = CheckpointFolder.read_manifest

    def failing(self: CheckpointFolder, checkpoint_id: str) -> Manifest:
        if checkpoint_id == first.checkpoint_id:
            raise StoreError("the store failed: Input/output error")
        return real(self, checkpoint_id)

    index = Index(folder)
    monkeypatch.setattr(CheckpointFolder, "read_manifest", failing)
    assert index.manifests() == [second]
    assert [error.checkpoint_id for error in index.unreadable()] == [first.checkpoint_id]
    monkeypatch.undo()
    assert index.manifests() == [first, second]
    assert index.unreadable() == []
