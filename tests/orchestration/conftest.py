"""A real Prefect server for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.events.worker import EventsWorker
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    PREFECT_LOCAL_STORAGE_PATH,
    PREFECT_LOGGING_TO_API_ENABLED,
    temporary_settings,
)

from ckpt_lib import CheckpointConfig
from deployments.server import free_port, prefect_server


@pytest.fixture(scope="session")
def server_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of processes that use the server; its services look around more often than by default."""
    settings = {"PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5", "PREFECT_WORKER_QUERY_SECONDS": "2"}
    with prefect_server(tmp_path_factory.mktemp("prefect"), free_port(0), **settings) as environment:
        yield environment


@pytest.fixture(autouse=True, scope="module")
def _no_events_afterwards() -> Iterator[None]:
    """End the threads that send events: their websockets draw from ``random``, which Hypothesis watches."""
    yield
    EventsWorker.drain_all(timeout=30)


@pytest.fixture
def prefect_api(server_environment: dict[str, str], tmp_path: Path) -> Iterator[str]:
    """Point this process at the server, with results of its own; yields the address of the API."""
    address = server_environment["PREFECT_API_URL"]
    with temporary_settings(
        {
            PREFECT_API_URL: address,
            # A flow's heartbeat thread takes a second to end, and nobody here watches it.
            PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None,
            PREFECT_LOCAL_STORAGE_PATH: tmp_path / "results",
            PREFECT_LOGGING_TO_API_ENABLED: False,
        }
    ):
        yield address


@pytest.fixture
def config(tmp_path: Path) -> CheckpointConfig:
    """A store of the test's own."""
    return CheckpointConfig(checkpoint_dir=str(tmp_path / "store"))
