"""Commands under a supervisor: real processes, which do what they like, and none of which is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ckpt_lib.errors import AlreadyRunningError, ConfigError, LaunchError
from ckpt_lib.launch import locking
from ckpt_lib.launch.output import TAIL_LINES
from ckpt_lib.launch.processes import read, send
from ckpt_lib.launch.restarts import RestartPolicy
from tests.launch.running import (
    Logged,
    launched,
    launcher,
    processes_of,
    python,
    request,
    started,
    supervisor_of,
    wait_until,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="commands are launched on Linux only")
ONCE = RestartPolicy(0, 0, 0)

STUBBORN = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for away in (False, True):
    if os.fork() == 0:
        if away:
            os.setsid()
            if os.fork():
                os._exit(0)
        break
os.write(1, b"running\\n")  # in one piece: several processes write
time.sleep(1000)
"""
"""A process, a child and a grandchild that has left session, group and parent; none of them minds SIGTERM."""

HIDDEN = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
with open(sys.argv[1], "a") as file:
    file.write(f"{os.getpid()}\\n")
os.write(1, b"running\\n")
time.sleep(1000)
"""
"""A process and a child in a session of its own, neither of which minds SIGTERM."""

SAVING = """
import signal, sys, time
def save(*_):
    time.sleep(0.3)
    print("x" * 200_000)
    open(sys.argv[1], "w").write("saved")
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
print("running", flush=True)
while True:
    time.sleep(0.05)
