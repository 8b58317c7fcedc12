"""Files that a browser sends: how they arrive, who sees them, what is refused, and that they go again."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from playwright.sync_api import Browser, Page, Route, expect
from safetensors.torch import save_file
from torch import nn

from ckpt_lib import CheckpointManager
from ckpt_lib.web.uploads import MOST_UPLOADS, Uploads
from tests.browser import stores
from tests.browser.conftest import page_of, watched_page
from tests.browser.steps import go
from tests.web.running import wait_for

BLOCK_BYTES = 4 * 2**20
"""What the page digests at a time."""


class Evil:
    """Makes a folder where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        import os

        return os.mkdir, (self.path,)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the server keeps what it is sent."""
    return tmp_path / "jobs" / "transfers"


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """The address of a page of a store without experiments."""
    with page_of(stores.empty_store(tmp_path / "store"), tmp_path) as found:
        yield found


def send(page: Page, *paths: Path, button: str = "Choose files…") -> None:
    """Choose files, or a folder."""
    with page.expect_file_chooser() as choosing:
        page.get_by_role("button", name=button).click()
    choosing.value.set_files(paths if len(paths) > 1 else paths[0])


def arrived(page: Page) -> None:
    expect(page.get_by_role("button", name="Remove from the server")).to_be_visible()


def opened(page: Page, address: str) -> None:
    page.goto(address)
    go(page, "Files")


def kept(folder: Path) -> list[Path]:
    """Every file that the server keeps."""
    return [path for path in folder.rglob("*") if path.is_file()]


def test_files_of_any_size_and_name_arrive_whole(page: Page, address: str, folder: Path, tmp_path: Path) -> None:
    """Their digests are those that the server computes, and no two get the same name."""
    sizes = {
        "empty": 0,
        "one.pt": 1,
        "a b.pt": 55,
        "a_b.pt": 56,
        "a#b.pt": 64,
        "ä\u4e2d.bin": BLOCK_BYTES,
        "-x.bin": BLOCK_BYTES + 1,
        "large.bin": 2 * BLOCK_BYTES + 63,
    }
    (tmp_path / "files" / ".git").mkdir(parents=True)
    (tmp_path / "files" / ".git" / "HEAD").write_text("no checkpoint")
    generator = torch.Generator().manual_seed(0)
    for name, size in sizes.items():
        data = torch.randint(0, 256, (size,), dtype=torch.uint8, generator=generator)
        (tmp_path / "files" / name).write_bytes(data.numpy().tobytes())
    opened(page, address)
    send(page, tmp_path / "files", button="Choose a folder…")
    arrived(page)
    uploads = Uploads(folder, kept_seconds=1e9, most_bytes=2**40)
    ids = uploads.folders.names()
    assert {uploads.get(name).size_bytes for name in ids} == set(sizes.values())
    assert {name for name in (uploads.get(name).name for name in ids) if "a_b" in name} == {
        "files/a_b.pt",
        "files/a_b-2.pt",
        "files/a_b-3.pt",
    }
    with uploads.assembled(ids, lambda _: None) as found:  # compares each with its digest
        assert (found / "large.bin").read_bytes() == (tmp_path / "files" / "large.bin").read_bytes()


def test_what_was_sent_goes_with_the_page(page: Page, address: str, folder: Path, tmp_path: Path) -> None:
    """By the button, with the next choice, and when the page is left; and it is nobody else's."""
    first, second = (stores.file_of_a_script(tmp_path / name) for name in ("first.pt", "second.pt"))
    opened(page, address)
    send(page, first)
    expect(page.locator("#ck-files h2")).to_have_text("first.pt")
    send(page, second)
    expect(page.locator("#ck-files h2")).to_have_text("second.pt")
    assert len(kept(folder)) == 2, "a file and its record"
    page.get_by_role("button", name="Remove from the server").click()
    expect(page.locator("#ck-files")).to_contain_text("See what a file of any program holds")
    assert kept(folder) == []
    send(page, first)
    arrived(page)
    other = page.context.new_page()
    opened(other, address)
    expect(other.locator("#ck-files")).to_contain_text("See what a file of any program holds")
    other.close()
    assert len(kept(folder)) == 2
    page.goto("about:blank")
    wait_for(lambda: kept(folder) == [])


