"""What a doctor finds, does and reports."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from ckpt_lib.core import html
from ckpt_lib.core.wording import count_of

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

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        yield "experiment_name", self.experiment_name
        yield "is_healthy", self.is_healthy
        yield "problems", len(self.problems)
        yield "findings", len(self.findings)
        yield "done", len(self.done)

    def _repr_html_(self) -> str:
        found = sorted(self.findings, key=lambda item: not item.is_problem)
        rows = [
            ("problem" if item.is_problem else "remark", item.kind, item.place, item.name, item.message, item.fix)
            for item in found
        ]
        done = [(item.finding.name, item.outcome, item.succeeded) for item in self.done]
        return html.block(
            self.experiment_name,
            html.table(("done about", "what", "succeeded"), done),
            html.table(("", "kind", "place", "name", "what", "command"), rows),
            detail="healthy" if self else count_of(len(self.problems), "problem"),
        )
