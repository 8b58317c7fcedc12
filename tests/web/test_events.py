"""What changes in a store and in jobs, as Server-Sent Events of a real server."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.web import ServerSettings, following, watcher
from ckpt_lib.web.changes import Seen, kind_of
from ckpt_lib.web.feed import Feed, FeedEvent
from ckpt_lib.web.tokens import TokenFile
from tests.helpers import flip_bit, run_python
from tests.web.running import served, wait_for

EVENTS = "/events"


class Stream:
    """The events that one client has received."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines

    def next(self) -> dict[str, str]:
        """The next event; comments, which a stream without events sends, are passed over for a while."""
        deadline = time.monotonic() + 30
        found: dict[str, str] = {}
        for line in self._lines:
            if not line and found:
                return found
            name, _, value = line.partition(": ")
            if name:
                found[name] = value
            assert time.monotonic() < deadline, "there was no event"
        raise AssertionError("the stream has ended")

    def until(self, kind: str, **facts: Any) -> dict[str, str]:
        """The next event of this kind whose data holds these facts."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            event = self.next()
            if event["event"] == kind and facts.items() <= json.loads(event["data"]).items():
                return event
        raise AssertionError(f"there was no {kind} with {facts}")

    def rest(self) -> list[str]:
        """Wait for the end of the stream."""
        return list(self._lines)


@contextmanager
def followed(client: httpx.Client, **headers: str) -> Iterator[Stream]:
    with client.stream("GET", EVENTS, headers=headers) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        yield Stream(response.iter_lines())


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "_SECONDS_BETWEEN_LOOKS", 0.05)


def test_what_happens_to_a_checkpoint(client: httpx.Client, config: CheckpointConfig) -> None:
    """Each change is told once, by its kind, whoever makes it: another manager here, and another process."""
    manager = CheckpointManager(config, "digits")
    with followed(client) as stream:
        assert stream.next()["event"] == "ready"
        saved = manager.save_checkpoint(model=nn.Linear(1, 1), epoch=9, metrics={"val_loss": 5.0})
        assert json.loads(stream.until("checkpoint.saved")["data"])["checkpoint_id"] == saved
        assert saved is not None
        code = (
            "import sys; from ckpt_lib import CheckpointConfig, CheckpointManager\n"
            "manager = CheckpointManager(CheckpointConfig(checkpoint_dir=sys.argv[1]), 'digits')\n"
            "manager.edit_checkpoint(sys.argv[2], add_tags=['x'])"
        )
        run_python(code, config.checkpoint_dir, saved, prefix=["env"])  # a process of its own
        changes: list[tuple[str, Callable[[], object]]] = [
            ("checkpoint.edited", lambda: None),
            ("checkpoint.deleted", lambda: manager.delete_checkpoint(saved)),
            ("checkpoint.undeleted", lambda: manager.undelete_checkpoint(saved)),
        ]
        for kind, change in changes:
            change()
            event = stream.next()
            assert event["event"] == kind
            facts = {"experiment_name": "digits", "checkpoint_id": saved, "is_backup": False}
            assert json.loads(event["data"]) == facts
        other = CheckpointManager(config, "new")
        other.save_checkpoint(model=nn.Linear(1, 1), epoch=1)
        stream.until("checkpoint.saved", experiment_name="new")


def test_jobs_and_the_damage_that_they_find(client: httpx.Client, config: CheckpointConfig) -> None:
    """Each state of a job, and the checkpoint that it finds damaged and then repairs."""
    latest = CheckpointManager(config, "digits").get_checkpoint("latest")
    flip_bit(Path(config.checkpoint_dir, "digits", f"{latest.checkpoint_id}.pt"), 200)
    jobs = "/experiments/digits/jobs"
    with followed(client) as stream:
        assert stream.next()["event"] == "ready"
        job_id = client.post(jobs, json={"operation": "validate", "names": "all"}).json()["job_id"]
        states = [json.loads(stream.until("job", job_id=job_id)["data"])["state"]]
        stream.until("checkpoint.damaged", checkpoint_id=latest.checkpoint_id)
        stream.until("job", job_id=job_id, state="succeeded")
        assert states == ["waiting"]
        client.post(jobs, json={"operation": "repair", "names": ["latest"]})
        stream.until("checkpoint.repaired", checkpoint_id=latest.checkpoint_id)


def test_a_client_that_comes_back_misses_nothing(client: httpx.Client, config: CheckpointConfig) -> None:
    """By the id of the last event that it has seen, it gets what came after, and no ``ready``."""
    manager = CheckpointManager(config, "digits")
    with followed(client) as stream:
        last = stream.next()["id"]
    saved = [str(manager.save_checkpoint(model=nn.Linear(1, 1), epoch=epoch)) for epoch in (7, 8)]
    with followed(client, **{"Last-Event-ID": last}) as stream:
        first = stream.next()
        assert (first["event"], json.loads(first["data"])["checkpoint_id"]) == ("checkpoint.saved", saved[0])
        stream.until("checkpoint.saved", checkpoint_id=saved[1])
    with followed(client, **{"Last-Event-ID": first["id"]}) as stream:
        second = stream.next()  # or another event of the first, where the server has looked in between
        assert second["event"] != "ready"
        assert saved[1] in second["data"] or stream.until("checkpoint.saved", checkpoint_id=saved[1])
    for unknown in ("0-1", "nonsense", first["id"] + "000", "-" * 50):
        with followed(client, **{"Last-Event-ID": unknown}) as stream:
            assert stream.next()["event"] == "ready"


def test_a_stream_ends_with_its_token(
    config: CheckpointConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token that is revoked gets no further event, although its stream was open before."""
    monkeypatch.setattr(following, "_SECONDS_BETWEEN_CHECKS", 0.1)
    tokens = TokenFile(tmp_path / "tokens.json")
    headers = {"Authorization": f"Bearer {tokens.create('me', 'read')}"}
    settings = ServerSettings(config=config, tokens_path=tmp_path / "tokens.json", jobs_folder=tmp_path / "jobs")
    with served(settings) as client:
        assert client.get(EVENTS).status_code == 401
        with followed(client, **headers) as stream:
            assert stream.next()["event"] == "ready"
            tokens.remove("me")
            assert stream.rest() == []


