"""PostgreSQL as the index: the same answers as SQLite's, and an outage that hurts nobody."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy.engine import make_url

from ckpt_lib.index.database import IndexDatabase
from tests.index.postgresql import running_server
from tests.index.query_contract import QueryContract

pytestmark = pytest.mark.servers


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_server(tmp_path_factory.mktemp("postgresql") / "server") as found:
        yield found


class TestPostgreSQL(QueryContract):
    """The contract of queries."""

    @pytest.fixture
    def database(self, url: str) -> Iterator[IndexDatabase]:
        database = IndexDatabase(make_url(url))
        yield database
        database.close()
