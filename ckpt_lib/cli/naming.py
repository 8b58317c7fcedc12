"""The experiment in the name of a checkpoint: ``run-7/best`` is short for ``--experiment run-7`` and ``best``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_lib.errors import ConfigError
from ckpt_lib.experiment.selectors import split_experiment

NAMES = ("checkpoint_id", "checkpoint_ids")
"""The arguments that name checkpoints."""


def with_experiment(
    given: Mapping[str, Any], typed_experiment: str | None, *, may_be_several: bool = False
) -> dict[str, Any]:
    """Return the parameters of a command, with the experiment that its checkpoints are named with.

    A command is about one experiment: raises :class:`~ckpt_lib.errors.ConfigError` for names with other experiments
    than ``typed_experiment`` or than one another. With ``may_be_several``, the command is given such names as they are,
    and the first of the experiments.
    """
    key = next((key for key in NAMES if given.get(key)), None)
    if key is None:
        return dict(given)
    names = [given[key]] if isinstance(given[key], str) else given[key]
    parts = [split_experiment(name) for name in names]
    experiments = list(dict.fromkeys(experiment for experiment, _ in parts if experiment is not None))
    if not experiments:
        return dict(given)
    if len({*experiments, typed_experiment or experiments[0]}) > 1:
        if may_be_several:
            return {**given, "experiment": typed_experiment or experiments[0]}
        raise ConfigError(
            "the checkpoints are named with several experiments",
            expected="checkpoints of one experiment",
            got=", ".join(dict.fromkeys([*experiments, *([typed_experiment] if typed_experiment else [])])),
        )
    bare = [name for _, name in parts]
    return {**given, key: bare[0] if isinstance(given[key], str) else bare, "experiment": experiments[0]}
