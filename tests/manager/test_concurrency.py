"""Several processes and threads on one experiment, and saves that are repeated."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

import pytest
from torch import nn

from ckpt_lib import CheckpointManager
from ckpt_lib.errors import CheckpointNotFoundError
from ckpt_lib.experiment.edits import edit
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.formats import PayloadSink
from ckpt_lib.formats.torch.writing import ArchiveLayout
from ckpt_lib.store.local import LocalStore
from tests.helpers import (
    MakeManager,
    Parts,
    experiment_folder,
    fingerprint,
    ids,
    payload_path,
    save,
    snapshot,
    start_python,
    truncate,
    without_locks,
)

_WRITER = """
import json, sys
import torch
from ckpt_lib import CheckpointConfig, CheckpointManager

number, saves = int(sys.argv[2]), int(sys.argv[3])
manager = CheckpointManager(CheckpointConfig(checkpoint_dir=sys.argv[1], **json.loads(sys.argv[4])), "run")
sys.stdin.readline()
for epoch in range(saves):
    # All of them the same epoch and step, so that they want the same ids.
    key = f"shared {epoch}" if sys.argv[5:] else None
    print(
        manager.save_checkpoint(
            model=torch.nn.Linear(2, 1), epoch=1, metrics={"val_loss": epoch + number / 10}, idempotency_key=key
        )
    )
