"""Calls of a manager in a process that is killed at a given step of what it does to a store."""

from __future__ import annotations

import json
from typing import Any

from ckpt_lib import CheckpointManager
from tests.helpers import start_python

_SCRIPT = """
import json, os, signal, sys
from torch import nn
from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.store.local.local_store import LocalStore
from ckpt_lib.store.local.upload import LocalUpload

STEPS = ((LocalStore, "put"), (LocalStore, "delete"), (LocalUpload, "commit"))


def call(config, experiment_name, method, arguments, kill_at):
    count = 0

    def dying_at_its_step(original):
        def step(*args, **kwargs):
            nonlocal count
            count += 1
            if count == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        return step

    manager = CheckpointManager(CheckpointConfig(**config), experiment_name)
    for owner, name in STEPS:
        setattr(owner, name, dying_at_its_step(getattr(owner, name)))
    if method == "save_checkpoint":
        arguments = {"model": nn.Linear(2, 1), **arguments}
    getattr(manager, method)(**arguments)


for line in sys.stdin:
    child = os.fork()  # of a process that has loaded everything, and has no threads
    if child == 0:
        call(*json.loads(line))
        sys.exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Killer:
    """Does what it is told, each time in a new process."""

    def __init__(self) -> None:
        self._child = start_python(_SCRIPT)

    def kills(self, manager: CheckpointManager, method: str, kill_at: int, **arguments: Any) -> bool:
        """Call a method and kill it at that step; ``False`` when it came to its end before. Fails when it raised."""
        config = manager.config.model_dump(exclude_unset=True)
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(json.dumps([config, manager.experiment_name, method, arguments, kill_at]) + "\n")
        self._child.stdin.flush()
        code = self._child.stdout.readline()
        assert code in ("-9\n", "0\n"), f"{code}{self.close()}"
        return code == "-9\n"

    def close(self) -> str:
        """End it; what was said on stderr."""
        return self._child.communicate(timeout=60)[1]
