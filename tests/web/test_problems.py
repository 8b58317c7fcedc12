"""What a client of the REST API is told of an error: what was wrong, what was expected, and what it can do there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from torch import nn

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.web import ServerSettings
from ckpt_lib.web.hints import OPERATIONS, in_words_of_the_api
from ckpt_lib.web.operations import Outcome
from ckpt_lib.web.results import Imported
from ckpt_lib.web.tokens import TokenFile
from tests.web.running import ended, served

HERE = "/api/v1/experiments/digits"
JOBS = "/experiments/digits/jobs"
LATEST = "/experiments/digits/checkpoints/latest"


@pytest.fixture
def guarded(config: CheckpointConfig, tmp_path: Path) -> ServerSettings:
    """Those of a server with tokens, of which there are none yet."""
    return ServerSettings(config=config, tokens_path=tmp_path / "tokens.json", jobs_folder=tmp_path / "jobs")


def problem(answer: httpx.Response, status: int) -> Any:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    return answer.json()


def test_no_token_is_told_what_is_expected(guarded: ServerSettings, tmp_path: Path) -> None:
    """The header, and the command that makes a token; the file of tokens stays the server's own."""
    with served(guarded) as client:
        for header in ({}, {"Authorization": "Bearer ckpt_guess"}, {"Authorization": "Basic YTpi"}):
            answer = client.get("/experiments", headers=header)
            told = problem(answer, 401)
            assert answer.headers["www-authenticate"] == "Bearer"
            assert "Authorization: Bearer TOKEN" in told["expected"]
            assert "`ckpt token NAME`" in told["hint"]
            assert str(tmp_path) not in answer.text


def test_too_little_a_token_is_told_which_scope_it_needs(guarded: ServerSettings) -> None:
    """By operations and by jobs; a server that only reads says that no token helps."""
    assert guarded.tokens_path is not None
    reader = {"Authorization": f"Bearer {TokenFile(guarded.tokens_path).create('reader', 'read')}"}
    writer = {"Authorization": f"Bearer {TokenFile(guarded.tokens_path).create('writer', 'write')}"}
    with served(guarded) as client:
        edit = problem(client.patch(LATEST, json={}, headers=reader), 403)
        job = problem(client.post(JOBS, json={"operation": "empty_trash"}, headers=writer), 403)
    for told, scope in ((edit, "write"), (job, "delete")):
        assert told["expected"] == f"a token with the scope {scope}"
        assert f"`ckpt token NAME --scope {scope}`" in told["hint"]
    with served(guarded.model_copy(update={"read_only": True})) as client:
        told = problem(client.patch(LATEST, json={}, headers=writer), 403)
        assert "this needs write" in told["expected"]
        assert "--read-only" in told["hint"]


def test_another_site_is_told_what_is_expected(client: httpx.Client) -> None:
    """Without tokens, names and pages of other machines are refused."""
    assert "localhost" in problem(client.get(LATEST, headers={"Host": "evil.example"}), 403)["expected"]
    refused = client.patch(LATEST, json={}, headers={"Origin": "http://evil.example"})
    assert "Origin" in problem(refused, 403)["expected"]


def test_what_concerns_no_checkpoint_names_none(client: httpx.Client) -> None:
    """Neither does its problem hold anything that is not known."""
    work = {"operation": "monitor", "metric": "val_loss", "mode": "max"}
    done = ended(client, client.post(JOBS, json=work))
    assert done["state"] == "succeeded", done
    assert [outcome["checkpoint_id"] for outcome in done["result"]] == [None]
    failed = ended(client, client.post(JOBS, json=work | {"metric": "nothing"}))
    assert failed["problem"].keys() == {"type", "title", "status", "detail", "expected"}


def test_hints_name_operations(client: httpx.Client, config: CheckpointConfig) -> None:
    """Of the experiment and the checkpoint that the request was about, and each that is named can be sent."""
    manager = CheckpointManager(config, "digits")
    checkpoint_id = manager.checkpoint_ids()[0]
    manager.pin_checkpoint(checkpoint_id)
    path = f"/experiments/digits/checkpoints/{checkpoint_id}"
    pinned = problem(client.delete(path), 409)
    request = f'PATCH {HERE}/checkpoints/{checkpoint_id} {{"pinned": false}}'
    assert pinned["hint"] == f"`{request}` unpins it."
    method, address, body = request.split(maxsplit=2)
    headers = {"content-type": "application/json"}
    sent = client.request(method, address.removeprefix("/api/v1"), content=body, headers=headers)
    assert sent.status_code == 200
    assert client.delete(path).status_code == 200
    assert f"`POST {HERE}/checkpoints/{checkpoint_id}/undelete`" in problem(client.get(path), 404)["hint"]
    assert (
        f"`GET {HERE}/checkpoints` shows" in problem(client.get("/experiments/digits/checkpoints/no-such"), 404)["hint"]
    )
    assert f"`GET {HERE}/checkpoints/NAME` tells" in problem(client.delete(LATEST), 422)["hint"]
    client.post(f"{LATEST}/metrics", json={"metrics": {"f1": 1}, "source": "a"})
    added = problem(client.post(f"{LATEST}/metrics", json={"metrics": {"f1": 2}, "source": "b"}), 409)
    assert '(`"replace": true`)' in added["hint"]


