"""Deploys everything in ``prefect.yaml`` to the configured Prefect server, and runs it on this machine.

``make serve`` also starts a server. Prefect itself reads the file (``prefect deploy --all``) and runs the flows (a
process worker), so the file means the same here as elsewhere.
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
"""The work pool in ``prefect.yaml``."""
MACHINE = f"serve on {socket.gethostname()}, process "
"""Prefix of the names of this machine's workers; the process id of this program follows."""
MAX_RUNS_AT_ONCE = 2
SECONDS_TO_STOP = 20.0


class DeployError(RuntimeError):
    """Prefect refused ``prefect.yaml``; the message holds its output."""


def main() -> int:
    """Deploy and run until Ctrl-C or SIGTERM, which also end the current runs; return the exit code."""
    address = PREFECT_API_URL.value()
    if not address:
        print("No Prefect server is configured: set PREFECT_API_URL, or let `make serve` start one.", file=sys.stderr)
        return 1
    # SIGINT too: background jobs of scripts ignore it, and so would the worker, which ends itself by it.
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
    """Create the store that the environment names for ``prefect.yaml``; return its path or URL."""
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
    """Run a worker until it ends or a signal stops it; stop it and all runs that it started."""
    name = f"{MACHINE}{os.getpid()}"
    command = ["worker", "start", "--name", name, "--pool", WORK_POOL, "--type", "process"]
    command += ["--limit", str(MAX_RUNS_AT_ONCE)]
    # In its own session, so that Ctrl-C reaches only this process, which stops the worker and its runs.
    worker = subprocess.Popen([sys.executable, "-m", "prefect", *command], start_new_session=True)
    try:
        return worker.wait()
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C must not interrupt the cleanup
        _stop(worker)
        _cancel_runs_of(name)


def _stop(worker: subprocess.Popen[bytes]) -> None:
    """Terminate the worker, which kills its runs; kill it if it does not end in time."""
    with suppress(ProcessLookupError):
        os.killpg(worker.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        worker.wait(SECONDS_TO_STOP)
    with suppress(ProcessLookupError):
        os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()


def _cancel_runs_of(worker: str) -> None:
    """Mark the unfinished runs of a stopped worker as cancelled."""
    try:
        for run in _unfinished_runs():
            if _worker_of(run) == worker:
                if run.infrastructure_pid:
                    with suppress(OSError):
                        os.killpg(int(run.infrastructure_pid), signal.SIGKILL)  # each leads its own process group
                _end(run, Cancelled(message="The worker was stopped while this ran."))
    except httpx.HTTPError as error:
        print(f"The server could not be told that the current runs were stopped: {error}", file=sys.stderr)


def _mark_runs_that_died() -> None:
    """Mark runs as crashed that were unfinished when this program was killed: they would count as running for ever."""
    for run in _unfinished_runs():
        name = _worker_of(run)
        if name.startswith(MACHINE) and not _is_alive(name.removeprefix(MACHINE), run.infrastructure_pid):
            _end(run, Crashed(message="The process of the run ended without reporting."))


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
    """Return whether any of these process ids is in use, even if another process has taken it over."""
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
    return state not in {"Z", "X"}  # ended, and not yet waited for by its parent


def _end(run: FlowRun, state: State) -> None:
    """Set the final state of a run, which frees its slot under the concurrency limit of the deployment."""
    with get_client(sync_client=True) as client:
        answer = client.set_flow_run_state(run.id, state)
    if answer.status is not SetStateStatus.ACCEPT:
        print(f"The server did not mark {run.name} as {state.name}: {answer.details}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
