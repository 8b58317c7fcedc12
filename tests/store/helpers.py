"""What the tests of stores share: forks, new interpreters, and a look for unfinished files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from ckpt_lib.store.local.reserve import RESERVE_NAME

ROOT = Path(__file__).parent.parent.parent


class Fork:
    """A fork of this process that does ``work`` and ends. What ``work`` tells, :meth:`heard` gives."""

    def __init__(self, work: Callable[[Callable[[str], object]], object]) -> None:
        self._reading, writing = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                os.close(self._reading)
                work(lambda text: os.write(writing, f"{text}\n".encode()))
                code = 0
            except BaseException:
                os.write(writing, traceback.format_exc().encode())
            finally:
                os._exit(code)
        os.close(writing)
        self._is_over = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._is_over:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()
        os.close(self._reading)

    def heard(self) -> str:
        """Wait for what it tells next; nothing once it has ended."""
        text = b""
        while not text.endswith(b"\n") and (piece := os.read(self._reading, 1)):
            text += piece
        return text.decode().strip()

    def wait(self) -> int:
        """Wait for its end; return its exit code, or the negative number of a signal."""
        self._is_over = True
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def stop(self) -> None:
        """Stop it, and wait until it stands still."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitpid(self.pid, os.WUNTRACED)


def in_fork(work: Callable[[], object]) -> int:
    """Do ``work`` in a fork; return how it ended."""
    with Fork(lambda _: work()) as child:
        told = child.heard()
        code = child.wait()
    assert code <= 0, told
    return code


def run_python(code: str, *arguments: object) -> str:
    """Run ``code`` in a new interpreter and return what it printed; fail with what it said on stderr."""
    command = [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def eventually(is_so: Callable[[], bool], *, within_seconds: float = 10.0) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + within_seconds
    while not is_so():
        assert time.monotonic() < deadline, "it never was so"
        time.sleep(0.005)


def temporary_files(root: Path) -> list[str]:
    """Return the names of unfinished files below a folder."""
    return sorted(path.name for path in root.rglob(".ckpt-tmp/*") if path.name not in ("lock", RESERVE_NAME))
