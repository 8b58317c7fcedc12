"""How a flow run ends that SIGTERM has stopped: its state says so, and names the newest checkpoint."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.exceptions import Abort
from prefect.logging import get_run_logger
from prefect.states import Crashed
from prefect.utilities.engine import propose_state_sync

from ckpt_lib import CheckpointManager
from ckpt_lib.errors import CheckpointError

PREEMPTED = "Preempted"
"""The name of the state, whose type is ``CRASHED``."""


@contextlib.contextmanager
def acknowledging_stops() -> Iterator[None]:
    """Have Prefect take the handler of SIGTERM that is installed now for its own, until the block ends.

    Before ``prefect flow-run execute`` stops a flow, it asks the flow's process whether it will end by itself. Prefect
    answers yes while the handler is its own. Otherwise the process gets SIGKILL, and saves nothing. There is no public
    way to say that another handler saves first, and then hands over to Prefect's.
    """
    from prefect.utilities import engine

    if not hasattr(engine, "_prefect_sigterm_handler"):  # another version of Prefect, which may kill the process
        yield
        return
    with engine._prefect_sigterm_bridge_lock:
        prefects = engine._prefect_sigterm_handler
        engine._prefect_sigterm_handler = signal.getsignal(signal.SIGTERM)  # type: ignore[assignment]
    try:
        yield
    finally:
        with engine._prefect_sigterm_bridge_lock:
            engine._prefect_sigterm_handler = prefects


def end_preempted(manager: CheckpointManager, what: str) -> None:
    """Set the state of this flow run to ``Preempted``, and end the run; ``what`` says what SIGTERM has ended.

    Returns if somebody else sets the state: Prefect, when it cancels a run or puts it back, or the flow that this one
    was called by, which ends with it. Raises ``prefect.exceptions.Abort``, by which an engine leaves the state as it is
    and tells its worker that the end is known; otherwise the worker would call the run crashed a second time, perhaps
    after an automation has put it back.
    """
    try:
        from prefect._internal.control_listener import get_intent
    except ImportError:  # another version of Prefect: it sets the state as it does for any flow
        return
    context = FlowRunContext.get()
    if get_intent() is not None or context is None or context.flow_run is None:
        return
    if context.flow_run.parent_task_run_id is not None:
        return
    state: State[Any] = Crashed(name=PREEMPTED, message=f"SIGTERM ended {what}: {_newest(manager)}.")
    try:
        with get_client(sync_client=True) as client:
            context.flow_run.state = propose_state_sync(client, state, flow_run_id=context.flow_run.id)
    except Exception:  # whatever the server says: the run ends, and the engine tries to say so
        get_run_logger().warning("The run's state could not be set", exc_info=True)
        return
    raise Abort(state.message)


def _newest(manager: CheckpointManager) -> str:
    try:
        latest = manager.get_latest_checkpoint()
    except (CheckpointError, OSError) as error:
        return f"the newest checkpoint is not known ({error})"
    return f"the newest checkpoint is {latest.checkpoint_id}" if latest else "no checkpoint was saved"
