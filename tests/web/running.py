"""A server of the REST API in a thread of this process, and clients of it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI
from torch import nn

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.web import ServerSettings, create_app
from ckpt_lib.web.job import ENDED
from ckpt_lib.web.server import ApiServer


def ended(client: httpx.Client, started: httpx.Response) -> Any:
    """The job once it has ended."""
    assert started.status_code == 202, started.text
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        job = client.get(started.headers["location"].removeprefix("/api/v1")).json()
        if job["state"] in ENDED:
            return job
        time.sleep(0.02)
    raise AssertionError(f"the job does not end: {job}")


def wait_for(condition: Callable[[], bool]) -> None:
    """Return once the condition holds."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def two_experiments(root: Path) -> CheckpointConfig:
    """Make a store of two experiments with a few checkpoints, some of which have a tag or a loss that is no number."""
    config = CheckpointConfig(checkpoint_dir=str(root), max_checkpoints=20, save_rng=False)
    for experiment, losses in (("digits", (3.0, 1.0, 2.0)), ("words", (float("nan"),))):
        manager = CheckpointManager(config, experiment)
        for epoch, loss in enumerate(losses, start=1):
            tags = ["odd"] if epoch % 2 else []
            manager.save_checkpoint(model=nn.Linear(1, 1), epoch=epoch, metrics={"val_loss": loss}, tags=tags)
    return config


@contextmanager
def served(
    settings: ServerSettings, create: Callable[[ServerSettings], FastAPI] = create_app
) -> Iterator[httpx.Client]:
    """Serve a store on a free port of this machine, and yield a client whose paths begin with that of the API."""
    app = create(settings)
    app.state.jobs.open()  # here, as `ckpt serve` does: an error is the caller's
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    server = ApiServer(app)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", timeout=30, trust_env=False) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
