"""Runs ``notebook.ipynb`` anew and stores its outputs: ``python -m examples.run_notebook``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).with_name("notebook.ipynb")


def run(path: Path = NOTEBOOK) -> Any:
    """Return a notebook with the outputs of a run in a kernel of its own. Raises ``CellExecutionError``."""
    notebook = nbformat.read(path, as_version=4)
    # Of this interpreter, whatever kernels the user has; times of execution would differ from run to run.
    NotebookClient(notebook, timeout=300, kernel_name="python3", record_timing=False).execute()
    return notebook


if __name__ == "__main__":
    nbformat.write(run(), NOTEBOOK)
