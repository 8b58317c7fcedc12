"""What the server keeps of the pages that browsers have loaded, and how their events follow each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from ckpt_lib import CheckpointConfig, CheckpointManager, page
from ckpt_lib.page.view import CurrentView
from ckpt_lib.web import ServerSettings
from ckpt_lib.web.gate import PAGE_PATH
from tests.web.running import two_experiments
from tests.web.test_page_gate import act, browser_of


def gradio_of(app: FastAPI) -> Any:
    """The app of the page."""
    mounted: Any = next(route for route in app.routes if getattr(route, "path", None) == PAGE_PATH)
    return mounted.app


def test_pages_that_were_loaded_are_forgotten(tmp_path: Path) -> None:
    """Each takes 0.4 MB, and anyone who may read may load as many as they like: the least recently used go."""
    config = CheckpointConfig(checkpoint_dir=str(tmp_path / "store"))
    states = gradio_of(page.create_app(ServerSettings(config=config, jobs_folder=tmp_path / "jobs"))).state_holder
    for number in range(300):
        states[f"page{number}"]
    assert len(states.session_data) == 256
    assert "page299" in states


def test_the_clock_passes_over_a_page_that_is_at_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tick meanwhile is answered at once, and changes nothing: no error is logged once a second."""
    views: list[CurrentView] = []
    create = CurrentView.__init__

    def noted(view: CurrentView) -> None:
        create(view)
        views.append(view)

    monkeypatch.setattr(CurrentView, "__init__", noted)
    settings = ServerSettings(config=two_experiments(tmp_path / "store"), jobs_folder=tmp_path / "jobs")
    with browser_of(settings) as browser:
        functions = browser.get("/ui/config").json()["dependencies"]
        tick = next(item for item in functions if any(name == "tick" for _, name in item["targets"]))
        body = {"data": [None], "session_hash": "page1", "fn_index": tick["id"]}
        assert browser.post("/ui/gradio_api/run/predict", json=body).status_code == 200
        with views[-1].lock:
            answer = browser.post("/ui/gradio_api/run/predict", json=body)
    assert answer.status_code == 200
    changes = [{**item.get("props", {}), **item} for item in answer.json()["data"]]
    assert all(item.keys() <= {"__type__", "props"} for item in changes)


def test_a_list_by_a_metric_that_has_gone_is_drawn_anew(tmp_path: Path) -> None:
    """The last checkpoint that had recorded it was deleted meanwhile: the list is told of, and then drawn by saving."""
    config = two_experiments(tmp_path / "store")
    manager = CheckpointManager(config, "digits")
    rare = manager.add_metrics("latest", {"rare": 1.0}, source="eval").checkpoint_id
    with browser_of(ServerSettings(config=config, jobs_folder=tmp_path / "jobs")) as browser:
        assert act(browser, "sort", "rare") == (200, "")
        assert act(browser, "open", rare) == (200, "")
        status, told = act(browser, "delete", rare)
        assert (status, "Deleted" in told) == (200, True)
        assert act(browser, "back", "") == (200, "")
