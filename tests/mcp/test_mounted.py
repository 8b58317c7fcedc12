"""The tools at ``/mcp`` of the REST API's server, behind its tokens."""

from __future__ import annotations

import logging
from pathlib import Path

import anyio
import httpx
import httpx2
import pytest
from fastapi import FastAPI
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.types import CallToolResult

from ckpt_lib import CheckpointConfig
from ckpt_lib.mcp.mounting import PATH, mount
from ckpt_lib.mcp.server import create_server
from ckpt_lib.web import ServerSettings, create_app
from ckpt_lib.web.tokens import TokenFile
from tests.mcp.test_tools import READING
from tests.web.running import served


def with_tools(settings: ServerSettings) -> FastAPI:
    """The REST API with the tools."""
    app = create_app(settings)
    mount(app, settings.config)
    return app


def test_a_client_with_a_token_asks_over_http(config: CheckpointConfig, tmp_path: Path) -> None:
    """A token that reads is enough, as the tools only read; the REST API stays; without a token, neither answers."""
    path = tmp_path / "tokens.json"
    headers = {"Authorization": f"Bearer {TokenFile(path).create('assistant', 'read')}"}
    settings = ServerSettings(config=config, tokens_path=path, jobs_folder=tmp_path / "jobs")

    async def ask(url: str) -> tuple[list[str], CallToolResult]:
        async with (
            httpx2.AsyncClient(headers=headers, trust_env=False, timeout=60) as http,
            Client(streamable_http_client(url, http_client=http)) as client,
        ):
            names = [tool.name for tool in (await client.list_tools()).tools]
            return names, await client.call_tool("best_checkpoint", {"experiment": "digits", "validate_it": True})

    with served(settings, with_tools) as api:
        url = str(api.base_url.copy_with(path=PATH))
        assert httpx.post(url, json={}, trust_env=False).status_code == 401
        names, found = anyio.run(ask, url)
        assert api.get("/experiments", headers=headers).status_code == 200
        assert api.post(f"{url}/other", headers=headers).status_code == 404
    assert names == READING
    assert found.structured_content is not None
    assert found.structured_content["validation"]["is_valid"] is True


def test_the_log_of_the_program_stays_its_own(config: CheckpointConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """No handler is added for the whole program, nor its level changed."""
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    level = root.level
    create_server(config)
    assert (root.handlers, root.level) == ([], level)


def test_pages_of_other_sites_are_refused(config: CheckpointConfig, tmp_path: Path) -> None:
    """A server without tokens answers no page of another site here either."""
    settings = ServerSettings(config=config, jobs_folder=tmp_path / "jobs")
    with served(settings, with_tools) as api:
        url = str(api.base_url.copy_with(path=PATH))
        for headers in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}):
            assert api.post(url, json={}, headers=headers).status_code == 403
