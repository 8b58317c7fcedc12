"""A server of the REST API in a thread of this process, and clients of it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import uvicorn
from torch import nn

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.web import ServerSettings, create_app


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
def served(settings: ServerSettings) -> Iterator[httpx.Client]:
    """Serve a store on a free port of this machine, and yield a client whose paths begin with that of the API."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(create_app(settings), log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", timeout=30, trust_env=False) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
