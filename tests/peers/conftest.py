"""Tests with the libraries of requirements.txt, which `make test-peers` installs; not collected without them."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

HAS_PEERS = all(find_spec(name) for name in ("accelerate", "lightning", "transformers"))
collect_ignore_glob = [] if HAS_PEERS else ["test_*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test of this folder; the warnings of these libraries are not ours to mend."""
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.peers)
            item.add_marker(pytest.mark.filterwarnings("default"))
