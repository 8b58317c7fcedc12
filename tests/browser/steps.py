"""What a person does on the page, step by step."""

from __future__ import annotations

from playwright.sync_api import Locator, Page, expect

from ckpt_lib import CheckpointManager


def shown(page: Page, address: str, experiment: str = "", tab: str = "Checkpoints") -> None:
    """Show a screen of an experiment."""
    page.goto(f"{address}?experiment={experiment}" if experiment else address)
    expect(page.locator("#ck-header h1")).to_be_visible()
    go(page, tab)


def go(page: Page, tab: str) -> None:
    """Open a tab, which a narrow screen may have put into a menu."""
    expect(page.locator("#ck-header h1")).to_be_visible()  # until then, the page may open another one
    item = page.get_by_role("tab", name=tab, exact=True)
    if not item.is_visible():
        page.locator(".overflow-menu > button").click()
        item = page.locator(".overflow-dropdown").get_by_role("button", name=tab)
    item.click()


def field(page: Page, label: str) -> Locator:
    """The field of a label that can be seen: screens that are not shown have some of the same."""
    return page.get_by_label(label).filter(visible=True)


def names(page: Page) -> list[str]:
    """The ids that the list shows, in order."""
    return page.locator("#ck-checkpoints .ck-list tbody .ck-link").all_inner_texts()


def opened(page: Page, address: str, manager: CheckpointManager, name: str) -> str:
    """Show a checkpoint, and return its id."""
    checkpoint_id = manager.get_checkpoint(name).checkpoint_id
    page.goto(f"{address}?experiment=digits&checkpoint={checkpoint_id}")
    expect(page.locator(".ck-head h2")).to_have_text(checkpoint_id)
    return checkpoint_id


def chosen(page: Page, label: str, option: str) -> None:
    """Choose an option of a list."""
    page.get_by_label(label).click()
    page.get_by_role("option", name=option, exact=True).click()
