"""All experiments of a store, and large ones, from the database: what it answers is what the store holds."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import nn

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.errors import NotAStoreError, StoreError
from ckpt_lib.experiment import deletion
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.experiment.overviews import describe_experiments, find_checkpoints, reindex
from ckpt_lib.index.database import database_at
from ckpt_lib.index.overview import ExperimentOverview
from ckpt_lib.store import Entry, open_store
from ckpt_lib.store.local import LocalStore
from tests.experiment.contents import X, manifest
from tests.helpers import manifest_path

UNUSABLE = "postgresql+psycopg://nobody@127.0.0.1:1/none"


@pytest.fixture
def config(tmp_path: Path) -> Iterator[CheckpointConfig]:
    url = f"sqlite:///{tmp_path}/index.sqlite"
    yield CheckpointConfig(checkpoint_dir=str(tmp_path / "store"), index_url=url, trash_seconds=0)
    database_at(url).close()
    database_at.cache_clear()


def save(config: CheckpointConfig, name: str, epoch: int, loss: float, **facts: object) -> str:
    manager = CheckpointManager(config, name)
    saved = manager.save_checkpoint(model=nn.Linear(1, 1), epoch=epoch, metrics={"val_loss": loss}, **facts)  # type: ignore[arg-type]
    assert saved is not None
    return saved


def many(config: CheckpointConfig, name: str, count: int) -> Experiment:
    """An experiment of so many records, written without saves."""
    store = open_store(config.checkpoint_dir)
    for number in range(1, count + 1):
        item = manifest(X.replace("0001", f"{number:04d}"), uid=f"{number:032x}", sequence=number)
        store.put(f"{name}/{item.checkpoint_id}.json", item.to_bytes(), durable=False)
        store.put(f"{name}/{item.files[0].name}", item.uid.encode()[: item.size_bytes], durable=False)
    return large(config, name)


def large(config: CheckpointConfig, name: str) -> Experiment:
    """The experiment, as another process opens it."""
    return Experiment(open_store(config.checkpoint_dir), name, name, is_indexed=True, index_url=config.index_url)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is listed and read in local stores from now on."""
    found: list[str] = []
    list_, open_read = LocalStore.list, LocalStore.open_read

    def listing(self: LocalStore, prefix: str, *, recursive: bool = False) -> list[Entry]:
        found.append(f"list {prefix}")
        return list_(self, prefix, recursive=recursive)

    def reading(self: LocalStore, key: str) -> object:
        found.append(f"read {key}")
        return open_read(self, key)

    monkeypatch.setattr(LocalStore, "list", listing)
    monkeypatch.setattr(LocalStore, "open_read", reading)
    return found


def by_name(found: list[ExperimentOverview]) -> dict[str, tuple[int, str | None, str | None]]:
    return {
        item.experiment_name: (item.total_checkpoints, item.best_checkpoint, item.latest_checkpoint) for item in found
    }


# --- all experiments ---


def test_what_is_saved_edited_and_deleted_is_seen(config: CheckpointConfig) -> None:
    """After each change of a store, each overview is what a manager of the experiment says."""
    a1, a2 = save(config, "a", 1, 0.5), save(config, "a", 2, 0.7)
    assert by_name(describe_experiments(config)) == {"a": (2, a1, a2)}
    b1 = save(config, "b", 1, 0.1)
    assert by_name(describe_experiments(config)) == {"a": (2, a1, a2), "b": (1, b1, b1)}
    a3 = save(config, "a", 3, 0.2)
    assert by_name(describe_experiments(config)) == {"a": (3, a3, a3), "b": (1, b1, b1)}
    CheckpointManager(config, "a").set_monitor("val_loss", "max")
    assert by_name(describe_experiments(config))["a"] == (3, a2, a3)
    CheckpointManager(config, "a").delete_checkpoint(a3)
    assert by_name(describe_experiments(config))["a"] == (2, a2, a2)
    (overview, _) = describe_experiments(config)
    assert (overview.monitor_metric, overview.best_value, overview.unreadable_checkpoints) == ("val_loss", 0.7, 0)
    assert overview.total_size_bytes == sum(
        item.file_size for item in CheckpointManager(config, "a").list_checkpoints()
    )
    shutil.rmtree(Path(config.checkpoint_dir) / "a")
    assert by_name(describe_experiments(config)) == {"b": (1, b1, b1)}


