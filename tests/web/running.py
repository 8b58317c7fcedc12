"""A server of the REST API in a thread of this process, and clients of it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import uvicorn
from fastapi import FastAPI

from ckpt_lib.web import ServerSettings, create_app


@contextmanager
def served(settings: ServerSettings, extend: Callable[[FastAPI], object] = lambda _: None) -> Iterator[httpx.Client]:
    """Serve a store on a free port of this machine, and yield a client whose paths begin with that of the API."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    app = create_app(settings)
    extend(app)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", timeout=30, trust_env=False) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