manager.close()
"""


def saved_by_processes(
    manager: CheckpointManager, *, processes: int, saves: int, options: dict[str, object], shared_keys: bool = False
) -> list[list[str]]:
    """What each of several processes, started together, got from its saves."""
    arguments = [saves, json.dumps(options), *(["keys"] if shared_keys else [])]
    children = [start_python(_WRITER, manager.config.checkpoint_dir, n, *arguments) for n in range(processes)]
    try:
        outputs = []
        for child in children:
            assert child.stdin is not None
        for child in children:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        for child in children:
            output, errors = child.communicate(timeout=120)
            assert child.returncode == 0, errors
            assert errors == ""
            outputs.append(output.split())
    finally:
        for child in children:
            child.kill()
    return outputs


def test_four_processes_save_to_one_experiment(make_manager: MakeManager) -> None:
    """100 saves by four processes at once, of one epoch and step: 100 whole checkpoints, no id twice."""
    manager = make_manager()
    options: dict[str, object] = {"max_checkpoints": 1000, "backup_checkpoints": False}
    outputs = saved_by_processes(manager, processes=4, saves=25, options=options)
    acknowledged = [checkpoint_id for output in outputs for checkpoint_id in output]
    found = manager.list_checkpoints()
    assert len(acknowledged) == 100
    assert sorted(acknowledged) == sorted(item.checkpoint_id for item in found)
    for output in outputs:  # each process's own saves are in the order in which it made them
        order = {item.checkpoint_id: item.sequence for item in found}
        assert [order[item] for item in output] == sorted(order[item] for item in output)
    assert all(manager.validate_all())
    assert manager._locations.home.index.view().claims == ()
    content = json.loads((experiment_folder(manager) / "checkpoint_metadata.json").read_text())
    assert len(content["checkpoints"]) >= 90  # two that end at once may each have listed before the other's last save
    manager.edit_checkpoint("latest", add_tags=["last"])
    content = json.loads((experiment_folder(manager) / "checkpoint_metadata.json").read_text())
    assert len(content["checkpoints"]) == 100


def test_processes_that_repeat_one_save_share_it(make_manager: MakeManager) -> None:
    """The same key from two processes at the same moment is one checkpoint, and both get its id."""
    manager = make_manager()
    outputs = saved_by_processes(
        manager, processes=2, saves=10, options={"backup_checkpoints": False}, shared_keys=True
    )
    assert outputs[0] == outputs[1]
    assert len(set(outputs[0])) == 10
    assert ids(manager) == outputs[0]


def test_threads_may_share_a_manager(make_manager: MakeManager) -> None:
    """40 saves by eight threads through one manager: none lost, none twice."""
    manager = make_manager(max_checkpoints=1000, backup_checkpoints=False)
    with ThreadPoolExecutor(8) as pool:
        saved = list(pool.map(lambda epoch: save(manager, epoch % 3), range(40)))
    assert sorted(saved) == sorted(ids(manager))
    assert [item.sequence for item in manager.list_checkpoints()] == list(range(1, 41))
    assert all(manager.validate_all())


def test_saving_cleaning_loading_and_editing_at_once(make_manager: MakeManager) -> None:
    """While two trainers save and retire down to one, readers never fail, and latest and best are never missing."""
    save(make_manager(max_checkpoints=1), 0, 0.5)
    until = time.monotonic() + 3
    counts: dict[str, int] = {}

    def repeat(name: str, action: Callable[[CheckpointManager, int], object]) -> None:
        manager = make_manager(max_checkpoints=1, max_backups=1)
        count = 0
        while time.monotonic() < until:
            count += 1
            action(manager, count)
        counts[name] = count

    def edit(manager: CheckpointManager, count: int) -> None:
        with suppress(CheckpointNotFoundError):  # retired between being found and being edited
            manager.edit_checkpoint("latest", add_tags=[f"t{count % 5}"])

    actions: dict[str, Callable[[CheckpointManager, int], object]] = {
        "save": lambda manager, count: save(manager, count, 1 / count),
        "save too": lambda manager, count: save(manager, count, 0.5),
        "clean": lambda manager, _: manager.cleanup_checkpoints(),
        "load": lambda manager, count: manager.load_checkpoint("latest" if count % 2 else "best"),
        "resume": lambda manager, _: manager.resume(),
        "validate": lambda manager, _: _assert_true(manager.validate_checkpoint("latest")),
        "validate all": lambda manager, _: _assert_true(all(manager.validate_all())),
        "list": lambda manager, _: _assert_true(manager.list_checkpoints()),
        "latest": lambda manager, _: _assert_true(manager.get_checkpoint("latest")),
        "edit": edit,
    }
    with ThreadPoolExecutor(len(actions)) as pool:
        for future in [pool.submit(repeat, name, action) for name, action in actions.items()]:
            future.result()
    assert min(counts.values()) > 0
    manager = make_manager()
    assert manager.resume() is not None
    manager.empty_trash()
    view = manager._locations.home.index.view()
    assert (view.deleted, view.purging) == ((), ())


MOMENTS: dict[str, tuple[type, str, str]] = {
    "its manifest": (Experiment, "get", ""),
    "its payload": (LocalStore, "open_read", ".pt"),
}
"""The calls that read a checkpoint once it has been found, and the ending of what they are called with."""


def _retire_before(monkeypatch: pytest.MonkeyPatch, moment: tuple[type, str, str], make_manager: MakeManager) -> None:
    """At that moment, another process saves a better checkpoint, which retires the older ones."""
    owner, method, suffix = moment
    original = getattr(owner, method)

    def late(self: object, name: str, *rest: str) -> object:
        if name.endswith(suffix):
            monkeypatch.undo()
            save(make_manager(max_checkpoints=1, backup_checkpoints=False), 2, 0.1)
        return original(self, name, *rest)

    monkeypatch.setattr(owner, method, late)


@pytest.mark.parametrize("name", ["latest", "best", "t"])
@pytest.mark.parametrize("moment", list(MOMENTS))
def test_what_a_name_stands_for_may_be_retired_in_that_instant(
    make_manager: MakeManager, monkeypatch: pytest.MonkeyPatch, name: str, moment: str
) -> None:
    """Between finding and reading a checkpoint a newer one may take its place: that is then loaded, and no error."""
    reader = make_manager(backup_checkpoints=False)
    saved = save(reader, 1, 0.5, tags=["t"])
    reader = make_manager()
    _retire_before(monkeypatch, MOMENTS[moment], make_manager)
    if name == "t":  # nothing carries the tag any more
        with pytest.raises(CheckpointNotFoundError):
            reader.load_checkpoint(name)
    else:
        assert reader.load_checkpoint(name)["epoch"] == 2
    assert saved not in ids(reader)


def test_what_is_deleted_in_that_instant_is_not_gone_on_from(
    make_manager: MakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bytes are still there, in the trash: but nobody else would find what this process goes on from."""
    saved = save(make_manager(backup_checkpoints=False), 1)
    reader, other = make_manager(), make_manager(backup_checkpoints=False)
    open_read = LocalStore.open_read

    def late(self: LocalStore, key: str) -> object:
        if key.endswith(".pt"):
            monkeypatch.undo()
            other.delete_checkpoint(saved)
        return open_read(self, key)

    monkeypatch.setattr(LocalStore, "open_read", late)
    with pytest.raises(CheckpointNotFoundError):
        reader.load_checkpoint(saved)
    assert [item.checkpoint_id for item in other.list_deleted()] == [saved]


