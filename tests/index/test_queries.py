"""The contract of queries, for SQLite in memory and in a file; PostgreSQL is in test_postgresql.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from ckpt_lib.index.database import IndexDatabase
from tests.index.query_contract import QueryContract


class TestInMemory(QueryContract):
    """SQLite without a file."""

    @pytest.fixture
    def database(self) -> IndexDatabase:
        return IndexDatabase(make_url("sqlite://"))


class TestInAFile(QueryContract):
    """SQLite, as users have it."""

    @pytest.fixture
    def database(self, tmp_path: Path) -> IndexDatabase:
        return IndexDatabase(make_url(f"sqlite:///{tmp_path}/index.sqlite"))
