"""A real Chromium before real servers. A console error, a failed answer or a request to elsewhere fails each test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from ckpt_lib import CheckpointConfig
from ckpt_lib import page as checkpoint_page
from ckpt_lib.web import ServerSettings
from tests.browser import chromium, stores
from tests.web.running import served

FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
expect.set_options(timeout=60_000)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests of this folder need a browser."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = chromium.find()
    if path is None:
        pytest.fail(f"There is no Chromium. {chromium.ADVICE}")
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield found
        found.close()


class Watched:
    """What went wrong in a browser's page."""

    def __init__(self, page: Page) -> None:
        self.problems: list[str] = []
        page.on("console", lambda said: self.problems.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("request", lambda request: self._see(request.url))

    def _see(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("data", "blob") and parts.hostname != "127.0.0.1":
            self.problems.append(f"a request to {url}")


@contextmanager
def watched_page(browser: Browser, *, width: int = 1400, scheme: str = "light") -> Iterator[tuple[Page, Watched]]:
    """A page of a browser without cookies."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
    page = context.new_page()
    page.set_default_timeout(60_000)
    watched = Watched(page)
    try:
        yield page, watched
    finally:
        context.close()


@pytest.fixture
def page(browser: Browser, caplog: pytest.LogCaptureFixture) -> Iterator[Page]:
    """A page; whatever goes wrong in it, or in the server, fails the test, though it may look right."""
    with watched_page(browser) as (found, watched):
        yield found
        assert watched.problems == []
    assert [record for record in caplog.get_records("call") if "the page failed" in record.getMessage()] == []


@contextmanager
def page_of(config: CheckpointConfig, folder: Path, **options: object) -> Iterator[str]:
    """Serve a store; yields the address of its page."""
    settings = ServerSettings(config=config, jobs_folder=folder / "jobs", **options)  # type: ignore[arg-type]
    with served(settings, create=checkpoint_page.create_app) as client:
        yield f"{str(client.base_url).partition('/api')[0]}/ui/"


@pytest.fixture(scope="session")
def few(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a store of a few checkpoints, which no test changes."""
    folder = tmp_path_factory.mktemp("few")
    with page_of(stores.store_of_a_few(folder / "store"), folder) as address:
        yield address


@pytest.fixture(scope="session")
def none(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a store without experiments."""
    folder = tmp_path_factory.mktemp("none")
    with page_of(stores.empty_store(folder / "store"), folder) as address:
        yield address