"""
"""A training that takes a moment to save when it is asked to stop, and writes more than a pipe holds."""


def saving(path: Path) -> list[str]:
    return [*python(SAVING), str(path)]


def test_a_command_that_ends_well_is_done(tmp_path: Path) -> None:
    """Exit code 0; both streams are logged line by line, stdin is empty, and its variables name the experiment."""
    logged = Logged()
    code = (
        "import os, sys; print('out'); sys.stderr.write('err\\n'); sys.stdout.write('partial' + sys.stdin.read());"
        "assert os.environ['CKPT_EXPERIMENT'] == 'run'; assert os.environ['CKPT_LAUNCH_ID'] == 'some-id';"
        "assert os.environ['CKPT_LAUNCH_ATTEMPT'] == '1'; assert os.getsid(0) == os.getpid()"
    )
    report = launched(request(tmp_path, python(code)), logged)
    assert sorted(logged.lines) == ["err", "out", "partial"]
    (attempt,) = report.attempts
    assert (attempt.outcome, attempt.exit_code, attempt.was_killed) == ("done", 0, False)
    assert sorted(attempt.last_lines) == sorted(logged.lines)


def test_a_program_that_does_not_exist_is_refused_before_anything(tmp_path: Path) -> None:
    """A typed error when the request is made; what the system refuses to run is one as well, and is not retried."""
    with pytest.raises(ConfigError, match=r"not found.*got 'no-such-program'"):
        request(tmp_path, "no-such-program --epochs 3")
    with pytest.raises(ConfigError, match="working directory"):
        request(tmp_path, "true", directory=str(tmp_path / "missing"))
    broken = tmp_path / "broken"
    broken.write_bytes(b"\x7fELF")
    broken.chmod(0o755)
    with pytest.raises(LaunchError, match="Exec format error"):
        launched(request(tmp_path, [str(broken)]))
    assert launched(request(tmp_path, "true")).outcome == "done"  # the lock is free


@pytest.mark.parametrize("gone", ["program", "folder"])
def test_a_restart_that_is_refused_is_a_failed_attempt(tmp_path: Path, gone: str) -> None:
    """The report keeps the attempts before it; the launch goes on by its policy, for what is gone may come back."""
    folder = tmp_path / "folder"
    folder.mkdir()
    program = folder / "train.sh"
    program.write_text(f"#!/bin/sh\nrm -r {folder if gone == 'folder' else program}\necho trained; exit 3\n")
    program.chmod(0o755)
    command = [str(program)] if gone == "program" else ["/bin/sh", "-c", program.read_text()]
    logged = Logged()
    report = launched(request(tmp_path, command, directory=str(folder)), logged)
    assert [item.outcome for item in report.attempts] == ["failed", "failed"]
    assert report.attempts[0].exit_code == 3
    assert report.attempts[0].last_lines == ("trained",)
    assert "could not be started again" in report.attempts[1].evidence
    assert "made no checkpoint" in report.conclusion


def test_what_a_command_leaves_running_is_ended(tmp_path: Path) -> None:
    """Children that ignore SIGTERM, and a grandchild that has moved away from group and session."""
    what = request(tmp_path, ["sh", "-c", '"$@" & sleep 1', "sh", *python(STUBBORN)], stop_seconds=0.5)
    report = launched(what)
    assert (report.outcome, report.attempts[0].was_killed) == ("done", True)
    assert sum(line.startswith("running") for line in report.attempts[0].last_lines) == 3
    assert processes_of(what) == []


def test_a_stop_gives_time_to_save(tmp_path: Path) -> None:
    """Ctrl-C asks the command to stop; it saves, which the launch waits for, and is not restarted."""
    logged, what = Logged(), request(tmp_path, saving(tmp_path / "saved"))
    launch = launcher(what, logged)
    timer = threading.Thread(target=interrupt_when, args=(logged,))
    timer.start()
    report = launch.run()
    timer.join()
    assert isinstance(launch.stopped_by, KeyboardInterrupt)
    assert (tmp_path / "saved").read_text() == "saved"
    assert (report.outcome, report.attempts[0].exit_code) == ("preempted", 143)
    assert len(report.attempts) == 1


def interrupt_when(logged: Logged) -> None:
    wait_until("the command", lambda: "running" in logged.lines)
    os.kill(os.getpid(), signal.SIGINT)


def test_a_stop_ends_what_does_not_stop(tmp_path: Path) -> None:
    """After the deadline everything is killed, whatever it ignores and wherever it has moved."""
    logged, what = Logged(), request(tmp_path, python(STUBBORN), stop_seconds=0.5)
    timer = threading.Thread(target=interrupt_when_all_run, args=(logged,))
    timer.start()
    report = launcher(what, logged).run()
    timer.join()
    assert (report.outcome, report.attempts[0].was_killed) == ("preempted", True)
    assert processes_of(what) == []


def interrupt_when_all_run(logged: Logged) -> None:
    wait_until("the command", lambda: sum(line.startswith("running") for line in logged.lines) == 3)
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("code", [SAVING, STUBBORN], ids=["saving", "stubborn"])
def test_a_killed_launcher_leaves_nothing_behind(tmp_path: Path, code: str) -> None:
    """Within ten seconds; first with time to save, even where what is written can go nowhere any more."""
    command = [*python(code), str(tmp_path / "saved")]
    what = request(tmp_path, command)
    launch = started(tmp_path, command, tmp_path / "log")
    wait_until("the command", lambda: (tmp_path / "log").read_text().count("running") == (1 if code == SAVING else 3))
    launch.kill()
    launch.wait()
    killed_at = datetime.now(UTC)
    (attempt,) = launched(request(tmp_path, "true")).attempts  # this waits for the orphan's end
    assert (attempt.started_at - killed_at).total_seconds() < 10
    assert processes_of(what) == []
    if code == SAVING:
        assert (tmp_path / "saved").read_text() == "saved"


def test_a_killed_supervisor_leaves_nothing_behind(tmp_path: Path) -> None:
    """The launcher, which is still there, ends what has lost its supervisor, and restarts the command."""
    logged, what = Logged(), request(tmp_path, python(STUBBORN), stop_seconds=0.5, restarts=ONCE)
    timer = threading.Thread(target=kill_supervisor_when_all_run, args=(logged,))
    timer.start()
    report = launcher(what, logged).run()
    timer.join()
    assert (report.outcome, report.attempts[0].exit_code) == ("killed", None)
    assert processes_of(what) == []


def test_a_killed_supervisor_leaves_nothing_that_hides_its_environment(tmp_path: Path) -> None:
    """``env -i``, or a title that a program gives itself, takes the variable away; the session is known still."""
    pids, logged = tmp_path / "pids", Logged()
    what = request(tmp_path, ["env", "-i", *python(HIDDEN), str(pids)], stop_seconds=0.5, restarts=ONCE)
    timer = threading.Thread(target=kill_supervisor_when_all_run, args=(logged, 2))
    timer.start()
    assert launcher(what, logged).run().outcome == "killed"
    timer.join()
    found = [read(int(pid)) for pid in pids.read_text().split()]
    left = [process for process in found if process and not process.has_ended]
    send(left, signal.SIGKILL)
    assert (len(found), left) == (2, [])


def kill_supervisor_when_all_run(logged: Logged, count: int = 3) -> None:
    wait_until("the command", lambda: sum(line.startswith("running") for line in logged.lines) == count)
    os.kill(supervisor_of(os.getpid()), signal.SIGKILL)


def test_a_launch_ends_what_killed_launcher_and_supervisor_have_left(tmp_path: Path) -> None:
    """With both killed, nobody is left to end the command but the next launch, which does so before it starts."""
    what = request(tmp_path, python(STUBBORN), stop_seconds=0.5)
    launch = started(tmp_path, list(what.command), tmp_path / "log")
    wait_until("the command", lambda: (tmp_path / "log").read_text().count("running") == 3)
    supervisor = supervisor_of(launch.pid)
    os.kill(launch.pid, signal.SIGSTOP)  # so that it does not see the end of its supervisor
    os.kill(supervisor, signal.SIGKILL)
    launch.kill()
    launch.wait()
    assert processes_of(what)
    assert launched(request(tmp_path, "true", stop_seconds=0.5)).outcome == "done"
    assert processes_of(what) == []


def test_two_launches_of_an_experiment_exclude_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one is refused, and says who has the lock; another experiment is free; so is this one afterwards."""
    monkeypatch.setattr(locking, "SECONDS_TO_WAIT", 0.3)
    what = request(tmp_path, "sleep 1000")
    launch = started(tmp_path, ["sleep", "1000"], tmp_path / "log")
    wait_until("the command", lambda: len(processes_of(what)) == 1)
    with pytest.raises(AlreadyRunningError, match=f"process {launch.pid} since"):
        launched(request(tmp_path, "true"))
    assert launched(request(tmp_path / "elsewhere", "true")).outcome == "done"
    launch.send_signal(signal.SIGINT)
    launch.wait()
    assert launched(request(tmp_path, "true")).outcome == "done"


