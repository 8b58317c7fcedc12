"""The operations of the REST API that only read, on a real store."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx
import pytest
from torch import nn

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.errors import ConfigError
from ckpt_lib.web import ServerSettings, create_app
from ckpt_lib.web.managers import Managers
from ckpt_lib.web.problems import title_of
from ckpt_lib.web.tokens import TokenFile
from tests.web.running import served


def get(client: httpx.Client, path: str, code: int = 200, **options: Any) -> Any:
    response = client.get(path, **options)
    assert response.status_code == code, response.text
    if code >= 400:
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json()["status"] == code
    return response.json()


def test_experiments_and_their_checkpoints(client: httpx.Client) -> None:
    """What the store holds, by the words of the library; a metric that is no number is text, as in manifests."""
    found = get(client, "/experiments")["items"]
    assert [(item["experiment_name"], item["total_checkpoints"]) for item in found] == [("digits", 3), ("words", 1)]
    page = get(client, "/experiments/words/checkpoints")
    assert page["next"] is None
    assert page["items"][0]["metrics"] == {"val_loss": "NaN"}


def test_pages_follow_one_another(client: httpx.Client) -> None:
    """Sorted on the server, in one experiment and in all of them, until the last page says so."""
    for path in ("/experiments/digits/checkpoints", "/checkpoints"):
        epochs, after = [], None
        while True:
            asked = {"sort_by": "val_loss", "limit": 1, **({} if after is None else {"after": after})}
            page = get(client, path, params=asked)
            epochs += [(item["experiment_name"], item["epoch"]) for item in page["items"]]
            if (after := page["next"]) is None:
                break
        assert epochs[:3] == [("digits", 2), ("digits", 3), ("digits", 1)]
        assert epochs[3:] == ([("words", 1)] if path == "/checkpoints" else [])


@pytest.mark.parametrize("path", ["/experiments/digits/checkpoints", "/checkpoints"])
@pytest.mark.parametrize("order", [{}, {"sort_by": "val_loss"}, {"sort_by": "timestamp", "descending": True}], ids=str)
def test_pages_go_on_where_one_was_deleted(
    client: httpx.Client, config: CheckpointConfig, path: str, order: dict[str, Any]
) -> None:
    """The checkpoint that a page ended with may be gone when the next page is asked for."""
    whole = [item["checkpoint_id"] for item in get(client, path, params=order)["items"]]
    page = get(client, path, params={**order, "limit": 2})
    last = page["items"][-1]
    CheckpointManager(config, last["experiment_name"]).delete_checkpoint(last["checkpoint_id"])
    rest = get(client, path, params={**order, "after": page["next"]})
    assert [item["checkpoint_id"] for item in rest["items"]] == whole[2:]
    if order:
        get(client, path, 422, params={"after": page["next"]})


def test_filters(client: httpx.Client) -> None:
    """Conditions, tags and text, as in lists on the command line."""
    found = get(client, "/experiments/digits/checkpoints", params={"where": ["val_loss<3", "epoch>=3"], "tags": "odd"})
    assert [item["epoch"] for item in found["items"]] == [3]
    assert get(client, "/checkpoints", params={"search": "epoch_0002"})["items"][0]["epoch"] == 2


def test_one_checkpoint_by_name(client: httpx.Client) -> None:
    """By the names that people use everywhere."""
    for name, epoch in (("best", 2), ("latest~1", 2), ("@odd", 3), ("epoch_1", 1)):
        assert get(client, f"/experiments/digits/checkpoints/{name}")["epoch"] == epoch


def test_summary_and_comparison(client: httpx.Client, config: CheckpointConfig) -> None:
    """The same numbers as those of a manager; values that are not finite are texts."""
    assert get(client, "/experiments/digits/summary")["total_checkpoints"] == 3
    found = get(client, "/experiments/digits/comparison", params={"names": ["best", "latest"]})
    assert found["metrics_comparison"] == {"val_loss": [1.0, 2.0]}
    manager = CheckpointManager(config, "words")
    manager.save_checkpoint(model=nn.Linear(1, 1), epoch=2, metrics={"val_loss": float("-inf")})
    found = get(client, "/experiments/words/comparison", params={"names": ["latest~1", "latest"]})
    assert found["metrics_comparison"] == {"val_loss": ["NaN", "-Infinity"]}


def test_options_that_are_no_number(client: httpx.Client, config: CheckpointConfig) -> None:
    """They are texts as well, in each depth, and the same one twice is no difference."""
    manager = CheckpointManager(config, "options")
    for epoch, rate in enumerate((float("nan"), float("inf"))):
        options = {"rate": rate, "deep": {"rates": [rate]}, "same": float("nan")}
        manager.save_checkpoint(model=nn.Linear(1, 1), epoch=epoch, config=options)
    found = get(client, "/experiments/options/comparison", params={"names": ["latest~1", "latest"]})
    assert found["config_comparison"] == {"rate": ["NaN", "Infinity"], "deep.rates": [["NaN"], ["Infinity"]]}


@pytest.mark.parametrize(
    ("path", "code", "kind"),
    [
        ("/experiments/none/checkpoints", 404, "ExperimentNotFoundError"),
        ("/experiments/digits/checkpoints/nothing", 404, "CheckpointNotFoundError"),
        ("/experiments/digits/checkpoints?where=nonsense", 422, "ConfigError"),
        ("/experiments/digits/checkpoints?sort_by=nothing", 422, "UnknownMetricError"),
        ("/experiments/digits/checkpoints?limit=0", 422, "RequestError"),
        ("/experiments/digits/comparison?names=best", 422, "RequestError"),
        ("/experiments/..%2F..%2Fetc/checkpoints", 404, "HTTPError"),
        ("/experiments/%3Cscript%3E/checkpoints", 422, "InvalidNameError"),
        ("/nothing", 404, "HTTPError"),
    ],
)
def test_errors_are_problems(client: httpx.Client, config: CheckpointConfig, path: str, code: int, kind: str) -> None:
    """With the class and the words of the library, and no path of the server."""
    problem = get(client, path, code)
    assert problem["type"] == kind
    assert problem["title"] == (HTTPStatus(code).phrase if kind == "HTTPError" else title_of(kind))
    assert problem["detail"] not in ("", problem["title"])
    assert config.checkpoint_dir not in json.dumps(problem)


@pytest.mark.parametrize(
    ("kind", "title"),
    [
        ("CheckpointNotFoundError", "Checkpoint not found"),
        ("NotAStoreError", "Not a store"),
        ("ConfigError", "Config error"),
    ],
)
def test_titles_are_those_of_the_class(kind: str, title: str) -> None:
    """In words, and the same whatever has happened."""
    assert title_of(kind) == title


def test_a_bug_is_found_in_the_log(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The answer says nothing of the inside, and names the entry of the log that does."""
    monkeypatch.setattr(Managers, "of", lambda *_: 1 / 0)
    problem = get(client, "/experiments/digits/summary", 500)
    assert (problem["type"], problem["title"]) == ("ServerError", "Server error")
    assert problem["instance"] in caplog.text
    assert "ZeroDivisionError" not in json.dumps(problem)