def test_markup_in_names_is_text(page: Page, address: str, tmp_path: Path) -> None:
    """Whether it stands in the name of a file, a tensor, a metric or an option."""
    evil = stores.EVIL + stores.TEMPLATES
    contents = {"model": {evil: torch.ones(2)}, "metrics": {evil: 1.0}, "config": {evil: evil}, "epoch": 1}
    path = tmp_path / f"{stores.EVIL.replace('/', '')}.pt"
    torch.save(contents, path)
    torch.save(contents, tmp_path / "second.pt")
    opened(page, address)
    for paths in ([path], [path, tmp_path / "second.pt"]):
        send(page, *paths)
        arrived(page)
        expect(page.locator("#ck-files .ck-held")).to_have_count(len(paths) if len(paths) > 1 else 0)
        page.evaluate("document.querySelectorAll('#ck-files details').forEach(found => { found.open = true; })")
        expect(page.get_by_role("rowheader", name=f"model.{evil}").first).to_be_visible()
    page.get_by_label("Into the experiment").fill(stores.EVIL)
    page.get_by_role("button", name="Import", exact=True).click()
    expect(page.get_by_role("alert").filter(visible=True)).to_contain_text("onerror")
    assert page.evaluate("window.evil") is None
    assert page.locator("img[src=x]").count() == 0


def test_no_code_of_a_pickle_runs(page: Page, address: str, folder: Path, tmp_path: Path) -> None:
    """Neither to look at it, nor to convert or import it: the page says what is left out, and why."""
    path = tmp_path / "evil.pt"
    torch.save({"model": nn.Linear(1, 1).state_dict(), "epoch": 1, "more": Evil(tmp_path / "run")}, path)
    torch.save(nn.Linear(1, 1), tmp_path / "module.pt")
    opened(page, address)
    send(page, tmp_path / "module.pt")
    told = page.locator("#ck-files")
    expect(told).to_contain_text("The code of its pickle does not run here")
    command = shlex.split(told.locator(".ck-code").inner_text())
    assert command == ["python", "-c", "import torch; print(torch.load('module.pt', weights_only=False))"]
    send(page, path)
    expect(told).to_contain_text("mkdir', which no checkpoint needs")
    expect(told).not_to_contain_text("weights_only")
    page.get_by_role("button", name="Convert", exact=True).click()
    results = page.locator("#ck-file-results")
    expect(results.get_by_role("link", name="evil.safetensors")).to_be_visible()
    page.get_by_label("Into the experiment").fill("old")
    page.get_by_role("button", name="Import", exact=True).click()
    expect(results.get_by_role("row", name="evil.pt")).to_contain_text("are left out")
    assert not (tmp_path / "run").exists()
    assert not [path for path in kept(folder) if "exports" not in path.parts]


def test_from_a_report_to_a_checkpoint(page: Page, address: str, tmp_path: Path) -> None:
    """What was imported opens by a click; a name of an experiment that is missing or cannot be is said."""
    opened(page, address)
    send(page, stores.file_of_a_script(tmp_path / "model.pt", epoch=4))
    arrived(page)
    for name, told in (("", "The experiment has no name"), ("a/../b", "a/../b")):
        page.get_by_label("Into the experiment").fill(name)
        page.get_by_role("button", name="Import", exact=True).click()
        expect(page.get_by_role("alert").filter(visible=True)).to_contain_text(told)
    page.get_by_label("Into the experiment").fill("old")
    page.get_by_role("button", name="Import", exact=True).click()
    page.get_by_role("button", name=re.compile("epoch_0004")).click()
    expect(page.locator(".ck-head h2")).to_contain_text("epoch_0004")
    expect(page.get_by_role("combobox", name="Experiment")).to_have_value("old")
    expect(page.locator(".ck-head")).to_contain_text("Imported from model.pt")


