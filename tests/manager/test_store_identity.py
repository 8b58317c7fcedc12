"""The identity file of a store, as saves, imports and every other call meet it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn

from ckpt_lib import CheckpointConfig, CheckpointManager, init_store, list_experiments, open_store
from ckpt_lib.errors import ExperimentNotFoundError, NotAStoreError, StoreUnavailableError
from ckpt_lib.experiment.listing import check_experiment_exists
from ckpt_lib.saving import failover
from ckpt_lib.store.identity import IDENTITY_NAME, read_identity
from tests.helpers import MakeManager, build, ids
from tests.helpers import save as save_with


def save(store: Path, name: str = "run") -> CheckpointManager:
    manager = CheckpointManager(CheckpointConfig(checkpoint_dir=str(store)), name)
    manager.save_checkpoint(model=build().model, epoch=1)
    return manager


def test_the_first_save_makes_a_store(tmp_path: Path) -> None:
    """A first save writes the identity file, and later ones, of any experiment, leave it as it is."""
    save(tmp_path / "store")
    identity = read_identity(open_store(tmp_path / "store"))
    save(tmp_path / "store", "another")
    assert read_identity(open_store(tmp_path / "store")) == identity == init_store(str(tmp_path / "store"))


def test_an_import_makes_a_store(tmp_path: Path) -> None:
    """A store whose first checkpoint was imported has an identity; the folder of an export has none."""
    exported = save(tmp_path / "store").export_checkpoint("latest", tmp_path / "export")
    CheckpointManager(CheckpointConfig(checkpoint_dir=str(tmp_path / "other")), "run").import_checkpoint(exported)
    assert read_identity(open_store(tmp_path / "other")).uid != read_identity(open_store(tmp_path / "store")).uid
    assert not (tmp_path / "export" / IDENTITY_NAME).exists()


def test_an_initialised_store_may_be_empty(tmp_path: Path) -> None:
    """A new store holds no experiments, which is no error; a folder without the file is no store."""
    init_store(str(tmp_path / "store"))
    for store in (open_store(tmp_path / "store"), tmp_path / "store", f"file://{tmp_path}/store"):
        assert list_experiments(store) == []
    with pytest.raises(ExperimentNotFoundError, match="none yet"):
        check_experiment_exists(open_store(tmp_path / "store"), "run")
    (tmp_path / "mount-point").mkdir()
    for missing in ("mount-point", "typo"):
        with pytest.raises(NotAStoreError, match="ckpt init"):
            list_experiments(open_store(tmp_path / missing))
        assert list_experiments(open_store(tmp_path / missing), missing_ok=True) == []


def test_experiments_beside_a_damaged_identity_are_found(tmp_path: Path) -> None:
    """No checkpoint depends on the file."""
    save(tmp_path / "store")
    (tmp_path / "store" / IDENTITY_NAME).write_text("{")
    assert list_experiments(open_store(tmp_path / "store")) == ["run"]


@pytest.mark.skipif(os.name != "posix", reason="POSIX links")
@pytest.mark.parametrize("place", ["dangling", "dangling/below", "loop", "file", "file/below"])
def test_a_store_that_cannot_be_there_is_no_empty_store(tmp_path: Path, place: str) -> None:
    """A link that leads nowhere, as to an unmounted disk, and a file: every call says so, and nothing is made."""
    (tmp_path / "dangling").symlink_to(tmp_path / "unmounted")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "file").write_text("mine")
    manager = CheckpointManager(CheckpointConfig(checkpoint_dir=str(tmp_path / place)), "run")
    model = nn.Linear(1, 1)
    calls: list[Callable[[], object]] = [
        manager.list_checkpoints,
        manager.get_latest_checkpoint,
        manager.get_best_checkpoint,
        manager.checkpoint_ids,
        manager.list_backups,
        manager.list_quarantined,
        manager.get_checkpoint_summary,
        manager.scrub,
        manager.doctor,
        manager.cleanup_checkpoints,
        manager.cleanup_backups,
        lambda: list(manager.validate_all()),
        lambda: manager.resume(model=model),
        lambda: manager.save_checkpoint(model=model, epoch=1, metrics={"val_loss": 1.0}),
        lambda: list_experiments(open_store(tmp_path / place), missing_ok=True),
    ]
    for call in calls:
        with pytest.raises(NotAStoreError):
            call()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dangling", "file", "loop"]


@pytest.fixture
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failover, "RETRY_DELAYS_SECONDS", (0.001, 0.001))


@pytest.mark.usefixtures("_no_waiting")
def test_an_empty_mount_point_is_not_the_store_of_before(make_manager: MakeManager, tmp_path: Path) -> None:
    """A process that has saved to a store, or saved beside one that did, takes no empty folder for it later."""
    writer, follower = make_manager(max_checkpoints=9), make_manager(max_checkpoints=9)
    saved = [save_with(writer, 1), save_with(follower, 2)]
    store = unmounted(writer, tmp_path)
    for manager in (writer, follower):
        with pytest.raises(StoreUnavailableError, match="not the one that was saved to before") as caught:
            save_with(manager, 3)
        assert caught.value.got == "its identity file is missing"
    assert list(store.iterdir()) == []
    mounted_again(store, tmp_path)
    saved.append(save_with(writer, 4))
    assert sorted(ids(follower)) == sorted(saved)  # saves of one moment may have one sequence


@pytest.mark.usefixtures("_no_waiting")
def test_while_the_disk_is_unmounted_the_fallback_takes_over(make_manager: MakeManager, tmp_path: Path) -> None:
    """What is saved meanwhile is stranded, and does not come home to the empty mount point."""
    manager = make_manager(fallback_dir=str(tmp_path / "fallback"))
    first = save_with(manager, 1)
    store = unmounted(manager, tmp_path)
    stranded = [save_with(manager, 2), save_with(manager, 3)]
    with pytest.raises(StoreUnavailableError):
        manager.reconcile()
    assert [item.checkpoint_id for item in manager.list_stranded()] == stranded
    assert list(store.iterdir()) == []
    mounted_again(store, tmp_path)
    assert [first, *stranded, save_with(manager, 4)] == ids(manager)


@pytest.mark.usefixtures("_no_waiting")
def test_a_process_that_starts_while_the_disk_is_unmounted_knows_of_it(
    make_manager: MakeManager, tmp_path: Path
) -> None:
    """From what is stranded: it resumes from that, strands what it saves, and leaves the mount point empty."""
    fallback = str(tmp_path / "fallback")
    earlier = make_manager(fallback_dir=fallback)
    saved = [save_with(earlier, 1)]
    store = unmounted(earlier, tmp_path)
    saved.append(save_with(earlier, 2))
    later = make_manager(fallback_dir=fallback)
    resumed = later.resume()
    assert resumed is not None
    assert resumed["checkpoint_id"] == saved[1]
    saved.append(save_with(later, 3))
    assert [item.checkpoint_id for item in later.list_stranded()] == saved[1:]
    assert list(store.iterdir()) == []
    mounted_again(store, tmp_path)
    assert [*saved, save_with(make_manager(fallback_dir=fallback), 4)] == ids(later)


@pytest.mark.usefixtures("_no_waiting")
def test_what_is_stranded_goes_to_no_other_store(make_manager: MakeManager, tmp_path: Path) -> None:
    """It names the store that it belongs to. Where that will not come back, an import takes it in."""
    earlier = make_manager(fallback_dir=str(tmp_path / "fallback"))
    save_with(earlier, 1)
    store = unmounted(earlier, tmp_path)
    stranded = save_with(earlier, 2)
    init_store(str(store))
    with pytest.raises(StoreUnavailableError, match="not the one"):
        make_manager(fallback_dir=str(tmp_path / "fallback")).reconcile()
    writer = make_manager(fallback_dir=str(tmp_path / "fallback"))
    own = save_with(make_manager(), 3)
    assert writer.resume() is not None
    late = make_manager(fallback_dir=str(tmp_path / "fallback"))
    save_with(make_manager(), 4)
    assert [item.checkpoint_id for item in late.list_stranded()] == [stranded]
    assert own in ids(late)
    imported = make_manager().import_checkpoint(tmp_path / "fallback" / "run" / f"{stranded}.json")
    assert imported in ids(late)


@pytest.mark.usefixtures("_no_waiting")
def test_another_store_is_not_the_store_of_before(make_manager: MakeManager, tmp_path: Path) -> None:
    """Somebody else may have saved to the mount point; a damaged identity file tells nothing, and stops nothing."""
    manager = make_manager()
    save_with(manager, 1)
    identity = Path(manager.config.checkpoint_dir) / IDENTITY_NAME
    identity.write_text("{")
    save_with(manager, 2)
    store = unmounted(manager, tmp_path)
    other = init_store(str(store))
    with pytest.raises(StoreUnavailableError) as caught:
        save_with(manager, 3)
    assert other.uid in str(caught.value.got)
    assert [path.name for path in store.iterdir() if path.name[0] != "."] == []


def unmounted(manager: CheckpointManager, tmp_path: Path) -> Path:
    """Leave an empty folder where the store was."""
    store = Path(manager.config.checkpoint_dir)
    store.rename(tmp_path / "aside")
    store.mkdir()
    return store


def mounted_again(store: Path, tmp_path: Path) -> None:
    store.rmdir()
    (tmp_path / "aside").rename(store)
