"""The page on a store of 5,000 checkpoints, which it never reads as a whole to show a list."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from ckpt_lib import CheckpointConfig, CheckpointManager
from tests.browser.conftest import page_of
from tests.browser.steps import field, go, names, shown
from tests.web import big_store

COUNT = 5_000


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> CheckpointConfig:
    """The configuration of the store, which no test changes."""
    return big_store.shared(tmp_path_factory, COUNT)


@pytest.fixture(scope="module")
def many(config: CheckpointConfig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of its page."""
    with page_of(config, tmp_path_factory.mktemp("many")) as address:
        yield address


@pytest.fixture(scope="module")
def ids(config: CheckpointConfig) -> list[str]:
    """The ids of its checkpoints, oldest first."""
    return CheckpointManager(config, big_store.EXPERIMENT).checkpoint_ids()


def test_the_newest_first_a_page_at_a_time(page: Page, many: str, ids: list[str]) -> None:
    """Fifty rows, whatever there is; the next page goes on where the first ends."""
    shown(page, many, big_store.EXPERIMENT)
    expect(page.locator(".ck-pager")).to_contain_text("1 to 50 of 5,000")
    assert names(page) == ids[: -50 - 1 : -1]
    page.get_by_role("button", name="Next →").click()
    expect(page.locator(".ck-pager")).to_contain_text("51 to 100 of 5,000")
    assert names(page) == ids[-51 : -100 - 1 : -1]


def test_search_sort_and_conditions(page: Page, many: str, config: CheckpointConfig) -> None:
    """They are answered by the index, over all that there is."""
    manager = CheckpointManager(config, big_store.EXPERIMENT)
    shown(page, many, big_store.EXPERIMENT)
    page.get_by_role("button", name="val_loss").click()
    page.get_by_role("button", name="val_loss ↓").click()
    expect(page.get_by_role("columnheader", name="val_loss ↑")).to_be_visible()
    best = manager.list_checkpoints(sort_by="val_loss", limit=50)
    expect(page.locator("#ck-checkpoints .ck-list tbody .ck-link").first).to_have_text(best[0].checkpoint_id)
    assert names(page) == [item.checkpoint_id for item in best]
    field(page, "Search").fill("epoch_0123")
    expect(page.locator(".ck-pager")).to_contain_text("1 to 10")
    assert all("epoch_0123" in name for name in names(page))
    field(page, "Conditions").fill("step>=1235")
    found = manager.list_checkpoints(search="epoch_0123", where=["step>=1235"], sort_by="val_loss")
    expect(page.locator(".ck-pager")).to_contain_text(f"1 to {len(found)}")
    assert names(page) == [item.checkpoint_id for item in found]


def test_the_whole_in_numbers_and_pictures(page: Page, many: str, ids: list[str]) -> None:
    """Summary, plots and the preview of a cleanup are about all of it."""
    shown(page, many, big_store.EXPERIMENT, "Summary")
    expect(page.locator("#ck-summary")).to_contain_text("5,000")
    go(page, "Plots")
    expect(page.locator("#ck-metric-plot .js-plotly-plot")).to_be_visible()
    expect(page.locator("#ck-size-plot .js-plotly-plot")).to_be_visible()
    go(page, "Clean up")
    page.get_by_label("Keep the best").fill("4990")
    page.get_by_role("button", name="Show what would go").click()
    expect(page.locator("#ck-cleanup [role=status]")).to_contain_text("would go")
    expect(page.locator("#ck-cleanup")).to_contain_text(ids[-1])
