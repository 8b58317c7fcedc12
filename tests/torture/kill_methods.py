"""Three ways to kill a process at work: after some time, at a system call by ``strace``, and halfway through a write.

The process is a fork of this one, in which everything is loaded already. It waits until it is told to begin, and says
so when what it did was acknowledged.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tests.torture.processes import result_of

ATTACH_TIMEOUT_SECONDS = 20.0
CHILD_TIMEOUT_SECONDS = 120.0

SYSTEM_CALLS = (
    "openat,open,creat,write,pwrite64,writev,pwritev,pwritev2,copy_file_range,fallocate,truncate,ftruncate,"
    "fsync,fdatasync,sync_file_range,link,linkat,unlink,unlinkat,rename,renameat,renameat2,mkdir,mkdirat,rmdir,"
    "symlink,symlinkat,utimensat,io_submit"
)
"""Those that change the file system or order its changes."""

_CALL = re.compile(r"^(\d+) +(\w+)\((.*)")


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Keep torch from starting threads in this process: a fork has none of them, and waits for them in vain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class End:
    """How a child ended."""

    is_acknowledged: bool
    """Whether what it did was done, and it said so."""
    is_killed: bool


class Child:
    """A fork that waits for :meth:`begin`, runs ``action`` and ends when it is asked for its :meth:`end`."""

    def __init__(self, action: Callable[[], object]) -> None:
        answer, gate = os.pipe(), os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # this process may have threads; the child needs none
            self.pid = os.fork()
        if not self.pid:
            os.close(answer[0])
            os.close(gate[1])
            _run(action, gate[0], answer[1])
        os.close(answer[1])
        os.close(gate[0])
        self._answer, self._gate = answer[0], gate[1]
        self.is_over = False

    def begin(self) -> None:
        os.write(self._gate, b"!")

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def end(self) -> End:
        """Wait until it is done or dead. Raises ``RuntimeError`` if it failed by itself."""
        os.close(self._gate)
        self.is_over = True
        with os.fdopen(self._answer, "rb") as pipe:
            answer = pipe.read().decode(errors="replace")
        _, status = os.waitpid(self.pid, 0)
        if answer.startswith("!"):
            raise RuntimeError(answer[1:])
        if status not in (0, signal.SIGKILL):
            raise RuntimeError(f"the child ended with status {status}")
        return End(is_acknowledged=answer == "acknowledged", is_killed=status == signal.SIGKILL)


def _run(action: Callable[[], object], gate: int, answer: int) -> None:
    """The child's whole life; nothing of the parent's is cleaned up in it."""
    try:
        signal.alarm(int(CHILD_TIMEOUT_SECONDS))  # one that hangs ends, with a status that says so
        os.read(gate, 1)
        action()
        os.write(answer, b"acknowledged")
        os.read(gate, 1)  # so that who comes late still finds someone to kill
    except BaseException:
        os.write(answer, f"!{traceback.format_exc()}".encode())
    finally:
        os._exit(0)


# --- after some time ---


def duration_seconds(action: Callable[[], object]) -> float:
    """How long ``action`` takes in a child, without the child's own beginning and end."""

    def timed() -> float:
        started = time.perf_counter()
        action()
        return time.perf_counter() - started

    return float(result_of(timed))


def killed_after(action: Callable[[], object], delay_seconds: float) -> End:
    """Kill a child so long after its beginning."""
    child = Child(action)
    child.begin()
    time.sleep(delay_seconds)
    child.kill()
    return child.end()


# --- at a system call ---


@dataclass(frozen=True)
class Call:
    """The ``number``-th call of ``name`` that one thread of a process makes, counted from 1."""

    name: str
    number: int


def strace_is_lacking() -> str:
    """What to do so that processes can be killed at a system call; empty when nothing is."""
    if not shutil.which("strace"):
        return "strace is not installed: `apt-get install strace`, or what your system calls it"
    child = Child(lambda: None)
    try:
        with _traced(child, Path(os.devnull)):
            child.begin()
            child.end()
    except (OSError, RuntimeError) as error:
        return f"strace may not trace processes here: {error}"
    return ""


