"""Forwards events of ``ckpt_lib`` to Prefect, where automations can react to them."""

from __future__ import annotations

from prefect.context import FlowRunContext, TaskRunContext
from prefect.events import emit_event

from ckpt_lib.events import Event, subscribe


def _emit(event: Event) -> None:
    """Emit a Prefect event, inside a run only: elsewhere there may be no server."""
    if TaskRunContext.get() is None and FlowRunContext.get() is None:
        return
    emit_event(
        event=f"prefect-checkpoints.{event.kind}",
        resource={
            "prefect.resource.id": f"prefect-checkpoints.experiment.{event.experiment_name}",
            "prefect.resource.name": event.experiment_name,
        },
        occurred=event.time,
        payload=event.model_dump(mode="json", include={"message", "checkpoint_id", "details"}),
    )


subscribe(_emit)
