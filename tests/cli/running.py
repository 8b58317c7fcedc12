"""Ways to run ``ckpt``: in this process, as a program, and as a program on a terminal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
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
    program = fork_program(args, dict.fromkeys(range(3), terminal), TERM="xterm-256color")
    os.close(terminal)
    output = b""
    while piece := _read(controller):
        output += piece
        if answer and output.rstrip().endswith(b"[y/N]:"):
            os.write(controller, answer.encode() + b"\n")
            answer = ""
    os.close(controller)
    return os.waitstatus_to_exitcode(os.waitpid(program, 0)[1]), output.decode().replace("\r\n", "\n")


def run_with_streams(*args: str, bent: Mapping[int, str | None], **env: str) -> tuple[int, str]:
    """Run ``ckpt`` in a fork of this process, with streams that are closed or lead to a file; exit code and output.

    ``bent`` says for the number of a stream where it leads, ``None`` for nowhere; what others print is returned.
    """
    with tempfile.TemporaryFile() as output, ExitStack() as opened:
        streams: dict[int, int | None] = {0: opened.enter_context(open(os.devnull)).fileno()}
        streams |= {number: output.fileno() for number in (1, 2)}
        for number, path in bent.items():
            streams[number] = None if path is None else opened.enter_context(open(path, "w")).fileno()
        program = fork_program(args, streams, **env)
        code = os.waitstatus_to_exitcode(os.waitpid(program, 0)[1])
        output.seek(0)
        return code, output.read().decode()


def fork_program(args: Iterable[str | Path], streams: Mapping[int, int | None], **env: str) -> int:
    """Fork a process that does what the console script does; ``streams`` says what its standard streams are."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the child uses none of this process's threads
        pid = os.fork()
    if not pid:
        _be_the_program([str(arg) for arg in args], streams, env)
    return pid


def _be_the_program(args: list[str], streams: Mapping[int, int | None], env: Mapping[str, str]) -> NoReturn:
    code: Any = 1
    try:
        signal.alarm(60)
        _open_streams(streams)
        os.environ.update(env)
        sys.argv = ["ckpt", *args]
        main()
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code if _are_flushed() else 120)  # as the interpreter does


def _open_streams(streams: Mapping[int, int | None]) -> None:
    """As the interpreter does when it starts: a closed stream is ``None``."""
    for number, descriptor in streams.items():
        if descriptor is None:
            os.close(number)
        else:
            os.dup2(descriptor, number)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = None if streams[number] is None else open(number, "w" if number else "r", closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _are_flushed() -> bool:
    """Whether all that was printed could be written; what was said on a broken stderr is nobody's concern."""
    with suppress(OSError, AttributeError):
        sys.stderr.flush()
    try:
        sys.stdout.flush()
    except OSError:
        return False
    return True


def _read(controller: int) -> bytes:
    try:
        return os.read(controller, 2**16)
    except OSError:  # Linux reports the closed terminal so
        return b""


def payload(store: Path, checkpoint_id: str) -> Path:
    return store / "digits" / f"{checkpoint_id}.pt"


def tree(root: Path) -> dict[str, tuple[int, int]]:
    """What is there, and when it was last written."""
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in [root, *root.rglob("*")]}
