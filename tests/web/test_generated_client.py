"""A client that a program generates from the OpenAPI description of a real server, used as others would use it."""

from __future__ import annotations

import importlib
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.web import ServerSettings
from tests.web.running import served

pytestmark = pytest.mark.clients

TOKEN = "ckpt_of_this_test"
PACKAGE = "generated_checkpoints_client"
GENERATOR = Path(sys.prefix, "clients", "bin", "openapi-python-client")


@pytest.fixture
def server(config: CheckpointConfig, tmp_path: Path) -> Iterator[httpx.Client]:
    settings = ServerSettings(config=config, jobs_folder=tmp_path / "jobs", run_token=SecretStr(TOKEN))
    with served(settings) as client:
        yield client


@pytest.fixture
def package(server: httpx.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The package that is generated; a warning of the generator is about what it left out."""
    description = tmp_path / "openapi.json"
    description.write_bytes(server.get("/openapi.json").content)
    overrides = "content_type_overrides: {application/offset+octet-stream: application/octet-stream}"  # that of tus
    (tmp_path / "generator.yaml").write_text(f"post_hooks: []\n{overrides}\n", encoding="utf-8")
    command: list[str | Path] = [
        GENERATOR,
        "generate",
        "--path",
        description,
        "--output-path",
        tmp_path / PACKAGE,
        "--meta",
        "none",
    ]
    command += ["--config", tmp_path / "generator.yaml", "--fail-on-warning"]
    subprocess.run(command, check=True, cwd=tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return importlib.import_module(PACKAGE)


class Api:
    """The operations of the generated package by their names."""

    def __init__(self, package: ModuleType, client: Any) -> None:
        self._client = client
        self._modules = {path.stem: path for path in Path(str(package.__file__)).parent.glob("api/*/*.py")}

    def __call__(self, operation: str, *arguments: Any, **options: Any) -> Any:
        folder = self._modules[operation].parent.name
        module = importlib.import_module(f"{PACKAGE}.api.{folder}.{operation}")
        return module.sync(*arguments, client=self._client, **options)


@contextmanager
def connected(package: ModuleType, server: httpx.Client, token: str = TOKEN) -> Iterator[Api]:
    origin = str(server.base_url.copy_with(raw_path=b"/"))
    with package.AuthenticatedClient(base_url=origin, token=token, raise_on_unexpected_status=True) as client:
        yield Api(package, client)


def test_a_generated_client(package: ModuleType, server: httpx.Client, config: CheckpointConfig) -> None:
    """Operations have the names of functions, answers and refusals are objects, and the store is as they say."""
    models = importlib.import_module(f"{PACKAGE}.models")
    with connected(package, server) as api:
        page = api("list_checkpoints", "digits", sort_by="val_loss", limit=2)
        assert [item.epoch for item in page.items] == [2, 3]
        rest = api("list_checkpoints", "digits", sort_by="val_loss", limit=2, after=page.next_)
        assert ([item.epoch for item in rest.items], rest.next_) == ([1], None)

        shown = api("get_checkpoint", "digits", "best")
        assert (shown.checkpoint_id, shown.metrics["val_loss"]) == (page.items[0].checkpoint_id, 1.0)

        edit = models.Edit(add_tags=["reviewed"], pinned=True)
        edited = api("edit_checkpoint", "digits", shown.checkpoint_id, body=edit)
        assert (edited.tags, edited.pinned) == (["reviewed"], True)
        assert CheckpointManager(config, "digits").get_checkpoint("@reviewed").epoch == 2

        job = _ended(api, api("start_job", "digits", body=models.Validate(names=["best", "latest"])))
        assert job.state == "succeeded"
        assert [outcome.result.is_valid for outcome in job.result] == [True, True]

        problem = api("get_checkpoint", "digits", "nothing")
        assert (type(problem).__name__, problem.status, problem.type_) == ("Problem", 404, "CheckpointNotFoundError")
    with connected(package, server, "ckpt_wrong") as api:
        assert api("list_experiments").status == 401


def _ended(api: Api, job: Any) -> Any:
    deadline = time.monotonic() + 30
    while job.state in ("waiting", "running"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
        job = api("get_job", job.job_id)
    return job
