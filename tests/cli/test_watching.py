"""``ckpt watch``: what changes is told once, on a line or in a view, and Ctrl-C is the end of it."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from torch import nn

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.cli.watch import Seen, Watcher, changes, view_of
from tests.cli.running import CKPT, HOSTILE_TAG, on_posix, run
from tests.saving.failing_stores import AWAY, failing

pytestmark = on_posix


def manager_of(store: Path) -> CheckpointManager:
    return CheckpointManager(CheckpointConfig(checkpoint_dir=str(store)), "digits")


def save(manager: CheckpointManager, epoch: int, accuracy: float) -> str:
    saved = manager.save_checkpoint(model=nn.Linear(4, 2), epoch=epoch, metrics={"accuracy": accuracy})
    assert saved is not None
    return saved


def shown(seen: Seen, *, with_bars: bool = True, width: int = 80) -> str:
    console = Console(width=width, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    with console.file:
        console.print(view_of("digits", seen, with_bars=with_bars))
        return console.export_text()


def test_each_change_is_told_once(store: Path) -> None:
    """A save, a new best, a deletion and a store that does not answer; nothing when nothing has changed."""
    watcher, writer = Watcher(manager_of(store)), manager_of(store)
    before = watcher.look()
    assert [*changes(before, watcher.look())] == []
    saved = save(writer, 4, 0.95)
    now = watcher.look()
    told = [*changes(before, now)]
    assert [(item["event"], item["checkpoint_id"]) for item in told] == [("saved", saved), ("best", saved)]
    assert told[0]["value"] == 0.95
    writer.delete_checkpoint(saved)
    later = watcher.look()
    assert [item["event"] for item in changes(now, later)] == ["best", "gone"]
    with failing(watcher.manager, AWAY, "list", "folder_version"):
        broken = watcher.look()
    assert [item["event"] for item in changes(later, broken)] == ["no_answer"]
    assert broken.checkpoints == later.checkpoints
    assert [item["event"] for item in changes(broken, watcher.look())] == ["answers_again"]


def test_an_unchanged_folder_is_not_listed(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Watching a large experiment costs a look at its folder, and no listing."""
    watcher = Watcher(manager_of(store))
    watcher.look()
    monkeypatch.setattr(watcher.manager, "list_checkpoints", lambda: pytest.fail("the folder was listed"))
    assert len(watcher.look().checkpoints) == 3


def test_the_view_fits_80_columns(store: Path, ids: list[str]) -> None:
    """Ids stay whole, and metrics have their last value and trend; without Unicode, the trend is a word."""
    writer = manager_of(store)
    saved = writer.save_checkpoint(
        model=nn.Linear(4, 2), epoch=4, step=40, metrics={"accuracy": 0.95, "a" * 60: 1e-9, "note": HOSTILE_TAG}
    )
    seen = Watcher(manager_of(store)).look()
    text = shown(seen)
    assert max(map(len, text.splitlines())) <= 80
    assert saved is not None
    assert text.count(saved) == 2  # the latest, and the best
    assert re.search(r"accuracy +0\.95 +\+0\.05 +▁", text)
    assert HOSTILE_TAG[:12] in text
    assert "rising" in shown(seen, with_bars=False)
    assert "no checkpoint yet" in shown(Seen())


@contextmanager
def watching(*arguments: str, **streams: Any) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([CKPT, "watch", *arguments, "--every", "0.1"], text=True, **streams) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_pipe_gets_a_document_for_each_change(store: Path) -> None:
    """At once, each on its line; Ctrl-C ends with exit code 0 and says nothing."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with watching("digits", "--store", str(store), "--json", **streams) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["event"] == "watching"
        saved = save(manager_of(store), 4, 0.95)
        document = json.loads(process.stdout.readline())
        assert (document["event"], document["checkpoint_id"], document["epoch"]) == ("saved", saved, 4)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
        assert (process.returncode, errors) == (0, "")


def test_a_terminal_gets_a_view(store: Path, ids: list[str]) -> None:
    """It is renewed in place, and the terminal is as before when Ctrl-C has ended it."""
    controller, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "40"}
    streams = {"stdout": terminal, "stderr": terminal, "stdin": terminal, "env": environment}
    with watching("--store", str(store), **streams) as process:
        os.close(terminal)
        output = b""
        deadline = time.monotonic() + 60
        while output.count(b"Ctrl-C ends.") < 2:
            assert time.monotonic() < deadline
            output += os.read(controller, 2**16)
        process.send_signal(signal.SIGINT)
        try:
            while piece := os.read(controller, 2**16):
                output += piece
        except OSError:  # Linux reports the closed terminal so
            pass
        assert process.wait(30) == 0
    os.close(controller)
    assert ids[-1].encode() in output
    assert output.rindex(b"\x1b[?25h") > output.rindex(b"\x1b[?25l")  # the cursor is shown again


def test_two_names_are_refused(store: Path) -> None:
    """The experiment is named once; one that is not there is an error, not an empty view."""
    assert "two experiments" in run("watch", "digits", "--experiment", "other", store=store, code=2).stderr
    assert "nosuch" in run("watch", "nosuch", store=store, code=2).stderr
