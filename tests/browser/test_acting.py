"""The actions of the page, each asserted by what is in the store afterwards, on a store with damage."""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from playwright.sync_api import Page, expect
from pydantic import SecretStr
from safetensors.torch import load_file
from torch import nn

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.page import app
from ckpt_lib.page.rendering import Renderer
from tests.browser import stores
from tests.browser.conftest import page_of
from tests.browser.steps import chosen, field, go, opened, shown
from tests.web.running import wait_for


@pytest.fixture
def config(tmp_path: Path) -> CheckpointConfig:
    """A store with damage."""
    return stores.damaged_store(tmp_path / "store")


@pytest.fixture
def damaged(config: CheckpointConfig, tmp_path: Path) -> Iterator[str]:
    """The address of its page."""
    with page_of(config, tmp_path / "server") as address:
        yield address


@pytest.fixture
def manager(config: CheckpointConfig) -> CheckpointManager:
    """The manager of its longest experiment."""
    return CheckpointManager(config, "digits")


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


def test_without_a_trash_a_deletion_promises_nothing(page: Page, config: CheckpointConfig, tmp_path: Path) -> None:
    """Neither the question before it, nor what is said of it afterwards."""
    without_trash = config.model_copy(update={"trash_seconds": 0})
    with page_of(without_trash, tmp_path / "server") as address:
        checkpoint_id = opened(page, address, CheckpointManager(without_trash, "digits"), "epoch_2")
        page.get_by_role("button", name="Delete…").click()
        confirmation = page.get_by_role("alertdialog")
        expect(confirmation).to_contain_text("It cannot be brought back.")
        confirmation.get_by_role("button", name="Delete").click()
        told = page.get_by_role("status").filter(has_text="Deleted")
        expect(told).to_contain_text(checkpoint_id)
        expect(told).not_to_contain_text("brings it back")


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
    """The plan gives a reason for each checkpoint; a confirmation names what goes, and nothing else goes then."""
    for name in ("epoch_7", "epoch_9"):
        manager.repair_checkpoint(manager.get_checkpoint(name).checkpoint_id)
    before = manager.checkpoint_ids()
    shown(page, damaged, "digits", "Clean up")
    page.get_by_label("Keep the best").fill("8")
    page.get_by_role("button", name="Show what would go").click()
    screen = page.locator("#ck-cleanup")
    expect(screen).to_contain_text("would go")
    expect(screen.get_by_role("row").filter(has_text="epoch_0012")).to_contain_text("stays")
    rows = screen.get_by_role("row").filter(has_text="goes")
    going = {row.split()[0] for row in rows.all_inner_texts()}
    page.get_by_role("button", name=f"Delete {len(going)} checkpoints…").click()
    confirmation = page.get_by_role("alertdialog")
    for checkpoint_id in going:
        expect(confirmation).to_contain_text(checkpoint_id)
    confirmation.get_by_role("button", name="Keep them").click()
    expect(confirmation).to_be_hidden()
    assert manager.checkpoint_ids() == before
    page.get_by_role("button", name=f"Delete {len(going)} checkpoints…").click()
    confirmation.get_by_role("button", name=f"Delete {len(going)} checkpoints").click()
    go(page, "Jobs")
    expect(page.get_by_role("row").filter(has_text="Clean up")).to_contain_text(f"{len(going)} checkpoints deleted")
    assert set(before) - set(manager.checkpoint_ids()) == going


