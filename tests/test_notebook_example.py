"""The notebook in ``examples`` runs, and shows what it has stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest

from examples.run_notebook import NOTEBOOK, run


def shown(notebook: Any) -> dict[str, list[list[str]]]:
    """How each cell's outputs are shown, by the id of the cell; what is logged is left out."""
    return {
        cell["id"]: [sorted(output["data"]) for output in cell["outputs"] if "data" in output]
        for cell in notebook["cells"]
        if cell["cell_type"] == "code"
    }


def test_the_notebook_runs_and_shows_tables_and_plots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a kernel of its own, without an error; each cell shows a table or picture where the stored one does."""
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))  # nothing of a user's own
    stored, executed = nbformat.read(NOTEBOOK, as_version=4), run()
    assert shown(executed) == shown(stored)
    kinds = [kind for outputs in shown(executed).values() for output in outputs for kind in output]
    assert kinds.count("text/html") >= 10
    assert kinds.count("image/png") == 2
    pages = "".join(
        output["data"].get("text/html", "")
        for cell in executed["cells"]
        for output in cell.get("outputs", [])
        if "data" in output
    )
    assert "damaged" in pages
    assert "best, latest" in pages
