"""What the gate of the page lets in: signed-in browsers, for what the page needs, from the page itself."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from ckpt_lib import CheckpointConfig, CheckpointManager, page
from ckpt_lib.web import ServerSettings
from ckpt_lib.web.access import Access
from ckpt_lib.web.gate import MAX_BODY_BYTES
from ckpt_lib.web.sessions import Sessions
from ckpt_lib.web.tokens import SCOPES, TokenFile
from tests.web.running import served, wait_for


@contextmanager
def browser_of(settings: ServerSettings) -> Iterator[httpx.Client]:
    """A client that keeps cookies, as a browser does, at the root of a server with the page."""
    with served(settings, create=page.create_app) as client:
        root = str(client.base_url).partition("/api")[0]
        with httpx.Client(base_url=root, timeout=60, trust_env=False) as browser:
            yield browser


@pytest.fixture
def tokens(tmp_path: Path) -> dict[str, str]:
    """A token of each scope."""
    file = TokenFile(tmp_path / "tokens.json")
    return {scope: file.create(scope, scope) for scope in SCOPES}


@pytest.fixture
def guarded(config: CheckpointConfig, tmp_path: Path, tokens: dict[str, str]) -> ServerSettings:
    """Those of a server with these tokens."""
    return ServerSettings(config=config, tokens_path=tmp_path / "tokens.json", jobs_folder=tmp_path / "jobs")


def act(browser: httpx.Client, name: str, value: str, **headers: str) -> tuple[int, str]:
    """Send what a button of the list sends, and return the status and the notice."""
    session = "session1234"
    configuration = browser.get("/ui/config").json()
    functions = configuration["dependencies"]
    components = {item["props"].get("elem_id"): item["id"] for item in configuration["components"]}
    found = next(item for item in functions if [components["ck-checkpoints"], "act"] in item["targets"])
    choose = {"data": [None], "event_data": {"act": "experiment", "value": "digits"}, "session_hash": session}
    body: dict[str, Any] = choose | {"fn_index": found["id"]}
    browser.post("/ui/gradio_api/run/predict", json=body)
    body["event_data"] = {"act": name, "value": value}
    answer = browser.post("/ui/gradio_api/run/predict", json=body, headers=headers)
    place = found["outputs"].index(components["ck-notice"])
    data = answer.json().get("data") if answer.is_success else None
    return answer.status_code, re.sub("<[^>]*>", " ", str(data[place])) if data else ""


def test_nothing_without_signing_in(guarded: ServerSettings) -> None:
    """The page asks for a token; whatever is behind it is refused, and so is a wrong token."""
    with browser_of(guarded) as browser:
        asked = browser.get("/ui/")
        assert (asked.status_code, "Sign in" in asked.text) == (200, True)
        assert browser.get("/ui/?token=ckpt_wrong").status_code == 401
        assert browser.post("/ui/sign-in", data={"token": "ckpt_wrong"}).status_code == 401
        for path in ("/ui/config", "/ui/theme.css", "/ui/gradio_api/queue/data?session_hash=x"):
            assert browser.get(path).status_code == 401
        assert browser.post("/ui/gradio_api/run/predict", json={}).status_code == 401
        assert browser.cookies == {}


def test_signing_in_and_out(guarded: ServerSettings, tokens: dict[str, str]) -> None:
    """The token of the address becomes a cookie that scripts and other sites do not get; signing out ends it."""
    with browser_of(guarded) as browser:
        entered = browser.get(f"/ui/?token={tokens['read']}")
        cookie = entered.headers["set-cookie"].lower()
        assert entered.status_code == 200
        assert all(part in cookie for part in ("httponly", "samesite=strict", "path=/ui"))
        assert tokens["read"] not in cookie
        assert browser.get("/ui/config").status_code == 200
        old = "; ".join(f"{name}={value}" for name, value in browser.cookies.items())
        assert browser.post("/ui/sign-out").status_code == 303
        assert browser.get("/ui/config", headers={"Cookie": old}).status_code == 401
        assert browser.post("/ui/sign-in", data={"token": tokens["read"]}).status_code == 200
        assert browser.get("/ui/config").status_code == 200


def test_a_revoked_token_ends_its_sessions(guarded: ServerSettings, tokens: dict[str, str]) -> None:
    """At once: the session stands for the token."""
    assert guarded.tokens_path is not None
    with browser_of(guarded) as browser:
        browser.get(f"/ui/?token={tokens['write']}")
        assert browser.get("/ui/config").status_code == 200
        TokenFile(guarded.tokens_path).remove("write")
        assert browser.get("/ui/config").status_code == 401


def test_no_token_ends_the_sessions_of_others(guarded: ServerSettings, tokens: dict[str, str]) -> None:
    """However often it signs in: the oldest of its own sessions go."""
    sessions = Sessions(Access(guarded))
    other = sessions.start(tokens["write"])
    own = [sessions.start(tokens["read"]) for _ in range(120)]
    assert sessions.text_of(other) == tokens["write"]
    assert [session for session in own if sessions.text_of(session)] == own[-100:]


def test_other_sites_and_other_paths(guarded: ServerSettings, tokens: dict[str, str]) -> None:
    """A page of another site cannot use the session, and Gradio's uploads, files and proxy are not there."""
    with browser_of(guarded) as browser:
        browser.get(f"/ui/?token={tokens['delete']}")
        other = {"Origin": "http://evil.example"}
        assert browser.post("/ui/gradio_api/run/predict", json={}, headers=other).status_code == 403
        assert browser.post("/ui/sign-out", headers=other).status_code == 403
        for path in (
            "/ui/gradio_api/file=/etc/passwd",
            "/ui/gradio_api/proxy=http://127.0.0.1/",
            "/ui/gradio_api/info",
            "/ui/gradio_api/runs",
            "/ui/static/..%2f..%2f..%2fweb/tokens.py",
            "/ui/assets/..%2f..%2f..%2fetc/passwd",
        ):
            assert browser.get(path).status_code in (403, 404), path
        assert browser.post("/ui/gradio_api/upload", files={"files": b"x"}).status_code == 404
        assert browser.post("/ui/gradio_api/component_server", json={}).status_code == 404
        headers = browser.get("/ui/").headers
        assert "default-src 'self'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"


