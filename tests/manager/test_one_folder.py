"""Two locations that a link made later turns into one folder: nothing is moved, backed up or removed as a copy."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ckpt_lib import CheckpointManager
from ckpt_lib.errors import ConfigError
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.experiment.layout import CLOCK_NAME
from ckpt_lib.store import Entry
from ckpt_lib.store.memory import MemoryStore
from tests.helpers import MakeManager, backup_ids, contents, experiment_folder, ids, save

needs_links = pytest.mark.skipif(os.name != "posix", reason="POSIX links")


@needs_links
def test_a_fallback_that_is_the_store_is_not_moved_home(make_manager: MakeManager, tmp_path: Path) -> None:
    """The checkpoints would be taken for stranded ones that are home already, and purged; the trash as well."""
    alias = tmp_path / "alias"
    manager = make_manager(fallback_dir=str(alias), backup_checkpoints=False)
    saved = [save(manager, epoch) for epoch in range(4)]
    manager.delete_checkpoint(saved.pop(0))
    alias.symlink_to(manager.config.checkpoint_dir)
    saved.append(save(manager, 4))
    with pytest.raises(ConfigError, match="fallback_dir is the folder of the checkpoints") as caught:
        manager.reconcile()
    assert caught.value.path == str(alias / "run")
    assert "Change fallback_dir" in str(caught.value.hint)
    assert ids(manager) == saved
    assert len(manager.list_deleted()) == 1


@needs_links
def test_a_fallback_that_is_the_backup_location_is_not_moved_home(make_manager: MakeManager, tmp_path: Path) -> None:
    """The backups would be taken for stranded ones that are home already."""
    alias, backup_dir = tmp_path / "alias", tmp_path / "backups"
    manager = make_manager(fallback_dir=str(alias), backup_dir=str(backup_dir))
    saved = [save(manager, epoch) for epoch in range(2)]
    alias.symlink_to(backup_dir)
    with pytest.raises(ConfigError, match="fallback_dir is the folder of the backups"):
        manager.reconcile()
    assert backup_ids(manager) == saved


def test_backups_that_cannot_be_reached_keep_nothing_from_coming_home(
    make_manager: MakeManager, tmp_path: Path
) -> None:
    """They are not the fallback folder, which was just read."""
    (tmp_path / "backups").write_text("no folder")
    manager = make_manager(fallback_dir=str(tmp_path / "fallback"), backup_dir=str(tmp_path / "backups"))
    home = Path(manager.config.checkpoint_dir)
    home.write_text("no folder")
    stranded = save(manager, 1)
    home.unlink()
    assert manager.reconcile().moved == {stranded: stranded}


@pytest.fixture
def aliased(make_manager: MakeManager, tmp_path: Path) -> CheckpointManager:
    """Three checkpoints, in a folder that the backup location leads to by now."""
    manager = make_manager(backup_dir=str(tmp_path / "alias"), backup_checkpoints=False, max_backups=1)
    for epoch in range(3):
        save(manager, epoch)
    (tmp_path / "alias").symlink_to(manager.config.checkpoint_dir)
    return manager


@needs_links
@pytest.mark.parametrize(
    "call",
    [
        lambda manager: manager.cleanup_backups(),
        lambda manager: manager.delete_backup(ids(manager)[0]),
        lambda manager: manager.backup_checkpoint("latest"),
    ],
    ids=["cleanup", "delete", "backup"],
)
def test_checkpoints_are_not_their_own_backups(
    aliased: CheckpointManager, call: Callable[[CheckpointManager], Any]
) -> None:
    """None is removed as a surplus backup, and none is said to have a backup."""
    before = contents(experiment_folder(aliased))
    with pytest.raises(ConfigError, match="backup_dir is the folder of the checkpoints"):
        call(aliased)
    assert contents(experiment_folder(aliased)) == before


@needs_links
def test_a_cleanup_of_checkpoints_says_what_is_wrong_with_the_backups(aliased: CheckpointManager) -> None:
    """The backups are cleaned up after the checkpoints, and fail nothing."""
    before = ids(aliased)
    assert "backup_dir" in str(aliased.cleanup_checkpoints().backups_error)
    assert ids(aliased) == before


def test_what_may_be_the_same_files_stays(make_manager: MakeManager, tmp_path: Path) -> None:
    """A folder copied by hand has the very records of the store: reconciling takes none of it for a copy of its own."""
    fallback = tmp_path / "fallback"
    manager = make_manager(fallback_dir=str(fallback), backup_checkpoints=False)
    saved = save(manager, 1)
    shutil.copytree(manager.config.checkpoint_dir, fallback)
    report = manager.reconcile()
    assert (report.moved, report.already_home) == ({}, {})
    assert "may be the very same files" in report.failed[saved]
    assert [item.checkpoint_id for item in manager.list_stranded()] == ids(manager) == [saved]


class Busy(MemoryStore):
    """A store in which another process writes the clock after each of the first writes of it."""

    writes = 0

    def put(self, key: str, data: bytes, **options: Any) -> Entry:
        entry = super().put(key, data, **options)
        if key.endswith(CLOCK_NAME) and self.writes < 3:
            self.writes += 1
            super().put(key, b"another's", durable=False)
        return entry


def test_others_that_learn_the_time_meanwhile_do_not_mislead() -> None:
    """A folder is told to be the same, or another, whoever writes its clock in between."""
    store, apart = Busy("busy"), Experiment(MemoryStore("apart"), "run", "run")
    here, there = Experiment(store, "run", "run"), Experiment(store, "run", "run")
    assert here.is_same_folder(there)
    store.writes = 0
    assert not here.is_same_folder(apart)
    assert apart.store.list("") == []