def test_quick_clicks_follow_each_other(
    page: Page, damaged: str, manager: CheckpointManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is typed and clicked while a screen is still drawn counts: each event begins where the last one led."""
    for name in ("epoch_7", "epoch_9"):
        manager.repair_checkpoint(manager.get_checkpoint(name).checkpoint_id)
    shown(page, damaged, "digits")
    expect(page.locator(".ck-list")).to_be_visible()
    draw, delays = Renderer._draw_cleanup, [2.0]

    def draw_late(*args: Any) -> Any:
        time.sleep(delays.pop() if delays else 0.0)
        return draw(*args)

    monkeypatch.setattr(Renderer, "_draw_cleanup", draw_late)
    go(page, "Clean up")
    field(page, "Keep the best").fill("2")
    page.get_by_role("button", name="Show what would go").click()
    expect(page.get_by_role("button", name=re.compile("^Delete .*…$"))).to_be_visible()
    expect(field(page, "Keep the best")).to_have_value("2")


def test_a_click_is_for_what_is_shown(
    page: Page, damaged: str, manager: CheckpointManager, config: CheckpointConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another experiment may have a checkpoint of the same id: what is clicked before it is shown is not for that."""
    root = Path(config.checkpoint_dir)
    shutil.copytree(root / "digits", root / "other")
    checkpoint_id = opened(page, damaged, manager, "epoch_2")
    page.get_by_role("button", name="Delete…").click()
    delete = page.get_by_role("alertdialog").get_by_role("button", name="Delete")
    expect(delete).to_be_visible()
    draw, delays = Renderer._draw_checkpoints, [2.0]

    def draw_late(*args: Any) -> Any:
        time.sleep(delays.pop() if delays else 0.0)
        return draw(*args)

    monkeypatch.setattr(Renderer, "_draw_checkpoints", draw_late)
    refused: list[str] = []
    notice_of = app._notice_of

    def noted(error: Any) -> Any:
        refused.append(str(error))
        return notice_of(error)

    monkeypatch.setattr(app, "_notice_of", noted)
    page.locator(".ck-chooser select").select_option("other")
    delete.click()
    expect(page.locator(".ck-list caption")).to_have_text("Checkpoints of other")
    wait_for(lambda: bool(refused))
    assert "gone on to another experiment" in refused[0]
    for name in ("digits", "other"):
        assert checkpoint_id in CheckpointManager(config, name).checkpoint_ids()


def test_a_cleanup_that_finds_damage(page: Page, damaged: str, manager: CheckpointManager) -> None:
    """What is to stay is read before anything goes: the plan changes, nothing is deleted, and the job says why."""
    shown(page, damaged, "digits", "Clean up")
    page.get_by_label("Keep the best").fill("8")
    page.get_by_role("button", name="Show what would go").click()
    before = manager.checkpoint_ids()
    page.get_by_role("button", name=re.compile("^Delete . checkpoints…")).click()
    page.get_by_role("alertdialog").get_by_role("button", name=re.compile("^Delete . checkpoints$")).click()
    go(page, "Jobs")
    row = page.get_by_role("row").filter(has_text="Clean up")
    expect(row).to_contain_text("failed")
    expect(row).to_contain_text(f"These are damaged: {manager.get_checkpoint('epoch_9').checkpoint_id}")
    assert manager.checkpoint_ids() == before


def test_what_is_thinned_comes_back(page: Page, damaged: str, manager: CheckpointManager) -> None:
    """What meets the conditions is asked about, and the trash brings the rest of a checkpoint back."""
    checkpoint_id = manager.get_checkpoint("epoch_2").checkpoint_id
    whole = manager.get_checkpoint(checkpoint_id).file_size
    shown(page, damaged, "digits")
    offer = page.get_by_role("button", name="Keep only their weights…")
    expect(page.locator(".ck-list")).to_be_visible()
    expect(offer).to_be_hidden()  # of all there are, nobody asks
    field(page, "Conditions").fill("epoch=2")
    offer.click()
    question = page.get_by_role("alertdialog")
    expect(question).to_contain_text(checkpoint_id)
    field(page, "Conditions").fill("epoch<=2")
    expect(question).to_be_hidden()  # it was about others
    field(page, "Conditions").fill("epoch=2")
    offer.click()
    question.get_by_role("button", name="Thin 1 checkpoint").click()
    expect(page.locator(".ck-list")).to_contain_text("weights only")
    assert manager.get_checkpoint(checkpoint_id).file_size < whole
    go(page, "Trash")
    page.get_by_role("button", name=f"Bring back the rest {checkpoint_id}").click()
    row = page.get_by_role("row").filter(has_text=checkpoint_id)
    expect(row.get_by_role("button")).to_have_count(0)  # what it was thinned to is left, and nothing to bring back
    assert manager.get_checkpoint(checkpoint_id).file_size == whole


def test_a_question_about_what_has_changed(page: Page, damaged: str, manager: CheckpointManager) -> None:
    """What was shown is done and nothing else: neither the list nor the trash is what was asked about."""
    first, second = (manager.get_checkpoint(f"epoch_{epoch}").checkpoint_id for epoch in (1, 2))
    manager.delete_checkpoint(first)
    shown(page, damaged, "digits", "Trash")
    page.get_by_role("button", name="Empty the trash…").click()
    question = page.get_by_role("alertdialog")
    expect(question).to_contain_text(first)
    manager.delete_checkpoint(second)
    question.get_by_role("button", name="Delete for good").click()
    go(page, "Jobs")
    expect(page.get_by_role("row").filter(has_text="Empty the trash")).to_contain_text("has changed since it was shown")
    go(page, "Checkpoints")
    field(page, "Conditions").fill("epoch<5")
    page.get_by_role("button", name="Keep only their weights…").click()
    expect(question).to_contain_text("2 checkpoints")
    manager.undelete_checkpoint(first)
    question.get_by_role("button", name="Thin 2 checkpoints").click()
    expect(page.get_by_role("alert")).to_contain_text("has changed since it was shown")
    assert [item.checkpoint_id for item in manager.list_deleted()] == [second]
    assert not any(item.is_thinned for item in manager.list_checkpoints())


def test_a_metric_that_is_there_already(page: Page, damaged: str, manager: CheckpointManager) -> None:
    """Another value is refused until it is meant, and so is what is no number; a source's own value shows."""
    checkpoint_id = opened(page, damaged, manager, "epoch_8")
    page.get_by_role("button", name="Add a metric").click()
    save = page.get_by_role("button", name="Add the metric")
    for label, text in (("Name", "accuracy"), ("Value", "good"), ("Measured by", "again")):
        field(page, label).fill(text)
    save.click()
    expect(page.get_by_role("alert")).to_contain_text("no number")
    field(page, "Value").fill("0.5")
    save.click()
    expect(page.get_by_role("alert")).to_contain_text("accuracy")
    assert not manager.get_checkpoint(checkpoint_id).added_metrics
    page.get_by_label("Replace what was recorded before").click()
    save.click()
    expect(page.get_by_role("row").filter(has_text="again")).to_contain_text("0.5")
    assert manager.get_checkpoint(checkpoint_id).metrics["accuracy"] == 0.5


def test_a_search_of_all_experiments(page: Page, damaged: str, manager: CheckpointManager) -> None:
    """It tells what is wrong with a condition, sorts, turns pages, and ends."""
    page.goto(damaged)
    field(page, "Conditions").fill("val_loss is small")
    expect(page.get_by_role("alert")).to_be_visible()
    field(page, "Conditions").fill("epoch>=1")
    screen = page.locator("#ck-experiments")
    expect(screen.locator(".ck-pager")).to_contain_text("1 to 50")
    screen.get_by_role("button", name="Next").click()
    expect(screen.locator(".ck-pager")).to_contain_text("51 to 73")
    screen.get_by_role("button", name="Epoch", exact=True).click()
    expect(screen.locator(".ck-pager")).to_contain_text("1 to 50")
    expect(screen.get_by_role("rowheader").first).to_contain_text("epoch_0060")
    page.get_by_label("Find in all experiments").fill("warm-up")
    expect(screen.get_by_role("rowheader")).to_have_count(1)
    expect(screen.get_by_role("rowheader")).to_contain_text(manager.get_checkpoint("epoch_3").checkpoint_id)
    page.get_by_label("Find in all experiments").fill("nothing like it")
    screen.get_by_role("button", name="Show all experiments").click()
    expect(screen).to_contain_text("3 experiments")
    expect(page.get_by_label("Find in all experiments")).to_have_value("")


def test_an_export_is_downloaded(page: Page, damaged: str, manager: CheckpointManager, tmp_path: Path) -> None:
    """The weights in bf16, as a file that safetensors reads."""
    checkpoint_id = opened(page, damaged, manager, "best")
    page.get_by_role("button", name="Export").click()
    chosen(page, "Format", "safetensors (weights)")
    chosen(page, "Type of the weights", "bf16")
    page.get_by_role("button", name="Make the files").click()
    link = page.locator(".ck-history").get_by_role("link")
    with page.expect_download() as downloading:
        link.click()
    file = tmp_path / downloading.value.suggested_filename
    downloading.value.save_as(file)
    weights = load_file(file)
    stored = manager.load_checkpoint(checkpoint_id)["model_state_dict"]
    assert weights.keys() == stored.keys()
    for name, weight in weights.items():
        assert torch.equal(weight, stored[name].to(torch.bfloat16))


def test_a_live_run_saves_and_loads(
    page: Page, damaged: str, manager: CheckpointManager, config: CheckpointConfig
) -> None:
    """A training of this machine saves at its next safe point, and loads what a person has opened."""
    loaded: list[str] = []
    run = CheckpointManager(config, "digits")
    with run.share(state=lambda: {"model": nn.Linear(2, 2), "epoch": 20}, load=loaded.append), served_requests(run):
        before = set(manager.checkpoint_ids())
        shown(page, damaged, tab="Live runs")
        page.get_by_role("button", name="Save now").click()
        expect(page.locator("#ck-runs")).to_contain_text("saved checkpoint_epoch_0020")
        assert len(set(manager.checkpoint_ids()) - before) == 1
        checkpoint_id = opened(page, damaged, manager, "epoch_3")
        page.get_by_role("button", name="Load into the run").click()
        expect(page.locator("#ck-runs")).to_contain_text(f"loaded {checkpoint_id}")
        assert loaded == [checkpoint_id]
    go(page, "Live runs")


@contextmanager
def served_requests(manager: CheckpointManager) -> Iterator[None]:
    """Be a training loop, on a thread, that comes to a safe point many times a second."""
    ended = threading.Event()

    def loop() -> None:
        while not ended.wait(0.05):
            manager.serve_requests()

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_a_configuration_to_copy(page: Page, damaged: str) -> None:
    """The form gives the same options as YAML and Python, and says what is wrong with one."""
    shown(page, damaged, tab="Set up")
    page.get_by_label("Keep at most").fill("7")
    page.get_by_label("Monitored metric").fill("accuracy")
    panel = page.get_by_role("tabpanel").filter(visible=True)
    expect(panel).to_contain_text("max_checkpoints: 7")
    expect(panel).to_contain_text("monitor_metric='accuracy'")
    page.get_by_label("Save every N epochs").fill("0")
    expect(page.get_by_role("alert")).to_contain_text("save_interval=0")


def test_read_only(page: Page, config: CheckpointConfig, tmp_path: Path) -> None:
    """A read-only page signs in by its address, says what it is, and offers nothing that changes the store."""
    token = SecretStr("ckpt_of_this_run")
    with page_of(config, tmp_path, run_token=token, read_only=True) as address:
        manager = CheckpointManager(config, "digits")
        page.goto(f"{address}?token={token.get_secret_value()}")
        page.wait_for_url(address)
        expect(page.locator("#ck-header")).to_contain_text("Read-only")
        opened(page, address, manager, "epoch_2")
        for name in ("Delete…", "Pin", "Repair", "Edit tags and description", "Add a metric"):
            expect(page.get_by_role("button", name=name)).to_be_hidden()
        for name in ("Validate", "Export"):
            expect(page.get_by_role("button", name=name)).to_be_visible()
        go(page, "Summary")
        page.get_by_role("button", name="Look for leftovers").click()
        expect(page.locator("#ck-summary")).to_contain_text("1 problem.")
        for name in ("Fix", "Set aside", "The largest accuracy is best", "Back up all"):
            expect(page.get_by_role("button", name=name)).to_be_hidden()
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_label("Token")).to_be_visible()
