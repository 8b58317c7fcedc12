"""Row 49: servers of the REST API that are killed in the middle of a job."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import torch
from torch import nn

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.web import ServerSettings
from ckpt_lib.web.job import ENDED
from tests.torture.rows import Outcome, Row, told
from tests.warm import Python

EXPERIMENT = "run"
OPERATIONS = ("validate", "backup", "restore", "repair")
_CHECKPOINTS = 4
_PARAMETERS = 2**20
_LATEST = 1.15
"""As a part of the usual duration, how late a server may be killed."""
_SOONER, _LATER = 0.8, 1.03
"""How a duration is corrected by each kill that came too late, and by each that did not."""
_SECONDS_TO_WAIT = 120
_SERVER = """
import sys
from ckpt_lib.web import ServerSettings
from ckpt_lib.web.server import run

run(ServerSettings.model_validate_json(sys.argv[1]), announce=lambda url: print(url + "/api/v1", flush=True))
"""


class Server:
    """A server in a process of its own, which is killed and started again."""

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._start()

    def _start(self) -> None:
        self._process = Python(_SERVER, [self._settings.model_dump_json()])
        url = self._process.stdout.readline().strip()
        assert url, self._process.stderr.read()
        self._client = httpx.Client(base_url=url, timeout=_SECONDS_TO_WAIT, trust_env=False)

    def kill(self) -> None:
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait(_SECONDS_TO_WAIT)
        self._process.communicate()
        self._client.close()

    def start_again(self) -> None:
        self.kill()
        self._start()

    def begin(self, operation: str, names: list[str]) -> str:
        """Start a job and return its id."""
        work = {"operation": operation, "names": names}
        answer = self._client.post(f"/experiments/{EXPERIMENT}/jobs", json=work)
        answer.raise_for_status()
        return str(answer.json()["job_id"])

    def job(self, job_id: str) -> Any:
        return self._client.get(f"/jobs/{job_id}").raise_for_status().json()

    def ended(self, job_id: str) -> Any:
        deadline = time.monotonic() + _SECONDS_TO_WAIT
        while (job := self.job(job_id))["state"] not in ENDED:
            assert time.monotonic() < deadline, f"the job does not end: {job}"
            time.sleep(0.005)
        return job


class Scene:
    """A store with backups, what is done to it before each job, and what must be true afterwards."""

    def __init__(self, folder: Path) -> None:
        index = f"sqlite:///{folder / 'index.db'}"
        self.config = CheckpointConfig(
            checkpoint_dir=str(folder / "store"), max_checkpoints=_CHECKPOINTS, save_rng=False, index_url=index
        )
        torch.manual_seed(0)
        manager = self.manager()
        for epoch in range(_CHECKPOINTS):
            manager.save_checkpoint(model=nn.Linear(_PARAMETERS, 1), epoch=epoch, metrics={"val_loss": float(epoch)})
        self.digests = {item.checkpoint_id: item.checksum for item in manager.list_checkpoints()}

    def manager(self) -> CheckpointManager:
        return CheckpointManager(self.config, EXPERIMENT)

    def prepare(self, operation: str, rng: random.Random) -> None:
        """Give a job something to do."""
        folder = Path(self.config.checkpoint_dir, EXPERIMENT)
        if operation == "backup":
            shutil.rmtree(folder / "backups")
        for checkpoint_id in self.digests if operation in ("restore", "repair") else ():
            payload = folder / f"{checkpoint_id}.pt"
            content = bytearray(payload.read_bytes())
            content[rng.randrange(len(content))] ^= 1
            payload.write_bytes(content)

    def broken(self, operation: str) -> Iterator[str]:
        """Name each promise that a kill in this operation has broken."""
        manager = self.manager()
        found = {item.checkpoint_id: item.checksum for item in manager.list_checkpoints()}
        if found != self.digests:
            yield f"the store holds {sorted(found)}"
        for checkpoint_id in found if operation in ("validate", "backup") else ():
            if not manager.validate_checkpoint(checkpoint_id):
                yield f"{checkpoint_id} is damaged"
        backups = manager.backup_ids()
        if operation != "backup" and sorted(backups) != sorted(self.digests):
            yield f"the backups are {backups}"
        yield from (f"the backup of {name} is damaged" for name in backups if not manager.validate_backup(name))

    def unfinished(self, operation: str) -> Iterator[str]:
        """Name what is not as it should be when the same job has been done again."""
        yield from self.broken("validate")
        manager = self.manager()
        if operation == "backup" and sorted(manager.backup_ids()) != sorted(self.digests):
            yield "some backups are missing"


def kill_servers(count: int, seed: str, folder: Path) -> Outcome:
    """Kill a server ``count`` times in the middle of a job, each time at a random moment of it."""
    scene, outcome, moments = Scene(folder), Outcome(), Counter[str]()
    server = Server(ServerSettings(config=scene.config, port=0, jobs_folder=folder / "jobs"))
    seconds: dict[str, float] = {}
    try:
        for number in range(4 * count):
            if outcome.injected == count:
                break
            rng = random.Random(f"{seed} server {number}")
            operation = OPERATIONS[number % len(OPERATIONS)]
            if operation not in seconds:
                seconds[operation] = _duration(server, scene, operation, rng)
            delay_seconds = rng.uniform(0, _LATEST * seconds[operation])
            state, broken = _strike(server, scene, operation, rng, delay_seconds)
            label = f"{number}, {operation} killed after {delay_seconds * 1000:.1f} ms"
            if state == "interrupted":
                outcome.note(label, broken)
                moments[operation] += 1
            else:  # too late: nothing was interrupted
                outcome.violations += [f"{label}: {line}" for line in broken]
                moments["too late"] += 1
            seconds[operation] *= _LATER if state == "interrupted" else _SOONER
    finally:
        server.kill()
    outcome.detail = told(moments)
    return outcome


def _duration(server: Server, scene: Scene, operation: str, rng: random.Random) -> float:
    scene.prepare(operation, rng)
    began = time.monotonic()
    server.ended(server.begin(operation, list(scene.digests)))
    return time.monotonic() - began


def _strike(
    server: Server, scene: Scene, operation: str, rng: random.Random, delay_seconds: float
) -> tuple[str, list[str]]:
    """Kill the server at a job, let the next one do it again, and return what the job is called and what is wrong."""
    scene.prepare(operation, rng)
    job_id = server.begin(operation, list(scene.digests))
    time.sleep(delay_seconds)
    server.start_again()
    state = server.job(job_id)["state"]
    broken = [] if state in ("interrupted", "succeeded") else [f"the job is {state}"]
    broken += scene.broken(operation)
    again = server.ended(server.begin(operation, list(scene.digests)))
    if again["state"] != "succeeded":
        broken.append(f"the same job again: {again['problem']}")
    return state, [*broken, *scene.unfinished(operation)]


ROWS = [
    Row(
        number=49,
        fault="kill of the server of the REST API, at a random moment of a job",
        must_hold="the store is intact, the job is interrupted, the same job again does the rest",
        unit="kills",
        count=50,
        sample=4,
        run=kill_servers,
    )
]