def test_hints_in_jobs_name_operations(client: httpx.Client, config: CheckpointConfig) -> None:
    """Where a job is shown, listed or told of; it is stored as the library says it, for the page."""
    gone = CheckpointManager(config, "digits").delete_checkpoint("epoch_1")
    work = {"operation": "validate", "names": [gone]}
    job = ended(client, client.post(JOBS, json=work))
    (listed,) = client.get("/jobs").json()["items"]
    for told in (job["problem"], job["result"][0]["problem"], listed["problem"]):
        assert f"`POST {HERE}/checkpoints/{gone}/undelete`" in told["hint"], told


def test_reasons_of_imports_name_operations() -> None:
    """What a job says of a file that was not imported; an outcome as it was stored before has no empty id."""
    reason = "It was deleted: `ckpt undelete ID` brings it back."
    result = {"kind": "import", "title": "weights", "result": "refused", "reason": reason}
    outcome = Outcome.model_validate({"checkpoint_id": "", "result": result}).for_clients("digits")
    assert outcome.checkpoint_id is None
    assert isinstance(outcome.result, Imported)
    assert outcome.result.reason == f"It was deleted: `POST {HERE}/checkpoints/ID/undelete` brings it back."


def test_warnings_name_operations(client: httpx.Client, config: CheckpointConfig) -> None:
    """Of a summary and of a plan, as the hints of errors."""
    CheckpointManager(config, "bare").save_checkpoint(model=nn.Linear(1, 1), epoch=1, metrics={"f1": 1.0})
    warnings = [
        client.get("/experiments/bare/summary").json()["monitor_warning"],
        client.get("/experiments/bare/retention").json()["warning"],
    ]
    for warning in warnings:
        assert "`POST /api/v1/experiments/bare/jobs" in warning
        assert "set_monitor" not in warning


@pytest.mark.parametrize(
    ("hint", "said"),
    [
        ("`ckpt repair ID` does it.", f'`POST {HERE}/jobs {{"operation": "repair", "names": ["ID"]}}` does it.'),
        ("`ckpt thin --undo a`.", f'`POST {HERE}/jobs {{"operation": "thin", "names": ["a"], "undo": true}}`.'),
        ("`ckpt trash --empty`", f'`POST {HERE}/jobs {{"operation": "empty_trash"}}`'),
        ("`ckpt undelete` may", f"`POST {HERE}/checkpoints/ID/undelete` may"),
        ("`ckpt show a/b`", f"`GET {HERE}/checkpoints/a%2Fb`"),
        ("`ckpt list --backups` lists them.", None),
        ("`ckpt quarantine` lists what is.", None),
        ("`ckpt doctor` shows it, `ckpt import` takes it in.", None),
        ("Did you mean 'best'?", None),
    ],
)
def test_what_no_operation_does_stays_a_command(hint: str, said: str | None) -> None:
    """Only a person at the machine of the server can do it."""
    assert in_words_of_the_api(hint, "digits") == (said or hint)


def test_each_operation_of_a_hint_is_one_of_the_api(client: httpx.Client) -> None:
    """With the names of its parameters, and with a body that it understands."""
    paths = client.get("/openapi.json").json()["paths"]
    for command, operation in OPERATIONS.items():
        assert operation.method.lower() in paths[f"/api/v1{operation.path}"], command
        if operation.body is not None:
            place = operation.path.replace("{experiment}", "none").replace("{name}", "none")
            assert client.request(operation.method, place, json=operation.body).status_code == 404, command


@pytest.mark.parametrize(
    ("path", "detail", "expected", "hint"),
    [
        ("/checkpoints?sort=x", "no parameter 'sort' in the query", "sort_by, descending", "Did you mean 'sort_by'?"),
        ("/experiments?limit=1", "no parameter 'limit' in the query", "no parameter", "openapi.json"),
        ("/experiments/digits/retention?max_checkpoint=1", "'max_checkpoint'", "policy", "'max_checkpoints'?"),
        ("/experiments/digits/summary?x=1", "no parameter 'x' in the query", "no parameter", "openapi.json"),
        ("/checkpoints?limit=0", "'limit' in the query cannot be used", "at least 1", "openapi.json"),
        ("/checkpoints?limit=900", "'limit' in the query cannot be used", "at most 500", "openapi.json"),
        ("/checkpoints?limit=many", "'limit' in the query cannot be used", "a whole number", "openapi.json"),
        ("/checkpoints?descending=up", "'descending' in the query", "true or false", "openapi.json"),
        (f"/checkpoints?search={'x' * 300}", "'search' in the query", "at most 200 characters", "openapi.json"),
        ("/experiments/digits/comparison?names=best", "'names' in the query", "at least 2 items", "openapi.json"),
        ("/experiments/digits/comparison", "'names' in the query is missing", None, "openapi.json"),
        ("/exports/x", "'export_id' in the path cannot be used", "[0-9a-f]", "openapi.json"),
        ("/experiments/digits/retention?policy={", "it is not JSON", "newest", None),
        ('/experiments/digits/retention?policy={"kind":"newes"}', "kind cannot be 'newes'", "newest", "'newest'?"),
        ('/experiments/digits/retention?policy={"count":1}', "it has no kind", "newest", None),
        ("/experiments/digits/retention?policy=3", "policy cannot be 3, expected an object", "newest", None),
        ("/events?last=3", "no parameter 'last' in the query", "no parameter", "openapi.json"),
    ],
)
def test_parameters_that_cannot_be(
    client: httpx.Client, path: str, detail: str, expected: str | None, hint: str | None
) -> None:
    """Each is named with its place, and with what was expected; what is nearly right is guessed."""
    said(problem(client.get(path), 422), detail, expected, hint)


