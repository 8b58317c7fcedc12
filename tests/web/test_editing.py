"""The operations of the REST API that edit, delete and bring back, on a real store."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.experiment import edits
from ckpt_lib.web import ServerSettings
from ckpt_lib.web.tokens import SCOPES, TokenFile
from tests.web.running import served

DIGITS = "/experiments/digits/checkpoints"


def test_edits(client: httpx.Client, config: CheckpointConfig) -> None:
    """Tags, description and pin change at once, of the checkpoint that had the name before; what is not given stays."""
    wanted = {"add_tags": ["good"], "remove_tags": ["odd"], "description": "kept", "pinned": True}
    edited = client.patch(f"{DIGITS}/@odd", json=wanted).json()
    assert (edited["epoch"], edited["tags"], edited["description"], edited["pinned"]) == (3, ["good"], "kept", True)
    assert client.patch(f"{DIGITS}/epoch_3", json={"pinned": False}).json()["description"] == "kept"
    stored = CheckpointManager(config, "digits").get_checkpoint("epoch_3")
    assert (stored.tags, stored.pinned) == (("good",), False)


def test_an_edit_is_one_write(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tags, description and pin are changed together, so that a crash leaves all of them or none."""
    written = []
    replace = edits._replace

    def counted(*args: Any) -> Any:
        written.append(args)
        return replace(*args)

    monkeypatch.setattr(edits, "_replace", counted)
    edit = {"add_tags": ["good"], "description": "kept", "pinned": True}
    assert client.patch(f"{DIGITS}/latest", json=edit).json()["pinned"] is True
    assert len(written) == 1


def test_only_whole_ids_are_deleted(client: httpx.Client) -> None:
    """A name may stand for another checkpoint by the time that the request arrives."""
    for name in ("latest", "best", "epoch_1", "@odd"):
        assert client.delete(f"{DIGITS}/{name}").status_code == 422
    assert len(client.get(DIGITS).json()["items"]) == 3


def id_of(client: httpx.Client, name: str, **options: Any) -> str:
    return str(client.get(f"{DIGITS}/{name}", **options).json()["checkpoint_id"])


def test_metrics_are_added(client: httpx.Client) -> None:
    """They count for what is the best; another value is a conflict until it is meant."""
    path = f"{DIGITS}/epoch_1/metrics"
    assert client.post(path, json={"metrics": {"accuracy": 0.9}, "source": "eval"}).json()["metrics"]["accuracy"] == 0.9
    other = {"metrics": {"accuracy": 0.8}, "source": "eval"}
    assert client.post(path, json=other).status_code == 409
    assert client.post(path, json=other | {"replace": True}).json()["metrics"]["accuracy"] == 0.8


def test_what_is_deleted_comes_back(client: httpx.Client) -> None:
    """It is in the trash until then; a pinned one is refused, with what to do."""
    client.patch(f"{DIGITS}/epoch_2", json={"pinned": True})
    refused = client.delete(f"{DIGITS}/{id_of(client, 'epoch_2')}")
    assert (refused.status_code, refused.json()["type"]) == (409, "ProtectedCheckpointError")
    gone = client.delete(f"{DIGITS}/{id_of(client, 'latest')}").json()["checkpoint_id"]
    assert [item["checkpoint_id"] for item in client.get("/experiments/digits/trash").json()["items"]] == [gone]
    assert client.get(f"{DIGITS}/{gone}").status_code == 404
    assert client.post(f"{DIGITS}/{gone}/undelete").json()["checkpoint_id"] == gone
    assert client.get(f"{DIGITS}/latest").json()["checkpoint_id"] == gone


def test_the_trash_says_until_when_it_keeps_what(
    client: httpx.Client, settings: ServerSettings, config: CheckpointConfig
) -> None:
    """Each checkpoint with all that is known of it, the oldest first, and when trash_seconds have passed."""
    first, second = id_of(client, "epoch_1"), id_of(client, "epoch_3")
    CheckpointManager(config, "digits").thin_checkpoint("epoch_2")  # what it has lost is no checkpoint
    known = {name: client.get(f"{DIGITS}/{name}").json() for name in (first, second)}
    for name in (second, first):
        client.delete(f"{DIGITS}/{name}")
    items = client.get("/experiments/digits/trash").json()["items"]
    assert [item["checkpoint_id"] for item in items] == [first, second]
    for item in items:
        deleted_at, expires_at = (datetime.fromisoformat(item.pop(name)) for name in ("deleted_at", "expires_at"))
        assert timedelta() <= datetime.now(UTC) - deleted_at < timedelta(minutes=5)
        assert expires_at - deleted_at == timedelta(seconds=settings.config.trash_seconds)
        assert item == known[item["checkpoint_id"]] | {"is_best": False, "is_latest": False}


@pytest.mark.parametrize(
    "body", ["{}", "[", '{"add_tags": ["@"]}', '{"other": 1}', '{"add_tags": ["\\u0000"]}', "null"]
)
def test_bodies_that_say_nothing_right(client: httpx.Client, body: str) -> None:
    """An edit of nothing is none; anything else is refused with a problem, and nothing changes."""
    before = client.get(f"{DIGITS}/latest").json()
    answer = client.patch(f"{DIGITS}/latest", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == (200 if body == "{}" else 422)
    assert client.get(f"{DIGITS}/latest").json() == before


def test_scopes_and_read_only(config: CheckpointConfig, tmp_path: Path) -> None:
    """Each token does what its scope allows and no more, and a server that only reads does nothing else for anyone."""
    tokens = TokenFile(tmp_path / "tokens.json")
    headers = {scope: {"Authorization": f"Bearer {tokens.create(scope, scope)}"} for scope in SCOPES}
    settings = ServerSettings(config=config, tokens_path=tmp_path / "tokens.json", jobs_folder=tmp_path / "jobs")
    with served(settings) as client:
        codes = {}
        first = id_of(client, "epoch_1", headers=headers["read"])
        for scope in SCOPES:
            own = headers[scope]
            codes[scope] = (
                client.get(f"{DIGITS}/latest", headers=own).status_code,
                client.patch(f"{DIGITS}/latest", json={"add_tags": [scope]}, headers=own).status_code,
                client.delete(f"{DIGITS}/{first}", headers=own).status_code,
            )
        assert codes == {"read": (200, 403, 403), "write": (200, 200, 403), "delete": (200, 200, 200)}
    with served(settings.model_copy(update={"read_only": True})) as client:
        assert client.delete(f"{DIGITS}/epoch_2", headers=headers["delete"]).status_code == 403
        assert client.get(f"{DIGITS}/epoch_2", headers=headers["read"]).status_code == 200


def test_each_change_is_on_record(client: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    """On one line, whatever was in the path, and also where it was refused."""
    with caplog.at_level(logging.INFO, logger="ckpt_lib.audit"):
        client.patch(f"{DIGITS}/latest", json={"add_tags": ["x"]})
        client.delete(f"{DIGITS}/no%0Asuch")
        client.get(f"{DIGITS}/latest")
    lines = [json.loads(record.message) for record in caplog.records if record.name == "ckpt_lib.audit"]
    assert [(line["method"], line["status"]) for line in lines] == [("PATCH", 200), ("DELETE", 422)]
    assert {line["who"] for line in lines} == {"anyone on this machine"}
    assert all("\n" not in record.message for record in caplog.records)
