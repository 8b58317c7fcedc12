"""``torchrun`` under a launcher: whatever is killed, the run finishes, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.launch.processes import Process
from ckpt_lib.launch.supervisor import ORPHAN_STOP_SECONDS
from tests.launch.running import processes_of, request, started, supervisor_of, wait_until
from tests.launch.steps import SAVE_EVERY, trained

LAST_STEP = 30
SECONDS_PER_STEP = 0.05


def torchrun(steps: Path, last_step: int = LAST_STEP) -> list[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    training = ["-m", "tests.launch.ddp_training", str(last_step), str(SECONDS_PER_STEP), str(steps)]
    return ["torchrun", "--nproc-per-node", "2", "--master-addr", "127.0.0.1", "--master-port", str(port), *training]


class Run:
    """A launched training of two ranks."""

    def __init__(self, folder: Path, last_step: int = LAST_STEP, max_restarts: int = 3) -> None:
        self.store, self.steps, self.log = folder / "store", folder / "steps", folder / "log"
        self.last_step = last_step
        self._max_restarts = max_restarts
        self.request = request(self.store, torchrun(self.steps, last_step))
        self.manager = CheckpointManager(CheckpointConfig(checkpoint_dir=str(self.store)), "run")

    def start(self) -> subprocess.Popen[bytes]:
        environment = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        return started(
            self.store,
            list(self.request.command),
            self.log,
            environment=environment,
            stop_seconds=20,
            restarts=(self._max_restarts, 1, 0.05),
        )

    def trained_steps(self) -> list[int]:
        """Every step that rank zero has made, in order, repeated ones included."""
        return [int(line.split()[1]) for line in self.steps.read_text().splitlines()] if self.steps.exists() else []

    def await_steps(self, count: int) -> None:
        """Wait until so many steps more were made."""
        goal = len(self.trained_steps()) + count
        wait_until("steps", lambda: len(self.trained_steps()) >= goal, 120)

    def ranks(self) -> list[Process]:
        return [item for item in processes_of(self.request) if b"\0RANK=" in environ(item)]

    def check_end(self, kills: int) -> None:
        """All was trained to the same end, at most one interval twice for each of so many kills; no process is left."""
        steps = self.trained_steps()
        assert set(steps) == set(range(1, self.last_step + 1))
        repeated = [last - step + 1 for last, step in pairwise(steps) if step != last + 1]
        assert len(repeated) <= kills, repeated
        assert all(1 <= count <= SAVE_EVERY for count in repeated), repeated
        state = self.manager.load_checkpoint("latest")["model_state_dict"]
        expected = trained(self.last_step)
        assert all(torch.equal(tensor, expected[name]) for name, tensor in state.items())
        assert processes_of(self.request) == []


def environ(process: Process) -> bytes:
    return b"\0" + Path(f"/proc/{process.pid}/environ").read_bytes()


def test_training_survives_kills_of_a_rank_and_of_the_launcher(tmp_path: Path) -> None:
    """Each time all processes end, the run resumes, and the weights are those of an uninterrupted one."""
    run = Run(tmp_path)
    launch = run.start()
    try:
        run.await_steps(SAVE_EVERY + 2)
        os.kill(run.ranks()[-1].pid, signal.SIGKILL)
        run.await_steps(SAVE_EVERY + 2)
        assert "Attempt 1: killed" in run.log.read_text()
        launch.kill()
        launch.wait()
        wait_until("the end of the orphans", lambda: not processes_of(run.request), ORPHAN_STOP_SECONDS + 2)
        launch = run.start()
        assert launch.wait(120) == 0, run.log.read_text()
    finally:
        launch.terminate()
        launch.wait()
    run.check_end(kills=2)


@pytest.mark.servers
def test_ranks_save_and_end_together_when_the_launch_is_asked_to_stop(tmp_path: Path) -> None:
    """Ctrl-C reaches every rank once; they save the step that they are at, and nothing is repeated later."""
    run = Run(tmp_path, last_step=15)
    launch = run.start()
    try:
        run.await_steps(3)
        launch.send_signal(signal.SIGINT)
        assert launch.wait(60) == -signal.SIGINT
        assert processes_of(run.request) == []
        assert "preempted" in run.log.read_text()
        made = run.trained_steps()
        latest = run.manager.get_latest_checkpoint()
        assert latest is not None
        assert latest.step == made[-1] < run.last_step
        launch = run.start()
        assert launch.wait(120) == 0, run.log.read_text()
    finally:
        launch.terminate()
        launch.wait()
    assert run.trained_steps() == list(range(1, run.last_step + 1))
    run.check_end(kills=0)


@pytest.mark.servers
def test_training_survives_ten_kills(tmp_path: Path) -> None:
    """Ten kills of whatever is there, at any moment: rank, torchrun, launcher and supervisor."""
    run = Run(tmp_path, last_step=160, max_restarts=20)
    launch = run.start()
    try:
        for kill in range(10):
            run.await_steps(SAVE_EVERY + kill % 4)
            if kill % 4 == 0:
                os.kill(run.ranks()[kill % 2].pid, signal.SIGKILL)
            elif kill % 4 == 1:
                launch.kill()
                launch.wait()
                launch = run.start()
            elif kill % 4 == 2:
                os.kill(min(processes_of(run.request)).pid, signal.SIGKILL)
            else:
                os.kill(supervisor_of(launch.pid), signal.SIGKILL)
        assert launch.wait(180) == 0, run.log.read_text()
    finally:
        launch.terminate()
        launch.wait()
    run.check_end(kills=10)
