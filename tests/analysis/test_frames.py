"""DataFrames from every listing, and plots by one call."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

from ckpt_lib import (
    CheckpointManager,
    describe_experiments,
    inspect_checkpoint,
    to_dataframe,
)
from ckpt_lib.analysis.frames import metrics_history
from ckpt_lib.analysis.plots import metrics_figure, sizes_figure
from ckpt_lib.errors import ConfigError, UnknownMetricError
from ckpt_lib.maintenance.importing.report import ImportedItem, ImportReport
from ckpt_lib.policies.retention import Decision, KeepNewest, RetentionPlan
from tests.helpers import MakeManager, flip_bit, payload_path, save


@pytest.fixture
def run(make_manager: MakeManager) -> CheckpointManager:
    """Four checkpoints, the second of which is the best, and the first of which is damaged."""
    manager = make_manager(max_checkpoints=20)
    for epoch, loss in enumerate((3.0, 1.0, 2.0, float("nan")), start=1):
        optimizer = torch.optim.SGD(nn.Linear(2, 1).parameters())
        save(
            manager,
            epoch,
            loss,
            optimizer=optimizer,
            config={"lr": 0.1 / epoch},
            tags=["even"] if epoch % 2 == 0 else [],
        )
    flip_bit(payload_path(manager, manager.checkpoint_ids()[0]), -1)
    return manager


def test_every_listing_becomes_a_frame_with_a_row_for_each_item(run: CheckpointManager) -> None:
    """Indexed by what names the row, with values as they are, not as text."""
    ids = run.checkpoint_ids()
    checkpoints = to_dataframe(run.list_checkpoints())
    assert list(checkpoints.index) == ids
    assert list(checkpoints["metrics.val_loss"][:3]) == [3.0, 1.0, 2.0]
    assert to_dataframe(run.get_checkpoint("best")).index[0] == ids[1]
    experiments = to_dataframe(describe_experiments(run.config))
    assert experiments.loc["run", "total_checkpoints"] == 4
    plan = to_dataframe(run.cleanup_checkpoints(policy=KeepNewest(count=1), dry_run=True).plan)
    assert list(plan.index) == ids[::-1]
    assert plan.index[plan["keep"]].tolist() == [ids[3], ids[1]]
    validated = to_dataframe(run.validate_all())
    assert validated["is_valid"].to_dict() == dict(zip(ids, (False, True, True, True), strict=True))
    scrubbed = to_dataframe(run.scrub())
    assert sorted(scrubbed["copy"].unique()) == ["backup", "checkpoint"]
    assert to_dataframe(run.doctor(deep=True))["is_problem"].any()
    assert list(to_dataframe(run.advise())["name"]) == [item.name for item in run.advise().suggestions] != []
    inspected = inspect_checkpoint(str(payload_path(run, ids[1])))
    assert list(to_dataframe(inspected)["name"]) == [tensor.name for tensor in inspected.tensors]
    imported = ImportReport(experiment_name="run", items=(ImportedItem(path="a", title="b", result="refused"),))
    assert to_dataframe(imported).loc[0, "result"] == "refused"


def test_a_cleanup_tells_what_became_of_each(run: CheckpointManager) -> None:
    """After a dry run everything is kept; after the cleanup, the trash has what is called deleted."""
    dry = to_dataframe(run.cleanup_checkpoints(policy=KeepNewest(count=1), dry_run=True))
    assert set(dry["outcome"]) == {"kept"}
    done = to_dataframe(run.cleanup_checkpoints(policy=KeepNewest(count=1)))
    deleted = done.index[done["outcome"] == "deleted"]
    assert set(to_dataframe(run.list_deleted()).index) == set(deleted)
    assert len(deleted) == 2


def test_a_comparison_has_a_column_for_each_checkpoint(run: CheckpointManager) -> None:
    """Rows are named by part and name; tensors are compared with the first checkpoint."""
    ids = run.checkpoint_ids()
    frame: Any = to_dataframe(run.compare_checkpoints(ids[1:3], tensors=True))
    assert list(frame.columns) == ids[1:3]
    assert list(frame.loc[("metric", "val_loss")]) == [1.0, 2.0]
    assert list(frame.loc[("config", "lr")]) == [0.05, 0.1 / 3]
    assert list(frame.loc[("tag", "even")]) == [True, False]
    first, second = frame.loc[("tensor", "weight")]
    assert first is None
    assert second > 0
    summary: Any = to_dataframe(run.get_checkpoint_summary())
    assert summary.loc["val_loss", "max"] == 3.0
    assert summary.loc["val_loss", "not_comparable"] == 1


def test_the_history_has_every_value_a_metric_ever_had(run: CheckpointManager) -> None:
    """That of the save, those that were added, and those that were replaced, with source and time."""
    run.add_metrics("best", {"bleu": 1.0}, source="eval/a")
    run.add_metrics("best", {"bleu": 2.0, "val_loss": 0.5}, source="eval/b", replace=True)
    frame = metrics_history([run.get_checkpoint("best")])
    rows: Any = frame.itertuples()
    values = [(row.metric, row.value, None if pd.isna(row.source) else row.source) for row in rows]
    assert sorted(values, key=str) == [
        ("bleu", 1.0, "eval/a"),
        ("bleu", 2.0, "eval/b"),
        ("val_loss", 0.5, "eval/b"),
        ("val_loss", 1.0, None),
    ]
    assert len(run.metrics_history()) == 4 + 3
    assert list(metrics_history([]).columns) == list(frame.columns)


def test_times_are_in_utc(run: CheckpointManager) -> None:
    """Also where checkpoints were saved in several time zones."""
    moment = datetime(2026, 3, 1, 12, tzinfo=UTC)
    zones = (timezone(timedelta(hours=hours)) for hours in (-8, 0, 2, 5))
    items = [
        item.model_copy(update={"timestamp": moment.astimezone(zone)})
        for item, zone in zip(run.list_checkpoints(), zones, strict=True)
    ]
    times = to_dataframe(items)["timestamp"]
    assert str(times.dt.tz) == "UTC"
    assert set(times) == {pd.Timestamp(moment)}


@pytest.mark.parametrize("other", ["latest", 3, None, [1, 2], {"a": 1}, [{"a": 1}]])
def test_what_is_no_listing_is_refused(other: Any) -> None:
    """Rather than made into a frame of something."""
    with pytest.raises(ConfigError, match="DataFrame"):
        to_dataframe(other)


def test_an_empty_listing_is_an_empty_frame(manager: CheckpointManager) -> None:
    """An empty report has its columns, so that what is asked of it is nothing; an empty list does not say of what."""
    assert to_dataframe([]).empty
    assert to_dataframe(manager.advise())["freed_bytes"].sum() == 0
    assert list(to_dataframe(RetentionPlan(decisions=())).columns) == list(Decision.model_fields)[1:]


def markers(figure: Any) -> dict[str, list[float]]:
    """The marker of each line of points in a figure, and the epochs at which it stands."""
    found: dict[str, list[float]] = {}
    for axis in figure.axes:
        for line in axis.lines:
            if line.get_linestyle() == "None":
                found.setdefault(str(line.get_marker()), []).extend(line.get_xdata())
    return found


def test_plots_mark_the_best_the_latest_damaged_and_thinned_ones(run: CheckpointManager) -> None:
    """By shape; a checkpoint in quarantine is damaged, and one without a value has no mark where there is no point."""
    ids = run.checkpoint_ids()
    run.thin_checkpoint(ids[2])
    run.delete_backup(ids[0])
    run.quarantine_checkpoint(ids[0])
    figure = run.plot_sizes()
    assert markers(figure) == {"*": [2], "X": [1], "o": [3, 4]}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["latest", "best", "weights only", "damaged"]
    assert markers(run.plot_metrics()) == {"*": [2], "X": [1], "o": [3]}
    picture = figure._repr_png_()  # type: ignore[attr-defined]  # what a notebook asks for
    assert picture.startswith(b"\x89PNG")


def test_plots_show_the_metrics_asked_for(make_manager: MakeManager) -> None:
    """One that no checkpoint has is an error; without checkpoints, a plot says so."""
    manager = make_manager()
    assert manager.plot_sizes().axes[0].texts[0].get_text() == "no checkpoints"
    assert metrics_figure([]).axes[0].texts[0].get_text() == "no metrics recorded"
    save(manager, 1, metrics={"loss": 1.0, "accuracy": 0.5})
    assert [axis.get_ylabel() for axis in manager.plot_metrics(["loss"]).axes] == ["loss"]
    with pytest.raises(UnknownMetricError):
        manager.plot_metrics(["los"])


def test_sizes_are_in_the_unit_that_the_largest_fills(run: CheckpointManager) -> None:
    """As in tables: KiB from 1,024 bytes, MiB from 1,048,576."""
    items = run.list_checkpoints()
    for size, unit in ((1023, "B"), (1024, "KiB"), (2**20 - 1, "KiB"), (2**20, "MiB"), (3 * 2**30, "GiB")):
        sized = [items[0].model_copy(update={"file_size": size}), *items[1:2]]
        figure = sizes_figure(
            [item.model_copy(update={"file_size": min(size, 1000)}) for item in sized[1:]] + sized[:1]
        )
        assert figure.axes[0].get_ylabel() == f"size ({unit})"
