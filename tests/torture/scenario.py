"""A small store, what may be done to it, and what must hold when whoever did it was killed."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.errors import CheckpointError
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.experiment.layout import OWN_PREFIX, payload_owner
from ckpt_lib.maintenance.validate import validate
from ckpt_lib.store import open_store
from ckpt_lib.store.checks import OWN_FOLDER
from ckpt_lib.store.local.probe import TEMPORARY_SUFFIX

MODEL = torch.nn.Linear(2, 1)
LARGE_MODEL = torch.nn.Linear(1024, 1024)
"""Large enough for blocks of their own, and for the threads that hash and write them."""
LARGE_OPTIMIZER = torch.optim.SGD(LARGE_MODEL.parameters(), lr=0.1, momentum=0.9)

PLAIN, LOST, DAMAGED, NEWEST = range(4)
"""Which checkpoint is which in a scenario: whole, without payload, damaged, and the newest and best."""

PROMPT_SECONDS = 20.0
"""No operation after a kill may take longer: whoever waits for a lock that nobody gives up waits for half a minute."""

HOME, BACKUPS = "run", "run/backups"


@dataclass(frozen=True)
class Scenario:
    """A store with an experiment ``run`` of four checkpoints and a deleted one, backups, and an exported copy."""

    root: Path
    ids: list[str] = field(default_factory=list)
    trashed: list[str] = field(default_factory=list)
    format: str = "torch"

    def manager(self, experiment_name: str = "run", **options: Any) -> CheckpointManager:
        """A new one, with options that retire nothing."""
        defaults: dict[str, Any] = {
            "checkpoint_dir": str(self.root / "store"),
            "backup_checkpoints": False,
            "max_checkpoints": 9,
            "max_backups": 9,
            "format": self.format,
        }
        return CheckpointManager(CheckpointConfig(**(defaults | options)), experiment_name)

    def payload(self, number_or_id: int | str, folder: Path | None = None) -> Path:
        """The payload of a checkpoint: a file, or the folder of a format of several files."""
        checkpoint_id = self.ids[number_or_id] if isinstance(number_or_id, int) else number_or_id
        return (folder or self.folder) / f"{checkpoint_id}{'.pt' if self.format == 'torch' else ''}"

    def payload_file(self, number: int) -> Path:
        """The largest file of a payload."""
        payload = self.payload(number)
        files = [path for path in payload.iterdir() if path.is_file()] if payload.is_dir() else [payload]
        return max(files, key=lambda path: path.stat().st_size)

    @property
    def folder(self) -> Path:
        return self.root / "store" / "run"

    @property
    def exported(self) -> Experiment:
        return Experiment(open_store(self.root / "exported"), "", "run")

    def experiment(self, place: str) -> Experiment:
        return Experiment(open_store(self.root / "store"), place, "run")

    def copied_to(self, root: Path) -> Scenario:
        """The same scenario in another place, where there may be an older one."""
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(self.root, root)
        return Scenario(root, self.ids, self.trashed, self.format)

    def contents(self) -> dict[str, str]:
        """A digest of every file, but for the store's own."""
        return {
            str(path.relative_to(self.root)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(self.root.rglob("*"))
            if path.is_file() and not any(part.startswith(OWN_PREFIX) for part in path.parts)
        }

    def unfinished(self, place: str = "") -> list[str]:
        """The files of a folder and its payloads, or anywhere, that were being written and have no key yet."""
        own = f"{OWN_FOLDER}/*{TEMPORARY_SUFFIX}"
        folder = self.root / "store" / place
        found = [*folder.glob(own), *folder.glob(f"checkpoint_*/{own}")] if place else self.root.rglob(own)
        return [str(path.relative_to(self.root)) for path in found]


def build_scenario(root: Path, payload_format: str = "torch") -> Scenario:
    """All but the plain checkpoint have a backup; the plain one has been exported."""
    scenario = Scenario(root, format=payload_format)
    manager = scenario.manager()
    scenario.trashed.append(_save(manager, 0))
    manager.delete_checkpoint(scenario.trashed[0])
    scenario.ids.extend(_save(manager, epoch) for epoch in (1, 2, 3, 4))
    for number in (LOST, DAMAGED, NEWEST):
        manager.backup_checkpoint(scenario.ids[number])
    (scenario.folder / "notes.txt").write_text("a person's")
    manager.export_checkpoint(scenario.ids[PLAIN], root / "exported")
    scenario.payload_file(LOST).unlink()
    payload = scenario.payload_file(DAMAGED)
    data = bytearray(payload.read_bytes())
    data[len(data) // 2] ^= 1
    payload.write_bytes(data)
    return scenario


def _save(manager: CheckpointManager, epoch: int, model: torch.nn.Module = MODEL) -> str:
    metrics = {"val_loss": 1 / (1 + epoch)}
    checkpoint_id = manager.save_checkpoint(model=model, epoch=epoch, metrics=metrics, tags=[f"t{epoch}"])
    assert checkpoint_id is not None
    return checkpoint_id


# --- operations ---


@dataclass(frozen=True)
class Operation:
    """Something that a process is killed at."""

    act: Callable[[Scenario], object]
    is_done: Callable[[Scenario], object]
    """Whether the store is as it must be once the operation was acknowledged."""
    gives_up: frozenset[int] = frozenset()
    """The checkpoints that it may take away."""
    mends: frozenset[int] = frozenset()
    """The checkpoints that were broken, and are whole when it was acknowledged."""
    touches: Callable[[Scenario], tuple[str, ...]] = lambda _: ()
    """What is in the paths of files that it may change, besides those of what it gives up."""
    refuses_again: bool = False
    """Whether doing it a second time is an error."""


def _holds_files(payload: Path) -> bool:
    """Whether a file is there, or a folder with files of a payload in it."""
    return payload.is_file() or any(path.is_file() for path in payload.glob("[!.]*"))


def _listed(scenario: Scenario) -> list[str]:
    return [item.checkpoint_id for item in scenario.manager().list_checkpoints()]


def _has_a_new_one(scenario: Scenario) -> bool:
    """Which is the newest."""
    return _listed(scenario)[-1] not in (*scenario.ids, *scenario.trashed)


def _save_large(scenario: Scenario) -> object:
    return scenario.manager().save_checkpoint(model=LARGE_MODEL, epoch=5, metrics={"val_loss": 0.1})


def _save_in_background(scenario: Scenario) -> object:
    with scenario.manager() as manager:
        handle = manager.save_checkpoint_async(model=LARGE_MODEL, optimizer=LARGE_OPTIMIZER, epoch=5)
        return handle.result()


def _save_with_everything(scenario: Scenario) -> object:
    manager = scenario.manager(backup_checkpoints=True, max_checkpoints=1, max_backups=1)
    return manager.save_checkpoint(model=MODEL, epoch=5, metrics={"val_loss": 0.1})


SAVES: dict[str, Operation] = {
    "save": Operation(lambda scenario: _save(scenario.manager(), 5), _has_a_new_one),
    "save of many blocks": Operation(_save_large, _has_a_new_one),
    "save in the background": Operation(_save_in_background, _has_a_new_one),
    "save, back up, retire": Operation(
        _save_with_everything,
        lambda scenario: {scenario.ids[PLAIN], scenario.ids[NEWEST]}.isdisjoint(_listed(scenario)),
        gives_up=frozenset({PLAIN, DAMAGED, NEWEST}),
        touches=lambda _: ("/backups/",),
    ),
}

DELETIONS: dict[str, Operation] = {
    "delete": Operation(
        lambda scenario: scenario.manager().delete_checkpoint(scenario.ids[PLAIN]),
        lambda scenario: _listed(scenario) == scenario.ids[1:],
        gives_up=frozenset({PLAIN}),
        refuses_again=True,
    ),
    "delete for good": Operation(
        lambda scenario: scenario.manager(trash_seconds=0).delete_checkpoint(scenario.ids[PLAIN]),
        lambda scenario: _listed(scenario) == scenario.ids[1:],
        gives_up=frozenset({PLAIN}),
        touches=lambda scenario: (scenario.trashed[0], "/uids/"),  # whose grace period is over as well
        refuses_again=True,
    ),
    "cleanup": Operation(
        lambda scenario: scenario.manager(max_checkpoints=1).cleanup_checkpoints(),
        lambda scenario: scenario.ids[PLAIN] not in _listed(scenario) and scenario.ids[NEWEST] in _listed(scenario),
        gives_up=frozenset({PLAIN, DAMAGED}),  # of which it may not know that it is damaged
    ),
    "empty the trash": Operation(
        lambda scenario: scenario.manager(trash_seconds=0).cleanup_checkpoints(),
        lambda scenario: (
            scenario.trashed[0] in _listed(scenario) or not _holds_files(scenario.payload(scenario.trashed[0]))
        ),
        touches=lambda scenario: (scenario.trashed[0], "/uids/"),
    ),
    "undelete": Operation(
        lambda scenario: scenario.manager().undelete_checkpoint(scenario.trashed[0]),
        lambda scenario: _listed(scenario) == [*scenario.trashed, *scenario.ids],
        touches=lambda scenario: (scenario.trashed[0], "/uids/"),
    ),
}

COPIES: dict[str, Operation] = {
    "backup": Operation(
        lambda scenario: scenario.manager().backup_checkpoint(scenario.ids[PLAIN]),
        lambda scenario: scenario.manager().validate_backup(scenario.ids[PLAIN]),
    ),
    "export": Operation(
        lambda scenario: scenario.manager().export_checkpoint(scenario.ids[NEWEST], scenario.root / "exported"),
        lambda scenario: scenario.exported.get(scenario.ids[NEWEST]),
    ),
    "import": Operation(
        lambda scenario: scenario.manager("other").import_checkpoint(
            scenario.payload(PLAIN, scenario.root / "exported")
        ),
        lambda scenario: len(scenario.manager("other").list_checkpoints()) == 1,
    ),
    "restore": Operation(
        lambda scenario: scenario.manager().restore_checkpoint(scenario.ids[LOST]),
        lambda scenario: scenario.manager().validate_checkpoint(scenario.ids[LOST]),
        mends=frozenset({LOST}),
        touches=lambda scenario: (scenario.ids[LOST],),
    ),
}


def _added(scenario: Scenario) -> object:
    manager = scenario.manager()
    return manager.add_metrics(scenario.ids[NEWEST], {"accuracy": 0.9, "val_loss": 0.3}, source="eval", replace=True)


CHANGES: dict[str, Operation] = {
    "add metrics": Operation(
        _added,
        lambda scenario: scenario.manager().get_checkpoint(scenario.ids[NEWEST]).metrics.get("accuracy") == 0.9,
        touches=lambda scenario: (f"{scenario.ids[NEWEST]}.json",),
    ),
    "edit": Operation(
        lambda scenario: scenario.manager().edit_checkpoint(scenario.ids[PLAIN], add_tags=["new"]),
        lambda scenario: "new" in scenario.manager().get_checkpoint(scenario.ids[PLAIN]).tags,
        touches=lambda scenario: (f"{scenario.ids[PLAIN]}.json",),
    ),
    "repair": Operation(
        lambda scenario: scenario.manager().repair_checkpoint(scenario.ids[DAMAGED]),
        lambda scenario: scenario.manager().validate_checkpoint(scenario.ids[DAMAGED]),
        mends=frozenset({DAMAGED}),
        touches=lambda scenario: (scenario.ids[DAMAGED],),
    ),
    "repair of a lost file": Operation(
        lambda scenario: scenario.manager().repair_checkpoint(scenario.ids[LOST]),
        lambda scenario: scenario.manager().validate_checkpoint(scenario.ids[LOST]),
        mends=frozenset({LOST}),
        touches=lambda scenario: (scenario.ids[LOST],),
    ),
}

RECOVERIES: dict[str, Operation] = {
    "sweep": Operation(
        lambda scenario: scenario.manager().cleanup_checkpoints(),
        lambda scenario: not [*_needless(scenario, HOME)],
    ),
    "doctor": Operation(
        lambda scenario: scenario.manager().doctor(fix=True),
        lambda scenario: not [*_needless(scenario, HOME), *_needless(scenario, BACKUPS)],
        touches=lambda scenario: (scenario.ids[LOST], scenario.ids[DAMAGED], "/backups/"),
    ),
    "the next save": Operation(lambda scenario: _save(scenario.manager(), 6), _has_a_new_one),
    "empty the trash": DELETIONS["empty the trash"],
    "restore": COPIES["restore"],
    "repair": CHANGES["repair"],
    "repair of a lost file": CHANGES["repair of a lost file"],
}

OPERATIONS: dict[str, Operation] = {**SAVES, **DELETIONS, **COPIES, **CHANGES}


# --- what must hold ---


def broken_promises(
    scenario: Scenario, before: dict[str, str], operation: Operation, *, is_acknowledged: bool
) -> list[str]:
    """What does not hold of INV: acknowledged is there and whole, nothing is listed and broken, all else is as it was,
    and the next operations work without anyone's help, at once.
    """
    try:
        return [
            *_broken_state(scenario, before, operation, is_acknowledged),
            *_broken_sequel(scenario, operation),
        ]
    except (CheckpointError, OSError, AssertionError, LookupError) as error:
        return [f"a check ended in {error!r}"]


def _broken_state(
    scenario: Scenario, before: dict[str, str], operation: Operation, is_acknowledged: bool
) -> Iterator[str]:
    manager = scenario.manager()
    if is_acknowledged and not operation.is_done(scenario):
        yield f"acknowledged and not done: {_listed(scenario)}"
    reports = {report.checkpoint_id: report for report in manager.validate_all()}
    excused = {LOST, DAMAGED} - (operation.mends if is_acknowledged else set())
    for checkpoint_id, report in reports.items():
        if not report and checkpoint_id not in {scenario.ids[number] for number in excused}:
            yield f"listed and broken: {checkpoint_id}: {report.message}"
    for number, checkpoint_id in enumerate(scenario.ids):
        if checkpoint_id not in reports and number not in operation.gives_up:
            yield f"gone: {checkpoint_id}"
    for copy in manager.list_backups():
        if not (report := manager.validate_backup(copy.checkpoint_id)):
            yield f"a broken backup: {report.message}"
    for manifest in scenario.exported.index.manifests():
        if not (report := validate(scenario.exported, manifest)):
            yield f"a broken copy: {report.message}"
    for report in scenario.manager("other").validate_all():
        if not report:
            yield f"a broken import: {report.message}"
    yield from _changed(scenario, before, operation)


def _changed(scenario: Scenario, before: dict[str, str], operation: Operation) -> Iterator[str]:
    now, touched = scenario.contents(), operation.touches(scenario)
    for path, digest in before.items():
        is_given_up = any(scenario.ids[number] in path for number in operation.gives_up)
        is_derived = path.endswith("checkpoint_metadata.json")
        if not (is_given_up or is_derived or any(part in path for part in touched)) and now.get(path) != digest:
            yield f"{'changed' if path in now else 'gone'}: {path}"


def _broken_sequel(scenario: Scenario, operation: Operation) -> Iterator[str]:
    """What was committed can be deleted and brought back, the same operation again converges, a save works, and a
    cleanup leaves no leftover.
    """
    started = time.monotonic()
    yield from _broken_trash(scenario)
    try:
        operation.act(scenario)
    except CheckpointError as error:
        if not operation.refuses_again:
            yield f"the second time ended in {error!r}"
    if not operation.is_done(scenario):
        yield "done a second time, it is not done"
    manager = scenario.manager()
    if not manager.validate_checkpoint(_save(manager, 9)):
        yield "the next save is broken"
    manager.cleanup_checkpoints()
    manager.cleanup_backups()
    if (took_seconds := time.monotonic() - started) > PROMPT_SECONDS:
        yield f"what came next took {took_seconds:.0f} s"
    yield from leftovers(scenario)


def _broken_trash(scenario: Scenario) -> Iterator[str]:
    """A save that was killed just after its commit has made a checkpoint like any other."""
    manager = scenario.manager()
    for checkpoint_id in _listed(scenario):
        if checkpoint_id not in (*scenario.ids, *scenario.trashed):
            manager.delete_checkpoint(checkpoint_id)
            manager.cleanup_checkpoints()
            manager.undelete_checkpoint(checkpoint_id)
            if not manager.validate_checkpoint(checkpoint_id):
                yield f"deleted and brought back, it is broken: {checkpoint_id}"


def leftovers(scenario: Scenario) -> Iterator[str]:
    """What no save and no cleanup leaves. Deleted checkpoints whose grace period lasts are none."""
    for name in (*_needless(scenario, HOME), *_needless(scenario, BACKUPS), *scenario.unfinished(HOME)):
        yield f"left over: {name}"


def _needless(scenario: Scenario, place: str) -> Iterator[str]:
    """Records of what nobody does any more, and payloads that no record names."""
    view = scenario.experiment(place).index.view()
    named = {f"{place}/{file.name}" for manifest in (*view.manifests, *view.deleted) for file in manifest.files}
    named |= {f"{name.rpartition('/')[0]}/" for name in named}  # the folder of a payload of several files
    yield from (f"{place}/{item.checkpoint_id}.json is {item.state}" for item in view.purging)
    yield from (f"{place}/{item.checkpoint_id}.json is {item.state}" for item in view.claims if item.state != "gone")
    yield from (key for key in view.entries if payload_owner(key[len(place) + 1 :]) and key not in named)
