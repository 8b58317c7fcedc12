"""Row 10: the disk is full, at every size of disk, and is freed again."""

from __future__ import annotations

import gc
import logging
import os
import random
from pathlib import Path
from typing import Any

from torch import nn

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.errors import StorageFullError
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.experiment.layout import OWN_PREFIX
from ckpt_lib.store import open_store
from ckpt_lib.store.local import LocalStore
from ckpt_lib.store.registry import registered
from tests.torture.concurrency import leftovers
from tests.torture.namespaces import in_namespace, resize, tmpfs
from tests.torture.rows import Outcome, Row

_PAGE_BYTES = 4096


class _SilentStore(LocalStore):
    """It does not tell how much room there is, as some network file systems do not."""

    def free_bytes(self) -> int | None:
        return None


def disk_full(count: int, seed: str, folder: Path) -> Outcome:
    """On disks of ``count`` sizes: save until they are full, degrade, free them, and bring everything home."""
    try:
        return in_namespace(lambda: _fill_disks(count, seed, folder))  # type: ignore[no-any-return]
    except RuntimeError as error:
        return Outcome(violations=[f"no disk could be filled: {error}"])


def _fill_disks(count: int, seed: str, folder: Path) -> Outcome:
    logging.disable(logging.CRITICAL)
    outcome = Outcome()
    saved = stranded = refused = 0
    for number in range(count):
        rng = random.Random(f"{seed} {number}")
        disk = _Disk(rng, folder / str(number))
        try:
            disk.run()
        except Exception as error:
            disk.violations.append(f"{type(error).__name__}: {error}")
        outcome.injected += disk.was_full
        outcome.violations += [f"seed {seed!r} {number}, {disk}: {text}" for text in disk.violations]
        saved, stranded, refused = saved + len(disk.saved), stranded + disk.stranded, refused + disk.refused
    outcome.detail = f"{saved} saved, {refused} refused, {stranded} stranded and brought home"
    return outcome


class _Disk:
    """One disk, a manager without a fallback folder, and then one with."""

    def __init__(self, rng: random.Random, folder: Path) -> None:
        self.rng = rng
        self.size_bytes = rng.randrange(6, 100) * _PAGE_BYTES
        self.says_free = rng.random() < 0.5
        self.model = nn.Linear(rng.randrange(8, 96), 64)
        self.disk, self.elsewhere = folder / "disk", folder / "fallback"
        self.violations: list[str] = []
        self.saved: list[str] = []
        self.was_full = False
        self.refused = self.stranded = self.epoch = 0

    def __str__(self) -> str:
        return f"{self.size_bytes} bytes, free space {'told' if self.says_free else 'not told'}"

    def run(self) -> None:
        store = LocalStore if self.says_free else _SilentStore
        with tmpfs(self.disk, self.size_bytes), registered("file", store):
            self._fill()
            self._fill_the_rest()
            self._degrade()
            self._come_home()

    def _manager(self, **options: Any) -> CheckpointManager:
        config = CheckpointConfig(
            checkpoint_dir=str(self.disk), max_checkpoints=1000, backup_checkpoints=False, **options
        )
        return CheckpointManager(config, "run")

    def _save(self, manager: CheckpointManager) -> str | None:
        self.epoch += 1
        metrics = {"val_loss": self.rng.random()}
        return manager.save_checkpoint(model=self.model, epoch=self.epoch, metrics=metrics)

    def _fill(self) -> None:
        """Without a fallback folder: typed, no residue, and what was acknowledged stays."""
        manager = self._manager()
        for _ in range(200):
            before = _listing(self.disk)
            try:
                checkpoint_id = self._save(manager)
            except StorageFullError:
                self.was_full = True
                self.refused += 1
                self._expect(_listing(self.disk) == before, f"left: {_listing(self.disk) ^ before}")
                break
            self.saved.append(str(checkpoint_id))
        self._expect(self.was_full, "the disk never was full")
        self._expect_intact(manager)

    def _fill_the_rest(self) -> None:
        """Another program takes what is left, or some of it."""
        with (self.disk / "other program").open("wb", buffering=0) as file:
            try:
                for _ in range(self.rng.choice([0, 1, 3, 1000])):
                    file.write(os.urandom(_PAGE_BYTES))
            except OSError:
                pass

    def _degrade(self) -> None:
        """With a fallback folder: no exception, and each id that is returned can be loaded."""
        manager = self._manager(fallback_dir=str(self.elsewhere), on_save_failure="warn")
        for _ in range(3):
            checkpoint_id = self._save(manager)
            self._expect(checkpoint_id is not None, "the fallback folder did not work")
            if checkpoint_id is not None:
                self.saved.append(checkpoint_id)
                loaded = manager.load_checkpoint(checkpoint_id)
                self._expect(loaded["epoch"] == self.epoch, "another checkpoint was loaded")
        self.stranded += len(manager.list_stranded())
        resumed = self._manager(fallback_dir=str(self.elsewhere)).resume()
        self._expect(resumed is not None and resumed["epoch"] == self.epoch, "the newest was not resumed from")
        self._expect_intact(manager)

    def _come_home(self) -> None:
        """The disk is freed, and grows as large as it has to be."""
        gc.collect()  # managers that loaded something hold it, as processes do that are alive
        os.unlink(self.disk / "other program")
        resize(self.disk, 64 * 2**20)
        manager = self._manager(fallback_dir=str(self.elsewhere))
        if self.rng.random() < 0.5:
            self.saved.append(str(self._save(manager)))
        else:
            self._expect(bool(manager.reconcile()), "something did not come home")
        self._expect(manager.list_stranded() == [], "something is still stranded")
        found = [item.checkpoint_id for item in manager.list_checkpoints()]
        self._expect(found == self.saved, f"found {found}, saved {self.saved}")
        self._expect_intact(manager)
        self._expect(_listing(self.elsewhere) == set(), f"left in the fallback folder: {_listing(self.elsewhere)}")
        for place in (self.disk, self.elsewhere):
            self._expect(leftovers(place / "run") == [], f"left after a sweep: {leftovers(place / 'run')}")

    def _expect_intact(self, manager: CheckpointManager) -> None:
        for report in manager.validate_all():
            self._expect(bool(report), f"{report.checkpoint_id}: {report.message}")
        self._expect(manager.list_unreadable() == [], "a manifest cannot be read")

    def _expect(self, holds: bool, text: str) -> None:
        if not holds:
            self.violations.append(text)


def _listing(folder: Path) -> set[str]:
    """What lies there, but for what the store keeps for itself, and records that nothing came of an id."""
    view = Experiment(open_store(str(folder)), "run", "run").index.view()
    ended = {f"run/{claim.checkpoint_id}.json" for claim in view.claims}
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    shown = {str(path) for path in paths if not any(part.startswith(OWN_PREFIX) for part in path.parts)}
    return shown - ended - {"other program"}


ROWS = [
    Row(
        number=10,
        fault="disk full, and freed again",
        must_hold="typed error, no residue; the fallback folder takes over, and all comes home",
        unit="sizes",
        count=200,
        sample=8,
        run=disk_full,
    )
]
