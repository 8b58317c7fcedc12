"""Lists and shows of an experiment that is large enough for the index: the answers are those of a listing."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ckpt_lib import CheckpointConfig, CheckpointManager, describe_experiments, find_checkpoints
from ckpt_lib.core.metadata import CheckpointMetadata
from ckpt_lib.errors import CheckpointNotFoundError, StorePermissionError, UnknownMetricError
from ckpt_lib.experiment.index import Index
from ckpt_lib.experiment.stored_index import StoredIndex
from ckpt_lib.index.database import database_at
from ckpt_lib.index.places import Place
from ckpt_lib.index.selection import Selection, select
from ckpt_lib.store.local import LocalStore
from tests.web.big_store import EXPERIMENT, build, save

COUNT = 80


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> CheckpointConfig:
    return build(tmp_path_factory.mktemp("large"), COUNT)


@pytest.fixture
def config(template: CheckpointConfig, tmp_path: Path) -> CheckpointConfig:
    """A copy that a test may change, with an index of its own."""
    shutil.copytree(template.checkpoint_dir, tmp_path / "store")
    places = {"checkpoint_dir": str(tmp_path / "store"), "index_url": f"sqlite:///{tmp_path}/index.sqlite"}
    return template.model_copy(update=places)


def manager_of(config: CheckpointConfig) -> CheckpointManager:
    return CheckpointManager(config, EXPERIMENT)


@pytest.fixture(params=["the database", "memory"])
def manager(config: CheckpointConfig, request: pytest.FixtureRequest) -> CheckpointManager:
    """One that is answered by the database, or from what it has listed before."""
    manager_of(config).list_checkpoints(limit=1)  # the database knows the folder then
    found = manager_of(config)
    if request.param == "memory":
        found._catalogue.experiment.index.view()
    return found


def listed(config: CheckpointConfig, **asked: Any) -> list[CheckpointMetadata]:
    """What selecting among all of them gives, without an index."""
    catalogue = CheckpointManager(config.model_copy(update={"index_url": "sqlite:////dev/null/no"}), EXPERIMENT)
    return select(catalogue._catalogue.describe_all(), **asked)


ASKED: list[dict[str, Any]] = [
    {},
    {"limit": 5},
    {"limit": 5, "descending": True},
    {"sort_by": "val_loss", "limit": 7},
    {"sort_by": "accuracy", "descending": True, "limit": 7},
    {"where": ["val_loss<2.4", "epoch>=2"], "tags": ["keep"]},
    {"search": "EPOCH_0003"},
    {"search": "<script>"},
    {"sort_by": "checkpoint_id", "limit": 0},
]


@pytest.mark.parametrize("asked", ASKED, ids=str)
def test_lists_are_those_of_a_listing(
    config: CheckpointConfig, manager: CheckpointManager, asked: dict[str, Any]
) -> None:
    """The same checkpoints in the same order, with the same facts, page after page."""
    expected = listed(config, **asked | {"limit": None})
    size = asked.get("limit")
    assert manager.list_checkpoints(**asked) == expected[:size]
    if size:
        after = expected[size - 1].checkpoint_id
        assert manager.list_checkpoints(**asked, after=after) == expected[size : 2 * size]


def test_names_are_those_of_a_listing(config: CheckpointConfig, manager: CheckpointManager) -> None:
    """Whatever a checkpoint is asked for by, it is the same one, with the same facts."""
    everything = listed(config)
    at = {item.step: item for item in everything}
    best = min(everything, key=lambda item: float(item.metrics["val_loss"] or 0))
    for name, expected in {
        "latest": at[COUNT],
        "latest~2": at[COUNT - 2],
        "best": best,
        "@keep": at[50],
        "epoch_3_step_33": at[33],
        "epoch_3_step_33~3": at[30],
        at[5].checkpoint_id: at[5],
    }.items():
        assert manager.get_checkpoint(name) == expected


def test_what_is_asked_wrongly_is_refused_as_by_a_listing(manager: CheckpointManager) -> None:
    """A metric that none has recorded, and a page after what is not there."""
    with pytest.raises(UnknownMetricError, match="val_loss"):
        manager.list_checkpoints(sort_by="val_los")
    with pytest.raises(CheckpointNotFoundError, match="cannot begin after"):
        manager.list_checkpoints(after="checkpoint_epoch_0001_step_000000_20200101_000000")
    with pytest.raises(CheckpointNotFoundError, match="short for 10"):
        manager.get_checkpoint("epoch_3")
    with pytest.raises(CheckpointNotFoundError):
        manager.get_checkpoint("checkpoint_epoch_0001_step_000000_20200101_000000")


def test_no_list_reads_all_manifests(config: CheckpointConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the index knows a folder, a list of another manager opens no file of it, and a show the one it shows."""
    manager_of(config).list_checkpoints(limit=1)
    opened: list[str] = []
    open_read = LocalStore.open_read

    def noted(store: LocalStore, key: str) -> Any:
        opened.append(key)
        return open_read(store, key)

    monkeypatch.setattr(LocalStore, "open_read", noted)
    manager = manager_of(config)
    assert len(manager.list_checkpoints(sort_by="val_loss", limit=50)) == 50
    assert [key for key in opened if key.startswith(EXPERIMENT)] == []
    shown = manager.get_checkpoint("latest")
    assert [key for key in opened if key.startswith(EXPERIMENT)] == [f"{EXPERIMENT}/{shown.checkpoint_id}.json"]


