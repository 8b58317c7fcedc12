"""What the tests of tasks, flows and deployments share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, PREFECT_LOGGING_TO_API_ENABLED, temporary_settings

from ckpt_lib import CheckpointConfig
from ckpt_lib.errors import StoreError
from ckpt_lib.store.local import LocalStore
from deployments.server import free_port, prefect_server


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse a test that asks for a server of this project and would run in `make test`."""
    unmarked = [
        item.nodeid
        for item in items
        if "server_environment" in getattr(item, "fixturenames", ()) and not item.get_closest_marker("servers")
    ]
    if unmarked:
        raise pytest.UsageError(f"these tests need the marker `servers`: {', '.join(unmarked)}")


@pytest.fixture(scope="session")
def server_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of processes that use a server of this project; it looks around more often than by default.

    For tests marked ``servers``.
    """
    settings = {"PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5", "PREFECT_WORKER_QUERY_SECONDS": "2"}
    with prefect_server(tmp_path_factory.mktemp("prefect"), free_port(0), **settings) as environment:
        yield environment


@pytest.fixture
def own_results(prefect_api: None, tmp_path: Path) -> Iterator[None]:
    """Results of each test's own; nobody here reads the logs that Prefect would send to the server."""
    with temporary_settings({PREFECT_LOCAL_STORAGE_PATH: tmp_path / "results", PREFECT_LOGGING_TO_API_ENABLED: False}):
        yield


@pytest.fixture
def config(tmp_path: Path) -> CheckpointConfig:
    """A store of the test's own."""
    return CheckpointConfig(checkpoint_dir=str(tmp_path / "store"))


@pytest.fixture
def degraded(config: CheckpointConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CheckpointConfig:
    """A configuration whose store refuses to be written to until the patch is undone."""
    safe = config.model_copy(update={"fallback_dir": str(tmp_path / "fallback"), "backup_checkpoints": False})
    original = LocalStore.open_write

    def refuse(store: LocalStore, key: str) -> Any:
        if store.url == safe.checkpoint_dir:
            raise StoreError("the store failed: Input/output error")
        return original(store, key)

    monkeypatch.setattr(LocalStore, "open_write", refuse)
    return safe
