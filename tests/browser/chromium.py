"""Finds the Chromium of this machine, and installs Debian's if there is none: ``python -m tests.browser.chromium``."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

NAMES = ("chromium", "chromium-browser", "google-chrome")
ADVICE = "Install Chromium, as by `apt-get install chromium`, or set CHROMIUM to the path of one."


def find() -> str | None:
    """The path of a Chromium: that of the variable CHROMIUM, or one that is installed."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


def install() -> None:
    """Install Debian's, which needs apt and the rights of root."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "--yes", "--no-install-recommends", "chromium"]):
        subprocess.run(["apt-get", "-qq", *command], env=environment, check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    """Make sure that there is one, or say what to do."""
    if find():
        return
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        sys.exit(f"The tests of the page need a Chromium, and there is none. {ADVICE}")
    print("Installing Chromium ...")
    try:
        install()
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"Chromium could not be installed: {error}. {ADVICE}")


if __name__ == "__main__":
    main()
