"""Events: to the log, to listeners, and to nobody's harm."""

from __future__ import annotations

import logging

import pytest

from ckpt_lib import events
from ckpt_lib.events import Event, Events, subscribe


def test_an_event_reaches_the_log_and_each_listener(caplog: pytest.LogCaptureFixture) -> None:
    """Structured in the log as in the listener, in the order of subscribing."""
    seen: list[tuple[int, Event]] = []
    ends = [subscribe(lambda event: seen.append((0, event))), subscribe(lambda event: seen.append((1, event)))]
    try:
        with caplog.at_level(logging.INFO, logger="ckpt_lib.events"):
            Events("run", "/store").emit("store.full", "no space", needed_bytes=5)
    finally:
        for end in ends:
            end()
    (first, event), (second, again) = seen
    assert (first, second, again) == (0, 1, event)
    assert (event.kind, event.experiment_name, event.checkpoint_id) == ("store.full", "run", None)
    assert event.details == {"needed_bytes": 5}
    (record,) = caplog.records
    assert (record.name, record.levelname, record.getMessage()) == (
        "ckpt_lib.events",
        "WARNING",
        "store.full: no space",
    )
    assert record.__dict__["event"] == event.model_dump(mode="json")


def test_who_has_unsubscribed_hears_nothing() -> None:
    """Also when it does so twice, and when it had subscribed twice."""
    seen: list[Event] = []
    first, second = subscribe(seen.append), subscribe(seen.append)
    first()
    Events("run", "/store").emit("save.failed", "one")
    second()
    second()
    Events("run", "/store").emit("save.failed", "two")
    assert [event.message for event in seen] == ["one"]
    assert events._listeners == [listener for listener in events._listeners if listener != seen.append]


def test_the_error_of_a_listener_reaches_no_one_else(caplog: pytest.LogCaptureFixture) -> None:
    """Neither the caller nor the next listener; it is logged."""

    def fail(event: Event) -> None:
        raise ValueError("a bug")

    seen: list[Event] = []
    ends = [subscribe(fail), subscribe(seen.append)]
    try:
        Events("run", "/store").emit("save.degraded", "the store failed")
    finally:
        for end in ends:
            end()
    assert len(seen) == 1
    assert "a listener failed at save.degraded" in caplog.text


@pytest.mark.parametrize(
    ("kind", "level"),
    [
        ("save.failed", "ERROR"),
        ("checkpoint.stranded", "WARNING"),
        ("checkpoint.corrupted", "WARNING"),
        ("checkpoint.reconciled", "INFO"),
        ("checkpoint.saved", "INFO"),
    ],
)
def test_levels(caplog: pytest.LogCaptureFixture, kind: events.EventKind, level: str) -> None:
    """What needs a person is louder than what ends well."""
    with caplog.at_level(logging.INFO, logger="ckpt_lib.events"):
        Events("run", "/store").emit(kind, "it happened")
    assert [record.levelname for record in caplog.records] == [level]


def test_own_listeners_hear_their_own_events_first() -> None:
    """A listener of one emitter hears no other; those of the process hear all."""
    seen: list[tuple[str, str]] = []
    one, other = Events("one", "/store"), Events("other", "/store")
    end = subscribe(lambda event: seen.append(("all", event.message)))
    stop = one.subscribe(lambda event: seen.append(("one", event.message)))
    try:
        one.emit("store.full", "a")
        other.emit("store.full", "b")
        stop()
        one.emit("store.full", "c")
    finally:
        end()
    assert seen == [("one", "a"), ("all", "a"), ("all", "b"), ("all", "c")]
