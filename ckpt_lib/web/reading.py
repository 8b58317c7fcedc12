"""Operations that only read: experiments, checkpoints, comparisons, summaries."""

from __future__ import annotations

from typing import Annotated, Any, Generic, TypeVar

from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from ckpt_lib.analysis.results import CheckpointComparison, ExperimentSummary
from ckpt_lib.core.metadata import CheckpointMetadata
from ckpt_lib.core.names import EXPERIMENT_PATTERN, MAX_EXPERIMENT_NAME_LENGTH
from ckpt_lib.experiment.overviews import describe_experiments, find_checkpoints
from ckpt_lib.index.overview import ExperimentOverview
from ckpt_lib.index.places import Place
from ckpt_lib.manager import CheckpointManager
from ckpt_lib.web.access import Reader
from ckpt_lib.web.hints import in_words_of_the_api
from ckpt_lib.web.managers import Managers
from ckpt_lib.web.problems import refusals

router = APIRouter(tags=["read"])

Item = TypeVar("Item")
ALL_THERE = ConfigDict(json_schema_serialization_defaults_required=True)
"""For answers: a client may count on fields that have a default, for each is sent."""
MOST_AFTER = 1_000
"""The characters of a place in a list."""


class Page(BaseModel, Generic[Item]):
    """A part of a list."""

    model_config = ALL_THERE

    items: list[Item]
    next: str | None = Field(default=None, description="What ``after`` is to be for the next page; null on the last.")


class Experiments(BaseModel):
    """All experiments of the store."""

    items: list[ExperimentOverview]


ExperimentName = Annotated[
    str,
    Path(
        description="The name of an experiment.",
        max_length=MAX_EXPERIMENT_NAME_LENGTH,
        json_schema_extra={"pattern": f"^{EXPERIMENT_PATTERN}$"},  # for clients; the library says it in its own words
    ),
]
CheckpointName = Annotated[
    str, Path(description="An id, latest, best, a tag, or one before these, such as latest~2.", max_length=200)
]


class Asked(BaseModel):
    """The filter, the order and the page of a list of checkpoints."""

    model_config = ConfigDict(extra="forbid")

    where: list[str] = Field(
        default=[], max_length=20, description='Conditions that all hold, such as "val_loss<0.3" or "epoch>=10".'
    )
    tags: list[str] = Field(default=[], max_length=20, description="Tags that a checkpoint has, all of them.")
    search: str = Field(default="", max_length=200, description="A text in id, tags or description.")
    sort_by: str = Field(
        default="sequence", max_length=100, description="sequence, timestamp, epoch, step, file_size, or a metric."
    )
    descending: bool = Field(default=False, description="Largest first.")
    limit: int = Field(default=50, ge=1, le=500, description="The most items of a page.")
    after: str | None = Field(
        default=None,
        max_length=MOST_AFTER,
        description="The ``next`` of the page before, also if its last checkpoint was deleted meanwhile.",
    )

    def options(self) -> dict[str, Any]:
        """Return the arguments of a manager's list, with one more item to see whether another page follows."""
        return self.model_dump() | {"limit": self.limit + 1}

    def page_of(self, found: list[CheckpointMetadata], *, in_all: bool = False) -> Page[CheckpointMetadata]:
        """Return the page of a list that has one more item than the page, if another one follows."""
        is_last = len(found) <= self.limit
        place = None if is_last else str(Place.of(found[self.limit - 1], self.sort_by, in_all=in_all))
        return Page(items=found[: self.limit], next=place)


NO_EXPERIMENT = refusals({404: "There is no such experiment."})
_PAGE = refusals({404: "The checkpoint that a page begins after by its id alone is not there."})
_PAGE_OF_ONE = refusals({404: "There is no such experiment, or not the checkpoint that a page begins after."})
NO_CHECKPOINT = refusals(
    {404: "There is no such experiment or checkpoint.", 409: "The record of the checkpoint is damaged."}
)


def manager_of(request: Request, experiment: str) -> CheckpointManager:
    """Return the manager of an experiment of the server's store."""
    managers: Managers = request.app.state.managers
    return managers.of(experiment)


@router.get("/experiments")
def list_experiments(request: Request, _: Reader) -> Experiments:
    """List all experiments, with the best and the latest checkpoint of each."""
    managers: Managers = request.app.state.managers
    return Experiments(items=describe_experiments(managers.config))


@router.get("/checkpoints", name="find_checkpoints", responses=_PAGE)
def find(request: Request, _: Reader, asked: Annotated[Asked, Query()]) -> Page[CheckpointMetadata]:
    """Find checkpoints in all experiments."""
    managers: Managers = request.app.state.managers
    found = find_checkpoints(managers.config, **asked.options())
    return asked.page_of(found, in_all=True)


@router.get("/experiments/{experiment}/checkpoints", responses=_PAGE_OF_ONE)
def list_checkpoints(
    request: Request, _: Reader, experiment: ExperimentName, asked: Annotated[Asked, Query()]
) -> Page[CheckpointMetadata]:
    """List the checkpoints of an experiment, a page at a time."""
    return asked.page_of(manager_of(request, experiment).list_checkpoints(**asked.options()))


@router.get("/experiments/{experiment}/checkpoints/{name}", responses=NO_CHECKPOINT)
def get_checkpoint(request: Request, _: Reader, experiment: ExperimentName, name: CheckpointName) -> CheckpointMetadata:
    """Show one checkpoint."""
    return manager_of(request, experiment).get_checkpoint(name)


@router.get("/experiments/{experiment}/summary", name="summarize_experiment", responses=NO_EXPERIMENT)
def summarise(request: Request, _: Reader, experiment: ExperimentName) -> ExperimentSummary:
    """Summarise an experiment: totals, the best and the latest, statistics of every metric."""
    found = manager_of(request, experiment).get_checkpoint_summary()
    if warning := found["monitor_warning"]:
        found["monitor_warning"] = in_words_of_the_api(warning, experiment)
    return found


@router.get("/experiments/{experiment}/comparison", name="compare_checkpoints", responses=NO_CHECKPOINT)
def compare(
    request: Request,
    _: Reader,
    experiment: ExperimentName,
    names: Annotated[list[str], Query(description="The checkpoints.", min_length=2, max_length=20)],
) -> CheckpointComparison:
    """Set checkpoints side by side."""
    return manager_of(request, experiment).compare_checkpoints(names)
