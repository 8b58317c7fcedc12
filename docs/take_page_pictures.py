"""Take the pictures of the page: make a store, serve it, and photograph its screens at three widths.

    python docs/take_page_pictures.py [--browser /usr/bin/chromium]

Needs a Chromium.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from playwright.sync_api import Browser, Page, sync_playwright
from torch import nn

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from ckpt_lib import CheckpointConfig, CheckpointManager  # noqa: E402
from tests.browser.conftest import FLAGS, page_of  # noqa: E402
from tests.browser.steps import go, shown  # noqa: E402

IMAGES = PROJECT / "docs" / "images"
EXPERIMENT = "resnet"
_MILLISECONDS_TO_DRAW = 2_000
_RENAME = """([old, name]) => {
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    const found = new RegExp(`${old}/[^/]+`, 'g');
    while (texts.nextNode()) texts.currentNode.data = texts.currentNode.data.replace(found, name);
}"""


def main() -> None:
    """Make the store and write every picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--browser", default="/usr/bin/chromium")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        config = make_store(Path(folder) / "checkpoints")
        browser = playwright.chromium.launch(executable_path=arguments.browser, args=FLAGS)
        with page_of(config, Path(folder) / "server") as address:
            for width, scheme, screens in ((1400, "light", SCREENS), (900, "light", SOME), (400, "dark", SOME)):
                photograph(browser, address, width, scheme, screens)
        browser.close()


def make_store(root: Path) -> CheckpointConfig:
    """Train nothing for forty epochs, with a loss that falls; one file is lost, and one checkpoint is pinned."""
    config = CheckpointConfig(checkpoint_dir=str(root), max_checkpoints=100)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(torch.randn(8, 64)).sum().backward()
    optimizer.step()
    with CheckpointManager(config, EXPERIMENT) as manager:
        for epoch in range(1, 41):
            loss = 1.9 * math.exp(-epoch / 12) + 0.35 + 0.04 * math.sin(2.3 * epoch) + max(0, epoch - 32) * 0.012
            manager.save_checkpoint(
                model=model,
                optimizer=optimizer,
                epoch=epoch,
                step=epoch * 390,
                metrics={"val_loss": round(loss, 4), "accuracy": round(1 - loss / 3, 4)},
                tags=["warm-up"] if epoch <= 3 else [],
                config={"lr": 1e-3 if epoch < 20 else 1e-4, "batch_size": 128},
            )
        manager.pin_checkpoint("epoch_20")
        lost = manager.get_checkpoint("epoch_37").checkpoint_id
    (root / EXPERIMENT / f"{lost}.pt").unlink()
    return config


def _checkpoints(page: Page) -> None:
    go(page, "Checkpoints")


def _checkpoint(page: Page) -> None:
    go(page, "Checkpoints")
    page.locator(".ck-list tbody tr").filter(has_text="best").locator(".ck-link").first.click()


def _plots(page: Page) -> None:
    go(page, "Plots")


def _comparison(page: Page) -> None:
    go(page, "Compare")
    page.get_by_label("Checkpoints").fill("best, latest, epoch_20")
    page.keyboard.press("Enter")


def _cleanup(page: Page) -> None:
    go(page, "Clean up")
    page.get_by_label("Keep the best").fill("12")
    page.get_by_role("button", name="Show what would go").click()
    page.locator("#ck-cleanup").get_by_role("button", name="Delete").first.click()


SCREENS: dict[str, Callable[[Page], None]] = {
    "checkpoints": _checkpoints,
    "checkpoint": _checkpoint,
    "plots": _plots,
    "comparison": _comparison,
    "cleanup": _cleanup,
}
SOME = {name: SCREENS[name] for name in ("checkpoints", "checkpoint")}


def photograph(
    browser: Browser, address: str, width: int, scheme: str, screens: dict[str, Callable[[Page], None]]
) -> None:
    """Write a picture of each screen at one width, without the name of the temporary folder."""
    for name, lead_to in screens.items():
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
        shown(page, address, EXPERIMENT)
        lead_to(page)
        page.wait_for_timeout(_MILLISECONDS_TO_DRAW)
        page.evaluate(_RENAME, [tempfile.gettempdir(), "/data"])
        page.screenshot(path=IMAGES / f"page-{name}-{width}.png")
        page.close()


if __name__ == "__main__":
    main()