def test_streams_end_with_the_server(settings: ServerSettings) -> None:
    """A server that is to end does not wait for those who follow, who see the end of the stream."""
    following_now, rest = threading.Event(), list[str]()

    def follow(url: httpx.URL) -> None:
        with httpx.Client(base_url=url, timeout=30, trust_env=False) as own, followed(own) as stream:
            stream.next()
            following_now.set()
            rest.extend(stream.rest())
            rest.append("the end")

    with served(settings) as client:
        follower = threading.Thread(target=follow, args=(client.base_url,))
        follower.start()
        assert following_now.wait(30)
        began = time.monotonic()
    assert time.monotonic() - began < 10
    follower.join(10)
    assert rest == ["the end"]


def test_the_number_of_followers_is_limited(
    settings: ServerSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One too many is told so; others have places of their own; that of one that has gone is free again."""
    monkeypatch.setattr(following, "MOST_FOLLOWERS", 2)
    tokens = TokenFile(tmp_path / "tokens.json")
    one, other = ({"Authorization": f"Bearer {tokens.create(name, 'read')}"} for name in ("one", "other"))
    with served(settings.model_copy(update={"tokens_path": tmp_path / "tokens.json"})) as client:
        with client.stream("GET", EVENTS, headers=one) as first:
            assert first.status_code == 200
            refused = client.get(EVENTS, headers=one)
            assert (refused.status_code, refused.json()["type"]) == (429, "LimitError")
            assert refused.headers["retry-after"] == "5"
            with client.stream("GET", EVENTS, headers=other) as second:
                assert second.status_code == 200
        wait_for(lambda: _follows(client, one))


def _follows(client: httpx.Client, headers: dict[str, str]) -> bool:
    with client.stream("GET", EVENTS, headers=headers) as response:
        return response.status_code == 200


def test_the_watcher_rests_when_nobody_follows(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thread ends after a while; whoever comes back then is told to read everything anew."""

    def watchers() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == "ckpt-watcher"]

    assert watchers() == []
    monkeypatch.setattr(watcher, "_SECONDS_AFTER_THE_LAST", 0.1)
    with followed(client) as stream:
        last = stream.next()["id"]
        time.sleep(0.5)
        assert len(watchers()) == 1
    deadline = time.monotonic() + 10
    while watchers() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert watchers() == []
    with followed(client, **{"Last-Event-ID": last}) as stream:
        assert stream.next()["event"] == "ready"


def test_a_slow_client_is_told_what_it_has_missed() -> None:
    """What is kept is limited: whoever is too far behind gets a number in the place of events, and then all others."""

    async def follow() -> list[Any]:
        feed = Feed(kept=3)
        found: list[Any] = []
        follower = feed.follow(None, idle_seconds=0.01)
        found.append(await anext(follower))
        for number in range(5):
            feed.publish("job", str(number))
        found.append(await anext(follower))
        feed.publish("job", "5")
        found += [await anext(follower), await anext(follower)]
        feed.close()
        found += [item async for item in follower]
        assert feed.followers == 0
        return found

    assert asyncio.run(follow()) == [0, 5, FeedEvent(6, "job", "5"), None]


@given(st.lists(st.integers(0, 3), max_size=30), st.integers(1, 5))
def test_each_event_comes_once_and_in_order(bursts: list[int], kept: int) -> None:
    """However many are published between two looks, a client sees all of them, or is told that some are gone."""

    async def follow() -> None:
        feed, number = Feed(kept=kept), 0
        follower = feed.follow(feed.event_id(0), idle_seconds=0)
        for burst in bursts:
            for _ in range(burst):
                number += 1
                feed.publish("job", str(number))
            before, seen = number - burst, []
            while (item := await anext(follower)) is not None:
                seen.append(item if isinstance(item, int) else item.number)
            expected = list(range(before + 1, number + 1)) if burst <= kept else [number]
            assert seen == expected

    asyncio.run(follow())


CONDITIONS = ("absent", "deleted", "stored", "damaged")


@pytest.mark.parametrize("now", CONDITIONS)
@pytest.mark.parametrize("before", CONDITIONS)
def test_changes_are_named_by_what_readers_see(before: Any, now: Any) -> None:
    """A claim, a purge and a new version of what is deleted are no news; all else is, by what it looks like."""
    told = {
        ("absent", "stored"): "checkpoint.saved",
        ("deleted", "stored"): "checkpoint.undeleted",
        ("damaged", "stored"): "checkpoint.repaired",
        ("stored", "stored"): "checkpoint.edited",
        ("stored", "deleted"): "checkpoint.deleted",
        ("stored", "absent"): "checkpoint.deleted",
        ("damaged", "deleted"): "checkpoint.deleted",
        ("damaged", "absent"): "checkpoint.deleted",
        ("absent", "damaged"): "checkpoint.damaged",
        ("deleted", "damaged"): "checkpoint.damaged",
        ("stored", "damaged"): "checkpoint.damaged",
    }
    assert kind_of(Seen("1", before), Seen("2", now)) == told.get((before, now))
    assert kind_of(None, Seen("1", now)) == told.get(("absent", now))
    assert kind_of(Seen("1", "stored"), Seen("2", "stored", is_leaving=True)) is None
