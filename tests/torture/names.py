"""Row 31: hostile names at every door that takes one."""

from __future__ import annotations

import os
import random
import shutil
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ckpt_lib import CheckpointConfig, CheckpointManager, list_experiments, open_store
from ckpt_lib.errors import CheckpointError
from tests.torture.attacker import PLANTED_ID, contents, plant, small_payload, torch_file
from tests.torture.rows import Outcome, Row

# fmt: off
_SEEDS = [
    "", ".", "..", "../outside", "../../outside", "a/../../outside", "/outside", "//outside",
    "\\outside", "..\\outside", "C:\\outside", "C:outside", "file:///outside", "~", "~root",
    "$HOME", "%2e%2e%2foutside", "a\0b", "\0", "a\nb", "a\r", "\t", " ", " a", "a ", "a.", "a..",
    "CON", "con.txt", "NUL", "AUX.json", "COM1", "lpt9", "-rf", "--help", ".hidden", "*", "?",
    "a:b", "a|b", "<a>", '"', "'", ";", "`x`", "\u202eabc", "\u2066abc", "a\u200bb", "\ufeffa",
    "\u2028", "\ud800", "\udce9", "caf\u00e9", "cafe\u0301", "\u212b", "\uff0e\uff0e\uff0foutside",
    "\u2024\u2024/outside", "RUN", "Run", "run", "r\u0075n", "backups", "refs",
    "checkpoint_metadata.json", ".ckpt-clock", ".ckpt-tmp", ".ckpt-store.json", "keys", "uids",
    PLANTED_ID, f"{PLANTED_ID}.pt", f"{PLANTED_ID}.json", f"../run/{PLANTED_ID}",
    f"{PLANTED_ID}_2", f"{PLANTED_ID}\n", PLANTED_ID.upper(), PLANTED_ID.replace("1", "\u0661"),
    "latest", "best", "x" * 100, "x" * 101, "x" * 255, "x" * 256, "x" * 5000, "\u00e9" * 128,
    "a/" * 200, "{}", "%s", "{0.__class__}", "<script>",
]
_PIECES = [
    "..", "/", "\\", "\0", "\n", ".", " ", "\u202e", "\ud800", "a", "Z", "9", "_", "-", "\u0301",
    "CON", ":", "x" * 200, "~", "\U0001f680",
]
# fmt: on


def hostile_name(choice: random.Random) -> str:
    name = choice.choice(_SEEDS)
    for _ in range(choice.choice([0, 0, 1, 2, 3])):
        at = choice.randint(0, len(name))
        name = name[:at] + choice.choice(_PIECES) + name[at:]
    return choice.choice([name, name, name.upper(), name.swapcase(), name.title()])


class _Doors:
    """Every call on a store that takes a name. One that returns took it, and then it must hold."""

    def __init__(self, around: Path) -> None:
        self._around = around
        self.store = around / "store"
        self.manager = plant(self.store, torch_file(small_payload()))
        self._save = self._saver("run")
        self.doors: dict[str, Callable[[str], object]] = {
            "experiment": self._experiment,
            "tag": lambda name: self._is_found(self._save(tags=[name]), name),
            "metric": lambda name: self._has_metric(self._save(metrics={name: 1.0}), name),
            "metric's text": lambda name: self._save(metrics={"x": name}),
            "description": lambda name: self._save(description=name),
            "idempotency key": lambda name: self._save(idempotency_key=name),
            "config": lambda name: self._save(config={name: name}),
            "extra state": lambda name: self._save(extra_state={name: name}),
            "id": self._id,
            "id to export": lambda name: self.manager.export_checkpoint(name, around / "exported"),
            "id to restore": self.manager.restore_checkpoint,
            "id of a backup": self.manager.validate_backup,
            "key": lambda name: self.manager.load_checkpoint(PLANTED_ID, keys=[name]),
            "import": lambda name: self.manager.import_checkpoint(around / "store" / name if name else name),
            "backups": lambda name: self._backup_to(str(self.store / "b") + name),
            "checkpoint_dir": lambda name: list_experiments(open_store(str(self.store) + name)),
            "search": lambda name: self.manager.list_checkpoints(search=name),
            "sorting": lambda name: self.manager.list_checkpoints(sort_by=name),
            "metric to rank by": lambda name: self.manager.get_best_checkpoint(name, "min"),
        }

    def _saver(self, experiment: str) -> Callable[..., str]:
        manager = CheckpointManager(CheckpointConfig(checkpoint_dir=str(self.store)), experiment)

        def save(**options: Any) -> str:
            return str(manager.save_checkpoint(model=torch.nn.Linear(1, 1), epoch=1, **options))

        return save

    def _experiment(self, name: str) -> None:
        saved = self._saver(name)()
        assert (self.store / name / f"{saved}.json").is_file(), "it is not where its name says"
        assert name in os.listdir(self.store), "it was stored under another name"

    def _id(self, name: str) -> None:
        found = self.manager.get_checkpoint(name)
        is_tag = unicodedata.normalize("NFC", name) in found.tags
        assert is_tag or name in {found.checkpoint_id, "latest", "best"}, f"{found.checkpoint_id} was found"

    def _is_found(self, saved: str, tag: str) -> None:
        found = {item.checkpoint_id for item in self.manager.list_checkpoints(tags=[tag])}
        assert saved in found, "it is not found by its tag"

    def _has_metric(self, saved: str, metric: str) -> None:
        assert self.manager.get_checkpoint(saved).metrics.get(metric) == 1.0, "its metric has another name"

    def _backup_to(self, path: str) -> None:
        if Path(os.path.normpath(path)).parent != self.store:  # a root is the caller's to choose, wherever it lies
            return
        manager = CheckpointManager(CheckpointConfig(checkpoint_dir=str(self.store), backup_dir=path), "run")
        manager.backup_checkpoint(PLANTED_ID)


def hostile_names(count: int, seed: str, folder: Path) -> Outcome:
    """Each through one door. It is refused by an error of ours, or holds; outside the store nothing changes."""
    outcome, answers = Outcome(), Counter[str]()
    (folder / "beside").mkdir()
    (folder / "beside" / "kept").write_text("as it was")
    for number in range(count):
        if number % 250 == 0:  # a store with few checkpoints is a quick one
            shutil.rmtree(folder / "store", ignore_errors=True)
            doors = _Doors(folder).doors
        choice = random.Random(f"{seed} {number}")
        name, door = hostile_name(choice), choice.choice(list(doors))
        outcome.injected += 1
        problem = None
        try:
            doors[door](name)
            answers["held"] += 1
        except CheckpointError:
            answers["refused"] += 1
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        if (problem or number % 50 == 49) and (escaped := _escaped(folder)):
            problem = f"wrote {escaped[:5]}"
        if problem:
            outcome.violations.append(f"seed {seed!r} {number}, {door} {ascii(name)[:200]}: {ascii(problem)[:500]}")
    outcome.detail = f"{answers['refused']} refused, {answers['held']} held"
    return outcome


def _escaped(folder: Path) -> list[str]:
    """What lies where nothing of ours should."""
    allowed = {"beside", "beside/kept"}
    return [
        path for path in contents(folder) if path.split("/")[0] not in {"store", "exported"} and path not in allowed
    ]


ROWS = [
    Row(
        number=31,
        fault="hostile names",
        must_hold="refused, or round-trips inside the root",
        unit="names",
        count=5_000,
        sample=200,
        run=hostile_names,
    )
]
