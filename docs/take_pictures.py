"""Take the pictures of the documentation: run everything for real, then photograph it.

    python docs/take_pictures.py [--browser /usr/bin/chromium]

The terminal picture is what ``examples/demo.py`` prints; the pages are those of the Prefect server that served the
deployments. Needs a Chromium, and no other server on the default port.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
from playwright.sync_api import Browser, sync_playwright

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from deployments.server import prefect_server  # noqa: E402

IMAGES = PROJECT / "docs" / "images"
BROWSER_FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]
SECONDS_TO_DRAW = 6.0


def main() -> None:
    """Run the flows, then write every picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--browser", default="/usr/bin/chromium")
    arguments = parser.parse_args()
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, prefect_server(Path(folder) / "prefect") as environment:
        checkpoints = {"checkpoint_dir": f"{folder}/served"}
        demo = [sys.executable, "-m", "examples.demo", "--picture", str(IMAGES / "demo.svg")]
        subprocess.run(demo, cwd=folder, env={**environment, "PYTHONPATH": str(PROJECT)}, check=True)
        folders = {"CKPT_CHECKPOINT_DIR": f"{folder}/served", "CKPT_EXPORT_DIR": f"{folder}/exports"}
        served = {**environment, **folders}
        serving = subprocess.Popen([sys.executable, "-m", "deployments.serve"], cwd=PROJECT, env=served)
        try:
            api = httpx.Client(base_url=environment["PREFECT_API_URL"], timeout=30)
            runs = _run_deployments(api, checkpoints, f"{folder}/exports")
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=arguments.browser, args=BROWSER_FLAGS)
                _photograph(browser, environment["PREFECT_API_URL"].removesuffix("/api"), api, runs)
        finally:
            serving.send_signal(signal.SIGINT)
            serving.wait()


def _run_deployments(api: httpx.Client, checkpoints: dict[str, Any], export_dir: str) -> dict[str, str]:
    """Start each deployment in turn, wait for it to end, and return the runs' ids by deployment."""
    parameters: dict[str, dict[str, Any]] = {
        "digits": {},
        "on-demand": {"export_dir": export_dir, "retention": {"kind": "newest", "count": 4}},
        "nightly": {},
        "hourly": {},
    }
    runs = {}
    for name, own in parameters.items():
        while name not in (found := {item["name"]: item for item in _post(api, "/deployments/filter", {})}):
            time.sleep(1)
        body = {"parameters": {"config": checkpoints, **own}}
        runs[name] = str(_post(api, f"/deployments/{found[name]['id']}/create_flow_run", body)["id"])
        while (state := api.get(f"/flow_runs/{runs[name]}").json()["state_type"]) not in {"COMPLETED", "FAILED"}:
            time.sleep(1)
        assert state == "COMPLETED", name
    return runs


def _post(api: httpx.Client, path: str, body: dict[str, Any]) -> Any:
    # The server answers 503 while its SQLite database is busy.
    while (response := api.post(path, json=body)).status_code == httpx.codes.SERVICE_UNAVAILABLE:
        time.sleep(1)
    return response.raise_for_status().json()


def _photograph(browser: Browser, address: str, api: httpx.Client, runs: dict[str, str]) -> None:
    chosen = {"artifacts": {"flow_run_id": {"any_": [runs["on-demand"]]}}}
    artifacts = {item["key"].rpartition("-")[0]: item["id"] for item in _post(api, "/artifacts/filter", chosen)}
    pages = {
        "deployments": ("/deployments", 460),
        "lifecycle-run": (f"/runs/flow-run/{runs['on-demand']}", 760),
        "retention-artifact": (f"/artifacts/artifact/{artifacts['cleanup-digits']}", 620),
        "metrics-artifact": (f"/artifacts/artifact/{artifacts['metrics-digits']}", 620),
        "run-form": (f"/deployments/deployment/{_deployment_of(api, runs['on-demand'])}/run", 1240),
    }
    for name, (path, height) in pages.items():
        page = browser.new_page(viewport={"width": 1320, "height": height})
        page.goto(address + path)
        page.wait_for_timeout(SECONDS_TO_DRAW * 1000)
        page.screenshot(path=str(IMAGES / f"{name}.png"))
        page.close()


def _deployment_of(api: httpx.Client, run_id: str) -> str:
    return str(api.get(f"/flow_runs/{run_id}").json()["deployment_id"])


if __name__ == "__main__":
    main()
