"""The tasks of ``docs/tasks.md`` that the page does: each is done by hand, looked at in the store, and counted."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from playwright.sync_api import Locator, Page, expect
from safetensors.torch import load_file

from ckpt_lib import CheckpointConfig, CheckpointManager, inspect_checkpoint
from tests.browser import stores
from tests.browser.conftest import page_of
from tests.browser.steps import field, go, names
from tests.helpers import leave_unfinished

DOCS = Path(__file__).resolve().parents[2] / "docs" / "tasks.md"
CLICKS = dict(re.findall(r"^\| ([^|]+?) \| `[^|]+` \| (\d+) \|$", DOCS.read_text("utf-8"), re.MULTILINE))
EXPERIMENT = "digits"


class Hand:
    """A person's hand: counts clicks, and fields that are filled."""

    def __init__(self, page: Page, manager: CheckpointManager, folder: Path) -> None:
        self.page, self.manager, self.folder = page, manager, folder
        self.count = 0

    def click(self, name: str | re.Pattern[str], within: Locator | None = None) -> None:
        (within or self.page).get_by_role("button", name=name).first.click()
        self.count += 1

    def tick(self, checkpoint_id: str) -> None:
        self.page.get_by_label(f"Compare {checkpoint_id}").click()
        self.count += 1

    def fill(self, label: str, text: str) -> None:
        field(self.page, label).fill(text)
        self.count += 1

    def choose(self, label: str, option: str) -> None:
        self.page.get_by_label(label).click()
        self.page.get_by_role("option", name=option, exact=True).click()
        self.count += 2

    def tab(self, name: str) -> None:
        go(self.page, name)
        self.count += 1

    def experiment(self) -> None:
        self.click(EXPERIMENT, self.page.locator("#ck-experiments"))
        expect(self.page.locator(".ck-list")).to_be_visible()

    def open(self, name: str) -> str:
        checkpoint_id = self.manager.get_checkpoint(name).checkpoint_id
        self.click(checkpoint_id, self.page.locator(".ck-list"))
        expect(self.page.locator(".ck-head h2")).to_have_text(checkpoint_id)
        return checkpoint_id

    def download_all(self) -> list[Path]:
        """Follow each link of an export."""
        links = self.page.locator(".ck-history").get_by_role("link")
        expect(links.first).to_be_visible()
        found = []
        for link in links.all():
            with self.page.expect_download() as downloading:
                link.click()
            self.count += 1
            found.append(self.folder / downloading.value.suggested_filename)
            downloading.value.save_as(found[-1])
        return found

    def send(self, path: Path) -> None:
        """Choose a file, or a folder, in the browser's dialog: a click, and a choice."""
        self.tab("Files")
        with self.page.expect_file_chooser() as choosing:
            self.click("Choose a folder…" if path.is_dir() else "Choose files…")
        choosing.value.set_files(path)
        self.count += 1
        expect(self.page.get_by_role("button", name="Remove from the server")).to_be_visible()

    def job_ended(self, word: str) -> None:
        expect(self.page.locator(".ck-history")).to_contain_text(word)


def see(hand: Hand) -> None:
    hand.experiment()
    assert names(hand.page) == hand.manager.checkpoint_ids()[::-1]


def find_best(hand: Hand) -> None:
    hand.experiment()
    hand.fill("Conditions", "timestamp>=7d")
    hand.click("val_loss")
    expect(hand.page.get_by_role("columnheader", name="val_loss ↓")).to_be_visible()
    hand.click("val_loss ↓")
    expect(hand.page.get_by_role("columnheader", name="val_loss ↑")).to_be_visible()
    assert names(hand.page)[0] == hand.manager.get_checkpoint("best").checkpoint_id


def find_everywhere(hand: Hand) -> None:
    """Of every experiment, those that meet the condition are listed, and lead to the checkpoint."""
    hand.fill("Conditions", "val_loss<0.3")
    screen = hand.page.locator("#ck-experiments")
    good = {
        item.checkpoint_id: name
        for name in ("digits", "many", "words")
        for item in CheckpointManager(hand.manager.config, name).list_checkpoints(where=["val_loss<0.3"])
    }
    assert set(good.values()) == {"digits", "many"}
    rows = screen.get_by_role("row").filter(has=hand.page.get_by_role("rowheader"))
    expect(rows).to_have_count(len(good))
    for checkpoint_id, name in good.items():
        expect(rows.filter(has_text=checkpoint_id)).to_contain_text(name)
    best = hand.manager.get_checkpoint("best").checkpoint_id
    hand.click(best, screen)
    expect(hand.page.locator(".ck-head h2")).to_have_text(best)
    expect(hand.page.locator(".ck-chooser select")).to_have_value(EXPERIMENT)


