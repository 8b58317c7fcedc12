"""Every operation of the OpenAPI description, against a real server: schemathesis sends what it allows and forbids."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from ckpt_lib import CheckpointConfig
from ckpt_lib.web import ServerSettings
from tests.web.running import served

TOKEN = "ckpt_of_this_test"
ROOT = Path(__file__).parents[2]
CONFIG = Path(__file__).with_name("schemathesis.toml")


def check(client: httpx.Client, folder: Path, *options: str, parameters: str = "") -> None:
    """Run schemathesis, which finds nothing, and see that the server goes on."""
    (folder / "schemathesis.toml").write_text(f"{parameters}{CONFIG.read_text(encoding='utf-8')}", encoding="utf-8")
    command = [str(Path(sys.executable).with_name("schemathesis")), "run", f"{client.base_url}openapi.json"]
    command += ["--header", f"Authorization: Bearer {TOKEN}", "--checks", "all", "--no-color"]
    command += ["--seed", "1", "--continue-on-failure"]
    command += ["--exclude-path-regex", "^/api/v1/events"]  # a stream does not end: test_events.py tests it
    command += options  # and one worker: ast.parse of Python 3.11 is for one thread
    found = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout
    assert client.get("/experiments", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200


@pytest.fixture
def guarded(config: CheckpointConfig, tmp_path: Path) -> Iterator[httpx.Client]:
    settings = ServerSettings(
        config=config,
        jobs_folder=tmp_path / "jobs",
        transfers_folder=tmp_path / "transfers",
        run_token=SecretStr(TOKEN),
        requests_per_second=None,
    )
    with served(settings) as client:
        yield client


def test_every_answer_is_documented(guarded: httpx.Client, tmp_path: Path) -> None:
    """All checks of schemathesis, over each parameter's edge cases: no server error, no status, header or body that the
    description does not name, nothing invalid taken, and nothing done without a token.
    """
    check(guarded, tmp_path, "--phases", "examples,coverage")


def test_answers_about_what_is_there_are_documented(guarded: httpx.Client, tmp_path: Path) -> None:
    """The same over random requests about an experiment with checkpoints, and over jobs by the addresses that the
    server gives them. A job that is deleted is cancelled, and stays: one check wants deleted things to be gone.
    """
    check(
        guarded,
        tmp_path,
        *("--phases", "fuzzing,stateful", "--max-examples", "15", "--exclude-checks", "use_after_free"),
        parameters='parameters = { "path.experiment" = "digits", "path.name" = "latest" }\n',
    )