def said(told: Any, detail: str, expected: str | None, hint: str | None) -> None:
    """See that a problem has these words, and none of Pydantic."""
    for name, words in (("detail", detail), ("expected", expected), ("hint", hint)):
        assert (words in told[name]) if words is not None else (name not in told), told
    assert not any(word in str(told) for word in ("Input", "Extra", "should be", "permitted", "valid "))


@pytest.mark.parametrize(
    ("body", "detail", "expected", "hint"),
    [
        ({"operation": "validat", "names": "all"}, "'operation' in the body", "'validate'", "'validate'?"),
        ({"names": "all"}, "'operation' in the body is missing", "validate, backup", "openapi.json"),
        ({"operation": "validate", "names": "al"}, "'names' in the body", "a list or 'all'", "'all'?"),
        ({"operation": "validate", "names": [1]}, "'names[0]' in the body", "a text", "openapi.json"),
        ({"operation": "thin", "names": ["a"], "undoo": True}, "no field 'undoo' in the body", "undo", "'undo'?"),
        ({"operation": "monitor", "metric": "a", "mode": "mn"}, "'mode' in the body", "'min' or 'max'", "'min'?"),
        ({"operation": "export", "names": ["a"], "format": "torc"}, "'format' in the body", "'torch'", "'torch'?"),
        ({"operation": "import", "uploads": ["0" * 32], "key_map": {"a": 1}}, "'key_map.a'", "a text", "openapi.json"),
        ([], "the body cannot be used", "an object as JSON", "openapi.json"),
        (None, "the body is missing", "a JSON object", "openapi.json"),
    ],
)
def test_bodies_that_cannot_be(
    client: httpx.Client, body: Any, detail: str, expected: str | None, hint: str | None
) -> None:
    """By the operation of the job that they name; of what may have several types, all are expected."""
    answer = client.post(JOBS) if body is None else client.post(JOBS, json=body)
    said(problem(answer, 422), detail, expected, hint)


def test_all_that_is_wrong_is_told(client: httpx.Client) -> None:
    """Each once, whatever the place, in one answer; of very many, the first ones."""
    body = {"metrics": {"loss": "x", "f1": 1}, "sourc": "eval"}
    told = problem(client.post(f"{LATEST}/metrics", json=body), 422)
    assert told["detail"] == (
        "'metrics.loss' in the body cannot be used: expected a number, got 'x'; 'source' in the body is missing; "
        "there is no field 'sourc' in the body: expected metrics, source, replace"
    )
    assert told["hint"] == "Did you mean 'source'?"
    many = problem(client.patch(LATEST, json={"add_tags": [1] * 90}), 422)
    assert many["detail"].endswith("'add_tags[9]' in the body cannot be used: expected a text, got 1; and 80 more")
    assert "'Upload-Length' in the headers is missing" in problem(client.post("/uploads"), 422)["detail"]


def test_bodies_that_are_no_json(client: httpx.Client) -> None:
    """Of what is text, the place is told where it ceases to be JSON."""
    headers = {"content-type": "application/json"}
    told = problem(client.patch(LATEST, content="{", headers=headers), 422)
    assert (told["detail"], told["expected"]) == ("the body is not JSON", "a JSON object")
    assert told["got"].endswith("at character 1")
    assert "UTF-8" in problem(client.patch(LATEST, content=b"\xff{", headers=headers), 400)["hint"]
    assert "application/json" in problem(client.patch(LATEST, content="{}"), 422)["expected"]


def test_addresses_that_are_none(client: httpx.Client) -> None:
    """The hint says where those are that there are."""
    for path in ("/nothing", str(client.base_url.copy_with(path="/experiments"))):
        assert "/api/v1/openapi.json" in problem(client.get(path), 404)["hint"]
    refused = client.put("/experiments")
    assert "Allow" in problem(refused, 405)["hint"]
    assert refused.headers["allow"] == "GET"
