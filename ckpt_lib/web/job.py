"""``Job``: one piece of long work, and how far it is."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from ckpt_lib.web.operations import AnyWork, Outcome
from ckpt_lib.web.problems import Problem

State = Literal["waiting", "running", "succeeded", "failed", "cancelled", "interrupted"]
ENDED: frozenset[State] = frozenset({"succeeded", "failed", "cancelled", "interrupted"})


class JobSummary(BaseModel):
    """The progress of one piece of long work."""

    model_config = ConfigDict(json_schema_serialization_defaults_required=True)

    job_id: str
    experiment_name: str
    work: AnyWork
    who: str = Field(description="The name of the token that started it.")
    runner: str = Field(default="threads", description="What does it: the threads of the server, or another program.")
    url: str | None = Field(default=None, description="The page of another program that shows it.")
    state: State = "waiting"
    created_at: AwareDatetime
    started_at: AwareDatetime | None = None
    ended_at: AwareDatetime | None = None
    done_bytes: int = 0
    total_bytes: int | None = Field(default=None, description="Null if it is not known.")
    problem: Problem | None = Field(default=None, description="Why it failed.")

    def for_clients(self) -> Self:
        """Return the job as the API tells of it: its problems name operations in the place of commands."""
        if self.problem is None:
            return self
        return self.model_copy(update={"problem": self.problem.for_clients(self.experiment_name)})

    @property
    def has_ended(self) -> bool:
        """Whether nothing changes any more."""
        return self.state in ENDED


class Job(JobSummary):
    """One piece of long work, with its outcomes."""

    checkpoint_ids: list[str] = Field(description="What the names stood for when the job was started.")
    idempotency_key: str | None = Field(default=None, description="The `Idempotency-Key` that it was started with.")
    result: list[Outcome] | None = Field(default=None, description="One outcome for each id; null until it has ended.")

    def for_clients(self) -> Self:
        found = super().for_clients()
        if found.result is None:
            return found
        result = [outcome.for_clients(self.experiment_name) for outcome in found.result]
        return found.model_copy(update={"result": result})

    def summary(self) -> JobSummary:
        """Return the job without its outcomes."""
        return JobSummary.model_validate(self.model_dump(include=set(JobSummary.model_fields)))


class JobUpdate(BaseModel):
    """What a runner tells of a job. What is not given stays as it is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    state: State = "waiting"
    started_at: AwareDatetime | None = None
    ended_at: AwareDatetime | None = None
    done_bytes: int = 0
    total_bytes: int | None = None
    problem: Problem | None = None
    result: list[Outcome] | None = None
    url: str | None = None


def ending_of(result: list[Outcome]) -> JobUpdate:
    """Return how a job ends whose checkpoints came out like this: it failed if one of them did."""
    problems = [outcome.problem for outcome in result if outcome.problem is not None]
    if not problems:
        return JobUpdate(state="succeeded", result=result)
    if len(result) == 1:
        return JobUpdate(state="failed", result=result, problem=problems[0])
    detail = f"{len(problems)} of {len(result)} checkpoints failed; the first: {problems[0].detail}"
    return JobUpdate(state="failed", result=result, problem=problems[0].model_copy(update={"detail": detail}))