def compare(hand: Hand) -> None:
    hand.experiment()
    two = [hand.manager.get_checkpoint(name).checkpoint_id for name in ("epoch_12", "epoch_11")]
    for number, checkpoint_id in enumerate(two, start=1):
        hand.tick(checkpoint_id)
        expect(hand.page.locator("#ck-checkpoints")).to_contain_text(f"{number} selected")
    hand.click("Compare", hand.page.locator(".ck-bar"))
    for checkpoint_id in two:
        expect(hand.page.locator("#ck-compare")).to_contain_text(checkpoint_id)


def weights(hand: Hand) -> None:
    hand.experiment()
    checkpoint_id = hand.open("best")
    hand.click("Export")
    hand.choose("Format", "safetensors (weights)")
    hand.choose("Type of the weights", "bf16")
    hand.click("Make the files")
    (file,) = hand.download_all()
    stored = hand.manager.load_checkpoint(checkpoint_id)["model_state_dict"]
    assert {name: (value.dtype, value.shape) for name, value in load_file(file).items()} == {
        name: (torch.bfloat16, value.shape) for name, value in stored.items()
    }


def hand_over(hand: Hand) -> None:
    hand.experiment()
    checkpoint_id = hand.open("best")
    hand.click("Export")
    hand.click("Make the files")
    files = hand.download_all()
    assert {file.suffix for file in files} == {".pt", ".json"}
    other = CheckpointManager(hand.manager.config, "taken over")
    other.import_checkpoint(next(file for file in files if file.suffix == ".pt"))
    loaded, stored = (item.load_checkpoint("latest")["model_state_dict"] for item in (other, hand.manager))
    assert all(torch.equal(loaded[name], stored[name]) for name in stored), checkpoint_id


def from_pretrained(hand: Hand) -> None:
    hand.experiment()
    hand.open("best")
    hand.click("Export")
    hand.choose("Format", "Hugging Face model (weights)")
    hand.click("Make the files")
    assert "model.safetensors" in {file.name for file in hand.download_all()}


def pin(hand: Hand) -> None:
    hand.experiment()
    checkpoint_id = hand.open("best")
    hand.click("Pin")
    expect(hand.page.get_by_role("button", name="Unpin")).to_be_visible()
    assert hand.manager.get_checkpoint(checkpoint_id).pinned


def tag(hand: Hand) -> None:
    hand.experiment()
    checkpoint_id = hand.open("best")
    hand.click("Edit tags and description")
    hand.fill("Tags", "even, release")
    hand.click("Save changes")
    expect(hand.page.locator(".ck-head")).to_contain_text("release")
    assert hand.manager.get_checkpoint(checkpoint_id).tags == ("even", "release")


def add_metric(hand: Hand) -> None:
    hand.experiment()
    checkpoint_id = hand.open("best")
    hand.click("Add a metric")
    hand.fill("Name", "bleu")
    hand.fill("Value", "31.5")
    hand.fill("Measured by", "newstest")
    hand.click("Add the metric")
    expect(hand.page.get_by_role("row").filter(has_text="bleu")).to_contain_text("newstest")
    (added,) = hand.manager.get_checkpoint(checkpoint_id).added_metrics
    assert (added.name, added.value, added.source) == ("bleu", 31.5, "newstest")


def choose_monitor(hand: Hand) -> None:
    """Epoch 2 is made the one of the smallest accuracy, and nothing else changes."""
    hand.manager.add_metrics("epoch_2", {"accuracy": 0.999}, source="a test", replace=True)
    hand.experiment()
    hand.tab("Summary")
    hand.click("The largest accuracy is best")
    wanted = hand.manager.get_checkpoint("epoch_2").checkpoint_id
    expect(hand.page.get_by_role("alertdialog")).to_contain_text(wanted)
    hand.click("Choose it")
    expect(hand.page.locator("#ck-summary")).to_contain_text("largest accuracy")
    monitor = CheckpointManager(hand.manager.config, EXPERIMENT).monitor
    assert (monitor.metric, monitor.mode) == ("accuracy", "max")
    assert hand.manager.get_checkpoint("best").checkpoint_id == wanted


