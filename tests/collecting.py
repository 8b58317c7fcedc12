"""Collect tests as pytest would, in a fork of this process, which has imported most of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from tests.torture.processes import Child
from tests.torture.runner import ROOT


@dataclass
class Collection:
    """What pytest would run, and what a selection by marker or name left out, as ids of tests."""

    selected: set[str] = field(default_factory=set)
    deselected: set[str] = field(default_factory=set)
    with_servers: set[str] = field(default_factory=set)
    """Those of ``selected`` that ask for a server of this project."""

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.selected |= {item.nodeid for item in session.items}
        for item in session.items:
            if "server_environment" in getattr(item, "fixturenames", ()):
                self.with_servers.add(item.nodeid)

    def pytest_deselected(self, items: Sequence[pytest.Item]) -> None:
        self.deselected |= {item.nodeid for item in items}


def collect(*arguments: str) -> Collection:
    """Collect with these arguments of pytest. Raises :class:`ChildError` when there is an error or no such test."""
    with Child(_collect, arguments) as child:
        found = child.result()
        assert isinstance(found, Collection)
        return found


def _collect(arguments: Sequence[str]) -> Collection:
    found = Collection()
    options = ["--collect-only", "-qq", "-p", "no:cacheprovider", "-p", "no:xdist", f"--rootdir={ROOT}"]
    code = pytest.main([*options, *arguments], plugins=[found])
    if code != pytest.ExitCode.OK:
        raise ValueError(f"pytest ended with {code!r}: {' '.join(arguments)[:300]}")
    return found
