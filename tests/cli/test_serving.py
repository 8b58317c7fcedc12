"""``ckpt serve``, ``ckpt ui`` and ``ckpt token``: a real server in a process of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import httpx
import pytest

from ckpt_lib import page
from ckpt_lib.errors import ConfigError
from ckpt_lib.web import ServerSettings
from tests.cli.running import CKPT, on_posix, run, run_json, run_program


def test_tokens_are_created_listed_and_taken_back(tmp_path: Path) -> None:
    """The text is shown once, and no second token has the name of the first."""
    file = ["--tokens", str(tmp_path / "tokens.json")]
    assert "There are no tokens" in run("token", *file).stderr
    made = run_json("token", "laptop", "--scope", "write", "--days", "30", *file)
    assert made["token"].startswith("ckpt_")
    listed = run_json("token", *file)["tokens"]
    assert [(item["name"], item["scope"]) for item in listed] == [("laptop", "write")]
    assert made["token"] not in str(listed) + run("token", *file).stdout
    run("token", "laptop", *file, code=2)
    run("token", "other", "--scope", "all", *file, code=2)
    run("token", "other", "--remove", *file, code=2)
    for days in ("0", "-1", "nan", "36501"):
        assert "--days" in run("token", "other", "--days", days, *file, code=2).stderr
    run("token", "laptop", "--remove", *file)
    assert run_json("token", *file)["tokens"] == []


def test_other_machines_are_refused_without_tokens(store: Path) -> None:
    """Before anything listens."""
    assert "without a token" in run("serve", "--host", "0.0.0.0", "--no-tokens", store=store, code=2).stderr


def test_a_missing_token_file_is_refused(store: Path, tmp_path: Path) -> None:
    """A file that is named by mistake does not become a server with another token."""
    assert "does not exist" in run("serve", "--tokens", str(tmp_path / "none.json"), store=store, code=2).stderr


@pytest.mark.parametrize("command", ["serve", "ui"])
def test_a_server_tells_that_nothing_is_stored(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """It starts, for a training may begin later; the path may be mistyped as well."""
    monkeypatch.setattr("ckpt_lib.web.server.run", lambda _settings, announce, create: announce("http://127.0.0.1:1"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    said = f"No checkpoints are stored at {tmp_path / 'none'} yet"
    assert said in " ".join(run(command, store=tmp_path / "none").stderr.split())
    assert "No checkpoints" not in run(command, store=store).stderr
    assert not (tmp_path / "none").exists()


@on_posix
@pytest.mark.parametrize("to_file", [False, True])
def test_changes_are_logged(store: Path, tmp_path: Path, to_file: bool) -> None:
    """The audit log is on stderr, or in the file of --audit-log."""
    log = tmp_path / "audit.log"
    command = [CKPT, "serve", "--store", str(store), "--port", "0", "--no-tokens"]
    command += ["--audit-log", str(log)] if to_file else []
    env = {**os.environ, "XDG_STATE_HOME": str(tmp_path)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env) as process:
        assert process.stderr is not None
        try:
            url = re.search(r"http://\S+/api/v1", process.stderr.readline())
            assert url is not None
            with httpx.Client(base_url=url[0], trust_env=False) as client:
                client.patch("/experiments/digits/checkpoints/latest", json={"add_tags": ["x"]})
        finally:
            process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    lines = log.read_text(encoding="utf-8") if to_file else rest
    assert '"method": "PATCH"' in lines
    assert '"status": 200' in lines


@on_posix
def test_a_server_answers_until_it_is_interrupted(store: Path, ids: list[str], tmp_path: Path) -> None:
    """It prints its address and, without a file of tokens, one for this run; a second server is refused."""
    command = [CKPT, "serve", "--store", str(store), "--port", "0"]
    env = {**os.environ, "XDG_STATE_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "config")}
    env.pop("CKPT_TOKENS", None)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env) as process:
        assert process.stderr is not None
        printed = process.stderr.readline() + process.stderr.readline()
        try:
            token, url = re.search(r"ckpt_\S+", printed), re.search(r"http://\S+/api/v1", printed)
            assert token is not None, printed
            assert url is not None, printed
            headers = {"Authorization": f"Bearer {token[0]}"}
            with httpx.Client(base_url=url[0], trust_env=False) as client:
                assert client.get("/experiments").status_code == 401
                found = client.get("/experiments/digits/checkpoints", headers=headers).json()
                assert [item["checkpoint_id"] for item in found["items"]] == ids
            port = httpx.URL(url[0]).port
            second = run_program("serve", "--store", store, "--port", "0", **env)
            assert second.returncode != 0
            assert "--jobs-folder" in second.stderr
            assert "--port 0" in run("serve", "--port", str(port), store=store, code=2).stderr
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) in (0, 130)
    assert not (tmp_path / "config").exists()


@on_posix
def test_the_page_is_served_by_its_address_alone(store: Path, tmp_path: Path) -> None:
    """The printed address signs in; without its token there is a form, and the API is as closed."""
    command = [CKPT, "ui", "--store", str(store), "--port", "0"]
    env = {**os.environ, "XDG_STATE_HOME": str(tmp_path)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env) as process:
        assert process.stderr is not None
        try:
            address = re.search(r"http://\S+/ui/\?token=ckpt_\S+", process.stderr.readline())
            assert address is not None
            with httpx.Client(trust_env=False, timeout=60) as client:
                bare, root = address[0].partition("?")[0], address[0].partition("/ui")[0]
                assert "Sign in" in client.get(bare).text
                assert client.get(f"{root}/api/v1/experiments").status_code == 401
                assert client.get(address[0]).status_code == 200
                assert "Sign in" not in client.get(bare).text
        finally:
            process.send_signal(signal.SIGINT)


def test_the_page_names_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra, the error says how to install it."""
    monkeypatch.setattr(page, "_PACKAGES", ("no_such_package",))
    with pytest.raises(ConfigError, match=re.escape("pip install 'prefect-checkpoints[ui]'")):
        page.create_app(ServerSettings())
