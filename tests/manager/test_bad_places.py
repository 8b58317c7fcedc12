"""Bad places: what is no store is left as it is, and no link is followed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ckpt_lib import CheckpointConfig, CheckpointManager, list_experiments, open_store
from ckpt_lib.errors import ConfigError, CorruptCheckpointError, NotACheckpointError, NotAStoreError
from tests.helpers import MakeManager, contents, experiment_folder, ids, payload_path, save, snapshot
from tests.manager.hostile import MISSING_ID


@pytest.mark.parametrize("url", ["s3://bucket/x", "gs://b", "http://host/x", "simplecache::s3://b/x"])
def test_stores_that_are_not_served(manager: CheckpointManager, url: str) -> None:
    """A URL of another kind is refused as store, as backup location and as destination, and makes no folder."""
    saved = save(manager, 1)
    before = contents(Path(manager.config.checkpoint_dir).parent)
    for call in (
        lambda: CheckpointManager(CheckpointConfig(checkpoint_dir=url), "run"),
        lambda: CheckpointManager(manager.config.model_copy(update={"backup_dir": url}), "run"),
        lambda: manager.export_checkpoint(saved, url),
        lambda: manager.import_checkpoint(url),
    ):
        with pytest.raises(ConfigError, match="no store serves"):
            call()
    assert contents(Path(manager.config.checkpoint_dir).parent) == before
    assert not Path(url.partition(":")[0] + ":").exists()


@pytest.mark.parametrize("place", ["", "a\0b", None, 5, b"bytes"])
def test_places_that_are_no_path(filled: CheckpointManager, place: Any) -> None:
    """What is no path is one typed error for exports, imports and stores."""
    for call in (
        lambda: filled.export_checkpoint("latest", place),
        lambda: filled.import_checkpoint(place),
        lambda: open_store(place),
    ):
        with pytest.raises(ConfigError):
            call()


def test_a_file_where_the_store_should_be(tmp_path: Path) -> None:
    """A checkpoint_dir that is a file is refused when it is read and when it is written, and stays as it is."""
    place = tmp_path / "store"
    place.write_bytes(b"precious")
    manager = CheckpointManager(CheckpointConfig(checkpoint_dir=str(place)), "run")
    for call in (
        lambda: save(manager, 1),
        manager.list_checkpoints,
        manager.resume,
        manager.cleanup_checkpoints,
        lambda: manager.load_checkpoint("latest"),
    ):
        with pytest.raises(NotAStoreError):
            call()
    assert place.read_bytes() == b"precious"


def test_a_folder_that_is_not_ours(tmp_path: Path) -> None:
    """A folder of other things is told from a store, and cleaning up in it touches nothing that was there."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    (tmp_path / "run" / "model.pt").write_bytes(b"mine")
    before = snapshot(tmp_path)
    with pytest.raises(NotAStoreError):
        list_experiments(open_store(tmp_path))
    manager = CheckpointManager(CheckpointConfig(checkpoint_dir=str(tmp_path)), "run")
    assert ids(manager) == []
    assert manager.resume() is None
    manager.cleanup_checkpoints()
    with pytest.raises(NotACheckpointError):
        manager.import_checkpoint(tmp_path / "run" / "model.pt")
    with pytest.raises(NotACheckpointError):
        manager.import_checkpoint(tmp_path / "run")
    after = snapshot(tmp_path)
    assert {name: after.get(name) for name in before} == before


@pytest.mark.parametrize("source", ["missing", "missing/also", f"missing/{MISSING_ID}.pt", "."])
def test_importing_what_is_not_there(filled: CheckpointManager, tmp_path: Path, source: str) -> None:
    """A missing file or folder to import from is one typed error, and is not created."""
    with pytest.raises(NotACheckpointError):
        filled.import_checkpoint(tmp_path / "nowhere" / source)
    assert not (tmp_path / "nowhere").exists()


def test_backups_cannot_lie_where_the_checkpoints_do(tmp_path: Path) -> None:
    """A backup_dir that is the checkpoint_dir, however it is spelled, would be no backup: it is refused."""
    (tmp_path / "link").symlink_to(tmp_path)
    for spelling in (str(tmp_path), f"{tmp_path}/", f"file://{tmp_path}", f"{tmp_path}/x/..", str(tmp_path / "link")):
        with pytest.raises(ConfigError, match="backup"):
            CheckpointManager(CheckpointConfig(checkpoint_dir=str(tmp_path), backup_dir=spelling), "run")


def test_links_are_not_followed_when_listing_or_cleaning(make_manager: MakeManager, tmp_path: Path) -> None:
    """A symbolic link with the name of a manifest or a leftover is not ours: it is neither read nor removed."""
    manager = make_manager(max_checkpoints=1)
    save(manager, 1)
    target = tmp_path / "target"
    target.write_text("precious")
    folder = experiment_folder(manager)
    links = [folder / f"{MISSING_ID}.json", folder / f".{MISSING_ID}.deleted"]
    for link in links:
        link.symlink_to(target)
    manager.cleanup_checkpoints()
    assert len(ids(manager)) == 1
    assert all(link.is_symlink() for link in links)
    assert target.read_text() == "precious"


@pytest.mark.parametrize("target", ["a whole payload", "nothing", "/proc/self/mem"])
def test_a_link_in_the_place_of_a_payload_is_no_payload(make_manager: MakeManager, tmp_path: Path, target: str) -> None:
    """It is not followed, wherever it leads: the payload is missing, and what the link leads to stays as it is."""
    manager = make_manager(backup_checkpoints=False)
    saved = save(manager, 1)
    path, other = payload_path(manager, saved), tmp_path / "a whole payload"
    content = path.read_bytes()
    other.write_bytes(content)
    path.unlink()
    path.symlink_to(tmp_path / target)
    with pytest.raises(CorruptCheckpointError, match="is missing"):
        manager.load_checkpoint(saved)
    assert [damage.kind for damage in manager.validate_checkpoint(saved).damages] == ["missing"]
    manager.delete_checkpoint(saved)
    manager.cleanup_checkpoints()
    assert other.read_bytes() == content