def validate_all(hand: Hand) -> None:
    hand.experiment()
    hand.tab("Summary")
    hand.click("Validate all")
    hand.tab("Jobs")
    row = hand.page.get_by_role("row").filter(has_text="Validate")
    for name in ("epoch_7", "epoch_9"):
        expect(row).to_contain_text(hand.manager.get_checkpoint(name).checkpoint_id)


def why(hand: Hand) -> None:
    hand.experiment()
    hand.open("epoch_9")
    expect(hand.page.locator(".ck-warning")).to_contain_text("A file is missing")


def repair(hand: Hand) -> None:
    hand.experiment()
    checkpoint_id = hand.open("epoch_7")
    assert not hand.manager.validate_checkpoint(checkpoint_id)
    hand.click("Repair")
    hand.job_ended("Repaired")
    assert hand.manager.validate_checkpoint(checkpoint_id)


def set_aside(hand: Hand) -> None:
    checkpoint_id = hand.manager.get_checkpoint("epoch_9").checkpoint_id
    hand.manager.delete_backup(checkpoint_id)
    hand.experiment()
    hand.open("epoch_9")
    hand.click("Set aside")
    expect(hand.page.locator("#ck-checkpoints")).to_contain_text("1 checkpoint set aside")
    assert [item.checkpoint_id for item in hand.manager.list_quarantined()] == [checkpoint_id]
    assert checkpoint_id not in hand.manager.checkpoint_ids()


def restore(hand: Hand) -> None:
    hand.experiment()
    checkpoint_id = hand.open("epoch_9")
    hand.click("Restore")
    hand.job_ended("Restored")
    assert hand.manager.validate_checkpoint(checkpoint_id)


def why_not_saved(hand: Hand) -> None:
    unfinished = leave_unfinished(Path(hand.manager.config.checkpoint_dir) / EXPERIMENT)
    hand.experiment()
    hand.tab("Summary")
    hand.click("Why was nothing saved?")
    expect(hand.page.locator("#ck-summary")).to_contain_text(f"was killed while it saved {unfinished}")
    expect(hand.page.locator("#ck-summary")).to_contain_text("No live run")


def clear_up(hand: Hand) -> None:
    """What was left goes, and what has a backup is repaired."""
    folder = Path(hand.manager.config.checkpoint_dir) / EXPERIMENT
    unfinished = leave_unfinished(folder)
    before = hand.manager.checkpoint_ids()
    hand.experiment()
    hand.tab("Summary")
    hand.click("Look for leftovers")
    expect(hand.page.get_by_role("row").filter(has_text=unfinished)).to_contain_text("half save")
    assert list(folder.glob(f"{unfinished}*"))
    hand.click("Fix 2 findings")
    expect(hand.page.locator("#ck-summary")).to_contain_text("None is known")
    assert not list(folder.glob(f"{unfinished}*"))
    assert hand.manager.checkpoint_ids() == before
    assert hand.manager.validate_checkpoint("epoch_9")


def back_up_all(hand: Hand) -> None:
    hand.manager.repair_checkpoint(hand.manager.get_checkpoint("epoch_7").checkpoint_id)
    for checkpoint_id in hand.manager.backup_ids():
        hand.manager.delete_backup(checkpoint_id)
    hand.experiment()
    hand.tab("Summary")
    hand.click("Back up all")
    hand.tab("Jobs")
    expect(hand.page.get_by_role("row").filter(has_text="Back up")).to_contain_text("1 of 12")
    lost = hand.manager.get_checkpoint("epoch_9").checkpoint_id
    assert set(hand.manager.backup_ids()) == set(hand.manager.checkpoint_ids()) - {lost}


def what_can_go(hand: Hand) -> None:
    hand.experiment()
    hand.tab("Clean up")
    hand.click("Show what would go")
    expect(hand.page.locator("#ck-cleanup")).to_contain_text("would go")


def keep_some(hand: Hand) -> None:
    for name in ("epoch_7", "epoch_9"):
        hand.manager.repair_checkpoint(hand.manager.get_checkpoint(name).checkpoint_id)
    hand.experiment()
    hand.tab("Clean up")
    hand.fill("Keep the best", "2")
    hand.click("Show what would go")
    hand.click(re.compile("^Delete .*…$"))
    hand.click(re.compile("^Delete .*s$"), hand.page.get_by_role("alertdialog"))
    go(hand.page, "Jobs")
    expect(hand.page.get_by_role("row").filter(has_text="Clean up")).to_contain_text("deleted")
    assert [item.epoch for item in hand.manager.list_checkpoints()] == [5, 11, 12]  # the first is pinned


