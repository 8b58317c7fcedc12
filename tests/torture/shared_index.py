"""Rows 46 and 47: two processes save into one experiment and ask one index, in SQLite and in PostgreSQL."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from ckpt_lib import CheckpointConfig, CheckpointManager, describe_experiments, find_checkpoints
from tests.index.postgresql import lacking, running_server
from tests.torture.rows import Outcome, Row

_PROCESSES = 2
_SAVES_BETWEEN_QUESTIONS = 100
_PROCESS = """
import json, sys
from torch import nn
from ckpt_lib import CheckpointConfig, CheckpointManager
from tests.torture.shared_index import wrong_answers

root, index_url, number, saves, between = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
config = CheckpointConfig(checkpoint_dir=root, index_url=index_url, max_checkpoints=10**9, backup_checkpoints=False)
manager, model, mine, wrong = CheckpointManager(config, "run"), nn.Linear(1, 1), [], []
for count in range(saves):
    mine.append(manager.save_checkpoint(model=model, epoch=number, step=count, metrics={"val_loss": 1 / (count + 1)}))
    if count % between == between - 1:
        wrong += wrong_answers(config, manager, mine)
manager.close()
print(json.dumps([mine, wrong]))
"""


def wrong_answers(config: CheckpointConfig, manager: CheckpointManager, mine: list[str]) -> list[str]:
    """Return what the answers lack or have too much of, as seen by a process that has saved ``mine``."""
    epoch = manager.get_checkpoint(mine[-1]).epoch
    where = [f"epoch=={epoch}"]
    wrong = [
        f"after {len(mine)} saves, a list of this process's checkpoints has {len(listed)}"
        for listed in (manager.list_checkpoints(where=where), find_checkpoints(config, where=where))
        if [item.checkpoint_id for item in listed] != mine
    ]
    newest = manager.get_checkpoint("latest")
    if newest.epoch == epoch and newest.checkpoint_id != mine[-1]:
        wrong.append(f"after {mine[-1]}, the latest is {newest.checkpoint_id}")
    best = manager.get_checkpoint("best").metrics["val_loss"]
    if not isinstance(best, float) or best > 1 / len(mine):
        wrong.append(f"after {len(mine)} saves, the best loss is {best}")
    (overview,) = describe_experiments(config)
    if overview.total_checkpoints < len(mine):
        wrong.append(f"after {len(mine)} saves, the overview counts {overview.total_checkpoints}")
    return wrong


def save_and_ask(saves: int, folder: Path, index_url: str) -> Outcome:
    """Let the processes save and ask at once; then compare the index with the store."""
    root = folder / "store"
    command = [sys.executable, "-c", _PROCESS, str(root), index_url]
    running = [
        subprocess.Popen(
            [*command, str(number), str(saves), str(min(saves, _SAVES_BETWEEN_QUESTIONS))],
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(_PROCESSES)
    ]
    answers = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        return Outcome(saves * _PROCESSES, ["a process ended with an error"])
    saved: list[str] = []
    violations: list[str] = []
    for answer in answers:
        mine, wrong = json.loads(answer)
        saved += mine
        violations += wrong
    for name, url in (("the shared index", index_url), ("a new index", f"sqlite:///{folder / 'new.sqlite'}")):
        config = CheckpointConfig(checkpoint_dir=str(root), index_url=url, max_checkpoints=10**9)
        found = [item.checkpoint_id for item in CheckpointManager(config, "run").list_checkpoints()]
        (overview,) = describe_experiments(config)
        if sorted(found) != sorted(saved):
            violations.append(f"{len(saved)} were saved, and {name} lists {len(found)}")
        if overview.total_checkpoints != len(saved):
            violations.append(f"{len(saved)} were saved, and {name} counts {overview.total_checkpoints}")
    return Outcome(len(saved), violations, f"{_PROCESSES} processes")


def _with(index: Callable[[Path], AbstractContextManager[str]]) -> Callable[[int, str, Path], Outcome]:
    def run(count: int, _: str, folder: Path) -> Outcome:
        with index(folder) as url:
            return save_and_ask(count // _PROCESSES, folder, url)

    return run


def _sqlite(folder: Path) -> AbstractContextManager[str]:
    return nullcontext(f"sqlite:///{folder / 'index.sqlite'}")


def _postgresql(folder: Path) -> AbstractContextManager[str]:
    return running_server(folder / "server")


_MUST_HOLD = "none is lost, no answer is wrong, and the index says what the store holds"

ROWS = [
    Row(
        number=46,
        fault="two processes save into one experiment and ask one index, in SQLite",
        must_hold=_MUST_HOLD,
        unit="saves",
        count=10_000,
        sample=20,
        run=_with(_sqlite),
    ),
    Row(
        number=47,
        fault="two processes save into one experiment and ask one index, in PostgreSQL",
        must_hold=_MUST_HOLD,
        unit="saves",
        count=10_000,
        sample=20,
        run=_with(_postgresql),
        needs_server=True,
        lacks=lacking,
    ),
]
