"""What a browser does with the files that it has sent, without a browser."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace
from typing import Any

import pytest

from ckpt_lib.errors import NotACheckpointError, UploadNotFoundError
from ckpt_lib.page import file_actions
from ckpt_lib.page.conversions import Conversions
from ckpt_lib.page.desk import Desk
from ckpt_lib.page.file_actions import FileActions
from ckpt_lib.page.run_requests import RunRequests
from ckpt_lib.page.view import Files, View
from ckpt_lib.web import ServerSettings
from ckpt_lib.web.access import ANYONE
from ckpt_lib.web.app import create_app
from ckpt_lib.web.sessions import Sessions

REQUEST: Any = SimpleNamespace(cookies={}, headers={"host": "127.0.0.1"})
"""One to a server without tokens, where anyone may do everything."""


@pytest.fixture
def desk(settings: ServerSettings) -> Desk:
    state = create_app(settings).state
    conversions, requests = Conversions(state.transfers), RunRequests(settings.config)
    return Desk(settings, state.managers, state.jobs, Sessions(state.access), state.transfers, requests, conversions)


def uploaded(desk: Desk, name: str) -> str:
    data = name.encode()
    upload = desk.transfers.uploads.create(name, len(data), hashlib.sha256(data).hexdigest(), ANYONE)
    desk.transfers.uploads.append(upload, 0, data)
    return upload.upload_id


def test_files_that_cannot_be_shown_go_at_once(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """No view knows them then; those that are shown stay until there are others in their place."""
    uploads, act = desk.transfers.uploads, FileActions(desk).acts["files"]
    first, second, third = (uploaded(desk, name) for name in ("a.bin", "b.bin", "c.bin"))
    view, _ = act(REQUEST, View(), first)
    with monkeypatch.context() as patched:
        patched.setattr(file_actions, "look_at", _refuse)
        with pytest.raises(NotACheckpointError):
            act(REQUEST, view, second)
    assert uploads.folders.names() == sorted([first, third])
    view, _ = act(REQUEST, view, third)
    assert (view.files.uploads, uploads.folders.names()) == ((third,), [third])


def _refuse(*_: object) -> None:
    raise NotACheckpointError("there are too many files")


def test_files_that_have_gone_are_not_imported(desk: Desk) -> None:
    """Nor converted: the page asks for them once more."""
    upload_id = uploaded(desk, "a.bin")
    view = View(files=Files(uploads=(upload_id,), name="a.bin", is_one=True))
    desk.transfers.uploads.remove(upload_id)
    actions = FileActions(desk)
    with pytest.raises(UploadNotFoundError, match="have expired"):
        actions.start_import(REQUEST, view, "old", None)
    with pytest.raises(UploadNotFoundError, match="have expired"):
        actions.convert(REQUEST, view, "torch", None, weights_only=False)
    assert desk.jobs.all() == []
