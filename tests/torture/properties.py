"""Row 42: every property of the test suite, with four times as many examples as there, and others for each seed."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from tests.torture.rows import Outcome, Row
from tests.torture.runner import ROOT

QUICKEST = "tests/policies/test_ranking.py"
"""The file of which a sample is taken."""


def check_properties(count: int, seed: str, folder: Path) -> Outcome:
    """All properties for 0; else those of one file, of which there are at least ``count``."""
    report = folder / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-m", "hypothesis", "--hypothesis-profile=torture"]
    command += [f"--hypothesis-seed={_number(seed)}", "-p", "no:cacheprovider", f"--junitxml={report}"]
    run = subprocess.run(
        [*command, QUICKEST if count else "tests"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if not report.exists():
        return Outcome(violations=[f"exit code {run.returncode}: {run.stdout[-2000:]}{run.stderr[-2000:]}"])
    cases = list(ElementTree.parse(report).iter("testcase"))
    return Outcome(len(cases), [line for case in cases for line in _failures(case)])


def _number(seed: str) -> int:
    return int.from_bytes(hashlib.sha256(seed.encode()).digest()[:4])


def _failures(case: ElementTree.Element) -> Iterator[str]:
    for kind in ("failure", "error", "skipped"):
        for found in case.iter(kind):
            yield f"{case.get('classname')}::{case.get('name')}: {found.get('message')}"


ROWS = [
    Row(
        number=42,
        fault="arbitrary values, states and histories, 480 for each property of the test suite",
        must_hold="every property",
        unit="properties",
        count=0,
        sample=1,
        run=check_properties,
    )
]
