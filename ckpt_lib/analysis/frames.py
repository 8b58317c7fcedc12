"""DataFrames from everything that lists. Pandas loads when the first is made, not when a name is imported."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from ckpt_lib.advice.results import Advice, Suggestion
from ckpt_lib.analysis.notebook import comparison_rows
from ckpt_lib.core.metadata import CheckpointMetadata
from ckpt_lib.errors import ConfigError
from ckpt_lib.index.overview import ExperimentOverview
from ckpt_lib.inspecting.results import InspectedTensor, Inspection
from ckpt_lib.maintenance.cleanup import CleanupReport
from ckpt_lib.maintenance.findings import DoctorReport, Finding
from ckpt_lib.maintenance.importing.report import ImportedItem, ImportReport
from ckpt_lib.maintenance.scrub import ScrubReport
from ckpt_lib.maintenance.validate import ValidationReport
from ckpt_lib.policies.retention import Decision, RetentionPlan

if TYPE_CHECKING:
    import pandas as pd

_ACCEPTED = (
    "a list of checkpoints, experiments or validation reports, a comparison, a summary, or a report such as a plan"
)
_LISTED: dict[type[BaseModel], tuple[str, type[BaseModel]]] = {
    RetentionPlan: ("decisions", Decision),
    DoctorReport: ("findings", Finding),
    ImportReport: ("items", ImportedItem),
    Advice: ("suggestions", Suggestion),
    Inspection: ("tensors", InspectedTensor),
}
"""What a report has a row for, and what these are."""
_INDEXES = ("checkpoint_id", "experiment_name")
_HISTORY = ("checkpoint_id", "epoch", "step", "metric", "value", "at", "source")


def to_dataframe(listing: object) -> pd.DataFrame:
    """Return a row for each item of a listing or report, with the names and values that the item has. Times are in UTC.

    Takes lists of checkpoints (also the trash and backups), of experiments and of validation reports, or iterators of
    them; a retention plan, and the reports of a cleanup, scrub, doctor, import, advisor and inspection. Rows are
    indexed by checkpoint or experiment. A comparison has a row for each thing compared, and a column for each
    checkpoint; a summary has a row for each metric.

    Raises :class:`~ckpt_lib.errors.ConfigError` for anything else.
    """
    if isinstance(listing, Mapping):
        return _of_dictionary(listing)
    if kind := next((kind for kind in _LISTED if isinstance(listing, kind)), None):
        name, item_type = _LISTED[kind]
        return _indexed([_row(item) for item in getattr(listing, name)], [*_names(item_type)])
    items = _items(listing)
    if items and all(isinstance(item, CheckpointMetadata) for item in items):
        return _of_checkpoints(items)
    return _indexed([_row(item) for item in items], None)


def metrics_history(checkpoints: Iterable[CheckpointMetadata]) -> pd.DataFrame:
    """Return a row for each value that each metric ever had, in the order of ``checkpoints`` and of time.

    ``source`` is what measured it after the save; empty for the save itself.
    """
    import pandas as pd

    rows = [
        (item.checkpoint_id, item.epoch, item.step, name, value, at.astimezone(UTC), source)
        for item in checkpoints
        for name, value, at, source in _values(item)
    ]
    return pd.DataFrame(rows, columns=list(_HISTORY))


def _values(checkpoint: CheckpointMetadata) -> Iterator[tuple[str, Any, datetime, str | None]]:
    added = {item.name for item in checkpoint.added_metrics}
    for name, value in checkpoint.metrics.items():
        if name not in added:
            yield name, value, checkpoint.timestamp, None
    for item in checkpoint.added_metrics:  # with the value of the save, where one was replaced
        yield item.name, item.value, item.at, item.source


def _items(listing: object) -> list[Any]:
    """Return what a listing has a row for."""
    if isinstance(listing, CheckpointMetadata | ExperimentOverview | ValidationReport):
        return [listing]
    if isinstance(listing, BaseModel):
        return list(_of_report(listing))
    if isinstance(listing, Iterable) and not isinstance(listing, str | bytes):
        items = list(listing)
        kinds = {type(item) for item in items}
        if len(kinds) <= 1 and all(issubclass(kind, BaseModel) for kind in kinds):
            return items
    raise _unknown(listing)


def _of_report(report: BaseModel) -> Sequence[Any]:
    if isinstance(report, CleanupReport):
        return [_with_outcome(decision.model_dump(), report) for decision in report.plan.decisions]
    if isinstance(report, ScrubReport):
        sides = (("checkpoint", report.checkpoints), ("backup", report.backups))
        return [{"copy": copy, **_row(item)} for copy, reports in sides for item in reports]
    raise _unknown(report)


def _with_outcome(row: dict[str, Any], report: CleanupReport) -> dict[str, Any]:
    """Add what became of a checkpoint; after a dry run, all of them stay."""
    checkpoint_id = row["checkpoint_id"]
    gone = {**dict.fromkeys(report.deleted_ids, "deleted"), **dict.fromkeys(report.thinned_ids, "thinned")}
    return {**row, "outcome": gone.get(checkpoint_id, "kept"), "spared": report.spared.get(checkpoint_id)}


def _row(item: Any) -> dict[str, Any]:
    """Return the fields and the properties of an item; moments are in UTC."""
    if isinstance(item, Mapping):
        return dict(item)
    found = item.model_dump()
    return {name: _utc(found[name] if name in found else getattr(item, name)) for name in _names(type(item))}


def _names(kind: type[BaseModel]) -> Iterator[str]:
    """Yield the names of the fields and properties of a model."""
    yield from kind.model_fields
    yield from kind.model_computed_fields
    for owner in kind.__mro__:
        if owner.__module__.startswith("ckpt_lib."):
            yield from (name for name, member in vars(owner).items() if isinstance(member, property))


def _indexed(rows: Sequence[dict[str, Any]], columns: list[str] | None) -> pd.DataFrame:
    import pandas as pd

    frame = pd.DataFrame(rows, columns=columns)
    first = next(iter(frame.columns), None)
    return frame.set_index(first) if first in _INDEXES else frame


def _utc(value: Any) -> Any:
    return value.astimezone(UTC) if isinstance(value, datetime) else value


def _of_checkpoints(checkpoints: list[CheckpointMetadata]) -> pd.DataFrame:
    from ckpt_lib.analysis.statistics import checkpoint_frame

    frame = checkpoint_frame(checkpoints)
    return frame.assign(timestamp=[moment.astimezone(UTC) for moment in frame["timestamp"]])


def _of_dictionary(found: Mapping[Any, Any]) -> pd.DataFrame:
    import pandas as pd

    if "checkpoint_ids" in found and "metrics_comparison" in found:
        rows = list(comparison_rows(dict(found)))
        index = pd.MultiIndex.from_tuples([row[:2] for row in rows], names=["part", "name"])
        return pd.DataFrame([row[2] for row in rows], index=index, columns=list(found["checkpoint_ids"]), dtype=object)
    if "statistics" in found:
        return pd.DataFrame.from_dict(found["statistics"], orient="index").rename_axis("metric")
    raise _unknown(found)


def _unknown(listing: object) -> ConfigError:
    return ConfigError("this cannot become a DataFrame", expected=_ACCEPTED, got=type(listing).__name__)