def test_what_was_removed_by_hand_is_seen(config: CheckpointConfig) -> None:
    """No write of ours told of it: the folder did."""
    a1, a2 = save(config, "a", 1, 0.5), save(config, "a", 2, 0.7)
    describe_experiments(config)
    manifest_path(CheckpointManager(config, "a"), a2).unlink()
    assert by_name(describe_experiments(config)) == {"a": (1, a1, a1)}


def test_a_damaged_manifest_is_counted(config: CheckpointConfig) -> None:
    """As unreadable, and as nothing else."""
    a1, a2 = save(config, "a", 1, 0.5), save(config, "a", 2, 0.7)
    path = manifest_path(CheckpointManager(config, "a"), a2)
    path.with_suffix(".new").write_bytes(path.read_bytes()[:-9])
    path.with_suffix(".new").replace(path)
    (found,) = describe_experiments(config)
    assert (found.total_checkpoints, found.latest_checkpoint, found.unreadable_checkpoints) == (1, a1, 1)


def test_an_unchanged_experiment_is_not_listed_again(config: CheckpointConfig, calls: list[str]) -> None:
    """A store of many costs a moment for each that changed."""
    for name in ("a", "b"):
        save(config, name, 1, 0.5)
    describe_experiments(config)
    save(config, "b", 2, 0.4)
    calls.clear()
    describe_experiments(config)
    assert [call for call in calls if call.startswith("list ")] == ["list ", "list b"]


def test_without_a_sync_the_store_is_not_asked(config: CheckpointConfig, calls: list[str]) -> None:
    """The answer is that of the last sync, and says so; a store that is not known is read."""
    a1 = save(config, "a", 1, 0.5)
    assert by_name(describe_experiments(config, sync=False)) == {"a": (1, a1, a1)}
    a2 = save(config, "a", 2, 0.4)
    calls.clear()
    (known,) = describe_experiments(config, sync=False)
    assert not [call for call in calls if call.startswith("list ")]
    assert by_name([known]) == {"a": (1, a1, a1)}
    assert by_name(describe_experiments(config)) == {"a": (2, a2, a2)}
    assert describe_experiments(config, sync=False)[0].as_of > known.as_of


def test_backups_are_no_experiment(config: CheckpointConfig) -> None:
    """Neither those inside of an experiment, nor a folder that holds nothing of ours."""
    a1 = save(config, "a", 1, 0.5)
    CheckpointManager(config, "a").list_backups()
    (Path(config.checkpoint_dir) / "notes").mkdir()
    (Path(config.checkpoint_dir) / "notes/x.txt").write_text("x")
    assert by_name(describe_experiments(config)) == {"a": (1, a1, a1)}
    assert [item.checkpoint_id for item in find_checkpoints(config)] == [a1]


def test_a_folder_that_is_no_store_is_refused(config: CheckpointConfig, tmp_path: Path) -> None:
    """A missing disk must not look like an empty store, nor empty the index."""
    a1 = save(config, "a", 1, 0.5)
    describe_experiments(config)
    elsewhere = CheckpointConfig(**config.model_dump() | {"checkpoint_dir": str(tmp_path / "none")})
    for ask in (describe_experiments, find_checkpoints, reindex):
        with pytest.raises(NotAStoreError):
            ask(elsewhere)
    assert by_name(describe_experiments(config, sync=False)) == {"a": (1, a1, a1)}


