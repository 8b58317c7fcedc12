"""The experiment in the name of a checkpoint: ``run-7/best`` is short for ``--experiment run-7`` and ``best``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_lib.errors import ConfigError

NAMES = ("checkpoint_id", "checkpoint_ids")
"""The arguments that name checkpoints."""


def with_experiment(given: Mapping[str, Any], typed_experiment: str | None) -> dict[str, Any]:
    """Return the parameters of a command, with the experiment that its checkpoints are named with.

    Raises :class:`~ckpt_lib.errors.ConfigError` for names with other experiments than ``typed_experiment`` or than one
    another: a command is about one experiment.
    """
    key = next((key for key in NAMES if given.get(key)), None)
    if key is None:
        return dict(given)
    names = [given[key]] if isinstance(given[key], str) else given[key]
    parts = [_split(name) for name in names]
    experiments = list(dict.fromkeys(experiment for experiment, _ in parts if experiment is not None))
    if not experiments:
        return dict(given)
    if len({*experiments, typed_experiment or experiments[0]}) > 1:
        raise ConfigError(
            "the checkpoints are named with several experiments",
            expected="checkpoints of one experiment",
            got=", ".join(dict.fromkeys([*experiments, *([typed_experiment] if typed_experiment else [])])),
        )
    bare = [name for _, name in parts]
    return {**given, key: bare[0] if isinstance(given[key], str) else bare, "experiment": experiments[0]}


def _split(name: str) -> tuple[str | None, str]:
    """Return the experiment in a name, and what follows it. More slashes make a path, to which nothing answers."""
    experiment, slash, rest = name.partition("/")
    is_path = "/" in rest or experiment in ("", ".", "..", "~") or not rest
    return (None, name) if is_path or not slash else (experiment, rest)