def test_wrong_tokens_lock_nobody_out(config: CheckpointConfig, tmp_path: Path) -> None:
    """The holder of a valid token is served after any number of wrong ones."""
    good = TokenFile(tmp_path / "tokens.json").create("me", "read")
    settings = ServerSettings(config=config, tokens_path=tmp_path / "tokens.json", jobs_folder=tmp_path / "jobs")
    with served(settings) as client:
        wrong = {"Authorization": "Bearer ckpt_guess"}
        assert {client.get("/experiments", headers=wrong).status_code for _ in range(25)} == {401}
        assert get(client, "/experiments", headers={"Authorization": f"Bearer {good}"})


def test_each_operation_needs_its_token(config: CheckpointConfig, tmp_path: Path) -> None:
    """A request without a token, or with a wrong, expired or revoked one, is refused with 401."""
    tokens = TokenFile(tmp_path / "tokens.json")
    good, old = tokens.create("me", "read"), tokens.create("old", "delete", lifetime=timedelta(0))
    settings = ServerSettings(config=config, tokens_path=tmp_path / "tokens.json", jobs_folder=tmp_path / "jobs")
    with served(settings) as client:
        paths = client.get("/openapi.json").json()["paths"]
        asked = [(method, path) for path, methods in paths.items() for method in methods]
        assert len(asked) > 5
        for method, path in asked:
            place = re.sub(r"\{\w+\}", "none", path.removeprefix("/api/v1"))
            for text in (None, old):
                headers = {} if text is None else {"Authorization": f"Bearer {text}"}
                assert client.request(method, place, headers=headers).status_code == 401
    with served(settings) as client:
        headers = {"Authorization": f"Bearer {good}"}
        assert get(client, "/experiments", headers=headers)
        tokens.remove("me")
        get(client, "/experiments", 401, headers=headers)
    assert good not in (tmp_path / "tokens.json").read_text(encoding="utf-8")
    assert (tmp_path / "tokens.json").stat().st_mode & 0o77 == 0


def test_other_machines_need_a_token(config: CheckpointConfig) -> None:
    """A server that others can reach does not even start without."""
    for host in ("0.0.0.0", "::", "192.168.1.1", "example.org"):
        with pytest.raises(ConfigError, match="without a token"):
            create_app(ServerSettings(config=config, host=host))
    create_app(ServerSettings(config=config, host="::1"))
