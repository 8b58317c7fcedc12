"""Lists of the REST API over 5,000 checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ckpt_lib import CheckpointConfig
from ckpt_lib.web import ServerSettings
from tests.web.big_store import EXPERIMENT, shared
from tests.web.running import served

pytestmark = pytest.mark.servers

COUNT = 5_000
CHECKPOINTS = f"/experiments/{EXPERIMENT}/checkpoints"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> CheckpointConfig:
    return shared(tmp_path_factory, COUNT)


@pytest.fixture
def client(config: CheckpointConfig, tmp_path: Path) -> Iterator[httpx.Client]:
    with served(ServerSettings(config=config, jobs_folder=tmp_path / "jobs")) as client:
        yield client


def pages(client: httpx.Client, path: str, **asked: Any) -> Iterator[dict[str, Any]]:
    page: dict[str, Any] = {"next": None}
    while True:
        after = {} if page["next"] is None else {"after": page["next"]}
        page = client.get(path, params=asked | after).json()
        yield from page["items"]
        if page["next"] is None:
            return


@pytest.mark.parametrize("path", [CHECKPOINTS, "/checkpoints"])
def test_pages_add_up_to_the_whole(client: httpx.Client, path: str) -> None:
    """In the order of a metric, each checkpoint once, and each page after the one before."""
    found = list(pages(client, path, sort_by="val_loss", limit=500))
    assert sorted(item["step"] for item in found) == list(range(1, COUNT + 1))
    losses = [item["metrics"]["val_loss"] for item in found]
    assert losses == sorted(losses)


def test_filters_and_search_see_all(client: httpx.Client) -> None:
    """What only one, or one in fifty, has is found wherever it is."""
    found = client.get(CHECKPOINTS, params={"search": "<SCRIPT>"}).json()["items"]
    assert [(item["step"], item["description"]) for item in found] == [(7, "<script>alert(1)</script>")]
    kept = list(pages(client, CHECKPOINTS, tags="keep", where=["step>4000"], limit=7))
    assert [item["step"] for item in kept] == list(range(4050, COUNT + 1, 50))
