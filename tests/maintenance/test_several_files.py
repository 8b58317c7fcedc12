"""Payloads of several files: everything that is done to one file is done to each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from ckpt_lib.core.facts import CheckpointFacts
from ckpt_lib.core.manifest import Manifest
from ckpt_lib.core.monitor import Monitor
from ckpt_lib.errors import ConfigError, CorruptCheckpointError
from ckpt_lib.experiment import commit, deletion
from ckpt_lib.experiment.copies import copy
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.experiment.files import payload_version
from ckpt_lib.experiment.stored_file import open_file
from ckpt_lib.experiment.sweep import sweep
from ckpt_lib.formats import format_named
from ckpt_lib.maintenance import transfer
from ckpt_lib.maintenance.exports import export
from ckpt_lib.maintenance.importing.task import ImportTask
from ckpt_lib.maintenance.quarantine import list_quarantined, set_aside
from ckpt_lib.maintenance.repair import repair
from ckpt_lib.maintenance.scrub import scrub
from ckpt_lib.maintenance.validate import compare
from ckpt_lib.store.base import Entry
from ckpt_lib.store.memory import MemoryStore
from tests.experiment import small
from tests.formats.folder_format import NAMES, FolderFormat

STATE = {
    "model_state_dict": {"weight": torch.arange(100.0)},
    "optimizer_state_dict": {"momentum": torch.ones(100)},
    "scheduler_state_dict": None,
    "epoch": 1,
    "step": 0,
}


@pytest.fixture
def home(tmp_path: Path) -> Experiment:
    return Experiment(MemoryStore(f"memory://{tmp_path.name}"), "run", "run")


@pytest.fixture
def backups(home: Experiment) -> Experiment:
    return Experiment(home.store, "backups", "run")


@pytest.fixture
def saved(home: Experiment, folder_format: FolderFormat) -> Manifest:
    layout = folder_format.lay_out(STATE)
    return commit.save(
        home, CheckpointFacts(1, 0, "Net", "run"), layout.write, format_name=folder_format.name, suffix="/"
    )


def spoil(experiment: Experiment, manifest: Manifest, number: int) -> None:
    file = manifest.files[number]
    experiment.store.put(experiment.key(file.name), b"x" * file.size_bytes)


def test_damage_names_its_file(home: Experiment, saved: Manifest) -> None:
    """And any of them makes the checkpoint damaged."""
    before = payload_version(home, saved)
    spoil(home, saved, 1)
    assert {damage.file for damage in compare(home, saved).damages} == {saved.files[1].name}
    assert payload_version(home, saved) != before


def test_each_file_is_repaired(home: Experiment, backups: Experiment, saved: Manifest) -> None:
    """Copies that are damaged in different files repair each other."""
    copied = copy(home, saved, backups)
    assert copied is not None
    spoil(home, saved, 0)
    spoil(backups, copied, 1)
    assert repair(home, saved.checkpoint_id, backups).method == "file"
    assert compare(home, saved)
    assert not compare(backups, copied)
    repair(backups, saved.checkpoint_id, home)
    assert compare(backups, copied)


def test_a_backup_and_a_restore_are_of_all_files(home: Experiment, backups: Experiment, saved: Manifest) -> None:
    """A file that is missing is noticed, and brought back."""
    assert transfer.backup(home, saved, backups)
    assert not transfer.backup(home, saved, backups)
    for file in saved.files:
        home.store.delete(home.key(file.name))
    transfer.restore(home, saved.checkpoint_id, backups)
    assert compare(home, saved)


@pytest.mark.parametrize("spoilt", [None, b"short"])
def test_a_listing_tells_that_a_file_is_missing(home: Experiment, saved: Manifest, spoilt: bytes | None) -> None:
    """Or has another length: that it was saved to a folder which is there does not make a checkpoint whole."""
    assert [item.uid for item in Experiment(home.store, "run", "run").index.view().whole] == [saved.uid]
    key = home.key(saved.files[1].name)
    if spoilt is None:
        home.store.delete(key)
    else:
        home.store.put(key, spoilt)
    view = home.index.view()
    assert view.usable
    assert not view.whole
    assert not view.is_complete(saved)


def test_a_folder_is_listed_once_and_a_single_file_never(
    home: Experiment, saved: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a listing costs is known: one more call for each payload of several files."""
    single = small.save(home)
    listed, list_keys = [], home.store.list

    def noted(prefix: str, *, recursive: bool = False) -> Sequence[Entry]:
        listed.append(prefix)
        return list_keys(prefix, recursive=recursive)

    monkeypatch.setattr(home.store, "list", noted)
    assert {item.uid for item in home.index.view().whole} == {saved.uid, single.uid}
    assert listed == ["run", home.key(saved.payload_name)]


def test_what_people_put_beside_the_files_stays(home: Experiment, backups: Experiment, saved: Manifest) -> None:
    """Whatever becomes of the checkpoint: swept, purged, restored under another name, or purged from there as well."""
    notes = set()
    transfer.backup(home, saved, backups)

    def note_and_sweep() -> None:
        folder = home.get(saved.checkpoint_id).payload_name
        for name in ("README.md", "eval/results.csv", "tensors-copy.pt"):
            home.store.put(home.key(f"{folder}/{name}"), b"a person's own")
            notes.add(home.key(f"{folder}/{name}"))
        assert sweep(home).files == []
        deletion.delete_all(home, [saved.checkpoint_id])
        deletion.purge(home, grace_seconds=0.0, asked=True)
        assert sweep(home).files == []

    note_and_sweep()
    transfer.restore(home, saved.checkpoint_id, backups)
    assert compare(home, home.get(saved.checkpoint_id))
    assert sweep(home).files == []
    note_and_sweep()
    folders = (
        entry.key for entry in home.store.list(home.path) if saved.checkpoint_id in entry.key and entry.is_folder
    )
    left = {entry.key for folder in folders for entry in home.store.list(folder, recursive=True)}
    assert left == notes


def test_what_cannot_be_repaired_is_set_aside(home: Experiment, backups: Experiment, saved: Manifest) -> None:
    """Its size is that of all files."""
    spoil(home, saved, 1)
    with pytest.raises(CorruptCheckpointError):
        transfer.backup(home, saved, backups)
    assert set_aside(home, saved.checkpoint_id, backups).is_quarantined
    assert [item.size_bytes for item in list_quarantined(home)] == [saved.size_bytes]


def test_a_scrub_reads_all_files(home: Experiment, backups: Experiment, saved: Manifest) -> None:
    """Every byte of each."""
    report = scrub(home, backups)
    assert report
    assert report.bytes_read == saved.size_bytes
    spoil(home, saved, 1)
    assert not scrub(home, backups)


def test_an_export_is_a_folder_that_can_be_imported(home: Experiment, saved: Manifest, tmp_path: Path) -> None:
    """By names without a claim; a single file cannot hold it."""
    export(home, saved, tmp_path / "out")
    export(home, saved, tmp_path / "out")
    for name, file in zip(NAMES, saved.files, strict=True):
        with open_file(home, file.name) as stored:
            assert (tmp_path / "out" / saved.checkpoint_id / name).read_bytes() == stored.readall()
    with pytest.raises(ConfigError, match="3 files"):
        export(home, saved, tmp_path / "out.pt")
    other = Experiment(MemoryStore(f"memory://{tmp_path.name}-other"), "run", "run")
    imported = ImportTask(other, Monitor(), lambda: format_named("torch")).run(tmp_path / "out").manifest
    assert compare(other, imported)
    assert [file.part for file in imported.files] == list(NAMES)
