"""The save protocol: what is acknowledged is whole, no name is shared, and the steps come in the order that is safe."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch

from ckpt_lib.core.facts import CheckpointFacts
from ckpt_lib.core.manifest import Manifest
from ckpt_lib.errors import (
    CheckpointError,
    CheckpointExistsError,
    CheckpointNotFoundError,
    ConfigError,
    CorruptCheckpointError,
    ProtectedCheckpointError,
    StorageFullError,
)
from ckpt_lib.experiment import commit
from ckpt_lib.experiment.index import Index
from ckpt_lib.experiment.layout import CheckpointFolder
from ckpt_lib.formats import format_named
from ckpt_lib.maintenance.validate import validate
from ckpt_lib.store import open_store
from ckpt_lib.store.folder_lock import LocalFolderLock
from ckpt_lib.testing import FaultPlan, FaultyStore
from tests.helpers import is_bookkeeping, leave_unfinished

MOMENT = datetime(2023, 12, 1, 14, 30, 22, tzinfo=UTC)


def folder_at(root: Path, name: str = "e") -> CheckpointFolder:
    return CheckpointFolder(open_store(root), name)


def save(folder: CheckpointFolder, epoch: int = 1, *, index: Index | None = None, **facts: Any) -> Manifest:
    """Commit a tiny checkpoint, in the same second each time."""
    fields: dict[str, Any] = {"step": 100, "model_name": "Net", "experiment_name": "e", "timestamp": MOMENT} | facts
    payload = {"model_state_dict": {"w": torch.full((3,), float(epoch))}, "epoch": epoch}
    torch_format = format_named("torch")
    layout = torch_format.lay_out(payload)
    return commit.save(folder, index or Index(folder), CheckpointFacts(epoch, **fields), torch_format, layout)


def keep(_: Manifest) -> None:
    """Nothing speaks against a deletion."""


def contents(root: Path) -> dict[str, bytes]:
    """Every file below ``root`` but for leases and locks."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not is_bookkeeping(str(path.relative_to(root)))
    }


def sweep(folder: CheckpointFolder, **options: float) -> commit.Swept:
    return commit.sweep(folder, folder.store.entries(folder.path), **options)


def is_whole(folder: CheckpointFolder, manifest: Manifest) -> bool:
    return validate(folder, manifest, "e").is_valid


@pytest.fixture
def folder(tmp_path: Path) -> CheckpointFolder:
    return folder_at(tmp_path)


# --- saving ---


def test_a_save_leaves_a_payload_a_manifest_and_nothing_else(tmp_path: Path, folder: CheckpointFolder) -> None:
    """Under the documented names, with the digests that ``sha256sum`` prints."""
    manifest = save(folder)
    assert manifest.checkpoint_id == "checkpoint_epoch_0001_step_000100_20231201_143022"
    found = contents(tmp_path)
    assert sorted(found) == [f"e/{manifest.checkpoint_id}.json", f"e/{manifest.checkpoint_id}.pt"]
    data = found[f"e/{manifest.checkpoint_id}.pt"]
    assert (manifest.payload.size_bytes, manifest.payload.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert found[f"e/{manifest.checkpoint_id}.json"] == manifest.to_bytes()
    assert is_whole(folder, folder.read_manifest(manifest.checkpoint_id))


def test_saves_of_one_second_get_suffixes(folder: CheckpointFolder) -> None:
    """Each id once, in the order of saving, and a deleted one's place is not an invitation while others hold it."""
    first, second, third = (save(folder) for _ in range(3))
    base = first.checkpoint_id
    assert [second.checkpoint_id, third.checkpoint_id] == [f"{base}_2", f"{base}_3"]
    assert [first.sequence, second.sequence, third.sequence] == [1, 2, 3]
    assert len({first.uid, second.uid, third.uid}) == 3


@pytest.mark.parametrize("suffix", [".pt", ".json"])
def test_an_id_that_a_foreign_file_has_is_not_taken(tmp_path: Path, folder: CheckpointFolder, suffix: str) -> None:
    """Someone's copy under our kind of name is left as it is."""
    base = "checkpoint_epoch_0001_step_000100_20231201_143022"
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / f"{base}{suffix}").write_bytes(b"foreign")
    assert save(folder).checkpoint_id == f"{base}_2"
    assert (tmp_path / "e" / f"{base}{suffix}").read_bytes() == b"foreign"