def test_another_store_at_the_same_path_is_another_one(config: CheckpointConfig) -> None:
    """A disk was exchanged: what the index knows of the first is not said of the second."""
    save(config, "a", 1, 0.5)
    describe_experiments(config)
    shutil.move(config.checkpoint_dir, f"{config.checkpoint_dir}.old")
    b1 = save(config, "b", 1, 0.5)
    assert by_name(describe_experiments(config, sync=False)) == {"b": (1, b1, b1)}


@pytest.mark.parametrize("index_url", [None, "sqlite://", UNUSABLE])
def test_every_index_gives_the_same_answers(
    config: CheckpointConfig, index_url: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """The user's own, one in memory, and one that is not there: that takes longer, and is said."""
    a1, b1, b2 = save(config, "a", 1, 0.5), save(config, "b", 1, 0.4, tags=["keep"]), save(config, "b", 2, 0.3)
    other = CheckpointConfig(**config.model_dump() | {"index_url": index_url})
    assert by_name(describe_experiments(other)) == {"a": (1, a1, a1), "b": (2, b2, b2)}
    found = find_checkpoints(other, where=["val_loss<0.5"], sort_by="val_loss")
    assert [(item.experiment_name, item.checkpoint_id, item.is_best) for item in found] == [
        ("b", b2, True),
        ("b", b1, False),
    ]
    assert [item.checkpoint_id for item in find_checkpoints(other, tags=["keep"])] == [b1]
    assert [item.checkpoint_id for item in find_checkpoints(other, limit=1, after=f"a/{a1}")] == [b1]
    assert ("cannot be used" in caplog.text) == (index_url == UNUSABLE)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere, every path is text")
def test_a_path_that_is_no_text_is_indexed(
    config: CheckpointConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database holds text alone, and must not be taken for damaged."""
    (tmp_path / "caf\udce9").mkdir()
    monkeypatch.chdir(tmp_path / "caf\udce9")
    odd = CheckpointConfig(**config.model_dump() | {"checkpoint_dir": "store"})
    a1 = save(odd, "a", 1, 0.5)
    assert by_name(describe_experiments(odd)) == {"a": (1, a1, a1)}
    assert by_name(describe_experiments(odd, sync=False)) == {"a": (1, a1, a1)}
    assert not list(tmp_path.glob("*.damaged"))


def test_a_copy_of_an_experiment_has_the_name_of_its_folder(config: CheckpointConfig) -> None:
    """Its manifests have the other one's."""
    save(config, "a", 1, 0.5)
    shutil.copytree(Path(config.checkpoint_dir) / "a", Path(config.checkpoint_dir) / "b")
    for index_url in (config.index_url, UNUSABLE):
        other = CheckpointConfig(**config.model_dump() | {"index_url": index_url})
        assert [item.experiment_name for item in find_checkpoints(other)] == ["a", "b"]
        assert [item.experiment_name for item in describe_experiments(other)] == ["a", "b"]


def test_reindexing_reads_all_again(config: CheckpointConfig, calls: list[str]) -> None:
    """Steps are told, and an index that cannot be used is an error: somebody asked for one."""
    for name in ("a", "b"):
        save(config, name, 1, 0.5)
    before = by_name(describe_experiments(config))
    calls.clear()
    steps: list[tuple[int, int]] = []
    assert by_name(reindex(config, step=lambda done, of: steps.append((done, of)))) == before
    assert {"list a", "list b"} <= set(calls)
    assert steps == [(1, 2), (2, 2)]
    with pytest.raises(StoreError, match="the index cannot be used"):
        reindex(CheckpointConfig(**config.model_dump() | {"index_url": UNUSABLE}))


# --- a large experiment ---


def test_a_new_process_reads_from_the_store_what_has_changed(config: CheckpointConfig, calls: list[str]) -> None:
    """Of 70 records it reads one that was edited and one that is new, and the database knows the others."""
    right = many(config, "run", 70).index.view()
    edited = right.manifests[3].changed(tags=("edited",))
    added = manifest(X.replace("0001", "0099"), uid="f" * 32, sequence=99)
    store = open_store(config.checkpoint_dir)
    for item in (edited, added):
        store.put(f"run/{item.checkpoint_id}.json", item.to_bytes())
    store.delete(f"run/{right.manifests[5].checkpoint_id}.json")
    calls.clear()
    found = large(config, "run").index.view()
    records = [call for call in calls if call.endswith("Z.json") or "checkpoint_epoch" in call]
    assert sorted(records) == sorted(f"read run/{item.checkpoint_id}.json" for item in (edited, added))
    wanted = [item for item in right.manifests if item.checkpoint_id != right.manifests[5].checkpoint_id]
    wanted[3] = edited
    assert list(found.manifests) == [*wanted, added]


def test_a_record_that_another_process_noted_goes_with_its_checkpoint(config: CheckpointConfig) -> None:
    """It came and went while this process was not looking: what this one notes later is all there is."""
    mine = many(config, "run", 70)
    mine.index.sync()
    added = manifest(X.replace("0001", "0099"), uid="f" * 32, sequence=99)
    mine.store.put(f"run/{added.checkpoint_id}.json", added.to_bytes())
    large(config, "run").index.sync()
    assert len(find_checkpoints(config, sync=False)) == 71
    mine.store.delete(f"run/{added.checkpoint_id}.json")
    mine.index.sync()
    database_at(config.index_url).close()  # the next question checks all rows
    assert len(find_checkpoints(config, sync=False)) == 70
    assert not list(Path(config.checkpoint_dir).parent.glob("*.damaged"))


def test_a_small_experiment_does_without_a_database(config: CheckpointConfig) -> None:
    """Reading a few records takes less time than loading SQLAlchemy."""
    many(config, "run", 20).index.view()
    assert not Path(str(config.index_url).removeprefix("sqlite:///")).exists()


def test_a_record_altered_in_place_is_read_again(config: CheckpointConfig) -> None:
    """By hand, without a word: its date tells."""
    right = many(config, "run", 70).index.view()
    path = Path(config.checkpoint_dir) / "run" / f"{right.manifests[3].checkpoint_id}.json"
    path.write_bytes(path.read_bytes().replace(b"live", b"dead"))
    found = large(config, "run").index.view()
    assert [error.checkpoint_id for error in found.unreadable] == [right.manifests[3].checkpoint_id]
    assert len(found.manifests) == 69


def test_a_payload_that_goes_is_noted(config: CheckpointConfig) -> None:
    """No record changed, and yet a list of all experiments says that the checkpoint is incomplete."""
    experiment = many(config, "run", 70)
    experiment.index.sync()
    victim = experiment.index.view().manifests[3]
    os.remove(Path(config.checkpoint_dir) / "run" / victim.files[0].name)
    found = {item.checkpoint_id: item.is_complete for item in find_checkpoints(config)}
    assert [checkpoint_id for checkpoint_id, is_complete in found.items() if not is_complete] == [victim.checkpoint_id]


def test_a_store_in_memory_leaves_nothing_in_the_database(tmp_path: Path) -> None:
    """It ends with its process; another of the same name is another one."""
    url = f"sqlite:///{tmp_path}/index.sqlite"
    config = CheckpointConfig(checkpoint_dir="memory://overviews", index_url=url)
    save(config, "a", 1, 0.5)
    assert [item.experiment_name for item in describe_experiments(config)] == ["a"]
    assert database_at(url).folders("overviews") == {}


def test_what_the_database_says_is_never_written(config: CheckpointConfig, calls: list[str]) -> None:
    """A deletion reads the manifest in the store, although the index knows it."""
    many(config, "a", 70).index.view()
    experiment = large(config, "a")
    calls.clear()
    first, *_ = experiment.index.view().manifests
    assert not any("checkpoint_epoch" in call for call in calls)
    deletion.delete_all(experiment, [first.checkpoint_id])
    assert f"read a/{first.checkpoint_id}.json" in calls