def delete_early(hand: Hand) -> None:
    hand.experiment()
    hand.fill("Conditions", "epoch<3")
    expect(hand.page.locator(".ck-pager")).to_contain_text("1 to 2")
    for name in ("epoch_1", "epoch_2"):
        hand.open(name)
        hand.click("Delete…")
        hand.click("Delete", hand.page.get_by_role("alertdialog"))
        expect(hand.page.get_by_role("status").filter(has_text="Deleted")).to_be_visible()
    assert min(item.epoch for item in hand.manager.list_checkpoints()) == 3


def empty_trash(hand: Hand) -> None:
    checkpoint_id = hand.manager.get_checkpoint("epoch_2").checkpoint_id
    hand.manager.delete_checkpoint(checkpoint_id)
    hand.experiment()
    hand.tab("Trash")
    expect(hand.page.get_by_role("row").filter(has_text=checkpoint_id)).to_contain_text(re.compile("in (1 d|23 h)"))
    hand.click("Empty the trash…")
    expect(hand.page.get_by_role("alertdialog")).to_contain_text(checkpoint_id)
    assert hand.manager.list_deleted()
    hand.click("Delete for good")
    expect(hand.page.locator("#ck-trash")).to_contain_text("The trash is empty")
    assert not hand.manager.list_deleted()
    assert not stores.payload_of(hand.manager.config, checkpoint_id).exists()


def thin_early(hand: Hand) -> None:
    weights = hand.manager.load_checkpoint("epoch_1")["model_state_dict"]
    hand.experiment()
    hand.fill("Conditions", "epoch<7")
    hand.click("Keep only their weights…")
    question = hand.page.get_by_role("alertdialog")
    for epoch in (1, 2, 3, 4, 6):
        expect(question).to_contain_text(hand.manager.get_checkpoint(f"epoch_{epoch}").checkpoint_id)
    expect(question).to_contain_text("1 pinned")
    hand.click("Thin 5 checkpoints")
    go(hand.page, "Jobs")
    expect(hand.page.get_by_role("row").filter(has_text="Thin")).to_contain_text("5 checkpoints thinned")
    assert [item.epoch for item in hand.manager.list_checkpoints() if item.is_thinned] == [1, 2, 3, 4, 6]
    after = hand.manager.load_checkpoint("epoch_1")["model_state_dict"]
    assert all(torch.equal(weights[name], after[name]) for name in weights)


def bring_back(hand: Hand) -> None:
    checkpoint_id = hand.manager.get_checkpoint("epoch_2").checkpoint_id
    hand.manager.delete_checkpoint(checkpoint_id)
    hand.experiment()
    hand.tab("Trash")
    hand.click(f"Bring back {checkpoint_id}")
    expect(hand.page.locator("#ck-trash")).to_contain_text("The trash is empty")
    assert checkpoint_id in hand.manager.checkpoint_ids()


def inspect(hand: Hand) -> None:
    hand.send(stores.file_of_a_script(hand.folder / "old" / "model.pt", epoch=7))
    told = hand.page.locator("#ck-files")
    for text in ("a file of torch.save", "model: 2 tensors, 24 B", "6 in the tensors of the model", "val_loss"):
        expect(told).to_contain_text(text)
    told.get_by_text("2 tensors, 24 B: model 24 B").click()  # which is no part of the task
    expect(told.get_by_role("rowheader", name="model.weight")).to_be_visible()


def convert(hand: Hand) -> None:
    source = stores.file_of_a_script(hand.folder / "old" / "model.pt", epoch=7)
    hand.send(source)
    hand.click("Convert", hand.page.locator(".ck-file-forms"))
    link = hand.page.locator("#ck-file-results").get_by_role("link", name="model.safetensors")
    with hand.page.expect_download() as downloading:
        link.click()
    hand.count += 1
    downloading.value.save_as(hand.folder / "converted.safetensors")
    found, stored = load_file(hand.folder / "converted.safetensors"), torch.load(source)["model"]
    assert found.keys() == stored.keys()
    assert all(torch.equal(found[name], stored[name]) for name in stored)


def take_in(hand: Hand, *, compressed: bool = False) -> CheckpointManager:
    source = stores.file_of_a_script(hand.folder / "old" / "model.pt", epoch=7)
    hand.send(source)
    hand.fill("Into the experiment", "old")
    if compressed:
        hand.page.get_by_label("Store compressed").check()
        hand.count += 1
    hand.click("Import", hand.page.locator(".ck-file-forms"))
    expect(hand.page.get_by_role("row", name="model.pt")).to_contain_text("imported")
    manager = CheckpointManager(hand.manager.config, "old")
    (found,) = manager.list_checkpoints()
    assert (found.epoch, found.metrics, found.tags) == (7, {"val_loss": 0.25}, ("adopted",))
    loaded, stored = manager.load_checkpoint("latest")["model_state_dict"], torch.load(source)["model"]
    assert all(torch.equal(loaded[name], stored[name]) for name in stored)
    assert manager.validate_checkpoint("latest")
    return manager


