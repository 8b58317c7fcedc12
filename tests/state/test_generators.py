"""Every random number generator goes on where it was."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from ckpt_lib.errors import ConfigError, StateMismatchError
from ckpt_lib.state.generators import GlobalGenerators, NamedGenerator

NAMED: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "torch": (torch.Generator, lambda generator: torch.rand(3, generator=generator).tolist()),
    "python": (random.Random, lambda generator: [generator.random(), generator.gauss(0, 1)]),
    "numpy": (np.random.default_rng, lambda generator: generator.random(3).tolist()),
    "numpy, old": (np.random.RandomState, lambda generator: [*generator.rand(2), generator.normal()]),
    "numpy, Philox": (lambda: np.random.Generator(np.random.Philox()), lambda generator: generator.random(3).tolist()),
    "numpy, SFC64": (lambda: np.random.Generator(np.random.SFC64()), lambda generator: generator.random(3).tolist()),
    "numpy, MT19937": (lambda: np.random.Generator(np.random.MT19937()), lambda generator: generator.normal()),
}


def stored(state: Any) -> Any:
    """The state as a file holds it that plain PyTorch reads."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def draw() -> list[Any]:
    return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.normal(), torch.rand(()).item()]


@pytest.mark.parametrize("drawn", [0, 1, 700])
def test_the_generators_without_a_name_go_on(drawn: int) -> None:
    """Python's, NumPy's and PyTorch's, with the second number of a pair that some of them keep."""
    for _ in range(drawn):
        draw()
    state = stored(GlobalGenerators().state_dict())
    expected = [draw() for _ in range(3)]
    GlobalGenerators().load_state_dict(state)
    assert [draw() for _ in range(3)] == expected


@pytest.mark.parametrize("kind", NAMED)
def test_a_named_generator_goes_on(kind: str) -> None:
    """Also in another object of its kind."""
    make, numbers = NAMED[kind]
    generator = make()
    numbers(generator)
    state = stored(NamedGenerator(generator).state_dict())
    expected = [numbers(generator) for _ in range(3)]
    other = make()
    NamedGenerator(other).load_state_dict(state)
    assert [numbers(other) for _ in range(3)] == expected


@pytest.mark.parametrize("seed", [7, [1, 2], None])
@pytest.mark.parametrize("bits", [np.random.PCG64, np.random.Philox, np.random.SFC64, np.random.MT19937])
@pytest.mark.parametrize("spawned", [0, 1, 5])
def test_the_next_child_is_spawned(bits: Callable[[Any], Any], seed: Any, spawned: int) -> None:
    """``spawn()`` gives the child that would have come, also from a generator with more children, or another seed."""
    generator = np.random.Generator(bits(seed))
    generator.spawn(2)[1].spawn(1)
    state = stored(NamedGenerator(generator).state_dict())
    expected = [child.random() for child in (*generator.spawn(2), generator)]
    other = np.random.Generator(bits(3))
    other.spawn(spawned)
    NamedGenerator(other).load_state_dict(state)
    assert [child.random() for child in (*other.spawn(2), other)] == expected


def test_a_state_without_a_seed_sequence_is_taken() -> None:
    """As earlier versions have stored it; the children are left as they are."""
    generator = np.random.default_rng(1)
    state = {"numpy": NamedGenerator(generator).state_dict()["numpy"]}
    other = np.random.default_rng(2)
    NamedGenerator(other).load_state_dict(state)
    assert other.random() == generator.random()


@pytest.mark.parametrize("kind", ["python", "numpy", "torch"])
def test_a_state_that_does_not_fit_changes_nothing(kind: str) -> None:
    """Refused with a sentence; no generator is half set."""
    generators = GlobalGenerators()
    state = generators.state_dict()
    before = stored(state)
    draw()
    current = stored(generators.state_dict())
    with pytest.raises(StateMismatchError, match="does not fit"):
        generators.load_state_dict({**before, kind: torch.zeros(3, dtype=torch.uint8)})
    assert str(generators.state_dict()) == str(current)


def test_another_kind_of_generator_is_refused() -> None:
    """By what it is."""
    with pytest.raises(StateMismatchError, match="another kind"):
        NamedGenerator(random.Random()).load_state_dict(NamedGenerator(torch.Generator()).state_dict())
    with pytest.raises(StateMismatchError, match="does not fit"):
        NamedGenerator(np.random.default_rng()).load_state_dict(
            NamedGenerator(np.random.Generator(np.random.Philox())).state_dict()
        )


@pytest.mark.parametrize("generator", [random, 3, random.SystemRandom(), None], ids=["module", "3", "system", "None"])
def test_what_has_no_state_is_refused(generator: Any) -> None:
    """A generator of the operating system has none either."""
    with pytest.raises(ConfigError, match="no generator with a state"):
        NamedGenerator(generator)
