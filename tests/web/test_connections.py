"""Clients that connect and then do nothing, on a real server: they keep nobody else from being answered."""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import ExitStack, closing
from http.client import HTTPConnection

import httpx
import pytest
import torch

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.core.logs import logger
from ckpt_lib.web import ServerSettings, connections, server, transfers
from tests.web.running import served, wait_for
from tests.web.test_transfers import begin, offset_of, place_of

HEAD = b"GET /api/v1/experiments HTTP/1.1\r\nHost: 127.0.0.1\r\n"


def connect(client: httpx.Client, sent: bytes = b"", received_bytes: int | None = None) -> socket.socket:
    """A connection on which this is sent; the system keeps few bytes for it if that is asked for."""
    connection = socket.socket()
    if received_bytes is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, received_bytes)
    connection.settimeout(10)
    connection.connect((client.base_url.host, client.base_url.port or 0))
    connection.sendall(sent)
    return connection


def kept(client: httpx.Client) -> closing[HTTPConnection]:
    """A connection for one request after the other."""
    return closing(HTTPConnection(client.base_url.host, client.base_url.port, timeout=10))


def answered(connection: HTTPConnection) -> int:
    """The status of one more answer on this connection, which is read to its end."""
    connection.request("GET", "/api/v1/experiments")
    with connection.getresponse() as response:
        response.read()
        return response.status


def is_ended(connection: socket.socket) -> bool:
    """Whether the server ends the connection, rather than leave it open for ten seconds."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize("sent", [b"", b"GET /api", HEAD])
def test_a_connection_asks_for_something_in_time(
    settings: ServerSettings, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    """One on which nothing arrives, or half a request, ends."""
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.3)
    with served(settings) as client, connect(client, sent) as connection:
        assert is_ended(connection)


def test_a_client_decides_when_an_idle_connection_ends(settings: ServerSettings) -> None:
    """It stays for longer than clients keep one, so that none asks on a connection that is being closed."""
    with served(settings) as client, kept(client) as connection:
        assert answered(connection) == 200
        first = connection.sock
        time.sleep(6)  # longer than servers keep one that nobody has told otherwise
        assert answered(connection) == 200
        assert connection.sock is first


def test_what_takes_its_time_is_left_alone(settings: ServerSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """An upload whose request is there may pause for longer than a request may take to arrive."""
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.1)
    with served(settings) as client:
        place = place_of(begin(client, b"x" * 100))
        request = f"PATCH /api/v1{place} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\nUpload-Offset: 0\r\n"
        head = f"{request}Content-Type: application/offset+octet-stream\r\n\r\n".encode()
        with connect(client, head + b"x" * 50) as connection:
            time.sleep(0.5)
            connection.sendall(b"x" * 50)
            assert connection.recv(1_000).startswith(b"HTTP/1.1 204")


def test_the_number_of_connections_is_limited(settings: ServerSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """One too many ends at once, before the server has no file descriptor left; then there is room again."""
    monkeypatch.setattr(connections, "MOST_CONNECTIONS", 10)
    with served(settings) as client:
        with ExitStack() as held:
            for _ in range(10):
                held.enter_context(connect(client))
            with connect(client) as one_more:
                assert is_ended(one_more)
        wait_for(lambda: is_answered(client))


def is_answered(client: httpx.Client) -> bool:
    try:
        return client.get("/experiments").status_code == 200
    except httpx.TransportError:
        return False


def test_a_stalled_download_gives_its_place_back(
    settings: ServerSettings, config: CheckpointConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each holds a chunk in memory: no more than so many go on at a time, and none for as long as its client likes."""
    state = {"model_state_dict": {"weight": torch.randn(5 * 2**20)}}
    CheckpointManager(config, "large").save_state(state, epoch=1)
    monkeypatch.setattr(connections, "STALLED_SECONDS", 1.0)
    monkeypatch.setattr(transfers, "MOST_DOWNLOADS", 2)
    with served(settings) as client:
        path = "/experiments/large/checkpoints/latest/payload"
        request = f"GET /api/v1{path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
        with connect(client, request.encode(), received_bytes=4_096):
            wait_for(lambda: client.head(path).status_code == 429)
            refused = client.get(path)
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "5")
            assert client.get("/experiments").status_code == 200
            wait_for(lambda: client.get(path).status_code == 200)
        assert all(client.get(path).status_code == 200 for _ in range(3))


def test_a_stalled_client_does_not_keep_the_server(settings: ServerSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is to end waits a while for an upload, keeps what has arrived of it, and ends."""
    monkeypatch.setattr(server, "_SECONDS_TO_END", 1)
    with ExitStack() as held:
        with served(settings) as client:
            place = place_of(begin(client, b"x" * 100))
            request = f"PATCH /api/v1{place} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\nUpload-Offset: 0\r\n"
            head = f"{request}Content-Type: application/offset+octet-stream\r\n\r\n".encode()
            held.enter_context(connect(client, head + b"x" * 50))
            time.sleep(0.5)
            began = time.monotonic()
        assert time.monotonic() - began < 10
    with served(settings) as client:
        assert offset_of(client, place) == 50


def test_a_log_that_cannot_be_written_does_not_end_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the event loop has to tell is lost then, and the loop goes on."""

    def fail(*_: object, **__: object) -> None:
        raise OSError("Too many open files")

    monkeypatch.setattr(logger, "error", fail)
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(connections.survive)
    loop.call_soon(fail)
    loop.call_later(0.1, loop.stop)
    loop.run_forever()
    loop.close()
