"""Every store of this library keeps the contract of stores."""

from __future__ import annotations

import secrets
from dataclasses import replace
from pathlib import Path

import pytest

from ckpt_lib.store import Store, open_store
from ckpt_lib.store.local import LocalStore
from ckpt_lib.store.local.system import System
from ckpt_lib.store.memory import ALL, MemoryStore
from ckpt_lib.testing import FaultPlan, FaultyStore, SharedStoreContract, StoreContract
from tests.store.systems import MacLike, WindowsLike, WithoutLinks, WithoutLocks, WithoutTimes


class TestLocalByPath(SharedStoreContract):
    """A folder that is named by its path, and is not there yet."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        return open_store(tmp_path / "not there yet" / "store")


class TestLocalByUrl(StoreContract):
    """A folder that is named by a ``file://`` URL."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        return open_store(f"file://{tmp_path}/store")


class TestLocalOnOtherSystems(StoreContract):
    """Folders of other operating systems, and of file systems that can do less."""

    rounds = 5

    @pytest.fixture(
        params=[WindowsLike, MacLike, WithoutLinks, WithoutLocks, WithoutTimes], ids=lambda kind: kind.__name__
    )
    def system(self, request: pytest.FixtureRequest) -> System:
        found: System = request.param()
        return found

    @pytest.fixture
    def store(self, tmp_path: Path, system: System) -> Store:
        return LocalStore(str(tmp_path / "store"), system=system)

    @pytest.fixture
    def other(self, store: Store, system: System) -> Store:
        return LocalStore(store.url, system=system)


class TestMemory(StoreContract):
    """A store in this process."""

    @pytest.fixture
    def store(self) -> Store:
        return open_store(f"memory://{secrets.token_hex(8)}")


class TestMemoryWithLess(StoreContract):
    """A store that lacks one of the capabilities."""

    @pytest.fixture(params=["create_if_absent", "replace_if_version", "delete_if_version"])
    def missing(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    @pytest.fixture
    def store(self, missing: str) -> Store:
        return MemoryStore(secrets.token_hex(8), replace(ALL, **{missing: False}))

    @pytest.fixture
    def other(self, store: Store) -> Store:
        return MemoryStore(store.url, store.capabilities)


class TestFaultyLocal(StoreContract):
    """With an empty plan, it is the store that it wraps."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        return FaultyStore(open_store(tmp_path / "store"), FaultPlan())

    @pytest.fixture
    def other(self, store: Store) -> Store:
        return FaultyStore(open_store(store.url), FaultPlan())
