"""What a launch returns: how each attempt of the command ended, and why."""

from __future__ import annotations

from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from ckpt_lib.core.wording import count_of, duration

Outcome = Literal["done", "preempted", "out of memory", "killed", "failed", "hung"]
"""How a command ended.

- ``done``: with exit code 0.
- ``preempted``: something asked it to stop, and it did.
- ``out of memory``: of the machine, its container or the GPU.
- ``killed``: by a signal that asks nothing, such as SIGKILL or SIGSEGV.
- ``failed``: with another exit code.
- ``hung``: it was alive, but made no checkpoint for longer than allowed, and was stopped.
"""


class LaunchAttempt(BaseModel):
    """One start of the command, to its end."""

    model_config = ConfigDict(frozen=True)

    number: int = Field(ge=1, description="1 for the first start.")
    outcome: Outcome
    evidence: str = Field(description="What the outcome was told by.")
    exit_code: int | None = Field(description="Negative for a signal; None if it is not known.")
    was_killed: bool = Field(description="Whether SIGKILL was needed to stop it, or something that it had started.")
    started_at: AwareDatetime
    seconds: float = Field(ge=0)
    checkpoint_ids: tuple[str, ...] = Field(description="The checkpoints that appeared meanwhile, as far as was seen.")
    last_lines: tuple[str, ...] = Field(description="The end of what it wrote to stdout and stderr.")

    def __str__(self) -> str:
        made = count_of(len(self.checkpoint_ids), "new checkpoint")
        return f"{self.outcome} after {duration(self.seconds)} ({self.evidence}), {made}"


class LaunchReport(BaseModel):
    """All attempts of a launch, oldest first."""

    model_config = ConfigDict(frozen=True)

    experiment_name: str
    command: tuple[str, ...]
    launch_id: str = Field(description="What CKPT_LAUNCH_ID was; in a flow run, the flow run's id.")
    attempts: tuple[LaunchAttempt, ...] = Field(min_length=1)
    conclusion: str = Field(description="Why there was no further attempt.")

    @property
    def outcome(self) -> Outcome:
        """How the last attempt ended."""
        return self.attempts[-1].outcome

    @property
    def checkpoint_ids(self) -> tuple[str, ...]:
        """The checkpoints that all attempts made."""
        return tuple(checkpoint_id for attempt in self.attempts for checkpoint_id in attempt.checkpoint_ids)

    @property
    def progress(self) -> str:
        """How many restarts and new checkpoints there were, as text."""
        restarts = f"{count_of(len(self.attempts) - 1, 'restart')}, " if len(self.attempts) > 1 else ""
        return f"{restarts}{count_of(len(self.checkpoint_ids), 'new checkpoint')}"

    def __str__(self) -> str:
        last = self.attempts[-1]
        conclusion = "" if last.evidence.startswith(self.conclusion) else f"; {self.conclusion}"
        return f"{self.outcome}: {last.evidence}, {self.progress}{conclusion}"