def test_a_flood_of_output_neither_blocks_nor_fills_the_log(tmp_path: Path) -> None:
    """Tens of megabytes: the log says what was left out, and has the end, which is also in the report."""
    logged = Logged()
    code = "import sys\nfor _ in range(400): sys.stdout.write('0123456789\\n' * 10_000)\nprint('the end')"
    report = launched(request(tmp_path, python(code)), logged)
    assert report.outcome == "done"
    assert logged.lines[-1] == report.attempts[0].last_lines[-1] == "the end"
    assert any("left out" in line for line in logged.lines)
    assert len(logged.lines) < 10_000
    assert len(report.attempts[0].last_lines) == TAIL_LINES


def test_a_log_that_hangs_does_not_block_the_command(tmp_path: Path) -> None:
    """More than all pipes hold is written to its end, while the launcher is busy with the first line."""
    done = tmp_path / "done"
    code = "import sys\nsys.stdout.write('x' * 79 + '\\n')\n"
    code += "for _ in range(200): sys.stdout.write(('y' * 79 + '\\n') * 1000)\n"
    code += f"sys.stdout.flush()\nopen({str(done)!r}, 'w').write('done')"
    logged = Logged()

    def hang(line: str) -> None:
        if not logged.lines:
            wait_until("the command", done.exists)
        logged.lines.append(line)

    what = request(tmp_path, python(code))
    launch = launcher(what, logged)
    launch._log_line = hang
    assert launch.run().outcome == "done"
    assert any("left out" in line for line in logged.lines)


def test_a_log_that_fails_does_not_end_the_command(tmp_path: Path) -> None:
    """An error of the log is logged elsewhere; the command runs on, and its last lines are in the report."""
    launch = launcher(request(tmp_path, "echo something"), Logged())

    def fail(_line: str) -> None:
        raise OSError("no log")

    launch._log_line = fail
    report = launch.run()
    assert (report.outcome, report.attempts[0].last_lines) == ("done", ("something",))


def test_a_hung_command_is_stopped_and_restarted(tmp_path: Path) -> None:
    """Alive, but without a new checkpoint for too long; a command that makes some is left alone for longer."""
    ids: list[str] = []
    logged = Logged()
    began = time.monotonic()

    def list_ids() -> list[str]:
        if time.monotonic() < began + 1.5:
            ids.append(f"checkpoint {len(ids)}")
        return ids

    what = request(tmp_path, "sleep 1000", stall_seconds=0.4, restarts=RestartPolicy(9, 1, 0.05))
    report = launched(what, logged, list_ids)
    assert {attempt.outcome for attempt in report.attempts} == {"hung"}
    assert report.attempts[0].seconds > 1.5
    assert [bool(attempt.checkpoint_ids) for attempt in report.attempts] == [True, False, False]
    assert "made no checkpoint" in report.conclusion


def test_a_store_that_does_not_answer_is_no_proof_of_a_hang(tmp_path: Path) -> None:
    """While nobody can tell whether there are checkpoints, the command goes on."""
    answers = 0

    def list_ids() -> list[str]:
        nonlocal answers
        answers += 1
        if answers > 1:
            raise OSError("the disk is away")
        return []

    report = launched(request(tmp_path, "sleep 1.5", stall_seconds=0.3), ids=list_ids)
    assert report.outcome == "done"
    assert answers > 5


def test_a_supervisor_needs_next_to_nothing() -> None:
    """It imports neither torch nor prefect, nor pydantic: it runs beside every training."""
    code = "import sys, ckpt_lib.launch.supervisor; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {name.partition(".")[0] for name in loaded}.isdisjoint({"torch", "prefect", "pydantic", "numpy", "fsspec"})
    ours = {name for name in loaded if name.startswith("ckpt_lib")}
    assert ours == {"ckpt_lib", "ckpt_lib.launch", "ckpt_lib.launch.supervisor", "ckpt_lib.launch.processes"}