def test_an_id_whose_deletion_was_interrupted_is_not_taken(tmp_path: Path, folder: CheckpointFolder) -> None:
    """The sweep that goes on with the deletion would take the new checkpoint's payload."""
    first = save(folder)
    (tmp_path / "e" / f"{first.checkpoint_id}.json").rename(tmp_path / "e" / f".{first.checkpoint_id}.deleted")
    os.unlink(tmp_path / "e" / f"{first.checkpoint_id}.pt")
    second = save(folder)
    assert second.checkpoint_id == f"{first.checkpoint_id}_2"
    sweep(folder)
    assert is_whole(folder, second)


def test_saves_at_once_never_meet(tmp_path: Path) -> None:
    """Eight threads, one second, one epoch: as many checkpoints, ids, sequences and whole payloads as saves."""
    barrier = threading.Barrier(8)
    errors: list[BaseException] = []
    saved: list[Manifest] = []

    def work(number: int) -> None:
        folder = folder_at(tmp_path)
        index = Index(folder)
        barrier.wait()
        try:
            saved.extend(save(folder, 1, index=index, tags=(f"t{number}",)) for _ in range(5))
        except BaseException as error:
            errors.append(error)

    _together([threading.Thread(target=work, args=(number,)) for number in range(8)])
    assert errors == []
    folder = folder_at(tmp_path)
    listed = Index(folder).manifests()
    assert {manifest.uid for manifest in listed} == {manifest.uid for manifest in saved}
    assert [manifest.sequence for manifest in listed] == list(range(1, 41))
    assert all(is_whole(folder, manifest) for manifest in listed)
    assert len(contents(tmp_path)) == 80


def test_an_idempotency_key_saves_once(tmp_path: Path) -> None:
    """One after the other, and eight at once: one checkpoint, which all of them return."""
    barrier, results = threading.Barrier(8), []

    def work() -> None:
        barrier.wait()
        results.append(save(folder_at(tmp_path), idempotency_key="run-1/step-7"))

    _together([threading.Thread(target=work) for _ in range(8)])
    results.append(save(folder_at(tmp_path), 2, idempotency_key="run-1/step-7"))
    assert len({manifest.uid for manifest in results}) == 1
    assert len(results) == 9
    assert len(contents(tmp_path)) == 2
    assert save(folder_at(tmp_path), idempotency_key="run-1/step-8").uid != results[0].uid


def test_a_damaged_checkpoint_does_not_answer_for_its_key(tmp_path: Path, folder: CheckpointFolder) -> None:
    """A retry after the payload got lost saves again."""
    first = save(folder, idempotency_key="k")
    os.unlink(tmp_path / "e" / first.payload.name)
    second = save(folder, idempotency_key="k")
    assert second.checkpoint_id != first.checkpoint_id
    assert is_whole(folder, second)


def test_a_manifest_that_cannot_be_written_takes_the_payload_with_it(tmp_path: Path, folder: CheckpointFolder) -> None:
    """A fact outside UTF-8, seen only at the end, leaves nothing behind."""
    with pytest.raises(ConfigError):
        save(folder, model_name="\ud800")
    assert contents(tmp_path) == {}
    assert is_whole(folder, save(folder))


