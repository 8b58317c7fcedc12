"""Ways to run ``ckpt``: in this process, as a program, and as a program on a terminal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any, NoReturn

import pytest
from typer.testing import CliRunner, Result

from ckpt_lib.cli import main
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
    """Run ``ckpt`` in a fork of this process on a pseudo-terminal, answer its question; its exit code and output."""
    import fcntl
    import pty
    import struct
    import termios

    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the child uses none of this process's threads
        program = os.fork()
    if not program:
        _be_the_program(terminal, list(map(str, args)))
    os.close(terminal)
    output = b""
    while piece := _read(controller):
        output += piece
        if answer and output.rstrip().endswith(b"[y/N]:"):
            os.write(controller, answer.encode() + b"\n")
            answer = ""
    os.close(controller)
    return os.waitstatus_to_exitcode(os.waitpid(program, 0)[1]), output.decode().replace("\r\n", "\n")


def _be_the_program(terminal: int, args: list[str]) -> NoReturn:
    """What the console script does, with streams as the interpreter opens them on a terminal."""
    code = 1
    try:
        signal.alarm(60)
        for number in range(3):
            os.dup2(terminal, number)
        sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
        os.environ["TERM"] = "xterm-256color"
        sys.argv = ["ckpt", *args]
        main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _read(controller: int) -> bytes:
    try:
        return os.read(controller, 2**16)
    except OSError:  # Linux reports the closed terminal so
        return b""
