"""Fixtures of the whole suite."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.formats import format_named
from ckpt_lib.saving import worker
from tests.folders import disk_folder, write_to_memory
from tests.formats.folder_format import FolderFormat
from tests.helpers import MakeManager, Parts, build
from tests.plugins.installing import npz_installed

pytest.register_assert_rewrite("ckpt_lib.testing")

# Row 42 of the fault matrix runs the same properties with the second one.
settings.register_profile("test", derandomize=True, database=None, deadline=None, max_examples=120)
settings.register_profile("torture", settings.get_profile("test"), derandomize=False, max_examples=480)
settings.load_profile("test")

SECONDS_TO_START_A_SERVER = 120
"""Prefect's default is 20, too few where other tests keep every core of a slow machine busy."""


# A shell has what it runs in the background ignore Ctrl-C, and tests send it to themselves.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Most tests prove what does not depend on a disk, and wait for none: what they write lies in memory, as what their
# child processes write, and Prefect's database. Those of tests/store write to the disk.
write_to_memory()

# The index that tests fill is no user's, in processes of their own either, nor are the locks of launches; Matplotlib
# keeps its list of fonts.
os.environ.setdefault("MPLCONFIGDIR", str(Path.home() / ".cache" / "matplotlib"))
_CACHE = tempfile.TemporaryDirectory(prefix="ckpt-cache-", ignore_cleanup_errors=True)
os.environ["XDG_CACHE_HOME"] = os.environ["XDG_STATE_HOME"] = _CACHE.name


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse a test whose name holds an address: the workers of pytest-xdist would disagree, only in some runs."""
    if named := [item.nodeid for item in items if " at 0x" in item.nodeid]:
        raise pytest.UsageError(f"give these tests ids without an address: {named}")


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's own CKPT_* variables configure no test."""
    for name in [name for name in os.environ if name.upper().startswith("CKPT_")]:
        monkeypatch.delenv(name)


NICENESS = worker.NICENESS


@pytest.fixture(autouse=True)
def _saves_do_not_step_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Background saves have the priority of the test: behind other tests on every core, they would wait for seconds."""
    monkeypatch.setattr(worker, "NICENESS", 0)


@pytest.fixture
def saves_step_back(_saves_do_not_step_back: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Background saves have the priority that users give them."""
    monkeypatch.setattr(worker, "NICENESS", NICENESS)


@pytest.fixture
def folder_format(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[FolderFormat]:
    """A format of several files, installed as another package would: by an entry point."""
    packages = tmp_path_factory.mktemp("packages")
    info = packages / "folder_format-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: folder-format\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[ckpt_lib.formats]\nfolder = tests.formats.folder_format:FolderFormat\n")
    monkeypatch.syspath_prepend(packages)
    yield FolderFormat()
    format_named.cache_clear()


@pytest.fixture
def npz_format() -> Iterator[None]:
    """The format ``npz`` of another package, which pip has installed."""
    with npz_installed():
        yield


@pytest.fixture(scope="session")
def prefect_test_server() -> Iterator[None]:
    """Prefect's own test server, one for each process that runs tests; no flow waits for its heartbeat to end."""
    from prefect.settings import (
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
        PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS,
        temporary_settings,
    )
    from prefect.testing.utilities import prefect_test_harness

    settings = {
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None,
        PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS: SECONDS_TO_START_A_SERVER,
    }
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
        environment.setenv("DO_NOT_TRACK", "1")
        with temporary_settings(settings), prefect_test_harness(server_startup_timeout=None):
            yield


@pytest.fixture(scope="module")
def prefect_api(prefect_test_server: None) -> Iterator[None]:
    """A Prefect API for the flows of one module.

    The threads that send events end with it: their websockets draw from ``random``, which Hypothesis watches.
    """
    from prefect.events.worker import EventsWorker

    yield
    EventsWorker.drain_all(timeout=30)


@pytest.fixture
def disk_path() -> Iterator[Path]:
    """A folder on the disk, for what memory cannot show."""
    with tempfile.TemporaryDirectory(prefix="test-", dir=disk_folder(), ignore_cleanup_errors=True) as folder:
        yield Path(folder).resolve()


@pytest.fixture
def store_path(tmp_path: Path) -> Path:
    """Where the managers of a test keep their experiments; not created yet."""
    return tmp_path / "store"


@pytest.fixture
def make_manager(store_path: Path) -> MakeManager:
    """Managers of one store; two with the same experiment name are like two processes that share it."""

    def make(experiment_name: str = "run", **options: Any) -> CheckpointManager:
        return CheckpointManager(CheckpointConfig(**{"checkpoint_dir": str(store_path), **options}), experiment_name)

    return make


@pytest.fixture
def manager(make_manager: MakeManager) -> CheckpointManager:
    """A manager with default options."""
    return make_manager()


@pytest.fixture
def parts() -> Parts:
    """A tiny model with optimizer and scheduler."""
    return build()
