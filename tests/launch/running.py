"""Launches for tests: in this process, and in one that can be killed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ckpt_lib import CheckpointConfig
from ckpt_lib.launch.launcher import Launcher, LaunchRequest
from ckpt_lib.launch.locking import VARIABLE
from ckpt_lib.launch.processes import Process, descendants, table, with_variable
from ckpt_lib.launch.report import LaunchReport
from ckpt_lib.launch.restarts import RestartPolicy

ROOT = Path(__file__).parents[2]
SECONDS_TO_WAIT = 60.0


def request(store: Path, command: str | Sequence[str], **options: Any) -> LaunchRequest:
    """A launch for the experiment ``run``, which restarts at once."""
    options = {"restarts": RestartPolicy(2, 1, 0.05), "stop_seconds": 5.0, "directory": str(ROOT), **options}
    return LaunchRequest(command, CheckpointConfig(checkpoint_dir=str(store)), "run", "some-id", **options)


@dataclass
class Logged:
    """What a launch said: the lines of its command, and its own."""

    lines: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)


def launched(
    what: LaunchRequest, logged: Logged | None = None, ids: Callable[[], Sequence[str]] | None = None
) -> LaunchReport:
    """Run a launch to its end in this process."""
    return launcher(what, logged or Logged(), ids).run()


def launcher(what: LaunchRequest, logged: Logged, ids: Callable[[], Sequence[str]] | None = None) -> Launcher:
    return Launcher(
        what,
        ids or partial(ids_in, Path(what.config.checkpoint_dir)),
        log_line=logged.lines.append,
        tell=logged.told.append,
    )


def ids_in(store: Path) -> list[str]:
    """The ids in the experiment's folder, without PyTorch, which takes seconds to load."""
    return sorted(path.stem for path in (store / "run").glob("checkpoint_epoch*.json"))


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def processes_of(what: LaunchRequest) -> list[Process]:
    """What is running of a launch."""
    return with_variable(VARIABLE, what.lock().name)


def supervisor_of(launcher_pid: int) -> int:
    """The process between a launcher and its command."""
    children = [item.pid for item in descendants(launcher_pid, table().values()) if item.parent == launcher_pid]
    (found,) = [pid for pid in children if b"ckpt_lib.launch.supervisor" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return found


def wait_until(what: str, condition: Callable[[], Any], seconds: float = SECONDS_TO_WAIT) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(OSError):
            if found := condition():
                return found
        time.sleep(0.05)
    raise AssertionError(f"waited {seconds:.0f} s for {what}")


def started(store: Path, command: Sequence[str], log: Path, **options: Any) -> subprocess.Popen[bytes]:
    """A launch in a process of its own, which can be killed."""
    arguments = [sys.executable, "-u", "-m", "tests.launch.running", str(store), json.dumps(list(command))]
    with log.open("ab") as file:
        return subprocess.Popen(  # unbuffered: the test reads it meanwhile
            [*arguments, json.dumps(options)], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=file, stderr=file
        )


def main(store: str, command: str, options: str) -> None:
    given = json.loads(options)
    given["restarts"] = RestartPolicy(*given.get("restarts", (2, 1, 0.05)))
    what = request(Path(store), json.loads(command), **given)
    launch = Launcher(what, partial(ids_in, Path(store)), log_line=print, tell=print)
    report = launch.run()
    print(report)
    if launch.stopped_by is not None:
        raise launch.stopped_by
    sys.exit(0 if report.outcome == "done" else 1)


if __name__ == "__main__":
    main(*sys.argv[1:])
