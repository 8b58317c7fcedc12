"""The end of a process with background saves under way, its forks, and the end of a manager."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.helpers import MakeManager, ids, run_python, save, start_interpreter, start_python

_ENDING = """
import os, sys
from torch import nn
from ckpt_lib import CheckpointConfig, CheckpointManager

folder, how = sys.argv[1:]
manager = CheckpointManager(CheckpointConfig(checkpoint_dir=folder, max_pending_saves=4), "run")
for epoch in range(3):
    manager.save_checkpoint_async(model=nn.Linear(500, 500), epoch=epoch)
if how == "forgotten":
    del manager
if how == "error":
    raise SystemExit("training failed")
if how == "killed":
    os.kill(os.getpid(), 9)
if how == "forked":
    child = os.fork()
    if child == 0:
        manager.flush()
        assert manager._saver.background.under_way == []
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.parametrize(("how", "count"), [("end", 3), ("forgotten", 3), ("error", 3), ("forked", 3)])
def test_the_interpreter_waits_for_saves_under_way(
    make_manager: MakeManager, store_path: Path, how: str, count: int
) -> None:
    """However the script ends short of a kill, each save is there and backed up; a forked child repeats none."""
    child = start_interpreter(_ENDING, store_path, how)
    _, errors = child.communicate(timeout=120)
    assert (child.returncode == 0) == (how != "error"), errors
    manager = make_manager()
    assert len(ids(manager)) == count
    assert all(manager.validate_all())
    assert set(manager.backup_ids()) == set(ids(manager))


def test_a_kill_loses_what_is_not_durable_and_nothing_else(make_manager: MakeManager, store_path: Path) -> None:
    """Whole or not at all, and the next save goes on."""
    child = start_python(_ENDING, store_path, "killed")
    child.communicate(timeout=120)
    assert child.returncode == -9
    manager = make_manager()
    assert all(manager.validate_all())
    manager.cleanup_checkpoints()
    assert save(manager, 9) in ids(manager)


_FAILING = """
import logging, sys
from torch import nn
from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.experiment import commit
from ckpt_lib.maintenance.both_copies import Copies
from ckpt_lib.errors import StorageFullError

def full(*arguments, **options):
    raise StorageFullError("the store is full")

logging.basicConfig()
commit.save = full
manager = CheckpointManager(CheckpointConfig(checkpoint_dir=sys.argv[1]), "run")
manager.save_checkpoint_async(model=nn.Linear(2, 1), epoch=0)
"""


def test_an_error_at_the_end_is_in_the_log(tmp_path: Path) -> None:
    """Nothing is left that could catch it; the script's own exit code stays."""
    child = start_interpreter(_FAILING, tmp_path)
    _, errors = child.communicate(timeout=120)
    assert child.returncode == 0, errors
    assert "a background save failed: the store is full" in errors


def test_managers_do_not_pile_up(tmp_path: Path) -> None:
    """Threads end with their work, and memory with the manager."""
    output = run_python(
        """
import gc, sys, threading, weakref
from torch import nn
from ckpt_lib import CheckpointConfig, CheckpointManager

def run(number):
    manager = CheckpointManager(CheckpointConfig(checkpoint_dir=sys.argv[1]), f"run-{number}")
    manager.save_checkpoint_async(model=nn.Linear(2, 1), epoch=0)
    manager.flush()
    return weakref.ref(manager._saver.background)

left = [run(number) for number in range(5)]
gc.collect()
threads = [thread.name for thread in threading.enumerate()]
print(sum(reference() is not None for reference in left), *threads)
""",
        tmp_path,
    )
    assert output == "0 MainThread\n"


_FORKED = """
import os, sys
import torch
from torch import nn
from ckpt_lib import CheckpointConfig, CheckpointManager

torch.set_num_threads(1)  # those of OpenMP do not survive a fork

def save(name, value):
    config = CheckpointConfig(checkpoint_dir=sys.argv[1], backup_checkpoints=False)
    model = nn.Linear(4096, 2048, bias=False)
    with torch.no_grad():
        model.weight.fill_(value)
    manager = CheckpointManager(config, name)
    for epoch in range(3):
        manager.save_checkpoint(model=model, epoch=epoch)
        weight = manager.load_checkpoint()["model_state_dict"]["weight"]
        assert bool((weight == value).all()), name

save("before", 0.0)
child = os.fork()
if child == 0:
    status = 1
    try:
        save("child", 1.0)
        status = 0
    finally:
        os._exit(status)
save("parent", 2.0)
assert os.waitpid(child, 0)[1] == 0
"""


def test_a_forked_process_shares_no_memory_with_a_save(tmp_path: Path) -> None:
    """Parent and child save at once after a save of the parent's: each file holds its own state."""
    run_python(_FORKED, tmp_path)


_MULTIPROCESSING = """
import multiprocessing, sys
from torch import nn
from ckpt_lib import CheckpointConfig, CheckpointManager

def work(folder):
    manager = CheckpointManager(CheckpointConfig(checkpoint_dir=folder), "run")
    for epoch in range(2):
        manager.save_checkpoint_async(model=nn.Linear(500, 500), epoch=epoch)

process = multiprocessing.get_context("fork").Process(target=work, args=(sys.argv[1],))
process.start()
process.join()
assert process.exitcode == 0
"""


def test_a_process_of_multiprocessing_waits_for_its_saves(make_manager: MakeManager, store_path: Path) -> None:
    """It calls no exit handlers; its end waits all the same."""
    run_python(_MULTIPROCESSING, store_path)
    manager = make_manager()
    assert len(ids(manager)) == 2
    assert manager.backup_ids() == ids(manager)


_NICE = """
import _strptime, os, tempfile, threading  # the first, loaded when a date is parsed, may be closed to another user
from torch import nn
from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.experiment import commit
from ckpt_lib.maintenance.both_copies import Copies

found = []
save = commit.save

def noting(*arguments, **options):
    found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
    return save(*arguments, **options)

commit.save = noting
os.nice(15)
if os.getuid() == 0:
    os.setuid(65534)
with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
    with CheckpointManager(CheckpointConfig(checkpoint_dir=folder), "run") as manager:
        manager.save_checkpoint_async(model=nn.Linear(2, 1), epoch=0).result(timeout=60)
print(*found)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone has priorities of threads")
def test_a_nicer_process_stays_as_it_is() -> None:
    """Asking for a higher priority is forbidden to most, and rude."""
    assert run_python(_NICE) == "15\n"
