"""Deploy everything in ``prefect.yaml`` to the Prefect server that is configured, and run it on this machine.

``make serve`` starts a server beside it. Prefect itself reads the file (``prefect deploy --all``) and runs the flows (a
process worker), so the file means here what it means anywhere else.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectAlreadyExists
from prefect.settings import PREFECT_API_URL

from ckpt_lib import init_store
from ckpt_lib.errors import CheckpointError

PROJECT = Path(__file__).resolve().parent.parent
WORK_POOL = "checkpoints"
"""The pool that ``prefect.yaml`` names."""
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
    """Run a worker until it ends or a signal stops it; nothing that it started is left."""
    command = ["worker", "start", "--pool", WORK_POOL, "--type", "process", "--limit", str(MAX_RUNS_AT_ONCE)]
    # In a session of its own, so that Ctrl-C reaches this process alone, which then stops the worker and its runs.
    worker = subprocess.Popen([sys.executable, "-m", "prefect", *command], start_new_session=True)
    try:
        return worker.wait()
    finally:
        _stop(worker)


def _stop(worker: subprocess.Popen[bytes]) -> None:
    """Ask the worker and its runs to end, and kill what does not; a training may save once more meanwhile."""
    with suppress(ProcessLookupError):
        os.killpg(worker.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        worker.wait(SECONDS_TO_STOP)
    with suppress(ProcessLookupError):
        os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()


if __name__ == "__main__":
    sys.exit(main())