def test_a_file_that_cannot_be_converted_says_why(page: Page, address: str, tmp_path: Path) -> None:
    """The file stays, so that another format can be chosen."""
    torch.save({"optimizer": {"state": {}, "param_groups": []}, "epoch": 1}, tmp_path / "none.pt")
    opened(page, address)
    send(page, tmp_path / "none.pt")
    page.get_by_role("button", name="Convert", exact=True).click()
    results = page.locator("#ck-file-results")
    expect(results.locator(".ck-warning")).to_be_visible()
    assert str(tmp_path) not in results.inner_text()
    arrived(page)


def test_several_files_may_be_one_checkpoint(page: Page, address: str, tmp_path: Path) -> None:
    """Of Transformers, for example, whether they were chosen one by one or as a folder."""
    folder = tmp_path / "gpt"
    folder.mkdir()
    save_file({"weight": torch.ones(2, 2)}, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    opened(page, address)
    for paths, button, name in (
        (list(folder.iterdir()), "Choose files…", "all files together"),
        ([folder], "Choose a folder…", "gpt"),
    ):
        send(page, *paths, button=button)
        expect(page.locator("#ck-files h2")).to_have_text(name)
        expect(page.locator("#ck-files")).to_contain_text("4 in the tensors of the model")
        page.get_by_role("button", name="Convert", exact=True).click()
        expect(page.locator("#ck-file-results").get_by_role("link")).to_be_visible()
    page.get_by_label("Into the experiment").fill("old")
    page.get_by_role("button", name="Import", exact=True).click()
    expect(page.locator("#ck-file-results").get_by_role("row", name="gpt")).to_contain_text("imported")


# --- what is refused, or interrupted ---


@pytest.fixture
def anxious(browser: Browser) -> Iterator[Page]:
    """A page in which requests may fail."""
    with watched_page(browser) as (found, _):
        yield found


def alert(page: Page) -> Any:
    return page.get_by_role("alert").filter(visible=True)


def test_what_is_too_large_is_refused_at_once(page: Page, tmp_path: Path, folder: Path) -> None:
    """With a sentence, before it is read."""
    (tmp_path / "large.pt").write_bytes(b"x" * 2_000)
    with page_of(stores.empty_store(tmp_path / "store"), tmp_path, max_transfer_bytes=1_000) as address:
        opened(page, address)
        send(page, tmp_path / "large.pt")
        expect(alert(page)).to_contain_text("That is too large: 2,000 bytes, and the server takes 1,000 bytes.")
        assert kept(folder) == []


def test_a_full_disk_is_told_before_anything_is_sent(
    anxious: Page, address: str, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several files that do not fit together, none is begun for good."""
    for name in ("a.pt", "b.pt"):
        (tmp_path / name).write_bytes(b"x" * 600)
    free = shutil.disk_usage(tmp_path)._replace(free=1_000)
    opened(anxious, address)
    anxious.on("request", lambda request: asked.append(request.method))
    asked: list[str] = []
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda _: free)
        send(anxious, tmp_path / "a.pt", tmp_path / "b.pt")
        expect(alert(anxious)).to_contain_text("The server has no room for the file; expected 600 B; got 1000 B free")
    assert "PATCH" not in asked
    wait_for(lambda: kept(folder) == [])


def test_a_connection_that_breaks_goes_on(anxious: Page, address: str, tmp_path: Path) -> None:
    """A piece that did not arrive is sent again; the whole arrives."""
    broken: list[int] = []

    def sometimes(route: Route) -> None:
        if route.request.method == "PATCH" and len(broken) < 2:
            broken.append(1)
            route.abort()
        else:
            route.continue_()

    opened(anxious, address)
    anxious.route("**/ui/uploads/*", sometimes)
    send(anxious, stores.file_of_a_script(tmp_path / "model.pt"))
    expect(anxious.locator("#ck-files")).to_contain_text("model: 2 tensors")
    assert len(broken) == 2


def test_a_connection_that_is_gone_for_a_while(anxious: Page, address: str, tmp_path: Path) -> None:
    """Neither the piece nor the question where to go on gets through at first; the whole arrives."""
    broken: list[str] = []

    def gone(route: Route) -> None:
        if route.request.method in ("PATCH", "HEAD") and len(broken) < 3:
            broken.append(route.request.method)
            route.abort()
        else:
            route.continue_()

    opened(anxious, address)
    anxious.route("**/ui/uploads/*", gone)
    send(anxious, stores.file_of_a_script(tmp_path / "model.pt"))
    expect(anxious.locator("#ck-files")).to_contain_text("model: 2 tensors")
    assert broken == ["PATCH", "HEAD", "HEAD"]


def test_an_upload_that_is_further_than_the_browser_knows(anxious: Page, address: str, tmp_path: Path) -> None:
    """A piece whose answer was lost has arrived: the browser asks where to go on, and the whole is there."""
    conflicts: list[int] = []

    def elsewhere(route: Route) -> None:
        if route.request.method == "PATCH" and not conflicts:
            conflicts.append(1)
            route.fulfill(status=409, json={"detail": "the upload goes on at another byte"})
        else:
            route.continue_()

    opened(anxious, address)
    anxious.route("**/ui/uploads/*", elsewhere)
    send(anxious, stores.file_of_a_script(tmp_path / "model.pt"))
    expect(anxious.locator("#ck-files")).to_contain_text("model: 2 tensors")
    assert conflicts == [1]


def test_reading_a_large_file_is_stopped(anxious: Page, address: str, tmp_path: Path, folder: Path) -> None:
    """At once, and not when the digest of all of it is there; nothing was begun."""
    with (tmp_path / "large.bin").open("wb") as file:
        file.truncate(8 * 2**30)  # a minute or more to digest
    opened(anxious, address)
    send(anxious, tmp_path / "large.bin")
    expect(anxious.get_by_role("status").filter(has_text="Reading large.bin")).to_be_visible()
    anxious.get_by_role("button", name="Stop").click()
    expect(anxious.get_by_role("button", name="Stop")).to_be_hidden(timeout=10_000)
    assert kept(folder) == []


def test_too_many_files_are_refused_at_once(page: Page, address: str, folder: Path) -> None:
    """The server takes so many uploads in all, and would let the browser wait for its own."""
    opened(page, address)
    page.evaluate(
        """count => {
            const dropped = new DataTransfer();
            for (let n = 0; n < count; n++) dropped.items.add(new File([], `${n}.pt`));
            document.querySelector('.ck-drop').dispatchEvent(
                new DragEvent('drop', {dataTransfer: dropped, bubbles: true, cancelable: true}));
        }""",
        MOST_UPLOADS + 1,
    )
    expect(alert(page)).to_contain_text("too many files: 10,001, and the server takes 10,000")
    assert kept(folder) == []


def test_a_server_that_is_busy_is_waited_for(anxious: Page, tmp_path: Path) -> None:
    """A folder of many files takes more requests than a token has in a second."""
    for number in range(4):
        stores.file_of_a_script(tmp_path / "old" / f"{number}.pt", epoch=number)
    statuses: list[int] = []
    anxious.on("response", lambda answer: statuses.append(answer.status))
    with page_of(stores.empty_store(tmp_path / "store"), tmp_path, requests_per_second=2.0) as address:
        opened(anxious, address)
        send(anxious, tmp_path / "old", button="Choose a folder…")
        expect(anxious.locator("#ck-files .ck-held")).to_have_count(4)
    assert 429 in statuses


def test_sending_is_stopped(anxious: Page, address: str, tmp_path: Path, folder: Path) -> None:
    """Nothing of it stays, and other files can be chosen."""
    path = stores.file_of_a_script(tmp_path / "model.pt")
    opened(anxious, address)
    anxious.route("**/ui/uploads/*", lambda route: None if route.request.method == "PATCH" else route.continue_())
    send(anxious, path)
    expect(anxious.get_by_role("status").filter(has_text="model.pt")).to_be_visible()
    wait_for(lambda: len(kept(folder)) == 2)
    anxious.get_by_role("button", name="Stop").click()
    wait_for(lambda: kept(folder) == [])
    expect(anxious.get_by_role("button", name="Stop")).to_be_hidden()
    anxious.unroute_all()
    send(anxious, path)
    arrived(anxious)


def test_a_read_only_session_sends_nothing(page: Page, tmp_path: Path) -> None:
    """The screen says so, and which command looks at files."""
    with page_of(stores.empty_store(tmp_path / "store"), tmp_path, read_only=True) as address:
        opened(page, address)
        expect(page.locator("#ck-files")).to_contain_text("This session is read-only")
        expect(page.get_by_role("button", name="Choose files…")).to_be_hidden()


def test_dropped_files_arrive(page: Page, address: str, tmp_path: Path) -> None:
    """As those that are chosen."""
    data = list(stores.file_of_a_script(tmp_path / "model.pt").read_bytes())
    opened(page, address)
    page.evaluate(
        """data => {
            const dropped = new DataTransfer();
            dropped.items.add(new File([new Uint8Array(data)], 'dropped.pt'));
            document.querySelector('.ck-drop').dispatchEvent(
                new DragEvent('drop', {dataTransfer: dropped, bubbles: true, cancelable: true}));
        }""",
        data,
    )
    expect(page.locator("#ck-files h2")).to_have_text("dropped.pt")


def test_a_dropped_file_that_cannot_be_read_is_told(page: Page, address: str, folder: Path) -> None:
    """Also where it lies in a dropped folder: the page says so, and takes other files afterwards."""
    opened(page, address)
    page.evaluate(
        """() => {
            const unreadable = {isFile: true, fullPath: '/old/model.pt',
                file: (_, refuse) => refuse(new DOMException('it cannot be read', 'NotReadableError'))};
            const batches = [[unreadable], []];
            const folder = {isFile: false, createReader: () => ({readEntries: found => found(batches.shift())})};
            const event = new Event('drop', {bubbles: true, cancelable: true});
            event.dataTransfer = {items: [{webkitGetAsEntry: () => folder}], files: []};
            document.querySelector('.ck-drop').dispatchEvent(event);
        }"""
    )
    expect(alert(page)).to_contain_text("A file could not be sent: it cannot be read")
    expect(page.get_by_role("button", name="Stop")).to_be_hidden()
    assert kept(folder) == []


def test_by_keyboard_on_a_phone(browser: Browser, address: str, tmp_path: Path) -> None:
    """The screen is no wider than the phone, whatever it shows, and no step needs a mouse."""
    with watched_page(browser, width=400) as (page, watched):
        opened(page, address)
        with page.expect_file_chooser() as choosing:
            page.get_by_role("button", name="Choose files…").focus()
            page.keyboard.press("Enter")
        choosing.value.set_files(stores.file_of_a_script(tmp_path / "a_rather_long_name_of_a_file_without_end.pt"))
        arrived(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        page.get_by_label("Into the experiment").focus()
        page.keyboard.type("old")
        page.keyboard.press("Tab")
        page.keyboard.press("Space")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        expect(page.locator("#ck-file-results .ck-badge")).to_have_text("imported")
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        assert watched.problems == []
    (found,) = CheckpointManager(stores.config_of(tmp_path / "store"), "old").list_checkpoints()
    assert found.epoch == 1


def test_a_double_click_imports_once(page: Page, address: str, tmp_path: Path) -> None:
    """The second click comes before the answer to the first, and does nothing."""
    opened(page, address)
    send(page, stores.file_of_a_script(tmp_path / "model.pt"))
    arrived(page)
    page.get_by_label("Into the experiment").fill("old")
    page.get_by_role("button", name="Import", exact=True).dblclick()
    expect(page.locator("#ck-file-results .ck-badge")).to_have_text("imported")
    go(page, "Jobs")
    expect(page.locator("#ck-jobs tbody tr")).to_have_count(1)
