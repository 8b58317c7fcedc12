"""What a client of the REST API is told of an error: what was wrong, what was expected, and what it can do there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from ckpt_lib import CheckpointConfig
from ckpt_lib.web import ServerSettings
from ckpt_lib.web.tokens import TokenFile
from tests.web.running import ended, served

JOBS = "/experiments/digits/jobs"
LATEST = "/experiments/digits/checkpoints/latest"


@pytest.fixture
def guarded(config: CheckpointConfig, tmp_path: Path) -> ServerSettings:
    """Those of a server with tokens, of which there are none yet."""
    return ServerSettings(config=config, tokens_path=tmp_path / "tokens.json", jobs_folder=tmp_path / "jobs")


def problem(answer: httpx.Response, status: int) -> Any:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    return answer.json()


def test_no_token_is_told_what_is_expected(guarded: ServerSettings, tmp_path: Path) -> None:
    """The header, and the command that makes a token; the file of tokens stays the server's own."""
    with served(guarded) as client:
        for header in ({}, {"Authorization": "Bearer ckpt_guess"}, {"Authorization": "Basic YTpi"}):
            answer = client.get("/experiments", headers=header)
            told = problem(answer, 401)
            assert answer.headers["www-authenticate"] == "Bearer"
            assert "Authorization: Bearer TOKEN" in told["expected"]
            assert "`ckpt token NAME`" in told["hint"]
            assert str(tmp_path) not in answer.text


def test_too_little_a_token_is_told_which_scope_it_needs(guarded: ServerSettings) -> None:
    """By operations and by jobs; a server that only reads says that no token helps."""
    assert guarded.tokens_path is not None
    reader = {"Authorization": f"Bearer {TokenFile(guarded.tokens_path).create('reader', 'read')}"}
    writer = {"Authorization": f"Bearer {TokenFile(guarded.tokens_path).create('writer', 'write')}"}
    with served(guarded) as client:
        edit = problem(client.patch(LATEST, json={}, headers=reader), 403)
        job = problem(client.post(JOBS, json={"operation": "empty_trash"}, headers=writer), 403)
    for told, scope in ((edit, "write"), (job, "delete")):
        assert told["expected"] == f"a token with the scope {scope}"
        assert f"`ckpt token NAME --scope {scope}`" in told["hint"]
    with served(guarded.model_copy(update={"read_only": True})) as client:
        told = problem(client.patch(LATEST, json={}, headers=writer), 403)
        assert "this needs write" in told["expected"]
        assert "--read-only" in told["hint"]


def test_another_site_is_told_what_is_expected(client: httpx.Client) -> None:
    """Without tokens, names and pages of other machines are refused."""
    assert "localhost" in problem(client.get(LATEST, headers={"Host": "evil.example"}), 403)["expected"]
    refused = client.patch(LATEST, json={}, headers={"Origin": "http://evil.example"})
    assert "Origin" in problem(refused, 403)["expected"]


def test_what_concerns_no_checkpoint_names_none(client: httpx.Client) -> None:
    """Neither does its problem hold anything that is not known."""
    work = {"operation": "monitor", "metric": "val_loss", "mode": "max"}
    done = ended(client, client.post(JOBS, json=work))
    assert done["state"] == "succeeded", done
    assert [outcome["checkpoint_id"] for outcome in done["result"]] == [None]
    failed = ended(client, client.post(JOBS, json=work | {"metric": "nothing"}))
    assert failed["problem"].keys() == {"type", "title", "status", "detail", "expected"}