def test_an_interrupt_while_the_payload_gets_its_name_leaves_nothing_for_good(
    tmp_path: Path, folder: CheckpointFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in that instant: whether or not the payload has its name by then, the next sweep removes it."""

    publish = LocalFolderLock.publish

    def interrupt(*arguments: Any, **options: Any) -> None:
        publish(*arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(LocalFolderLock, "publish", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(folder)
    sweep(folder)
    assert contents(tmp_path) == {}


def test_an_interrupt_when_the_manifest_has_its_name_leaves_a_whole_checkpoint(
    tmp_path: Path, folder: CheckpointFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That was the commit: its payload is not taken away any more."""
    put = LocalFolderLock.put

    def interrupt(self: LocalFolderLock, path: str, content: bytes, **options: Any) -> None:
        put(self, path, content, **options)
        if path.endswith(".json"):
            raise KeyboardInterrupt

    monkeypatch.setattr(LocalFolderLock, "put", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(folder)
    (manifest,) = Index(folder).manifests()
    assert is_whole(folder, manifest)


def test_a_serializer_that_fails_leaves_nothing(tmp_path: Path, folder: CheckpointFolder) -> None:
    """Whatever it raises comes out, interrupts included."""
    for error in (ValueError("boom"), KeyboardInterrupt(), StorageFullError("full")):

        class Failing:
            size_bytes = 1

            def write(self, stream: Any, error: BaseException = error) -> None:
                stream.write(b"half of it")
                raise error

        facts = CheckpointFacts(1, 1, "Net", "e")
        with pytest.raises(type(error)) as raised:
            commit.save(folder, Index(folder), facts, format_named("torch"), Failing())
        assert raised.value is error
        assert contents(tmp_path) == {}


# --- editing ---


def test_edits_at_once_are_all_applied(tmp_path: Path, folder: CheckpointFolder) -> None:
    """Read, change and write happen under the lock: no edit gets lost."""
    checkpoint_id = save(folder).checkpoint_id

    def work(number: int) -> None:
        def add(manifest: Manifest) -> Manifest:
            return manifest.changed(tags=(*manifest.tags, f"t{number}"))

        commit.edit(folder_at(tmp_path), checkpoint_id, add)

    _together([threading.Thread(target=work, args=(number,)) for number in range(16)])
    assert sorted(folder.read_manifest(checkpoint_id).tags) == sorted(f"t{number}" for number in range(16))


@pytest.mark.parametrize("facts", [{"description": "\ud800"}, {"model_name": "\udfff"}])
def test_an_edit_that_fails_changes_nothing(tmp_path: Path, folder: CheckpointFolder, facts: dict[str, str]) -> None:
    """The old manifest stays, byte for byte."""
    manifest = save(folder)
    before = contents(tmp_path)
    with pytest.raises(ConfigError):
        commit.edit(folder, manifest.checkpoint_id, lambda found: found.changed(**facts))
    with pytest.raises(CheckpointNotFoundError):
        commit.edit(folder, manifest.checkpoint_id + "_2", lambda found: found)
    assert contents(tmp_path) == before


# --- deleting and sweeping ---


def test_a_deletion_takes_one_checkpoint(tmp_path: Path, folder: CheckpointFolder) -> None:
    """Both files of it, no file of another; the second one to delete it is told so."""
    first, second = save(folder), save(folder)
    kept = {name: data for name, data in contents(tmp_path).items() if second.checkpoint_id in name}
    assert commit.delete(folder, first.checkpoint_id, unless=keep) == first
    assert contents(tmp_path) == kept
    assert commit.delete(folder, first.checkpoint_id, unless=keep) is None


def test_a_deletion_asks_first(tmp_path: Path, folder: CheckpointFolder) -> None:
    """About the manifest as it is now, and what is answered is raised, with everything left as it was."""
    manifest = save(folder)
    commit.edit(folder, manifest.checkpoint_id, lambda found: found.changed(pinned=True))
    before = contents(tmp_path)

    def refuse(found: Manifest) -> CheckpointError | None:
        assert contents(tmp_path) == before  # nothing is taken away first
        return ProtectedCheckpointError("pinned") if found.pinned else None

    with pytest.raises(ProtectedCheckpointError):
        commit.delete(folder, manifest.checkpoint_id, unless=refuse)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("what", ["altered", "renamed", "newer", "garbage", "empty"])
def test_a_tombstone_that_is_not_whole_deletes_nothing(tmp_path: Path, folder: CheckpointFolder, what: str) -> None:
    """Damaged, or another checkpoint's under a new name: no payload goes, and sweeping works on."""
    first, second = save(folder), save(folder)
    e = tmp_path / "e"
    data = second.to_bytes()
    planted = {
        "altered": data.replace(b'"epoch": 1', b'"epoch": 2'),
        "renamed": data,
        "newer": data.replace(b'"schema_version": 1', b'"schema_version": 9'),
        "garbage": b"\xff\x00",
        "empty": b"",
    }[what]
    missing = first.checkpoint_id.replace("0001", "0007")
    for mark in ("saving", "deleted"):
        (e / f".{missing}.{mark}").write_bytes(planted)
    leftover = leave_unfinished(e)
    assert sweep(folder) == ([], [leftover])
    assert all(is_whole(folder, manifest) for manifest in (first, second))
    assert [manifest.uid for manifest in Index(folder).manifests()] == [first.uid, second.uid]


def test_a_sweep_takes_leftovers_alone(tmp_path: Path, folder: CheckpointFolder) -> None:
    """Not checkpoints, however old; not what people put there; not what it merely resembles."""
    save(folder)
    e = tmp_path / "e"
    for name in (
        "notes.txt",
        ".hidden",
        "x.tmp",
        "model.pt",
        ".x.deleted",
        ".x.saving",
        ".ckpt.bak",
        "checkpoint.json",
    ):
        (e / name).write_bytes(b"foreign")
    for path in e.iterdir():
        os.utime(path, (0, 0))
    before = contents(tmp_path)
    leave_unfinished(e)
    sweep(folder)
    assert contents(tmp_path) == before


def test_room_is_made_of_what_is_deleted_and_held_by_nobody(tmp_path: Path, folder: CheckpointFolder) -> None:
    """Neither of a checkpoint beside which the marker of a killed deletion lies, nor of one that is being read."""
    whole, held, free = save(folder), save(folder, 2), save(folder, 3)
    for manifest in (held, free):
        commit.delete(folder, manifest.checkpoint_id, unless=keep, grace_seconds=60)
    marker = tmp_path / folder.marker_path(whole.checkpoint_id, "deleted")
    marker.write_bytes((tmp_path / folder.manifest_path(whole.checkpoint_id)).read_bytes())
    with folder.hold(held.checkpoint_id, "being read"):
        assert commit.purge(folder, is_enough=lambda: False) == [free.checkpoint_id]
    assert is_whole(folder, whole)
    assert is_whole(folder, held)
    assert not is_whole(folder, free)


def test_a_marker_that_is_whole_is_not_dropped_as_damaged(tmp_path: Path, folder: CheckpointFolder) -> None:
    """Somebody may have written it anew since it was looked at."""
    manifest = save(folder)
    commit.delete(folder, manifest.checkpoint_id, unless=keep, grace_seconds=60)
    before = contents(tmp_path)
    assert not commit.drop_damaged_marker(folder, manifest.checkpoint_id, "deleted")
    assert contents(tmp_path) == before
    (tmp_path / folder.marker_path(manifest.checkpoint_id, "deleted")).write_bytes(b"{")
    assert commit.drop_damaged_marker(folder, manifest.checkpoint_id, "deleted")
    assert not commit.drop_damaged_marker(folder, manifest.checkpoint_id, "deleted")
    assert list(contents(tmp_path)) == [folder.payload_path(manifest)]


def test_only_a_marker_without_meaning_is_dropped(tmp_path: Path, folder: CheckpointFolder) -> None:
    """Beside a manifest it has none; without one it says that a payload is to go."""
    manifest = save(folder)
    marker = tmp_path / folder.marker_path(manifest.checkpoint_id, "saving")
    marker.write_bytes(manifest.to_bytes())
    path = tmp_path / folder.manifest_path(manifest.checkpoint_id)
    data = path.read_bytes()
    path.unlink()
    commit.drop_needless_marker(folder, manifest.checkpoint_id)
    assert marker.exists()
    path.write_bytes(data)
    commit.drop_needless_marker(folder, manifest.checkpoint_id)
    assert not marker.exists()
    assert is_whole(folder, manifest)


def test_a_payload_gets_a_manifest_only_as_it_was_found(tmp_path: Path, folder: CheckpointFolder) -> None:
    """Another file by now, or one that somebody gave its manifest: nothing is changed."""
    manifest = save(folder)
    path = tmp_path / folder.manifest_path(manifest.checkpoint_id)
    data = path.read_bytes()
    entry = folder.payload_entry(manifest)
    assert entry is not None
    name, changed = manifest.payload.name, manifest.changed(tags=("late",))
    assert commit.reference(folder, name, lambda: changed, version=entry.version) is None
    assert path.read_bytes() == data
    path.unlink()
    assert commit.reference(folder, name, lambda: manifest, version="another") is None
    assert not path.exists()
    assert commit.reference(folder, name, lambda: manifest, version=entry.version) == manifest
    assert path.read_bytes() == data


# --- copies ---


def test_a_copy_is_identical_and_leaves_its_source_alone(tmp_path: Path, folder: CheckpointFolder) -> None:
    """Payload and manifest, byte for byte; progress counts every byte."""
    manifest = save(folder)
    before = contents(tmp_path)
    target = folder_at(tmp_path, "copy")
    steps: list[int] = []
    assert commit.copy(folder, manifest, target, progress=steps.append) == manifest
    after = contents(tmp_path)
    assert {name: data for name, data in after.items() if name.startswith("e/")} == before
    assert {name.replace("copy/", "e/"): data for name, data in after.items() if name.startswith("copy/")} == before
    assert sum(steps) == manifest.payload.size_bytes


@pytest.mark.parametrize("damage", ["flip", "truncate", "extend", "unlink", "empty"])
@pytest.mark.parametrize("replace", [False, True])
def test_damage_is_never_copied(tmp_path: Path, folder: CheckpointFolder, damage: str, replace: bool) -> None:
    """The error says where it is, and the target keeps what it had."""
    manifest = save(folder)
    target = folder_at(tmp_path, "copy")
    if replace:
        commit.copy(folder, manifest, target)
    path = tmp_path / "e" / manifest.payload.name
    data = path.read_bytes()
    altered = {"flip": data[:99] + bytes([data[99] ^ 1]) + data[100:], "truncate": data[:-1], "extend": data + b"\0"}
    if damage == "unlink":
        path.unlink()
    else:
        path.write_bytes(altered.get(damage, b""))
    before = contents(tmp_path)
    with pytest.raises(CorruptCheckpointError) as raised:
        commit.copy(folder, manifest, target, replace=replace)
    assert raised.value.damages
    assert contents(tmp_path) == before


def test_what_is_being_copied_is_not_removed(tmp_path: Path, folder: CheckpointFolder) -> None:
    """Deleted for good in the middle of a copy, its payload stays until that has ended."""
    manifest, target = save(folder), folder_at(tmp_path, "copies")

    def delete(_: int) -> None:
        commit.delete(folder, manifest.checkpoint_id, unless=keep)
        assert sweep(folder) == ([], [])
        assert folder.is_complete(manifest)

    commit.copy(folder, manifest, target, progress=delete)
    assert is_whole(target, manifest)
    assert sweep(folder) == ([manifest], [])


def test_what_is_deleted_before_it_is_copied_is_gone_and_not_damaged(tmp_path: Path, folder: CheckpointFolder) -> None:
    """Who asked for the copy can tell."""
    manifest = save(folder)
    commit.delete(folder, manifest.checkpoint_id, unless=keep)
    with pytest.raises(CheckpointNotFoundError):
        commit.copy(folder, manifest, folder_at(tmp_path, "copies"))


def test_a_copy_does_not_take_a_foreign_files_place(tmp_path: Path, folder: CheckpointFolder) -> None:
    """Unless it was told to replace."""
    manifest = save(folder)
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / manifest.payload.name).write_bytes(b"foreign")
    target = folder_at(tmp_path, "copy")
    with pytest.raises(CheckpointExistsError):
        commit.copy(folder, manifest, target)
    assert (tmp_path / "copy" / manifest.payload.name).read_bytes() == b"foreign"
    commit.copy(folder, manifest, target, replace=True)
    assert is_whole(target, manifest)


def test_an_adopted_checkpoint_is_the_newest_and_comes_once(tmp_path: Path, folder: CheckpointFolder) -> None:
    """It gets a free id and the next sequence; adopting it again gives the same one."""
    foreign = save(folder_at(tmp_path, "other"), idempotency_key="theirs")
    own = save(folder)
    adopted = [
        commit.adopt(folder_at(tmp_path, "other"), foreign, folder, Index(folder), experiment_name="e")
        for _ in range(2)
    ]
    assert adopted[0] == adopted[1]
    assert adopted[0].checkpoint_id == f"{own.checkpoint_id}_2"
    assert (adopted[0].sequence, adopted[0].experiment_name, adopted[0].uid) == (2, "e", foreign.uid)
    assert is_whole(folder, adopted[0])
    assert save(folder, idempotency_key="theirs").uid != foreign.uid


def test_a_stale_marker_costs_no_checkpoint_when_its_id_is_wanted(tmp_path: Path, folder: CheckpointFolder) -> None:
    """The marker of a save that was committed, and then killed, lies beside the manifest: the id is taken."""
    foreign, own = save(folder_at(tmp_path, "other")), save(folder)
    marker = tmp_path / folder.marker_path(own.checkpoint_id, "saving")
    marker.write_bytes(own.to_bytes())
    commit.adopt(folder_at(tmp_path, "other"), foreign, folder, Index(folder), experiment_name="e")
    assert is_whole(folder, own)


# --- the order of steps ---


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What reaches the file system, in order, by kind of file; what has no name yet, or none any more, is a star."""
    recorded: list[str] = []
    opened: dict[int, str] = {}

    def kind(path: Any) -> str:
        name = os.fspath(path)
        if is_bookkeeping(name):
            in_lease = "ckpt-lease-" in name and name.rpartition("/")[2].isdigit()
            return "*" if in_lease else "lock"
        name = os.path.basename(name)
        for part, label in ((".pt", "payload"), (".json", "manifest"), (".saving", "marker"), (".deleted", "marker")):
            if part in name:
                return label
        return f"folder {name}"

    real = {
        name: getattr(os, name) for name in ("open", "write", "fsync", "link", "unlink", "replace", "rename", "mkdir")
    }

    def note(what: str) -> None:
        if "lock" not in what and (not recorded or recorded[-1] != what):
            recorded.append(what)

    def wrap(name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            result = real[name](*arguments, **options)
            if name == "open":
                opened[result] = kind(arguments[0])
                if arguments[1] & os.O_CREAT:
                    note(f"create {kind(arguments[0])}")
            elif name in {"write", "fsync"}:
                note(f"{name} {opened.get(arguments[0], '?')}")
            elif name in {"link", "replace", "rename"}:
                note(f"{kind(arguments[0])} -> {kind(arguments[1])}")
            else:
                note(f"{name} {kind(arguments[0])}")
            return result

        return call

    for name in real:
        monkeypatch.setattr(os, name, wrap(name))
    return recorded


SAVING = [
    "create *",
    "write *",
    "fsync *",
    "create *",
    "write *",
    "* -> marker",
    "* -> *",
    "* -> payload",
    "unlink *",
    "fsync folder e",
    "create *",
    "write *",
    "fsync *",
    "* -> manifest",
    "marker -> *",
    "unlink *",
    "fsync folder e",
]


def test_the_steps_of_a_save(folder: CheckpointFolder, steps: list[str]) -> None:
    """Payload durable before its name, name durable before the manifest's, folder durable before acknowledging."""
    save(folder)
    steps.clear()
    save(folder, 2)
    assert steps == SAVING


def test_the_folder_of_the_first_save_is_durable(folder: CheckpointFolder, steps: list[str], tmp_path: Path) -> None:
    """A new experiment's own name survives power loss, and the root's: each parent is synced before it is used."""
    save(folder)
    assert steps == [f"fsync folder {tmp_path.parent.name}", "mkdir folder e", f"fsync folder {tmp_path.name}", *SAVING]


def test_the_steps_of_a_deletion(folder: CheckpointFolder, steps: list[str]) -> None:
    """The intention is durable before the manifest goes, its going before the payload goes, that before all is over."""
    manifest = save(folder)
    steps.clear()
    commit.delete(folder, manifest.checkpoint_id, unless=keep)
    assert steps == [
        "create *",
        "write *",
        "fsync *",
        "* -> marker",
        "fsync folder e",
        "manifest -> *",
        "unlink *",
        "fsync folder e",
        "payload -> *",
        "unlink *",
        "fsync folder e",
        "marker -> *",
        "unlink *",
    ]


def test_the_steps_of_an_undeletion(folder: CheckpointFolder, steps: list[str]) -> None:
    """The manifest is durable under its name before the marker goes, from which it could be made again."""
    manifest = save(folder)
    commit.delete(folder, manifest.checkpoint_id, unless=keep, grace_seconds=60)
    steps.clear()
    assert commit.undelete(folder, manifest.checkpoint_id) == manifest
    assert steps == [
        "create *",
        "write *",
        "fsync *",
        "* -> manifest",
        "fsync folder e",
        "marker -> *",
        "unlink *",
    ]


def test_the_steps_of_an_edit(folder: CheckpointFolder, steps: list[str]) -> None:
    """The new manifest is durable before it takes the old one's place."""
    manifest = save(folder)
    steps.clear()
    commit.edit(folder, manifest.checkpoint_id, lambda found: found.changed(pinned=True))
    assert steps == ["create *", "write *", "fsync *", "* -> manifest", "fsync folder e"]


# --- the trash ---


def test_what_comes_back_pinned_is_pinned_from_the_first_moment(folder: CheckpointFolder, steps: list[str]) -> None:
    """No retention can come in between; one that was never away is pinned as well."""
    manifest = save(folder)
    commit.delete(folder, manifest.checkpoint_id, unless=keep, grace_seconds=60)
    steps.clear()
    assert commit.undelete(folder, manifest.checkpoint_id, pin=True) == manifest.changed(pinned=True)
    assert steps.count("* -> manifest") == 1
    assert Index(folder).manifests() == [manifest.changed(pinned=True)]
    commit.edit(folder, manifest.checkpoint_id, lambda found: found.changed(pinned=False))
    assert commit.undelete(folder, manifest.checkpoint_id, pin=True).pinned
    assert Index(folder).manifests() == [manifest.changed(pinned=True)]


def test_a_full_store_takes_no_pin(folder: CheckpointFolder) -> None:
    """Then it does not come back without one."""
    manifest = save(folder)
    commit.delete(folder, manifest.checkpoint_id, unless=keep, grace_seconds=60)
    plan = FaultPlan(fail_at=1, error=StorageFullError, only=frozenset(["put"]))
    full = CheckpointFolder(FaultyStore(folder.store, plan), folder.path)
    with pytest.raises(StorageFullError):
        commit.undelete(full, manifest.checkpoint_id, pin=True)
    assert Index(folder).manifests() == []
    assert commit.undelete(folder, manifest.checkpoint_id, pin=True).pinned


def test_what_was_deleted_comes_back_as_it_was(tmp_path: Path, folder: CheckpointFolder) -> None:
    """Byte for byte, within its grace period; nobody sees it in between, and no new save gets its id or place."""
    first, second = save(folder), save(folder)
    before = contents(tmp_path)
    commit.delete(folder, second.checkpoint_id, unless=keep, grace_seconds=60)
    assert [item.uid for item in Index(folder).manifests()] == [first.uid]
    assert [item.uid for item in Index(folder).view().deleted] == [second.uid]
    third = save(folder)
    assert (third.checkpoint_id, third.sequence) == (f"{first.checkpoint_id}_3", 3)
    assert sweep(folder, grace_seconds=60) == ([], [])
    assert commit.undelete(folder, second.checkpoint_id) == second
    assert {name: data for name, data in contents(tmp_path).items() if third.checkpoint_id not in name} == before
    assert commit.undelete(folder, second.checkpoint_id) == second


def test_the_trash_of_a_full_disk_is_as_young_as_any(
    tmp_path: Path, folder: CheckpointFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its marker is a link to the manifest, which is older; and takes the place of one that meant nothing."""
    manifest = save(folder)
    path = tmp_path / folder.manifest_path(manifest.checkpoint_id)
    marker = tmp_path / folder.marker_path(manifest.checkpoint_id, "deleted")
    marker.write_bytes(b"stale")
    os.utime(path, (0, 0))

    def full(*_: Any, **__: Any) -> None:
        raise StorageFullError("the store is full")

    with monkeypatch.context() as patch:
        patch.setattr(LocalFolderLock, "put", full)
        commit.delete(folder, manifest.checkpoint_id, unless=keep, grace_seconds=60)
    assert sweep(folder, grace_seconds=60) == ([], [])
    assert commit.undelete(folder, manifest.checkpoint_id) == manifest


def test_what_is_there_is_not_brought_back(folder: CheckpointFolder) -> None:
    """A deletion that did not take effect left its marker, which is older than what the manifest says now."""
    manifest = save(folder)
    commit.delete(folder, manifest.checkpoint_id, unless=keep, grace_seconds=60)
    marker = folder.marker_path(manifest.checkpoint_id, "deleted")
    with folder.store.open_read(marker) as file:
        data = file.read()
    commit.undelete(folder, manifest.checkpoint_id)
    edited = commit.edit(folder, manifest.checkpoint_id, lambda found: found.changed(pinned=True))
    with folder.lock() as held:
        held.put(marker, data)
    assert commit.undelete(folder, manifest.checkpoint_id) == edited
    assert folder.read_manifest(manifest.checkpoint_id) == edited


def test_what_lost_its_payload_is_not_brought_back(tmp_path: Path, folder: CheckpointFolder) -> None:
    """Nothing is listed that is not whole."""
    manifest = save(folder)
    commit.delete(folder, manifest.checkpoint_id, unless=keep, grace_seconds=60)
    (tmp_path / folder.payload_path(manifest)).unlink()
    with pytest.raises(CheckpointNotFoundError, match="removed already"):
        commit.undelete(folder, manifest.checkpoint_id)
    assert Index(folder).manifests() == []


def test_the_trash_is_emptied_when_its_time_is_over(tmp_path: Path, folder: CheckpointFolder) -> None:
    """By the marker's age; then nothing can be brought back, and the error says so."""
    first, second = save(folder), save(folder)
    for manifest in (first, second):
        commit.delete(folder, manifest.checkpoint_id, unless=keep, grace_seconds=3600)
    old = time.time() - 3601
    os.utime(tmp_path / "e" / f".{first.checkpoint_id}.deleted", (old, old))
    assert sweep(folder, grace_seconds=3600) == ([first], [])
    with pytest.raises(CheckpointNotFoundError):
        commit.undelete(folder, first.checkpoint_id)
    os.unlink(tmp_path / "e" / second.payload.name)
    with pytest.raises(CheckpointNotFoundError, match="removed already"):
        commit.undelete(folder, second.checkpoint_id)


def test_what_is_held_is_not_removed(tmp_path: Path, folder: CheckpointFolder) -> None:
    """Deleted while somebody reads it, a checkpoint's payload stays until that has ended."""
    manifest = save(folder)
    with folder.hold(manifest.checkpoint_id, "being read"):
        commit.delete(folder, manifest.checkpoint_id, unless=keep)
        assert sweep(folder) == ([], [])
        assert is_whole(folder, manifest)
    assert sweep(folder) == ([manifest], [])
    assert contents(tmp_path) == {}


def test_a_deletion_that_is_regretted_under_way_is_undone(tmp_path: Path, folder: CheckpointFolder) -> None:
    """The question is asked again when nobody can find the checkpoint any more; a no brings it back."""
    manifest = save(folder)
    before = contents(tmp_path)
    answers = iter([None, ProtectedCheckpointError("in use")])
    with pytest.raises(ProtectedCheckpointError, match="in use"):
        commit.delete(folder, manifest.checkpoint_id, unless=lambda _: next(answers))
    assert contents(tmp_path) == before


def _together(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