def test_pages_of_other_ports_read_nothing(guarded: ServerSettings, tokens: dict[str, str]) -> None:
    """Browsers send cookies to every port of a machine: no answer lets another page of this machine read it."""
    other = {"Origin": "http://localhost:9999", "Access-Control-Request-Method": "POST"}
    with browser_of(guarded) as browser:
        browser.get(f"/ui/?token={tokens['read']}")
        for answer in (browser.get("/ui/config", headers=other), browser.options("/ui/config", headers=other)):
            assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("place", ["http://127.0.0.1:9/", "{folder}/secret"])
def test_the_page_takes_no_files(
    guarded: ServerSettings, tokens: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Gradio would copy files of the server and of other servers into its cache, for whoever may read."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "cache"))
    (tmp_path / "secret").write_text("secret")
    with browser_of(guarded) as browser:
        browser.get(f"/ui/?token={tokens['read']}")
        functions = browser.get("/ui/config").json()["dependencies"]
        found = next(item for item in functions if len(item["inputs"]) == 3)
        file = {"path": place.format(folder=tmp_path), "meta": {"_type": "gradio.FileData"}}
        body = {"data": [None, file, ""], "fn_index": found["id"], "session_hash": "x"}
        spelled = json.dumps(body).replace("gradio.F", "\\u0067radio.F")
        for content in (json.dumps(body), spelled, json.dumps(body).encode("utf-16")):
            for path in ("run/predict", "queue/join"):
                headers = {"Content-Type": "application/json"}
                answer = browser.post(f"/ui/gradio_api/{path}", content=content, headers=headers)
                assert (answer.status_code, answer.json()["detail"]) == (400, "the page takes no files")
        assert not list(tmp_path.rglob("cache/*/secret"))
        for content in ("[" * 100_000, "{", b"\xff"):
            assert browser.post("/ui/gradio_api/run/predict", content=content).status_code == 400
        large = json.dumps({"data": "x" * MAX_BODY_BYTES})
        assert browser.post("/ui/gradio_api/run/predict", content=large).status_code == 413


def test_without_tokens_the_host_is_checked(config: CheckpointConfig, tmp_path: Path) -> None:
    """A site that points its own name to this machine is not answered."""
    with browser_of(ServerSettings(config=config, jobs_folder=tmp_path / "jobs")) as browser:
        assert browser.get("/ui/config").status_code == 200
        assert browser.get("/ui/config", headers={"Host": "evil.example"}).status_code == 403


def sent(browser: httpx.Client, data: bytes, name: str = "model.pt") -> httpx.Response:
    """Begin an upload through the page, and send all of it; the answer to the first refusal, or to the end."""
    digest = base64.b64encode(hashlib.sha256(data).digest()).decode()
    headers = {
        "Upload-Length": str(len(data)),
        "Upload-Metadata": f"filename {base64.b64encode(name.encode()).decode()}",
        "Repr-Digest": f"sha-256=:{digest}:",
    }
    begun = browser.post("/ui/uploads", headers=headers)
    if not begun.is_success:
        return begun
    headers = {"Content-Type": "application/offset+octet-stream", "Upload-Offset": "0"}
    return browser.patch(f"/ui/uploads/{begun.json()['upload_id']}", headers=headers, content=data)


def test_files_are_sent_with_a_session(guarded: ServerSettings, tokens: dict[str, str]) -> None:
    """By the uploads of the API and with its rights: larger than the page's other bodies, not by another site's page,
    and no session takes the file that another one has sent.
    """
    data = b"x" * (3 * MAX_BODY_BYTES)
    folder = guarded.transfers_path() / "uploads"
    with browser_of(guarded) as browser:
        assert sent(browser, data).status_code == 401
        browser.get(f"/ui/?token={tokens['read']}")
        assert sent(browser, data).json()["detail"] == "the token allows read, not write"
        browser.get(f"/ui/?token={tokens['write']}")
        assert browser.post("/ui/uploads", headers={"Origin": "http://evil.example"}).status_code == 403
        assert sent(browser, b"x", "../x").status_code == 422
        assert browser.post("/ui/uploads/../experiments/digits/jobs", json={}).status_code == 404
        assert not list(folder.glob("*"))
        assert sent(browser, data).status_code == 204
        (upload,) = folder.iterdir()
        assert (upload / "data").stat().st_size == len(data)
        large = {"Content-Type": "application/offset+octet-stream", "Upload-Offset": str(len(data))}
        assert browser.patch(f"/ui/uploads/{upload.name}", headers=large, content=b"x").status_code == 413
        browser.get(f"/ui/?token={tokens['delete']}")
        assert "there is no such upload" in act(browser, "files", upload.name)[1].lower()
        browser.get(f"/ui/?token={tokens['write']}")
        assert act(browser, "files", upload.name) == (200, "")
        assert browser.delete(f"/ui/uploads/{upload.name}").status_code == 204
    with browser_of(guarded.model_copy(update={"read_only": True})) as browser:
        browser.get(f"/ui/?token={tokens['delete']}")
        assert sent(browser, data).json()["detail"] == "this server is read-only"
        assert "read-only" in act(browser, "files", upload.name)[1]


def test_a_file_passes_the_gate_in_pieces(guarded: ServerSettings, tokens: dict[str, str]) -> None:
    """What has come is on the disk before the rest is sent: no body of a file is held in memory."""
    size = 8 * MAX_BODY_BYTES
    digest = base64.b64encode(hashlib.sha256(bytes(size)).digest()).decode()
    headers = {"Upload-Length": str(size), "Upload-Metadata": "filename eA==", "Repr-Digest": f"sha-256=:{digest}:"}

    def has_come(size_bytes: int) -> bool:
        return data.stat().st_size >= size_bytes

    def pieces() -> Iterator[bytes]:
        for number in range(8):
            yield bytes(MAX_BODY_BYTES)
            wait_for(partial(has_come, number * MAX_BODY_BYTES))

    with browser_of(guarded) as browser:
        browser.get(f"/ui/?token={tokens['write']}")
        upload_id = browser.post("/ui/uploads", headers=headers).json()["upload_id"]
        headers = {"Content-Type": "application/offset+octet-stream", "Upload-Offset": "0"}
        data: Path = guarded.transfers_path() / "uploads" / upload_id / "data"
        answer = browser.patch(f"/ui/uploads/{upload_id}", headers=headers, content=pieces())
        assert (answer.status_code, answer.headers["upload-offset"]) == (204, str(size))


def test_a_session_is_none_for_the_api(guarded: ServerSettings, tokens: dict[str, str]) -> None:
    """The cookie opens the page alone: a form of the page's origin cannot call the API with it."""
    with browser_of(guarded) as browser:
        browser.get(f"/ui/?token={tokens['delete']}")
        cookies = "; ".join(f"{name}={value}" for name, value in browser.cookies.items())
        assert cookies
        assert browser.get("/api/v1/experiments", headers={"Cookie": cookies}).status_code == 401


def test_scopes_hold_for_the_page(guarded: ServerSettings, tokens: dict[str, str]) -> None:
    """Whatever a browser sends, its token allows what it does over the API; a read-only server allows no change."""
    manager = CheckpointManager(guarded.config, "digits")
    wanted = manager.get_checkpoint("epoch_1").checkpoint_id
    with browser_of(guarded) as browser:
        for scope, told in (("read", "the token allows read"), ("write", "the token allows write")):
            browser.get(f"/ui/?token={tokens[scope]}")
            assert told in act(browser, "delete", wanted)[1].lower()
        browser.get(f"/ui/?token={tokens['read']}")
        for name in ("pin", "unpin", "undelete", "backup", "repair", "restore"):
            assert "the token allows read, not write" in act(browser, name, wanted)[1].lower()
        assert len(manager.checkpoint_ids()) == 3
    with browser_of(guarded.model_copy(update={"read_only": True})) as browser:
        browser.get(f"/ui/?token={tokens['delete']}")
        assert "read-only" in act(browser, "delete", wanted)[1]
        assert len(manager.checkpoint_ids()) == 3


def test_changes_are_on_record(
    guarded: ServerSettings, tokens: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    """The audit log says who did what to which checkpoint, as it does of the API."""
    wanted = CheckpointManager(guarded.config, "digits").get_checkpoint("epoch_1").checkpoint_id
    with browser_of(guarded) as browser, caplog.at_level(logging.INFO, logger="ckpt_lib.audit"):
        browser.get(f"/ui/?token={tokens['delete']}")
        assert "Deleted" in act(browser, "delete", wanted)[1]
    lines = [json.loads(record.message) for record in caplog.records if record.name == "ckpt_lib.audit"]
    told = {"who": "delete", "page": "delete", "experiment": "digits", "checkpoint_id": wanted}
    assert lines == [told]
    assert wanted not in CheckpointManager(guarded.config, "digits").checkpoint_ids()
