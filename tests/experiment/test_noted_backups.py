"""The note of where runs have their backups: for configurations that do not say, it is shown and never opened."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.errors import ConfigError, StorageFullError
from ckpt_lib.experiment.layout import BACKUPS_NOTE_NAME
from ckpt_lib.testing import FaultPlan, faults_injected
from tests.cli.running import run, run_json
from tests.helpers import MakeManager, backup_ids, ids, save


class Run:
    """An experiment whose run had its backups in a vault, and managers that are not told of that."""

    def __init__(self, make_manager: MakeManager, store: Path, vault: Path) -> None:
        self._make, self.store, self.vault = make_manager, store, vault
        self.trained = make_manager(backup_dir=str(vault))
        self.saved = [save(self.trained, epoch, 1 / epoch) for epoch in (1, 2)]
        self.note = store / "run" / BACKUPS_NOTE_NAME

    def untold(self, **options: Any) -> CheckpointManager:
        return self._make(**options)

    def write_note(self, **content: Any) -> None:
        self.note.write_text(json.dumps(content))


@pytest.fixture
def trained(make_manager: MakeManager, store_path: Path, tmp_path: Path) -> Run:
    return Run(make_manager, store_path, tmp_path / "vault")


def test_a_configuration_that_names_no_backups_learns_where_they_are(trained: Run) -> None:
    """And is refused a deletion by name, which would not reach them; the one that names them is not."""
    untold = trained.untold()
    assert untold.other_backup_dir == str(trained.vault)
    assert untold.backup_status(trained.saved[0]).state == "unknown"
    with pytest.raises(ConfigError, match="CKPT_BACKUP_DIR") as caught:
        untold.delete_checkpoint(trained.saved[0])
    assert str(trained.vault) in str(caught.value.expected)
    assert ids(untold) == trained.saved
    assert trained.trained.other_backup_dir is None
    assert trained.trained.backup_status(trained.saved[0]).state == "written"
    trained.trained.delete_checkpoint(trained.saved[0])
    assert ids(untold) == trained.saved[1:]


def test_the_default_location_needs_no_note(make_manager: MakeManager, store_path: Path) -> None:
    """Every configuration finds it."""
    manager = make_manager()
    saved = save(manager, 1)
    assert not (store_path / "run" / BACKUPS_NOTE_NAME).exists()
    assert manager.other_backup_dir is None
    manager.delete_checkpoint(saved)


def test_the_last_configuration_counts(trained: Run, tmp_path: Path) -> None:
    """A run that has its backups elsewhere says so; one with the same location writes nothing."""
    before = trained.note.stat().st_mtime_ns
    save(trained.untold(backup_dir=str(trained.vault)), 3)
    assert trained.note.stat().st_mtime_ns == before
    save(trained.untold(backup_dir=str(tmp_path / "another")), 4)
    assert trained.untold().other_backup_dir == str(tmp_path / "another")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"backup_dir": 1}', b'{"backup_dir": ""}', b"\xff\xfe", b"x" * 20_000]
)
def test_a_damaged_note_is_none(trained: Run, content: bytes) -> None:
    """Nothing fails for it, and the next run writes it anew."""
    trained.note.write_bytes(content)
    assert trained.untold().other_backup_dir is None
    assert trained.untold().doctor().is_healthy
    save(trained.untold(backup_dir=str(trained.vault)), 3)
    assert trained.untold().other_backup_dir == str(trained.vault)


@pytest.mark.parametrize("place", ["s3://bucket/prefix", "nowhere://x", "/a\nError: \x1b[31mred\u202e", "~/$(touch x)"])
def test_a_foreign_note_is_shown_as_visible_text_and_opened_by_nobody(
    trained: Run, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it names, and whether or not a store serves it: no line of the output is the note's own."""
    monkeypatch.chdir(tmp_path)
    trained.write_note(backup_dir=place, of_a_later_version=True)
    before = sorted(tmp_path.rglob("*"))
    shown = trained.untold().other_backup_dir
    assert shown is not None
    assert shown.isprintable()
    for command in (["show", "latest"], ["list", "--backups"], ["doctor"]):
        error = run(*command, store=trained.store).stderr
        assert "CKPT_BACKUP_DIR" in error
        assert "\x1b" not in error
        assert not any(line.startswith("Error") for line in error.splitlines())
    with pytest.raises(ConfigError) as caught:
        trained.untold().delete_checkpoint("latest")
    assert shown in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_commands_say_what_to_do(trained: Run) -> None:
    """A refused deletion names the location and the variable; with it, the deletion reaches the backups."""
    first, second = trained.saved
    refused = run("delete", first, "--yes", store=trained.store, code=2).stderr
    assert all(text in refused for text in (str(trained.vault), "CKPT_BACKUP_DIR", str(trained.note)))
    assert run_json("show", first, store=trained.store)["backup"]["state"] == "unknown"
    named = {"CKPT_BACKUP_DIR": str(trained.vault)}
    assert "set CKPT_BACKUP_DIR" not in run("show", first, store=trained.store, env=named).stderr
    run("delete", first, "--yes", store=trained.store, env=named)
    shutil.rmtree(trained.store)
    resumed = trained.untold(backup_dir=str(trained.vault)).resume()
    assert resumed is not None
    assert resumed["checkpoint_id"] == second


def test_backups_that_were_given_up(trained: Run) -> None:
    """Once the note is removed, as the error says, the deletion goes on."""
    trained.note.unlink()
    trained.untold().delete_checkpoint(trained.saved[0])
    assert ids(trained.untold()) == trained.saved[1:]


def test_nobody_takes_the_note_for_a_leftover(trained: Run) -> None:
    """Not the doctor, not a cleanup and not the emptying of the trash; retention needs no backups to be named."""
    content, untold = trained.note.read_bytes(), trained.untold(max_checkpoints=1, backup_checkpoints=False)
    assert not [item for item in untold.doctor().findings if BACKUPS_NOTE_NAME in item.name]
    assert untold.cleanup_checkpoints().deleted_ids == (trained.saved[0],)
    untold.empty_trash()
    untold.doctor(fix=True)
    assert trained.note.read_bytes() == content


def test_copies_of_the_folder_and_of_a_checkpoint(trained: Run, tmp_path: Path) -> None:
    """A copy of the folder has the note as well; an export and an import have not, for their copies have no backup."""
    copy = Path(shutil.copytree(trained.store, tmp_path / "copy"))
    assert trained.untold(checkpoint_dir=str(copy)).other_backup_dir == str(trained.vault)
    exported = trained.untold().export_checkpoint("latest", tmp_path / "exported")
    assert not (tmp_path / "exported" / BACKUPS_NOTE_NAME).exists()
    other = CheckpointManager(CheckpointConfig(checkpoint_dir=str(tmp_path / "other")), "run")
    imported = other.import_checkpoint(exported)
    assert other.other_backup_dir is None
    assert other.backup_status(imported).state == "local only"


def test_a_note_that_cannot_be_written_costs_no_backup(
    make_manager: MakeManager, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """On a full disk the backup is made all the same; the log says what is missing."""

    def no_space(operation: str, key: str) -> None:
        if operation == "put" and key.endswith(BACKUPS_NOTE_NAME):
            raise StorageFullError("no space left")

    plan = FaultPlan(between=no_space)
    with faults_injected(plan):
        manager = make_manager(backup_dir=str(tmp_path / "vault"))
        saved = save(manager, 1)
    assert backup_ids(manager) == [saved]
    assert "noting where the backups are failed" in caplog.text
    assert make_manager().other_backup_dir is None