def calls_of(action: Callable[[], object], trace: Path) -> list[Call]:
    """The calls by which ``action`` changes the file system, in order; of those that open a file, what may create it.

    Threads are counted apart, as ``strace`` counts.
    """
    child = Child(action)
    with _traced(child, trace):
        child.begin()
        if child.end().is_killed:
            raise RuntimeError("the child was killed by someone else")
    counted: dict[tuple[str, str], int] = {}
    calls = []
    for line in trace.read_text(errors="replace").splitlines():
        if not (found := _CALL.match(line)):
            continue
        thread, name, arguments = found.groups()
        number = counted[thread, name] = counted.get((thread, name), 0) + 1
        is_reading = name in ("openat", "open") and "O_CREAT" not in arguments
        if not is_reading and '"acknowledged"' not in arguments:
            calls.append(Call(name, number))
    return list(dict.fromkeys(calls))


def killed_at(action: Callable[[], object], call: Call, trace: Path) -> End:
    """Let ``strace`` kill a child as it enters a call, if it makes so many."""
    child = Child(action)
    with _traced(child, trace, "-e", f"inject={call.name}:signal=KILL:when={call.number}"):
        child.begin()
        return child.end()


@contextlib.contextmanager
def _traced(child: Child, trace: Path, *inject: str) -> Iterator[None]:
    command = ["strace", "-f", "-qq", "-o", str(trace), "-e", f"trace={SYSTEM_CALLS}", *inject, "-p", str(child.pid)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as tracer:
        try:
            _wait_until_traced(child, tracer)
            yield
        finally:
            if not child.is_over:
                child.kill()
                child.end()
            tracer.wait()


def _wait_until_traced(child: Child, tracer: subprocess.Popen[str]) -> None:
    status = Path(f"/proc/{child.pid}/status")
    deadline = time.monotonic() + ATTACH_TIMEOUT_SECONDS
    while re.search(r"^TracerPid:\s+0$", status.read_text(), re.MULTILINE):
        if tracer.poll() is not None or time.monotonic() > deadline:
            said = tracer.stderr.read().strip() if tracer.poll() is not None and tracer.stderr else ""
            raise RuntimeError(said or "strace did not attach")
        time.sleep(0.0005)


# --- functions of this process, counted, and made to kill or to fail ---

FUNCTIONS = ("open", "write", "pwrite", "fsync", "link", "unlink", "rename", "replace", "mkdir", "rmdir", "utime")


@dataclass
class Fault:
    """What happens from the ``at``-th call on: SIGKILL, a torn write and then SIGKILL, or an error once or for ever."""

    at: int = 0
    kill: bool = False
    torn: bool = False
    code: int = 0
    persistent: bool = False
    calls: list[str] = field(default_factory=list)
    hit: str = ""

    def applies_to(self, name: str) -> bool:
        self.calls.append(name)
        return len(self.calls) == self.at or (self.persistent and len(self.calls) > self.at > 0)


@contextlib.contextmanager
def injected(fault: Fault) -> Iterator[None]:
    """Put ``fault`` into the functions by which the store changes the file system."""
    real = {name: getattr(os, name) for name in FUNCTIONS if hasattr(os, name)}

    def wrap(name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if not fault.applies_to(name):
                return real[name](*arguments, **options)
            fault.hit = fault.hit or name
            if fault.code:
                raise OSError(fault.code, os.strerror(fault.code))
            if name in ("write", "pwrite") and fault.torn:
                real[name](arguments[0], arguments[1][: len(arguments[1]) // 2], *arguments[2:])
            os.kill(os.getpid(), signal.SIGKILL)
            raise AssertionError("nobody survives that")

        return call

    for name in real:
        setattr(os, name, wrap(name))
    try:
        yield
    finally:
        for name, function in real.items():
            setattr(os, name, function)


def functions_of(action: Callable[[], object]) -> list[str]:
    """The functions of ``os`` by which ``action`` changes the file system, as a child calls them."""

    def counted() -> list[str]:
        fault = Fault()
        with injected(fault):
            action()
        return fault.calls

    return list(result_of(counted))


def struck(action: Callable[[], object], fault: Fault) -> End:
    """Run ``action`` in a child with ``fault``."""

    def faulty() -> None:
        with injected(fault):
            action()

    child = Child(faulty)
    child.begin()
    return child.end()
