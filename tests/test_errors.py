"""The error tree: it is as drawn, and every error says what it knows, to people and across processes."""

from __future__ import annotations

import builtins
import copy
import inspect
import pickle
import re

import pytest

from ckpt_lib import errors
from ckpt_lib.core.damage import Damage
from ckpt_lib.core.wording import briefly, count_of, duration, listed
from ckpt_lib.errors import CheckpointError, CorruptCheckpointError

CLASSES: list[type[CheckpointError]] = [
    item for _, item in inspect.getmembers(errors, inspect.isclass) if issubclass(item, CheckpointError)
]
DETAILS = {
    "checkpoint_id": "checkpoint_epoch_0001_step_000100_20231201_143022",
    "path": "/some/where",
    "expected": "a number",
    "got": ["a", "list"],
    "hint": "Do something else.",
}


def drawn() -> dict[str, tuple[str, str | None]]:
    """Name to (parent, builtin) of each class in the tree of the module's docstring."""
    tree: dict[str, tuple[str, str | None]] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^ {4}(?P<bars>[│ ├└─]*)(?P<name>[A-Z]\w+Error)(?: \((?P<builtin>\w+)\))?", line)
        if match:
            path = [*path[: len(match["bars"]) // 4], match["name"]]
            tree[match["name"]] = (path[-2] if len(path) > 1 else "Exception", match["builtin"])
    return tree


def test_the_drawing_shows_every_error_and_no_other() -> None:
    """A class without a place in the picture would be found by nobody."""
    assert set(drawn()) == {item.__name__ for item in CLASSES}


@pytest.mark.parametrize("error_class", CLASSES, ids=lambda item: item.__name__)
def test_an_error_has_the_parents_it_is_drawn_with(error_class: type[CheckpointError]) -> None:
    """The parent in the tree, and the builtin that people expect to catch."""
    parent, builtin = drawn()[error_class.__name__]
    assert error_class.__bases__[0].__name__ == parent
    own = [base.__name__ for base in error_class.__bases__[1:]]
    assert own == ([builtin] if builtin else [])
    if builtin:
        assert issubclass(error_class, getattr(builtins, builtin))


@pytest.mark.parametrize("error_class", CLASSES, ids=lambda item: item.__name__)
def test_an_error_says_all_it_knows(error_class: type[CheckpointError]) -> None:
    """Message, id, path, expected, got and hint, as attributes and once each in the text."""
    error = error_class("something is wrong.", **DETAILS)  # type: ignore[arg-type]
    text = str(error)
    assert text.startswith("something is wrong;")
    for name, value in DETAILS.items():
        assert getattr(error, name) == value
        assert text.count(str(value)) == 1
    assert text.endswith(". Do something else.")
    assert "\n" not in text
    assert "something is wrong" in repr(error)


@pytest.mark.parametrize("error_class", CLASSES, ids=lambda item: item.__name__)
def test_an_error_with_a_message_alone_is_that_message(error_class: type[CheckpointError]) -> None:
    """KeyError would print quotes, OSError an errno; ours print what they were told."""
    assert str(error_class("something is wrong")) == "something is wrong."


@pytest.mark.parametrize("value", [0, False, "", 0.0, []])
def test_falsy_values_are_shown(value: object) -> None:
    """``got 0`` is the most interesting case of all."""
    assert f"got {value}" in str(CheckpointError("m", got=value))
    assert f"expected {value}" in str(CheckpointError("m", expected=value))


def test_what_the_message_says_is_not_repeated() -> None:
    """An id or a path that the message names already is not appended again."""
    error = CheckpointError("x is not in /some/where", checkpoint_id="x", path="/some/where")
    assert str(error) == "x is not in /some/where."


def test_what_is_learnt_later_is_in_the_text() -> None:
    """Callers add the id and the path where they know them."""
    error = CheckpointError("damaged")
    error.checkpoint_id = "the id"
    assert str(error) == "damaged; checkpoint the id."


@pytest.mark.parametrize("way", ["copy", "deepcopy", *range(2, pickle.HIGHEST_PROTOCOL + 1)])
@pytest.mark.parametrize("error_class", CLASSES, ids=lambda item: item.__name__)
def test_an_error_survives_the_way_to_another_process(error_class: type[CheckpointError], way: str | int) -> None:
    """Class, text and every attribute, those set later and notes included."""
    error = error_class("something is wrong", **DETAILS)  # type: ignore[arg-type]
    error.path = "/else/where"
    error.extra = {"a": 1}  # type: ignore[attr-defined]
    error.add_note("a note")
    if isinstance(error, CorruptCheckpointError):
        error.damages = (Damage(file="x.pt", kind="altered", start=1, stop=2, message="m"),)
    if way == "copy":
        found = copy.copy(error)
    elif way == "deepcopy":
        found = copy.deepcopy(error)
    else:
        found = pickle.loads(pickle.dumps(error, protocol=int(way)))
    assert type(found) is error_class
    assert str(found) == str(error)
    assert vars(found) == vars(error)


def test_damages_travel_with_the_error() -> None:
    """Where the damage is, as values and not only as text; none is an empty tuple."""
    damage = Damage(file="x.pt", kind="missing", message="x.pt is missing")
    assert CorruptCheckpointError("m", damages=[damage]).damages == (damage,)
    assert CorruptCheckpointError("m").damages == ()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0 s"),
        (42.4, "42 s"),
        (119, "119 s"),
        (120, "2 min"),
        (3600, "1 h"),
        (86_113, "23 h 55 min"),
        (86_400, "1 d"),
        (530_000, "6 d 3 h"),
        (1e300, "more than 100 years"),
        (float("nan"), "more than 100 years"),
    ],
)
def test_durations_are_readable(seconds: float, text: str) -> None:
    """No message says 86113 s."""
    assert duration(seconds) == text


def test_counts_are_readable() -> None:
    """No message says 1 chunks."""
    assert [count_of(number, "chunk") for number in (0, 1, 2, 12_000)] == [
        "0 chunks",
        "1 chunk",
        "2 chunks",
        "12,000 chunks",
    ]


def test_any_value_is_shown_briefly() -> None:
    """Text of any length, what holds itself, and numbers that Python does not write."""
    itself: list[object] = []
    itself.append(itself)
    for value in ("x" * 10**6, itself, 10**5000, [[[1] * 1000] * 1000] * 1000, float("nan")):
        assert len(briefly(value)) < 300


@pytest.mark.parametrize(
    ("names", "expected"),
    [([], ""), (["a"], "a"), (["a", "b", "c"], "a, b, c"), (["a", "b", "c", "d", "e"], "a, b, c and 2 more")],
)
def test_lists_are_as_long_as_they_can_be_read(names: list[str], expected: str) -> None:
    """What is left out is counted."""
    assert listed(names) == expected
