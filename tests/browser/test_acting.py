"""The actions of the page, each asserted by what is in the store afterwards, on a store with damage."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect
from pydantic import SecretStr

from ckpt_lib import CheckpointConfig, CheckpointManager
from tests.browser import stores
from tests.browser.conftest import page_of
from tests.browser.test_reading import go, shown


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> CheckpointConfig:
    """A store with damage."""
    return stores.damaged_store(tmp_path_factory.mktemp("damaged") / "store")


@pytest.fixture(scope="module")
def damaged(config: CheckpointConfig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of its page."""
    with page_of(config, tmp_path_factory.mktemp("jobs")) as address:
        yield address


@pytest.fixture
def manager(config: CheckpointConfig) -> CheckpointManager:
    """The manager of its longest experiment."""
    return CheckpointManager(config, "digits")


def opened(page: Page, address: str, manager: CheckpointManager, name: str) -> str:
    """Show a checkpoint, and return its id."""
    checkpoint_id = manager.get_checkpoint(name).checkpoint_id
    page.goto(f"{address}?experiment=digits&checkpoint={checkpoint_id}")
    expect(page.locator(".ck-head h2")).to_have_text(checkpoint_id)
    return checkpoint_id


def test_damage_is_found_and_repaired(page: Page, damaged: str, manager: CheckpointManager) -> None:
    """A validation finds the flipped byte, and a repair brings it back from the backup: two clicks."""
    opened(page, damaged, manager, "epoch_7")
    page.get_by_role("button", name="Validate").click()
    history = page.locator(".ck-history")
    expect(history).to_contain_text("Validated: damaged")
    assert not manager.validate_checkpoint("epoch_7")
    page.get_by_role("button", name="Repair").click()
    expect(history).to_contain_text("Repaired")
    assert manager.validate_checkpoint("epoch_7")


def test_the_summary_names_damage(page: Page, damaged: str, manager: CheckpointManager) -> None:
    """A lost file is named, and brought back from there."""
    lost = manager.get_checkpoint("epoch_9").checkpoint_id
    shown(page, damaged, "digits", "Summary")
    row = page.get_by_role("row").filter(has_text=lost).filter(has_text="incomplete")
    expect(row).to_contain_text("missing")
    row.get_by_role("button", name="Repair").click()
    expect(page.locator("#ck-summary")).to_contain_text("None is known")
    assert manager.validate_checkpoint(lost)


def test_delete_and_bring_back(page: Page, damaged: str, manager: CheckpointManager) -> None:
    """Nothing goes before a confirmation that names it; the trash brings it back."""
    checkpoint_id = opened(page, damaged, manager, "epoch_2")
    page.get_by_role("button", name="Delete…").click()
    confirmation = page.get_by_role("alertdialog")
    expect(confirmation).to_contain_text(checkpoint_id)
    confirmation.get_by_role("button", name="Keep it").click()
    expect(confirmation).to_be_hidden()
    assert checkpoint_id in manager.checkpoint_ids()
    page.get_by_role("button", name="Delete…").click()
    confirmation.get_by_role("button", name="Delete").click()
    expect(page.get_by_role("status").filter(has_text="Deleted")).to_contain_text(checkpoint_id)
    assert checkpoint_id not in manager.checkpoint_ids()
    go(page, "Trash")
    page.get_by_role("button", name=f"Bring back {checkpoint_id}").click()
    expect(page.locator("#ck-trash")).to_contain_text("The trash is empty")
    assert checkpoint_id in manager.checkpoint_ids()


def test_tags_description_and_pin(page: Page, damaged: str, manager: CheckpointManager) -> None:
    """They change in the store; a pinned checkpoint cannot be deleted, and the page says why."""
    checkpoint_id = opened(page, damaged, manager, "epoch_8")
    page.get_by_role("button", name="Edit tags and description").click()
    page.get_by_label("Tags").fill("good, keep")
    page.get_by_label("Description").fill("the one to ship")
    page.get_by_role("button", name="Save changes").click()
    expect(page.locator(".ck-head")).to_contain_text("the one to ship")
    page.get_by_role("button", name="Pin", exact=True).click()
    expect(page.get_by_role("button", name="Unpin")).to_be_visible()
    found = manager.get_checkpoint(checkpoint_id)
    assert (found.tags, found.description, found.pinned) == (("good", "keep"), "the one to ship", True)
    page.get_by_role("button", name="Delete…").click()
    page.get_by_role("alertdialog").get_by_role("button", name="Delete").click()
    expect(page.get_by_role("alert")).to_contain_text(re.compile("pinned"))
    assert checkpoint_id in manager.checkpoint_ids()


def test_a_cleanup_is_shown_before_it_is_done(page: Page, damaged: str, manager: CheckpointManager) -> None:
    """The plan gives a reason for each checkpoint, and nothing goes by it."""
    before = manager.checkpoint_ids()
    shown(page, damaged, "digits", "Clean up")
    page.get_by_label("Keep the best").fill("3")
    page.get_by_role("button", name="Show what would go").click()
    screen = page.locator("#ck-cleanup")
    expect(screen).to_contain_text("would go")
    expect(screen.get_by_role("row").filter(has_text="epoch_0012")).to_contain_text("stays")
    assert manager.checkpoint_ids() == before


def test_a_configuration_to_copy(page: Page, damaged: str) -> None:
    """The form gives the same options as YAML and Python, and says what is wrong with one."""
    shown(page, damaged, tab="Set up")
    page.get_by_label("Keep at most").fill("7")
    page.get_by_label("Monitored metric").fill("accuracy")
    panel = page.get_by_role("tabpanel").filter(visible=True)
    expect(panel).to_contain_text("max_checkpoints: 7")
    expect(panel).to_contain_text("monitor_metric='accuracy'")


def test_read_only(page: Page, config: CheckpointConfig, tmp_path: Path) -> None:
    """A read-only page signs in by its address, says what it is, and offers nothing that changes the store."""
    token = SecretStr("ckpt_of_this_run")
    with page_of(config, tmp_path, run_token=token, read_only=True) as address:
        manager = CheckpointManager(config, "digits")
        page.goto(f"{address}?token={token.get_secret_value()}")
        page.wait_for_url(address)
        expect(page.locator("#ck-header")).to_contain_text("Read-only")
        opened(page, address, manager, "epoch_2")
        for name in ("Delete…", "Pin", "Repair", "Edit tags and description"):
            expect(page.get_by_role("button", name=name)).to_be_hidden()
        expect(page.get_by_role("button", name="Validate")).to_be_visible()
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_label("Token")).to_be_visible()
