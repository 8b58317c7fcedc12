"""The screens that show a store: on one of a few checkpoints, and on one of none."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import watched_page
from tests.browser.steps import field, go, names, shown
from tests.browser.stores import EVIL, MANY, TEMPLATES

TABS = (
    "Experiments",
    "Checkpoints",
    "Plots",
    "Compare",
    "Summary",
    "Clean up",
    "Trash",
    "Files",
    "Jobs",
    "Live runs",
    "Set up",
)


def test_from_an_experiment_to_a_checkpoint(page: Page, few: str) -> None:
    """Two clicks lead from the store to a checkpoint, and one leads back."""
    page.goto(few)
    page.get_by_role("button", name="digits").click()
    expect(page.locator(".ck-list tbody tr")).to_have_count(12)
    page.locator(".ck-list .ck-link").nth(1).click()
    expect(page.locator(".ck-head h2")).to_contain_text("epoch_0011")
    for title in ("Metrics", "Tensors", "Files", "History", "Lineage"):
        expect(page.get_by_role("heading", name=title)).to_be_visible()
    page.get_by_text("tensors,").click()
    expect(page.get_by_role("rowheader", name="model_state_dict.0.weight")).to_be_visible()
    page.get_by_role("button", name="All checkpoints").click()
    expect(page.locator(".ck-list tbody tr")).to_have_count(12)


def test_pages(page: Page, few: str) -> None:
    """The server hands out a page at a time, in both directions."""
    shown(page, few, "many")
    expect(page.locator(".ck-list tbody tr")).to_have_count(50)
    expect(page.locator(".ck-pager")).to_contain_text(f"1 to 50 of {MANY}")
    page.get_by_role("button", name="Next").click()
    expect(page.locator(".ck-pager")).to_contain_text(f"51 to {MANY} of {MANY}")
    assert len(names(page)) == MANY - 50
    page.get_by_role("button", name="Previous").click()
    expect(page.locator(".ck-pager")).to_contain_text("1 to 50")


def test_sorting_by_keyboard(page: Page, few: str) -> None:
    """A heading sorts by its column and then the other way round, and keeps the focus of the keyboard."""
    shown(page, few, "digits")
    head = page.locator("th", has=page.get_by_role("button", name="val_loss"))
    head.get_by_role("button").focus()
    page.keyboard.press("Enter")
    expect(head).to_have_attribute("aria-sort", "descending")
    assert "epoch_0001" in names(page)[0]
    page.keyboard.press("Enter")
    expect(head).to_have_attribute("aria-sort", "ascending")
    assert "epoch_0012" in names(page)[0]
    expect(head.get_by_role("button")).to_be_focused()


def test_search_and_conditions(page: Page, few: str) -> None:
    """What is typed narrows the list; a condition that cannot be understood says what one looks like."""
    shown(page, few, "digits")
    field(page, "Search").fill("warm-up")
    expect(page.locator(".ck-list tbody tr")).to_have_count(1)
    field(page, "Search").fill("nothing like it")
    page.get_by_role("button", name="Show all").click()
    expect(page.locator(".ck-list tbody tr")).to_have_count(12)
    expect(field(page, "Search")).to_have_value("")
    field(page, "Conditions").fill("val_loss<0.3, epoch<10")
    expect(page.locator(".ck-list tbody tr")).to_have_count(2)
    field(page, "Conditions").fill("val_loss is small")
    expect(page.get_by_role("alert")).to_contain_text("val_loss<0.3")


def test_tags(page: Page, few: str) -> None:
    """A click on a tag shows those that have it; all tags can be chosen from, several at a time, and let go again."""
    shown(page, few, "digits")
    rows = page.locator(".ck-list tbody tr")
    page.locator(".ck-list").get_by_role("button", name="even", exact=True).first.click()
    expect(rows).to_have_count(6)
    page.get_by_role("button", name="Tags…").click()
    bar = page.get_by_role("group", name="Filter by tag")
    expect(bar.get_by_role("button", name="even", exact=True)).to_have_attribute("aria-pressed", "true")
    bar.get_by_role("button", name=EVIL, exact=True).click()
    expect(rows).to_have_count(1)
    expect(rows).to_contain_text("epoch_0004")
    bar.get_by_role("button", name="Close").click()
    for name, count in ((EVIL, 6), ("even", 12)):
        page.get_by_role("button", name=f"Remove {name}", exact=True).click()
        expect(rows).to_have_count(count)
    shown(page, few, "many")
    page.get_by_role("button", name="Tags…").click()
    expect(bar).to_contain_text("No checkpoint has a tag.")


def test_comparison(page: Page, few: str) -> None:
    """Selected checkpoints are set side by side, and so are named ones; one too few is refused with the number."""
    shown(page, few, "digits")
    for number in (0, 8):
        page.get_by_role("checkbox").nth(number).click()
        expect(page.get_by_role("checkbox").nth(number)).to_be_checked()
    page.get_by_role("button", name="Compare", exact=True).click()
    table = page.locator("#ck-compare")
    expect(table).to_contain_text("epoch_0012")
    expect(table).to_contain_text("epoch_0004")
    expect(table.locator("tr", has_text="lr")).to_contain_text("0.01")
    page.get_by_label("Checkpoints").fill("best, epoch_1, epoch_2")
    page.keyboard.press("Enter")
    expect(
        table.locator("tr", has=page.get_by_role("rowheader", name="Epoch", exact=True)).locator("td")
    ).to_have_count(3)
    page.get_by_label("Checkpoints").fill("best")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("2 to 6")
    page.get_by_label("Checkpoints").fill("best, words/latest")
    page.keyboard.press("Enter")
    table.get_by_role("button", name="words/").click()
    expect(page.locator(".ck-head h2")).to_contain_text("epoch_0001")
    expect(page.get_by_role("combobox", name="Experiment")).to_have_value("words")


def test_plots(page: Page, few: str) -> None:
    """Metrics and sizes are drawn, the best and the latest are marked, and a metric can be added."""
    shown(page, few, "digits", "Plots")
    metrics, sizes = page.locator("#ck-metric-plot"), page.locator("#ck-size-plot")
    for plot in (metrics, sizes):
        expect(plot.locator(".legendtext", has_text="best")).to_be_visible()
        expect(plot.locator(".legendtext", has_text="latest")).to_be_visible()
    page.get_by_role("button", name="accuracy").click()
    expect(metrics.locator(".legendtext", has_text="accuracy")).to_be_visible()
    expect(metrics.locator(".legendtext", has_text="val_loss")).to_be_visible()
    page.get_by_role("button", name="Step").click()
    expect(metrics.locator(".xtitle")).to_have_text("Step")


def test_summary(page: Page, few: str) -> None:
    """Totals, the best, and statistics of each metric."""
    shown(page, few, "digits", "Summary")
    screen = page.locator("#ck-summary")
    expect(screen).to_contain_text("smallest val_loss")
    expect(screen.get_by_role("row").filter(has_text="accuracy")).to_contain_text("12")
    screen.get_by_role("button", name=re.compile("epoch_0012")).first.click()
    expect(page.locator(".ck-head h2")).to_contain_text("epoch_0012")


def test_markup_is_text(page: Page, few: str) -> None:
    """Names, tags, descriptions and values are shown as they are, on every screen, and nothing of them runs."""
    shown(page, few, "digits")
    expect(page.locator(".ck-tag", has_text="onerror")).to_have_text(EVIL)
    expect(page.locator(".ck-tag", has_text="constructor")).to_have_text(TEMPLATES)
    page.get_by_role("button", name=re.compile("epoch_0004")).click()
    expect(page.locator(".ck-head")).to_contain_text(EVIL + TEMPLATES)
    page.get_by_text("options").click()
    for experiment in ("digits", "words"):
        for tab in TABS:
            shown(page, few, experiment, tab)
    go(page, "Plots")
    expect(page.locator("#ck-metric-plot .legendtext").first).to_have_text(EVIL)
    assert page.evaluate("window.evil") is None
    assert page.locator("img[src=x]").count() == 0


@pytest.mark.parametrize("tab", TABS)
def test_a_store_of_nothing_helps(page: Page, none: str, tab: str) -> None:
    """Each screen says what is missing, or works without checkpoints."""
    shown(page, none, tab=tab)
    own = {
        "Files": "See what a file",
        "Jobs": "No job has run yet",
        "Live runs": "No live run is registered",
        "Set up": "CheckpointManager",
    }
    expected = own.get(tab, "There are no experiments yet")
    expect(page.get_by_role("tabpanel").filter(visible=True).first).to_contain_text(expected)
    expect(page.locator("#ck-notice")).to_be_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone(browser: Browser, few: str, scheme: str) -> None:
    """No screen is wider than a phone, and the colours follow it."""
    with watched_page(browser, width=400, scheme=scheme) as (page, watched):
        for tab in TABS:
            shown(page, few, "digits", tab)
            page.wait_for_timeout(300)
            assert page.evaluate("document.documentElement.scrollWidth") <= 400, tab
        go(page, "Checkpoints")
        page.locator(".ck-list .ck-link").last.click()
        expect(page.locator(".ck-head h2")).to_be_in_viewport()
        dark = page.evaluate("document.body.classList.contains('dark')")
        assert dark == (scheme == "dark")
        assert watched.problems == []


def test_a_link_to_a_checkpoint(page: Page, few: str) -> None:
    """An address may name an experiment and a checkpoint; a name that does not exist is said."""
    shown(page, few, "digits")
    wanted = names(page)[3]
    page.goto(f"{few}?experiment=digits&checkpoint={wanted}")
    expect(page.locator(".ck-head h2")).to_have_text(wanted)