def test_what_a_run_resumed_from_stays_for_an_hour(make_manager: MakeManager) -> None:
    """Whoever retires, in whatever process: it is what the run would need again if it was killed now."""
    saved = save(make_manager(backup_checkpoints=False), 1, 0.5)
    assert make_manager().resume() is not None
    other = make_manager(max_checkpoints=1, backup_checkpoints=False)
    newer = save(other, 2, 0.1)
    assert other.cleanup_checkpoints().deleted_ids == ()
    assert ids(other) == [saved, newer]
    edit(other._locations.home, saved, lambda item: item.changed(in_use_until=None))
    assert other.cleanup_checkpoints().deleted_ids == (saved,)


def test_what_is_loaded_keeps_its_values_when_it_is_retired(make_manager: MakeManager) -> None:
    """Its tensors are views of a file that has no name any more."""
    saved = save(make_manager(backup_checkpoints=False), 1, 0.5)
    payload = make_manager().load_checkpoint(saved)
    before = fingerprint(payload["model_state_dict"])
    other = make_manager(max_checkpoints=1, backup_checkpoints=False)
    save(other, 2, 0.1)
    assert saved not in ids(other)
    other.empty_trash()
    assert fingerprint(payload["model_state_dict"]) == before


def test_resuming_and_validating_while_another_retires(
    make_manager: MakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is retired in that instant counts neither as damaged nor as the end of the run."""
    saved = save(make_manager(backup_checkpoints=False), 1, 0.5)
    reader = make_manager()
    _retire_before(monkeypatch, MOMENTS["its payload"], make_manager)
    payload = reader.resume()
    assert payload is not None
    assert (payload["epoch"], payload["passed_over"]) == (2, [])
    assert saved not in ids(reader)

    for ask in ("latest", "best", "all"):
        manager = make_manager(f"validate {ask}".replace(" ", "-"), backup_checkpoints=False)
        gone = save(manager, 1, 0.5)
        reader = make_manager(manager.experiment_name)

        def of_this_experiment(*_: object, name: str = manager.experiment_name, **options: object) -> CheckpointManager:
            return make_manager(name, **options)

        _retire_before(monkeypatch, MOMENTS["its payload"], of_this_experiment)
        if ask == "all":
            assert [report.message for report in reader.validate_all()] == []
        else:
            assert reader.validate_checkpoint(ask)
        assert gone not in ids(reader)


def _assert_true(value: object) -> None:
    assert value


def test_edits_at_once_are_all_kept(manager: CheckpointManager) -> None:
    """Eight threads that each add a tag lose none."""
    saved = save(manager, 1)
    barrier = threading.Barrier(8)

    def add(number: int) -> None:
        barrier.wait()
        manager.edit_checkpoint(saved, add_tags=[f"tag {number}"])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(8)))
    assert set(manager.get_checkpoint(saved).tags) == {f"tag {number}" for number in range(8)}


# --- repeated saves ---


@pytest.mark.parametrize("best_only", [False, True])
def test_a_repeated_save_writes_nothing_and_returns_the_first_id(make_manager: MakeManager, best_only: bool) -> None:
    """The same key gives the same id, in this manager and in another, also where the policy would now say no."""
    manager = make_manager(save_best_only=best_only)
    saved = save(manager, 1, 0.5, idempotency_key="run 1/epoch 1")
    before = without_locks(snapshot(experiment_folder(manager)))
    for again in (manager, make_manager(save_best_only=best_only)):
        assert save(again, 1, 0.5, idempotency_key="run 1/epoch 1") == saved
    assert without_locks(snapshot(experiment_folder(manager))) == before
    assert save(manager, 1, 0.4, idempotency_key="run 1/epoch 2") != saved


def test_the_same_save_may_be_under_way_elsewhere(make_manager: MakeManager, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second waits for the first and returns its id; it writes nothing, and knows nothing of the bytes."""
    write, other = ArchiveLayout.write, make_manager(backup_checkpoints=False)
    elsewhere: list[Future[str]] = []

    def meanwhile(self: ArchiveLayout, sink: PayloadSink) -> None:
        monkeypatch.undo()
        elsewhere.append(pool.submit(save, other, 1, idempotency_key="k"))
        time.sleep(0.2)
        write(self, sink)

    monkeypatch.setattr(ArchiveLayout, "write", meanwhile)
    manager = make_manager()
    with ThreadPoolExecutor(1) as pool:
        saved = save(manager, 1, idempotency_key="k")
        assert [saved] == [elsewhere[0].result()] == ids(manager)
    home = other._locations.home
    assert not other._known.is_valid(home, home.get(saved))
    assert [path.name for path in experiment_folder(manager).rglob("*.pt")] == [f"{saved}.pt"] * 2


def test_what_another_process_saved_is_not_known_to_be_intact(make_manager: MakeManager) -> None:
    """The same save, made there: this process has written and read nothing of it."""
    theirs, ours = (make_manager(backup_checkpoints=False) for _ in range(2))
    saved = save(theirs, 1, idempotency_key="k")
    assert save(ours, 1, idempotency_key="k") == saved
    home = ours._locations.home
    assert theirs._known.is_valid(home, home.get(saved))
    assert not ours._known.is_valid(home, home.get(saved))


def test_a_key_whose_checkpoint_lost_its_payload_saves_again(manager: CheckpointManager) -> None:
    """A repeated save does not answer with a checkpoint of which half is gone."""
    saved = save(manager, 1, idempotency_key="k")
    truncate(payload_path(manager, saved), 10)
    again = save(manager, 1, idempotency_key="k")
    assert again != saved
    assert manager.validate_checkpoint(again)


def test_a_key_brings_back_what_was_deleted(manager: CheckpointManager) -> None:
    """A save that is repeated asks for its checkpoint, which is still in the trash; what was purged is saved anew."""
    saved = save(manager, 1, idempotency_key="k")
    manager.delete_checkpoint(saved)
    assert save(manager, 1, idempotency_key="k") == saved
    assert ids(manager) == [saved]
    manager.delete_checkpoint(saved)
    manager.empty_trash()
    assert ids(manager) == []
    again = save(manager, 1, idempotency_key="k")
    assert ids(manager) == [again]


def test_saves_without_a_key_are_all_saved(manager: CheckpointManager, parts: Parts) -> None:
    """Identical calls are separate saves unless a key says otherwise."""
    saved = [manager.save_checkpoint(**parts.kwargs(), epoch=1) for _ in range(3)]
    assert len(set(saved)) == 3
    assert isinstance(parts.model, nn.Module)