def take_in_compressed(hand: Hand) -> None:
    plain = CheckpointManager(hand.manager.config, "plain")
    plain.import_checkpoint(stores.file_of_a_script(hand.folder / "other" / "model.pt", epoch=7))
    manager = take_in(hand, compressed=True)
    formats = []
    for item in (plain, manager):
        folder = Path(item.config.checkpoint_dir) / item.experiment_name
        stored = inspect_checkpoint(folder / f"{item.checkpoint_ids()[0]}.json").checkpoint
        formats.append(stored.format if stored else "")
    assert formats == ["torch", "torch+planes"]


def take_in_folder(hand: Hand) -> None:
    folder = hand.folder / "old"
    for epoch in (3, 1, 2):
        stores.file_of_a_script(folder / "runs" / f"epoch{epoch}.pt", epoch=epoch)
    (folder / "cut.pt").write_bytes((folder / "runs" / "epoch1.pt").read_bytes()[:900])
    (folder / "notes.txt").write_text("nothing")
    hand.send(folder)
    hand.fill("Into the experiment", "old")
    hand.click("Import", hand.page.locator(".ck-file-forms"))
    for name, result in (
        ("runs/epoch1.pt", "imported"),
        ("runs/epoch2.pt", "imported"),
        ("runs/epoch3.pt", "imported"),
        ("cut.pt", "The payload is not a torch file: it is cut off"),
        ("notes.txt", "No program is known"),
    ):
        expect(hand.page.get_by_role("row", name=name)).to_contain_text(re.compile(result, re.IGNORECASE))
    manager = CheckpointManager(hand.manager.config, "old")
    assert [item.epoch for item in manager.list_checkpoints()] == [1, 2, 3]
    assert all(manager.validate_all())


TASKS: dict[str, Callable[[Hand], object]] = {
    "see what is there": see,
    "find the best of the last week": find_best,
    "find good ones in all experiments": find_everywhere,
    "compare two": compare,
    "know what a file holds": inspect,
    "get the best weights in bf16 as safetensors": weights,
    "hand the best over, with its manifest": hand_over,
    "load the weights with `from_pretrained`": from_pretrained,
    "convert a file of another program": convert,
    "take in a file of another program": take_in,
    "take it in compressed": take_in_compressed,
    "take in a folder of files": take_in_folder,
    "protect the best from every deletion": pin,
    "tag the best": tag,
    "add a metric that was measured later": add_metric,
    "choose what the best is measured by": choose_monitor,
    "read every byte": validate_all,
    "know why one cannot be loaded": why,
    "repair a damaged one": repair,
    "set aside one that nothing can repair": set_aside,
    "bring back one whose file is gone": restore,
    "know why nothing was saved": why_not_saved,
    "clear up what a kill has left": clear_up,
    "copy all to the backups": back_up_all,
    "know what can be deleted": what_can_go,
    "keep the best and the newest": keep_some,
    "delete those of early epochs": delete_early,
    "bring back a deleted one": bring_back,
    "free what the trash takes": empty_trash,
    "keep only the weights of early epochs": thin_early,
}


@pytest.fixture
def config(tmp_path: Path) -> CheckpointConfig:
    """A store in which two checkpoints are damaged."""
    return stores.damaged_store(tmp_path / "store")


@pytest.fixture
def address(config: CheckpointConfig, tmp_path: Path) -> Iterator[str]:
    """The address of its page."""
    with page_of(config, tmp_path / "server") as found:
        yield found


@pytest.mark.parametrize("task", TASKS)
def test_a_task(page: Page, address: str, config: CheckpointConfig, tmp_path: Path, task: str) -> None:
    """It does to the store what it says, in as many clicks as the page of the docs tells."""
    hand = Hand(page, CheckpointManager(config, EXPERIMENT), tmp_path)
    page.goto(address)
    TASKS[task](hand)
    assert str(hand.count) == CLICKS.get(task)


def test_each_task_that_the_docs_count_is_done() -> None:
    """No number in the docs is without its test."""
    assert CLICKS.keys() == TASKS.keys()
