"""What axe-core, a checker of accessibility, finds on each screen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from ckpt_lib import CheckpointConfig, CheckpointManager
from tests.browser import stores
from tests.browser.conftest import page_of, watched_page
from tests.browser.steps import field, go, opened, shown
from tests.browser.test_reading import TABS
from tests.helpers import leave_unfinished

GRADIO_RULES = {"aria-prohibited-attr": "a plot that is not drawn yet"}
"""What Gradio's own markup breaks, by rule, with the reason why it stays."""
GRADIO_PARTS = {".cm-editor": "an editor of code, whose colours for its words are its own"}
"""What is left out, with the reason."""
_RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"], "resultTypes": ["violations"]}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> CheckpointConfig:
    """A store with damage, with what a kill has left and with a trash, which no test changes."""
    config = stores.damaged_store(tmp_path_factory.mktemp("accessible") / "store")
    leave_unfinished(Path(config.checkpoint_dir) / "digits")
    manager = CheckpointManager(config, "digits")
    manager.delete_checkpoint(manager.get_checkpoint("epoch_1").checkpoint_id)
    manager.thin_checkpoint("epoch_3")
    return config


@pytest.fixture(scope="module")
def address(config: CheckpointConfig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of its page."""
    with page_of(config, tmp_path_factory.mktemp("accessible-jobs")) as found:
        yield found


def serious(page: Page) -> dict[str, list[str]]:
    """The rules that are broken seriously, each with the markup that breaks it."""
    found: dict[str, list[str]] = {}
    for violation in (
        Axe().run(page, context={"exclude": [[part] for part in GRADIO_PARTS]}, options=_RULES).response["violations"]
    ):
        for node in violation["nodes"]:
            if (node["impact"] or violation["impact"]) in ("serious", "critical"):
                found.setdefault(violation["id"], []).append(_described(node))
    return {rule: nodes for rule, nodes in found.items() if rule not in GRADIO_RULES}


def _described(node: dict[str, Any]) -> str:
    return f"{node['target']}: {node['html'][:200]}: {node['failureSummary']}"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_each_screen(browser: Browser, address: str, scheme: str) -> None:
    """In both colours."""
    with watched_page(browser, scheme=scheme) as (page, _):
        shown(page, address, "digits")
        found = {}
        for tab in TABS:
            go(page, tab)
            expect(page.get_by_role("tab", name=tab, exact=True)).to_have_attribute("aria-selected", "true")
            page.wait_for_timeout(500)  # a screen is drawn after its tab
            found[tab] = serious(page)
        assert {tab: rules for tab, rules in found.items() if rules} == {}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_checkpoint_and_what_is_asked_about_it(
    browser: Browser, address: str, config: CheckpointConfig, scheme: str
) -> None:
    """The detail with its forms open, the question before a deletion, and a comparison."""
    with watched_page(browser, scheme=scheme) as (page, _):
        opened(page, address, CheckpointManager(config, "digits"), "epoch_9")
        for name in ("Edit tags and description", "Add a metric", "Export", "Delete…"):
            page.get_by_role("button", name=name).click()
        expect(page.get_by_role("alertdialog")).to_be_visible()
        assert serious(page) == {}
        go(page, "Compare")
        page.get_by_label("Checkpoints").fill("best, epoch_2")
        page.keyboard.press("Enter")
        expect(page.locator(".ck-compare").first).to_be_visible()
        assert serious(page) == {}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_questions_and_answers(browser: Browser, address: str, scheme: str) -> None:
    """What is found everywhere, a check, why nothing was saved, and what is asked before something is done."""
    found = {}
    with watched_page(browser, scheme=scheme) as (page, _):
        page.goto(address)
        field(page, "Conditions").fill("val_loss<0.3")
        expect(page.locator("#ck-experiments .ck-list")).to_be_visible()
        found["found"] = serious(page)
        shown(page, address, "digits", "Summary")
        for name, answer in (
            ("Look for leftovers", "What a check has found"),
            ("Why was nothing saved?", "Why nothing newer was saved"),
            ("The largest accuracy is best", "Measure the best by"),
        ):
            page.get_by_role("button", name=name).first.click()
            expect(page.locator("#ck-summary")).to_contain_text(answer)
            found[name] = serious(page)
        go(page, "Trash")
        page.get_by_role("button", name="Empty the trash…").click()
        expect(page.get_by_role("alertdialog")).to_be_visible()
        found["trash"] = serious(page)
        go(page, "Checkpoints")
        field(page, "Conditions").fill("epoch<8")
        page.get_by_role("button", name="Keep only their weights…").press("Enter")
        expect(page.get_by_role("alertdialog")).to_be_visible()
        expect(page.get_by_role("button", name="Keep everything")).to_be_focused()
        found["thin"] = serious(page)
    assert {name: rules for name, rules in found.items() if rules} == {}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_files_and_what_became_of_them(browser: Browser, address: str, tmp_path: Path, scheme: str) -> None:
    """What several files hold, with the forms; one that was converted; and the report of an import."""
    stores.file_of_a_script(tmp_path / "old" / "model.pt")
    torch.save(torch.nn.Linear(1, 1), tmp_path / "old" / "module.pt")
    (tmp_path / "old" / "notes.txt").write_text("no checkpoint")
    with watched_page(browser, scheme=scheme) as (page, _):
        shown(page, address, "digits", "Files")
        page.locator("input[webkitdirectory]").set_input_files(tmp_path / "old")
        expect(page.locator("#ck-files .ck-held")).to_have_count(3)
        page.evaluate("document.querySelectorAll('#ck-files details').forEach(found => { found.open = true; })")
        assert serious(page) == {}
        page.get_by_label("Into the experiment").fill(f"old-{scheme}")
        page.get_by_role("button", name="Import", exact=True).click()
        expect(page.locator("#ck-file-results .ck-badge")).to_have_count(3)
        assert serious(page) == {}
        page.locator("input[multiple]").set_input_files(tmp_path / "old" / "model.pt")
        page.get_by_role("button", name="Convert", exact=True).click()
        expect(page.get_by_role("link", name="model.safetensors")).to_be_visible()
        assert serious(page) == {}
