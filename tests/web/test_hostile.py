"""Requests that mean harm: each is refused or taken as the text that it is, and the server goes on."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.web import ServerSettings
from ckpt_lib.web.gate import MAX_BODY_BYTES
from tests.web.running import served, two_experiments

CHECKPOINTS = "/experiments/digits/checkpoints"
MARKUP = "<img src=x onerror=alert(1)>"
JSON = {"content-type": "application/json"}

HOSTILE_NAMES = (
    "..",
    "../../etc/passwd",
    "..\\..\\windows",
    "/etc/passwd",
    "....//",
    ".ckpt-tmp",
    "digits/../words",
    "%2e%2e%2f",
    "a\x00b",
    "\x1b[2J",
    "con",
    "\u202egnp",
    "x" * 5_000,
    MARKUP,
    "'; DROP TABLE ckpt_records; --",
    "~",
    "$(id)",
    "{{7*7}}",
)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> CheckpointConfig:
    """One store for all: none of these requests changes a payload."""
    return two_experiments(tmp_path_factory.mktemp("hostile") / "store")


@pytest.fixture(scope="module")
def client(config: CheckpointConfig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """That of one server, which has to survive them all."""
    settings = ServerSettings(config=config, jobs_folder=tmp_path_factory.mktemp("jobs"))
    with served(settings) as client:
        yield client


@pytest.fixture(autouse=True)
def untouched(client: httpx.Client, config: CheckpointConfig) -> Iterator[None]:
    """Afterwards the server answers, and the store holds what it held."""
    before = _payloads(config)
    yield
    assert client.get("/experiments").status_code == 200
    assert _payloads(config) == before


def _payloads(config: CheckpointConfig) -> dict[str, bytes]:
    root = Path(config.checkpoint_dir)
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.pt")}


def spelled(name: str) -> str:
    """A name with every character escaped, so that no client tidies it up."""
    return "".join(f"%{byte:02X}" for byte in name.encode())


def check_refused(response: httpx.Response, *codes: int) -> None:
    """A refusal is a problem, in JSON, that no browser takes for a page."""
    assert response.status_code in (codes or (404, 422)), response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.json()["status"] == response.status_code


@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=ascii)
def test_names_lead_nowhere(client: httpx.Client, config: CheckpointConfig, name: str) -> None:
    """As the name of an experiment, of a checkpoint or of a job, wherever one goes."""
    place = spelled(name)
    for path in (f"/experiments/{place}/checkpoints", f"{CHECKPOINTS}/{place}", f"/jobs/{place}"):
        response = client.get(path)
        check_refused(response)
        assert config.checkpoint_dir not in response.text
    check_refused(client.delete(f"{CHECKPOINTS}/{place}"))
    check_refused(client.post(f"{CHECKPOINTS}/{place}/undelete"))
    check_refused(client.patch(f"{CHECKPOINTS}/{place}", json={"pinned": True}))
    check_refused(client.post(f"/experiments/{place}/jobs", json={"operation": "backup", "names": "all"}))
    check_refused(client.post("/experiments/digits/jobs", json={"operation": "repair", "names": [name]}))
    for parameters in ({"after": name}, {"sort_by": name}, {"where": name}):
        check_refused(client.get(CHECKPOINTS, params=parameters))
        check_refused(client.get("/checkpoints", params=parameters))
    assert client.get(CHECKPOINTS, params={"search": name[:200]}).json()["items"] == []


@pytest.mark.parametrize("path", ["/../../etc/passwd", "//etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/openapi.json/.."])
def test_paths_lead_nowhere(client: httpx.Client, path: str) -> None:
    """As they are written on the wire."""
    head, _ = _raw(client, f"GET /api/v1{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    assert head.startswith("HTTP/1.1 404 ")


def test_markup_is_text(client: httpx.Client, config: CheckpointConfig) -> None:
    """In a tag and a description it is stored and answered as it is, as JSON that no browser takes for a page."""
    edit = {"add_tags": [MARKUP], "description": f"</script>{MARKUP}"}
    for response in (client.patch(f"{CHECKPOINTS}/latest", json=edit), client.get(f"{CHECKPOINTS}/latest")):
        assert response.headers["content-type"] == "application/json"
        assert response.headers["x-content-type-options"] == "nosniff"
        assert MARKUP in response.json()["tags"]
        assert response.json()["description"] == f"</script>{MARKUP}"
    assert MARKUP in CheckpointManager(config, "digits").get_checkpoint("latest").tags
    assert client.get(CHECKPOINTS, params={"tags": MARKUP}).json()["items"][0]["epoch"] == 3


@pytest.mark.parametrize(
    "body",
    [
        b"\xff\xfe{}",
        b"[" * 100_000,
        b'{"a":' * 20_000,
        b'{"add_tags": ["\\ud800"]}',
        b'{"description": "\\u0000"}',
        b'{"pinned": "maybe"}',
        b'{"add_tags": ' + json.dumps(["t"] * 1_000).encode() + b"}",
        b'{"description": 1e999}',
        b"{" + b'"add_tags": [], ' * 10_000 + b'"x": 1}',
        b"9" * 100_000,
    ],
    ids=lambda body: ascii(body[:20]),
)
def test_bodies_that_are_no_edit(client: httpx.Client, body: bytes) -> None:
    """Broken text, nesting without end, numbers without end, and what no text can hold."""
    check_refused(client.patch(f"{CHECKPOINTS}/latest", content=body, headers=JSON), 400, 422)


@pytest.mark.parametrize(
    "kind",
    ["multipart/form-data", "multipart/form-data; boundary=x", "text/html", "application/xml", "a/b; charset=\xff"],
)
@pytest.mark.parametrize("body", [b"--x\r\nContent-Disposition: form-data; name=", b"--x--", b"", b"<!ENTITY x 'x'>"])
def test_bodies_of_other_kinds(client: httpx.Client, kind: str, body: bytes) -> None:
    """No operation takes a form: a malformed one is refused as any other."""
    headers = {b"content-type": kind.encode("latin-1")}
    check_refused(client.patch(f"{CHECKPOINTS}/latest", content=body, headers=headers), 400, 415, 422)
    check_refused(client.post("/experiments/digits/jobs", content=body, headers=headers), 400, 415, 422)


@pytest.mark.parametrize(
    ("head", "codes"),
    [
        (f"Content-Length: {MAX_BODY_BYTES + 1}\r\n", (413,)),
        ("Content-Length: 99999999999999999999\r\n", (413,)),
        ("Content-Length: -1\r\n", (400,)),
        ("Content-Length: 5\r\nContent-Length: 6\r\n", (400,)),
        ("Transfer-Encoding: chunked, chunked\r\n", (400, 501)),
        (f"X-Long: {'x' * 200_000}\r\n", (400, 0)),
        (f"Authorization: Bearer {'x' * 20_000}\r\nContent-Length: 0\r\n", (422,)),
    ],
    ids=lambda value: ascii(value[:24]),
)
def test_headers_that_lie(client: httpx.Client, head: str, codes: tuple[int, ...]) -> None:
    """Lengths that are none or too large, two at once, and headers without end, which nobody reads to it."""
    start = f"PATCH /api/v1{CHECKPOINTS}/latest HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    answer, _ = _raw(client, f"{start}{head}\r\n".encode())
    assert int(answer.split(" ")[1] if answer else 0) in codes, answer


def test_two_ends_of_a_body(client: httpx.Client) -> None:
    """What a proxy could take for the rest of a body is not answered as a request of its own."""
    start = (
        "POST /api/v1/uploads HTTP/1.1\r\nHost: localhost\r\nContent-Length: 60\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    second = "GET /api/v1/experiments HTTP/1.1\r\nHost: localhost\r\n\r\n"
    answer, rest = _raw(client, f"{start}0\r\n\r\n{second}".encode())
    assert answer == "HTTP/1.1 400 Bad Request"
    assert b"HTTP/1.1" not in rest


def _raw(client: httpx.Client, request: bytes) -> tuple[str, bytes]:
    """Send bytes as they are; return the status line and the body, empty where the server hung up before."""
    address: Any = (client.base_url.host, client.base_url.port)
    with socket.create_connection(address, timeout=20) as connection:
        received = b""
        with suppress(ConnectionError):
            connection.sendall(request)
            while part := connection.recv(65_536):
                received += part
    head, _, body = received.partition(b"\r\n\r\n")
    return head.decode("latin-1").partition("\r\n")[0], body
