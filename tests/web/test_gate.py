"""What the REST API refuses before it reads a body, on a real server."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from ckpt_lib import CheckpointConfig
from ckpt_lib.web import ServerSettings
from ckpt_lib.web.gate import MAX_BODY_BYTES
from ckpt_lib.web.limits import RateLimit
from ckpt_lib.web.tokens import TokenFile
from tests.web.running import served

LATEST = "/experiments/digits/checkpoints/latest"


@pytest.fixture
def guarded(config: CheckpointConfig, tmp_path: Path) -> ServerSettings:
    """Those of a server with one token, which only reads."""
    TokenFile(tmp_path / "tokens.json").create("reader", "read")
    return ServerSettings(
        config=config,
        tokens_path=tmp_path / "tokens.json",
        run_token=SecretStr("ckpt_run"),
        jobs_folder=tmp_path / "jobs",
    )


def chunks(size_bytes: int) -> Iterator[bytes]:
    for _ in range(size_bytes // 2**16):
        yield b" " * 2**16


def test_the_token_comes_before_the_body(guarded: ServerSettings) -> None:
    """A body that cannot be understood is not looked at without a token; neither is one that is too large."""
    with served(guarded) as client:
        for body in ("[", "x" * (MAX_BODY_BYTES + 1)):
            answer = client.patch(LATEST, content=body, headers={"content-type": "application/json"})
            assert answer.status_code == 401
        assert client.get("/openapi.json").status_code == 200


def test_a_body_is_limited(client: httpx.Client) -> None:
    """With and without a Content-Length, as a problem."""
    for body in (b" " * (MAX_BODY_BYTES + 1), chunks(2 * MAX_BODY_BYTES)):
        answer = client.patch(LATEST, content=body, headers={"content-type": "application/json"})
        assert (answer.status_code, answer.json()["type"]) == (413, "HTTPError")


def test_the_token_of_the_run_works_beside_the_file(guarded: ServerSettings) -> None:
    """A token that is added later counts at once, and a damaged file is reported without its path."""
    assert guarded.tokens_path is not None
    with served(guarded) as client:
        assert client.get(LATEST, headers={"Authorization": "Bearer ckpt_run"}).status_code == 200
        added = {"Authorization": f"Bearer {TokenFile(guarded.tokens_path).create('late', 'read')}"}
        assert client.get(LATEST, headers=added).status_code == 200
        guarded.tokens_path.write_text("damaged")
        broken = client.get(LATEST, headers=added)
        assert broken.status_code == 503
        assert str(guarded.tokens_path.parent) not in broken.text


def test_tokens_created_at_once_are_all_kept(tmp_path: Path) -> None:
    """Reading and writing the file is one step: no creation undoes another."""
    names = [f"token {number}" for number in range(16)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: TokenFile(tmp_path / "tokens.json").create(name, "read"), names))
    assert sorted(token.name for token in TokenFile(tmp_path / "tokens.json").tokens()) == sorted(names)


def test_without_tokens_other_sites_are_refused(client: httpx.Client) -> None:
    """Neither a name that points here nor a page of another site reaches a server without tokens."""
    assert client.get(LATEST, headers={"Host": "evil.example"}).status_code == 403
    assert client.patch(LATEST, json={}, headers={"Origin": "http://evil.example"}).status_code == 403
    assert client.patch(LATEST, json={}, headers={"Origin": "null"}).status_code == 403
    own = f"http://{client.base_url.netloc.decode()}"
    assert client.patch(LATEST, json={}, headers={"Origin": own}).status_code == 200
    assert client.get(LATEST, headers={"Host": "localhost:1"}).status_code == 200


def test_refused_and_failed_requests_are_logged(
    guarded: ServerSettings, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the token's name: one that may not do it, one without a token, and one whose operation fails."""
    assert guarded.tokens_path is not None
    reader = {"Authorization": f"Bearer {TokenFile(guarded.tokens_path).create('late', 'read')}"}
    with served(guarded) as client, caplog.at_level(logging.INFO, logger="ckpt_lib.audit"):
        client.delete(LATEST, headers=reader)
        client.delete(LATEST)
        monkeypatch.setattr("ckpt_lib.manager.CheckpointManager.edit_checkpoint", None)
        failed = client.patch(LATEST, json={"add_tags": ["x"]}, headers={"Authorization": "Bearer ckpt_run"})
        assert failed.status_code == 500
    lines = [json.loads(record.message) for record in caplog.records if record.name == "ckpt_lib.audit"]
    found = [(line["who"], line["status"]) for line in lines]
    assert found == [("late", 403), (None, 401), ("the token of this run", 500)]


def test_no_path_fills_the_log(guarded: ServerSettings, caplog: pytest.LogCaptureFixture) -> None:
    """Requests without a token leave a line each, which is short whatever they ask for."""
    caplog.set_level(logging.INFO, logger="ckpt_lib.audit")
    with served(guarded) as client:
        assert client.post(f"/{'x' * 60_000}").status_code == 401
    (line,) = [record.getMessage() for record in caplog.records if record.name == "ckpt_lib.audit"]
    assert len(line) < 4_000


def test_each_token_has_its_own_rate(guarded: ServerSettings) -> None:
    """One that sends too much is told when to go on, and others are served meanwhile."""
    assert guarded.tokens_path is not None
    other = {"Authorization": f"Bearer {TokenFile(guarded.tokens_path).create('other', 'read')}"}
    run = {"Authorization": "Bearer ckpt_run"}
    with served(guarded.model_copy(update={"requests_per_second": 0.5})) as client:
        assert client.get(LATEST, headers=run).status_code == 200
        refused = client.get(LATEST, headers=run)
        assert (refused.status_code, refused.json()["type"]) == (429, "LimitError")
        assert refused.headers["Retry-After"] in ("1", "2")
        assert client.get(LATEST, headers=other).status_code == 200
        assert client.get("/openapi.json").status_code == 200


@given(st.floats(0.01, 1_000), st.lists(st.tuples(st.floats(0, 10), st.integers(0, 30)), min_size=1, max_size=20))
def test_the_rate_holds_over_any_time(per_second: float, bursts: list[tuple[float, int]]) -> None:
    """No more are answered than the bucket held and what has filled in; whoever waits as told is answered."""
    now = 0.0
    limit = RateLimit(per_second, clock=lambda: now)
    answered = 0
    for pause_seconds, count in bursts:
        now += pause_seconds
        waits = [limit.seconds_to_wait("me") for _ in range(count)]
        answered += waits.count(0)
        assert answered <= max(1.0, 2 * per_second) + now * per_second + 1e-6
        if waits and waits[-1]:
            now += waits[-1]
            assert limit.seconds_to_wait("me") == 0
            answered += 1
    assert RateLimit(None).seconds_to_wait("me") == 0
