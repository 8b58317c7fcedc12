"""The screen of all experiments of the store."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from ckpt_lib.config import CheckpointConfig
from ckpt_lib.core.wording import count_of, size_text
from ckpt_lib.errors import NotAStoreError
from ckpt_lib.experiment.overviews import describe_experiments
from ckpt_lib.index.overview import ExperimentOverview
from ckpt_lib.page.markup import DASH, Column, badge, button, code, empty, joined, moment, number, table

_FIRST_SAVE = """from ckpt_lib import CheckpointConfig, CheckpointManager

manager = CheckpointManager(CheckpointConfig(checkpoint_dir={store!r}), "my_experiment")
manager.save_checkpoint(model=model, optimizer=optimizer, epoch=1, metrics={{"val_loss": 0.5}})"""


def overviews(config: CheckpointConfig) -> list[ExperimentOverview]:
    """Return what each experiment holds; none where the store does not exist yet."""
    try:
        return describe_experiments(config)
    except NotAStoreError:
        return []


def experiments_html(config: CheckpointConfig, found: Sequence[ExperimentOverview]) -> Markup:
    """Show the experiments, or how the first one comes about."""
    if not found:
        example = code(_FIRST_SAVE.format(store=config.checkpoint_dir))
        return empty("There are no experiments yet.", "The first save of a training creates one:") + example
    columns = (
        Column("Experiment", is_head=True),
        Column("Checkpoints", numeric=True),
        Column("Size", numeric=True),
        Column("Best", numeric=True),
        Column("Latest", numeric=True),
        Column("Damage"),
    )
    size_bytes = sum(item.total_size_bytes for item in found)
    total = sum(item.total_checkpoints for item in found)
    caption = f"{count_of(len(found), 'experiment')}, {count_of(total, 'checkpoint')}, {size_text(size_bytes)}"
    return table(columns, [_row(item) for item in found], caption=caption)


def _row(item: ExperimentOverview) -> tuple[object, ...]:
    best: object = DASH
    if item.best_value is not None:
        best = Markup('{} <span class="ck-soft">{}</span>').format(number(item.best_value), item.monitor_metric)
    counts = {"unreadable": item.unreadable_checkpoints, "quarantined": item.quarantined_checkpoints}
    damage = joined([badge("damaged") + f" {count} {word}" for word, count in counts.items() if count], " ")
    return (
        button("experiment", item.experiment_name, item.experiment_name, kind="ck-link"),
        f"{item.total_checkpoints:,}",
        size_text(item.total_size_bytes),
        best,
        moment(item.latest_timestamp),
        damage or DASH,
    )
