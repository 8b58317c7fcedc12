"""How a flow run ends that SIGTERM has stopped: its state says so, and names the newest checkpoint."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.exceptions import Abort
from prefect.logging import get_run_logger
from prefect.states import Crashed
from prefect.utilities import engine
from prefect.utilities.engine import propose_state_sync

from ckpt_lib import CheckpointManager
from ckpt_lib.errors import CheckpointError

PREEMPTED = "Preempted"
"""The name of the state, whose type is ``CRASHED``."""


@contextlib.contextmanager
def acknowledging_stops(handler: Callable[..., object]) -> Iterator[None]:
    """Let Prefect stop this flow with SIGTERM, and not with SIGKILL, while ``handler`` is the handler of SIGTERM.

    ``prefect flow-run execute`` kills a process whose handler is not Prefect's, before that could save. So ``handler``
    takes the place of Prefect's, which it has to call in the end, until the block is left. If the flow has installed
    one of its own before, nothing is done: Prefect would not be called.
    """
    original: Any = getattr(engine, "_prefect_sigterm_handler", None)
    lock = getattr(engine, "_prefect_sigterm_bridge_lock", None)
    if original is None or lock is None or signal.getsignal(signal.SIGTERM) is not original:
        get_run_logger().warning("If Prefect stops this run, it may not be saved before: SIGTERM has another handler")
        yield
        return

    def register(handler: Any) -> None:
        with lock:
            engine._prefect_sigterm_handler = handler

    register(handler)
    try:
        yield
    finally:
        register(original)


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
