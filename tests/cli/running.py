"""Ways to run ``ckpt``: in this process, as a program, and as a program on a terminal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest
from typer.testing import CliRunner, Result

from ckpt_lib.cli.app import app

CKPT = str(Path(sys.executable).with_name("ckpt"))
HOSTILE_TAG = "[red]not red[red] :boom:"
on_posix = pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals, signals and FIFOs are POSIX")


def run(*args: str | Path, store: Path | None = None, code: int = 0, env: dict[str, str] | None = None) -> Result:
    """Run ``ckpt`` in this process, and check how it ends."""
    env = (env or {}) | ({} if store is None else {"CKPT_CHECKPOINT_DIR": str(store)})
    result = CliRunner(env=env).invoke(app, [str(arg) for arg in args], prog_name="ckpt")
    assert result.exit_code == code, result.output
    return result


def run_json(*args: str | Path, store: Path | None = None, code: int = 0, env: dict[str, str] | None = None) -> Any:
    """The same with ``--json``: the only thing on stdout is one strict document."""
    return strict_json(run(*args, "--json", store=store, code=code, env=env).stdout)


def strict_json(text: str) -> Any:
    """Read JSON as a strict reader does."""

    def refuse(token: str) -> NoReturn:
        raise AssertionError(f"{token} is not JSON")

    assert text.isascii()
    return json.loads(text, parse_constant=refuse)


def run_program(*args: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the console script in a process of its own, its output piped."""
    return subprocess.run(
        [CKPT, *map(str, args)], env={**os.environ, **env}, capture_output=True, text=True, check=False, timeout=60
    )


def run_on_terminal(*args: str | Path, columns: int, answer: str = "") -> tuple[int, str]:
    """Run the console script on a pseudo-terminal, answer its question, and return exit code and output."""
    import fcntl
    import pty
    import struct
    import termios

    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    program = subprocess.Popen(
        [CKPT, *map(str, args)],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env={**os.environ, "TERM": "xterm-256color"},
    )
    os.close(terminal)
    output = b""
    while piece := _read(controller):
        output += piece
        if answer and output.rstrip().endswith(b"[y/N]:"):
            os.write(controller, answer.encode() + b"\n")
            answer = ""
    os.close(controller)
    return program.wait(timeout=60), output.decode().replace("\r\n", "\n")


def _read(controller: int) -> bytes:
    try:
        return os.read(controller, 2**16)
    except OSError:  # Linux reports the closed terminal so
        return b""
