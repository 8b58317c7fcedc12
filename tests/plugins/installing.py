"""Installs the packages beside this module as their users would: built and installed by pip, found by entry points."""

from __future__ import annotations

import hashlib
import importlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from ckpt_lib.formats import format_named

_PROJECT = Path(__file__).parent / "ckpt_npz_format"
_BUILT = Path(__file__).resolve().parents[2] / "build" / "plugins"


def npz_packages() -> Path:
    """The folder that the format ``npz`` is installed in: once for each state of its sources, for all processes."""
    sources = sorted(path for path in _PROJECT.rglob("*") if path.suffix in {".py", ".toml"})
    digest = hashlib.sha256(b"\0".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    target = _BUILT / digest
    _BUILT.mkdir(parents=True, exist_ok=True)
    with FileLock(_BUILT / "lock"):
        if not target.exists():
            _install(_PROJECT, target)
    return target


def _install(project: Path, target: Path) -> None:
    """Install a package without a network, into a folder that is there when that is done."""
    with tempfile.TemporaryDirectory(dir=_BUILT) as folder:
        copy, packages = Path(folder, "project"), Path(folder, "packages")  # setuptools writes beside what it builds
        shutil.copytree(project, copy)
        options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
        command = [sys.executable, "-m", "pip", "install", *options, "--target", str(packages), str(copy)]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        packages.rename(target)


@contextmanager
def npz_installed() -> Iterator[None]:
    """Let this process, and those that it starts, find the format ``npz``."""
    folder, before = str(npz_packages()), os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = folder if before is None else f"{folder}{os.pathsep}{before}"
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(folder)
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
        format_named.cache_clear()
