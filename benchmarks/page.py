"""How soon the page shows something and answers a search, in a real Chromium. Prints a table.

python -m benchmarks.page --checkpoints 5000 --rounds 20
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Browser, Page, StorageState, expect, sync_playwright

from benchmarks.served import columns, served
from tests.browser import chromium
from tests.browser.conftest import FLAGS
from tests.web.big_store import EXPERIMENT, build

_ROWS = "#ck-checkpoints .ck-list tbody tr"


def signed_in(browser: Browser, address: str, token: str) -> StorageState:
    """Sign in with a token, and return the cookies that keep the browser signed in."""
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(f"{address}?token={token}")
        expect(page.locator("#ck-header h1")).to_be_visible(timeout=60_000)
        return context.storage_state()


def first_paint(browser: Browser, address: str, cookies: StorageState) -> tuple[float, float]:
    """Return the seconds until a browser without a cache paints, by its own clock, and until it shows the list."""
    context = browser.new_context(storage_state=cookies)
    page = context.new_page()
    started = time.perf_counter()
    page.goto(f"{address}?experiment={EXPERIMENT}")
    page.wait_for_selector(_ROWS)
    listed = time.perf_counter() - started
    painted = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime") / 1000
    context.close()
    return painted, listed


def search(page: Page, number: int) -> float:
    """Return the seconds from a typed search to its rows."""
    wanted = f"epoch_{number:04}"
    started = time.perf_counter()
    page.get_by_label("Search").fill(wanted)
    expect(page.locator(_ROWS).first).to_contain_text(wanted)
    return time.perf_counter() - started


def end_search(page: Page, count: int) -> None:
    """Empty the search field, and wait until the list is that of all checkpoints."""
    page.get_by_label("Search").fill("")
    expect(page.locator(".ck-pager")).to_contain_text(f"of {count:,}")


def next_page(page: Page) -> float:
    """Return the seconds from a click to the next rows."""
    before = page.locator(_ROWS).first.inner_text()
    started = time.perf_counter()
    page.get_by_role("button", name="Next →").click()
    expect(page.locator(_ROWS).first).not_to_have_text(before)
    return time.perf_counter() - started


def main() -> None:
    """Print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", type=int, default=5_000)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    path = chromium.find()
    if path is None:
        raise SystemExit(f"There is no Chromium. {chromium.ADVICE}")
    with tempfile.TemporaryDirectory(prefix="page-") as folder:
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        config = build(Path(folder) / "store", options.checkpoints)
        with served(config, Path(folder)) as (url, token, _), sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
            address = f"{url.partition('/api')[0]}/ui/"
            cookies = signed_in(browser, address, token)
            first_paint(browser, address, cookies)  # the index is filled, and Gradio's parts are imported
            times = [first_paint(browser, address, cookies) for _ in range(options.rounds)]
            print("| what | median | p95 | slowest |\n|---|---|---|---|")
            _report("first paint", [painted for painted, _ in times])
            _report(f"the first page of {options.checkpoints:,} checkpoints is there", [listed for _, listed in times])
            page = browser.new_context(storage_state=cookies).new_page()
            page.goto(f"{address}?experiment={EXPERIMENT}")
            page.wait_for_selector(_ROWS)
            last = options.checkpoints // 10
            searches = [search(page, 1 + number * 7 % last) for number in range(options.rounds)]
            _report("search, from the last key to the rows", searches)
            end_search(page, options.checkpoints)
            _report("next page", [next_page(page) for _ in range(options.rounds)])
            browser.close()


def _report(what: str, seconds: list[float]) -> None:
    print(f"| {what} | {columns(seconds)} |", flush=True)


if __name__ == "__main__":
    main()
