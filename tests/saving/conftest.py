"""Fixtures of saves that are held up."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.saving.under_way import Gate


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(monkeypatch)
    yield gate
    gate.open.set()
