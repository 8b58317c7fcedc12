"""Deploy everything in ``prefect.yaml`` to the Prefect server that is configured, and run it on this machine.

``make serve`` starts a server beside it. Prefect itself reads the file (``prefect deploy --all``) and runs the flows (a
process worker), so the file means here what it means anywhere else.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.responses import SetStateStatus
from prefect.exceptions import ObjectAlreadyExists
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelled, Crashed

from ckpt_lib import init_store
from ckpt_lib.errors import CheckpointError

PROJECT = Path(__file__).resolve().parent.parent
WORK_POOL = "checkpoints"
"""The pool that ``prefect.yaml`` names."""
MACHINE = f"serve on {socket.gethostname()}, process "
"""What the names of this machine's workers begin with; the process id of this module follows."""
MAX_RUNS_AT_ONCE = 2
SECONDS_TO_STOP = 20.0


class DeployError(RuntimeError):
    """Prefect refused ``prefect.yaml``; the message is what it printed."""


def main() -> int:
    """Deploy and run until Ctrl-C or SIGTERM, which end the runs under way as well; return the exit code."""
    address = PREFECT_API_URL.value()
    if not address:
        print("No Prefect server is configured: set PREFECT_API_URL, or let `make serve` start one.", file=sys.stderr)
        return 1
    # SIGINT too: a background job of a script ignores it, and so would the worker, which uses it to end itself.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)
    os.chdir(PROJECT)
    try:
        store = _prepare_store()
        _create_work_pool()
        _mark_runs_that_died()
        _deploy()
        print(f"\nThe page is at {address.removesuffix('/api')} (Ctrl-C stops everything).")
        print(f"The store is {store}. Deployments:")
        _print_deployments()
        return _work()
    except KeyboardInterrupt:
        print("\nStopped.")
        return 0
    except (CheckpointError, DeployError) as error:
        print(error, file=sys.stderr)
        return 1


def _prepare_store() -> str:
    """Create the store that ``prefect.yaml`` takes from the environment; return its path or URL."""
    for variable, default in (("CKPT_CHECKPOINT_DIR", "checkpoints"), ("CKPT_EXPORT_DIR", "exports")):
        folder = os.environ.get(variable) or default
        os.environ[variable] = folder if "://" in folder else str(Path(folder).absolute())
    store = os.environ["CKPT_CHECKPOINT_DIR"]
    init_store(store)
    return store


def _create_work_pool() -> None:
    with get_client(sync_client=True) as client, suppress(ObjectAlreadyExists):
        client.create_work_pool(WorkPoolCreate(name=WORK_POOL, type="process"))


def _deploy() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise DeployError(f"`prefect deploy --all` failed:\n{done.stdout}")


def _print_deployments() -> None:
    with get_client(sync_client=True) as client:
        for deployment in client.read_deployments():
            flow_name = client.read_flow(deployment.flow_id).name
            schedules = [item.schedule for item in deployment.schedules if item.active]
            when = ", ".join(str(getattr(schedule, "cron", schedule)) for schedule in schedules)
            print(f"  {flow_name}/{deployment.name}" + (f", at {when}" if when else ""), flush=True)


def _work() -> int:
    """Run a worker until it ends or a signal stops it; neither it nor a run that it started is left."""
    name = f"{MACHINE}{os.getpid()}"
    command = ["worker", "start", "--name", name, "--pool", WORK_POOL, "--type", "process"]
    command += ["--limit", str(MAX_RUNS_AT_ONCE)]
    # In a session of its own, so that Ctrl-C reaches this process alone, which then stops the worker and its runs.
    worker = subprocess.Popen([sys.executable, "-m", "prefect", *command], start_new_session=True)
    try:
        return worker.wait()
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C would leave half of it
        _stop(worker)
        _cancel_runs_of(name)


def _stop(worker: subprocess.Popen[bytes]) -> None:
    """Ask the worker to end, which kills its runs; kill it if it does not."""
    with suppress(ProcessLookupError):
        os.killpg(worker.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        worker.wait(SECONDS_TO_STOP)
    with suppress(ProcessLookupError):
        os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()


def _cancel_runs_of(worker: str) -> None:
    """Tell the server of the runs that a worker took with it, which could not do so themselves."""
    try:
        for run in _unfinished_runs():
            if _worker_of(run) == worker:
                if run.infrastructure_pid:
                    with suppress(OSError):
                        os.killpg(int(run.infrastructure_pid), signal.SIGKILL)  # each leads a group of its own
                _end(run, Cancelled(message="The worker was stopped while this ran."))
    except httpx.HTTPError as error:
        print(f"The server did not learn that the runs under way were stopped: {error}", file=sys.stderr)


def _mark_runs_that_died() -> None:
    """Mark what was under way when this program was killed, here, as crashed: it would count as running for ever."""
    for run in _unfinished_runs():
        name = _worker_of(run)
        if name.startswith(MACHINE) and not _is_alive(name.removeprefix(MACHINE), run.infrastructure_pid):
            _end(run, Crashed(message="Its process ended and did not say so."))


def _unfinished_runs() -> list[FlowRun]:
    under_way = FlowRunFilterStateType(any_=[StateType.PENDING, StateType.RUNNING, StateType.CANCELLING])
    with get_client(sync_client=True) as client:
        return client.read_flow_runs(
            flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=under_way)),
            work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[WORK_POOL])),
        )


def _worker_of(run: FlowRun) -> str:
    return str(run.labels.get("prefect.worker.name", ""))


def _is_alive(*pids: str | None) -> bool:
    """Whether any of these is the id of a process; one that another process has taken over counts as well."""
    return any(_is_running(int(pid)) for pid in pids if pid)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):  # no such file, on this system or by now
        return True
    return state not in {"Z", "X"}  # it has ended, and its parent has not asked yet how


def _end(run: FlowRun, state: State) -> None:
    """Bring a run to its last state, by which its place under the deployment's limit is free again."""
    with get_client(sync_client=True) as client:
        answer = client.set_flow_run_state(run.id, state)
    if answer.status is not SetStateStatus.ACCEPT:
        print(f"The server did not mark {run.name} as {state.name}: {answer.details}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
