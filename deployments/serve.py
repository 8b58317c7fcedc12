"""Serve every deployment of ``prefect.yaml`` from this machine, until Ctrl-C, to the Prefect server that is configured.

``make serve`` starts one beside it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

import yaml
from prefect import Flow, serve
from prefect.client.schemas.objects import ConcurrencyLimitConfig
from prefect.deployments.runner import RunnerDeployment
from prefect.flows import load_flow_from_entrypoint
from prefect.schedules import Cron
from prefect.settings import PREFECT_API_URL

PROJECT = Path(__file__).resolve().parent.parent
MAX_RUNS_AT_ONCE = 2


def read_deployments(path: Path = PROJECT / "prefect.yaml") -> list[RunnerDeployment]:
    """The deployments of ``prefect.yaml``, as ``prefect.serve`` takes them."""
    declared: list[dict[str, Any]] = yaml.safe_load(path.read_text(encoding="utf-8"))["deployments"]
    return [_deployment(item) for item in declared]


def _deployment(item: dict[str, Any]) -> RunnerDeployment:
    flow: Flow[..., Any] = load_flow_from_entrypoint(item["entrypoint"])
    limit = item.get("concurrency_limit")
    deployment = cast(
        RunnerDeployment,
        flow.to_deployment(
            name=item["name"],
            description=item["description"],
            tags=item["tags"],
            parameters=item.get("parameters", {}),
            paused=False,  # stopping pauses them, so that nothing is missed and made up for all at once
            schedules=[
                Cron(schedule["cron"], timezone=schedule["timezone"], slug=schedule["slug"])
                for schedule in item.get("schedules", [])
            ],
            concurrency_limit=ConcurrencyLimitConfig(**limit) if limit else None,
        ),
    )
    deployment.entrypoint = item["entrypoint"]
    return deployment


def main() -> None:
    """Serve until Ctrl-C or SIGTERM."""
    address = PREFECT_API_URL.value()
    if not address:
        raise SystemExit("No Prefect server is configured: set PREFECT_API_URL, or let `make serve` start one.")
    os.chdir(PROJECT)
    deployments = read_deployments()
    page = address.removesuffix("/api")
    print(f"\nThe page is at {page} (Ctrl-C stops everything). Deployments:")
    for deployment in deployments:
        cron = ", ".join(str(schedule.schedule.cron) for schedule in deployment.schedules or [])  # type: ignore[union-attr]
        print(f"  {deployment.flow_name}/{deployment.name}" + (f", at {cron}" if cron else ""), flush=True)
    serve(*deployments, limit=MAX_RUNS_AT_ONCE, print_starting_message=False)


if __name__ == "__main__":
    main()
