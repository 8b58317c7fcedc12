"""What a doctor finds, does and reports."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

Place = Literal["checkpoints", "backups"]
Kind = Literal[
    "leftover",
    "half save",
    "half deletion",
    "damaged",
    "newer version",
    "unknown format",
    "no manifest",
    "no backup",
    "quarantined",
    "other checkpoint",
    "backup location",
    "deleted",
    "thinned",
    "backup only",
    "stale snapshot",
    "damaged pointer",
    "link",
    "unknown",
]
Action = Literal["sweep", "repair", "quarantine", "back up", "write snapshot", "mend pointer"]
"""What `ckpt doctor --fix` does about a finding."""
_REMARKS: frozenset[Kind] = frozenset(
    {"deleted", "thinned", "backup only", "stale snapshot", "link", "unknown", "newer version", "unknown format"}
)
"""Kinds that are worth knowing and no trouble."""


class Finding(BaseModel):
    """One thing that is not as it should be or, with ``is_problem`` false, that is worth knowing."""

    model_config = ConfigDict(frozen=True)

    kind: Kind
    place: Place
    name: str
    """An id, or the name of a file."""
    message: str
    fix: str | None = None
    """The command that fixes it, as `ckpt doctor --fix` does; ``None`` when it takes a person."""
    action: Action | None = None
    """The effect of that command."""
    size_bytes: int = 0

    @property
    def is_problem(self) -> bool:
        return self.kind not in _REMARKS


class Treatment(BaseModel):
    """The action taken about a finding."""

    model_config = ConfigDict(frozen=True)

    finding: Finding
    outcome: str
    succeeded: bool


class DoctorReport(BaseModel):
    """The findings in an experiment, after ``done``; true when no problem is left."""

    model_config = ConfigDict(frozen=True)

    experiment_name: str
    findings: tuple[Finding, ...] = ()
    done: tuple[Treatment, ...] = ()

    @property
    def problems(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.is_problem)

    @property
    def is_healthy(self) -> bool:
        return not self.problems

    def __bool__(self) -> bool:
        return self.is_healthy