def test_who_asks_often_is_answered_from_memory(config: CheckpointConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The records are read once, by the database; after that it is asked for no list."""
    manager_of(config).list_checkpoints(limit=1)
    manager, found = manager_of(config), StoredIndex.find
    asked: list[Selection] = []

    def noted(stored: StoredIndex, folder_version: str, selection: Selection) -> Any:
        asked.append(selection)
        return found(stored, folder_version, selection)

    monkeypatch.setattr(StoredIndex, "find", noted)
    for number in range(20):
        assert manager.list_checkpoints(limit=number) == listed(config, limit=number)
    assert len(asked) == 8


def test_changes_of_others_are_seen_at_once(config: CheckpointConfig, manager: CheckpointManager) -> None:
    """A save, an edit, a deletion and an undeletion by another manager: the next list shows each."""
    other = manager_of(config)
    oldest = manager.list_checkpoints(limit=1)[0].checkpoint_id
    changes: list[Callable[[], object]] = [
        lambda: save(other, COUNT + 1),
        lambda: other.edit_checkpoint(oldest, add_tags=["new"]),
        lambda: other.delete_checkpoint(oldest),
        lambda: other.undelete_checkpoint(oldest),
    ]
    for change in changes:
        change()
        assert manager.list_checkpoints() == listed(config)
        assert manager.get_checkpoint("latest") == listed(config)[-1]


def test_pages_go_on_where_the_last_one_ended(config: CheckpointConfig, manager: CheckpointManager) -> None:
    """Also when its last checkpoint has got another value meanwhile: nothing that lies between is skipped."""
    whole = [item.checkpoint_id for item in manager.list_checkpoints(sort_by="val_loss")]
    first = manager.list_checkpoints(sort_by="val_loss", limit=20)
    last = first[-1]
    manager_of(config).add_metrics(last.checkpoint_id, {"val_loss": 99.0}, source="eval", replace=True)
    rest = manager.list_checkpoints(sort_by="val_loss", after=str(Place.of(last, "val_loss")))
    assert [item.checkpoint_id for item in rest] == [*whole[20:], last.checkpoint_id]
    everywhere = find_checkpoints(config, sort_by="val_loss", after=Place.of(last, "val_loss", in_all=True))
    assert [item.checkpoint_id for item in everywhere] == [*whole[20:], last.checkpoint_id]


@pytest.mark.parametrize("suffix", [".pt", ".json"])
@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_damage_is_seen(config: CheckpointConfig, manager: CheckpointManager, suffix: str, damage: str) -> None:
    """Also what was altered in place, which leaves the version of the folder: the list is that of a listing."""
    victim = manager.list_checkpoints(limit=3)[2].checkpoint_id
    path = Path(config.checkpoint_dir, EXPERIMENT, f"{victim}{suffix}")
    if damage == "truncated":
        os.truncate(path, 10)
    else:
        path.unlink()
    found = manager.list_checkpoints(limit=5)
    assert found == listed(config, limit=5)
    assert [item.is_complete for item in found if item.checkpoint_id == victim] == ([False] if suffix == ".pt" else [])


def test_what_was_refused_is_listed_once_it_can_be_read(
    config: CheckpointConfig, manager: CheckpointManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is written to the folder when its owner lets the others read a record: no version tells of that."""
    everything = listed(config)
    best = next(item.checkpoint_id for item in everything if item.is_best)
    open_read = LocalStore.open_read

    def refused(store: LocalStore, key: str) -> Any:
        if best in key:
            raise StorePermissionError("the store refuses access", path=key)
        return open_read(store, key)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "open_read", refused)
        os.utime(Path(config.checkpoint_dir, EXPERIMENT, f"{best}.json"))  # all read it anew
        manager_of(config).edit_checkpoint(everything[0].checkpoint_id, add_tags=["new"])
        assert len(manager.list_checkpoints()) == COUNT - 1
    everything = listed(config)
    for asked in (manager, manager_of(config)):
        assert asked.list_checkpoints() == everything
        assert asked.get_checkpoint("best").checkpoint_id == best
    (overview,) = describe_experiments(config)
    assert (overview.best_checkpoint, overview.unreadable_checkpoints) == (best, 0)


