"""The doctor, as tests call it: each call checks that it changed nothing, or that it did all there was to do."""

from __future__ import annotations

from pathlib import Path

from ckpt_lib import CheckpointManager
from ckpt_lib.reports import DoctorReport
from tests.helpers import experiment_folder, snapshot


def kinds(report: DoctorReport) -> list[str]:
    return sorted(finding.kind for finding in report.findings)


def files(folder: Path) -> dict[str, str]:
    """Everything there but leases and locks, which come and go."""
    return {name: digest for name, digest in snapshot(folder).items() if ".ckpt-" not in name}


def cured(manager: CheckpointManager, *, deep: bool = False) -> DoctorReport:
    """Fix, and check that a second time it finds nothing to do and changes nothing."""
    report = manager.doctor(fix=True, deep=deep)
    before = files(experiment_folder(manager))
    again = manager.doctor(fix=True, deep=deep)
    assert again.done == ()
    assert [finding.fix for finding in again.findings if finding.fix] == []
    assert again.findings == report.findings
    assert files(experiment_folder(manager)) == before
    return report


def looked_at(manager: CheckpointManager, *, deep: bool = False) -> DoctorReport:
    """Diagnose, and check that this changed nothing."""
    before = files(experiment_folder(manager))
    report = manager.doctor(deep=deep)
    assert files(experiment_folder(manager)) == before
    return report
