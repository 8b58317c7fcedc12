"""Ranking: only finite numbers compete, in every order and mixture of values, and ties go to the earlier."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_lib.core.metadata import Metric
from ckpt_lib.core.monitor import Mode, Monitor
from ckpt_lib.policies.ranking import is_better, is_rankable, ranked

MISSING: Any = object()
VALUES: list[Any] = [1.0, 2.0, math.nan, math.inf, -math.inf, None, "text", MISSING]
MODES: tuple[Mode, ...] = get_args(Mode)


@dataclass(frozen=True)
class Record:
    sequence: int
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    healthy: bool = True


def by(mode: Mode, metric: str = "m") -> Monitor:
    return Monitor(metric=metric, mode=mode)


def records(values: list[Any] | tuple[Any, ...]) -> list[Record]:
    return [Record(n, {} if value is MISSING else {"m": value}) for n, value in enumerate(values, start=1)]


@pytest.mark.parametrize("mode", MODES)
def test_all_orders_of_all_kinds_of_values(mode: Mode) -> None:
    """Every arrangement of up to five: nothing raises, what is not finite is never ranked, the rest is in order."""
    count = 0
    for length in range(6):
        for values in (
            itertools.product(VALUES, repeat=length) if length < 4 else itertools.permutations(VALUES, length)
        ):
            found = [record.metrics["m"] for record in ranked(records(values), by(mode))]
            finite = [value for value in values if value in (1.0, 2.0)]
            assert found == sorted(finite, reverse=mode == "max")
            count += 1
    assert count > 8_000


@pytest.mark.parametrize("mode", MODES)
def test_the_order_records_come_in_has_no_say(mode: Mode) -> None:
    """Shuffled, the same records rank the same."""
    for values in itertools.combinations_with_replacement(VALUES, 4):
        wanted = ranked(records(values), by(mode))
        assert all(ranked(order, by(mode)) == wanted for order in itertools.permutations(records(values)))


@pytest.mark.parametrize("mode", MODES)
def test_unhealthy_ones_do_not_compete(mode: Mode) -> None:
    """However good their metric is; without any other there is no best."""
    marked = [Record(1, {"m": 1.0}, healthy=False), Record(2, {"m": 2.0}, healthy=False)]
    sound = Record(3, {"m": 1.5})
    assert ranked([*marked, sound], by(mode)) == [sound]
    assert ranked(marked, by(mode)) == []


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("equals", [(1.0, 1.0, 1.0), (0.0, -0.0, 0), (1, 1.0, True)])
def test_of_equals_the_earlier_is_better(mode: Mode, equals: tuple[Any, ...]) -> None:
    """A later checkpoint that is only as good takes nothing from the first."""
    assert [record.sequence for record in ranked(records(equals), by(mode))] == [1, 2, 3]


@given(st.lists(st.one_of(st.floats(), st.integers(), st.none(), st.text(max_size=3))), st.sampled_from(MODES))
def test_the_best_is_what_nothing_beats(values: list[Any], mode: Mode) -> None:
    """``ranked`` and ``is_better`` agree, for numbers of any size and kind."""
    order = ranked(records(values), by(mode))
    assert {record.sequence for record in order} == {n for n, value in enumerate(values, 1) if is_rankable(value)}
    for one, other in itertools.pairwise(order):
        assert not is_better(other.metrics["m"], one.metrics["m"], mode)
    if order:
        best = order[0].metrics["m"]
        assert not any(is_better(value, best, mode) for value in values)


@pytest.mark.parametrize("mode", MODES)
def test_improvement(mode: Mode) -> None:
    """Any finite number beats what does not compete; what does not compete beats nothing; a tie is no improvement."""
    odd: list[Any] = [math.nan, math.inf, -math.inf, None, "1.0", ""]
    for value, than in itertools.product(odd, [*odd, 1.0, 10**400]):
        assert not is_better(value, than, mode)
    for than in odd:
        assert is_better(0.0, than, mode)
        assert is_better(-(10**400), than, mode)
    assert is_better(1.0, 2.0, mode) == (mode == "min")
    assert is_better(2.0, 1.0, mode) == (mode == "max")
    assert not is_better(1.0, 1.0, mode)
    assert is_better(2**53 + 1, 2.0**53, mode) == (mode == "max")