def test_what_is_mended_by_hand_is_listed(config: CheckpointConfig, manager: CheckpointManager) -> None:
    """Also by a copy into the damaged file, which leaves the version of the folder."""
    everything = listed(config)
    best = next(item.checkpoint_id for item in everything if item.is_best)
    record = Path(config.checkpoint_dir, EXPERIMENT, f"{best}.json")
    whole = record.read_bytes()
    record.write_bytes(whole[:100])
    manager_of(config).edit_checkpoint(everything[0].checkpoint_id, add_tags=["new"])
    assert len(manager.list_checkpoints()) == COUNT - 1
    assert manager.get_checkpoint("best").checkpoint_id != best
    record.write_bytes(whole)
    for asked in (manager, manager_of(config)):
        assert asked.list_checkpoints() == listed(config)
        assert asked.get_checkpoint("best").checkpoint_id == best


def test_an_index_that_cannot_be_used_is_done_without(
    config: CheckpointConfig, caplog: pytest.LogCaptureFixture
) -> None:
    """The answer takes longer, and is the same."""
    manager = manager_of(config.model_copy(update={"index_url": "sqlite:////dev/null/index.sqlite"}))
    assert manager.list_checkpoints(limit=4, sort_by="val_loss") == listed(config, limit=4, sort_by="val_loss")
    assert manager.get_checkpoint("best") == next(item for item in listed(config) if item.is_best)
    assert "cannot be used" in caplog.text


def test_one_of_many_threads_lists_what_has_changed(config: CheckpointConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others wait for it and ask the index: fifty clients do not list a folder fifty times after each save."""
    manager = manager_of(config)
    manager.list_checkpoints(limit=1)
    save(manager_of(config), COUNT + 1)
    views: list[Index] = []
    barrier, view = threading.Barrier(8), Index.view

    def noted(index: Index, **options: Any) -> Any:
        views.append(index)
        return view(index, **options)

    monkeypatch.setattr(Index, "view", noted)

    def ask(number: int) -> str:
        barrier.wait()
        if number % 2:
            return manager.get_checkpoint(f"epoch_{(COUNT + 1) // 10}_step_{COUNT + 1}").checkpoint_id
        return manager.list_checkpoints(descending=True, limit=1)[0].checkpoint_id

    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(ask, range(8)))
    assert (len(found), len(views)) == (1, 1)
    database_at(config.index_url).close()
