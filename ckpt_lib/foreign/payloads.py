"""What of a checkpoint of another program becomes a payload of ours, with the facts that its manifest will hold."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ckpt_lib.core.metadata import MAX_COUNT, check_metrics
from ckpt_lib.core.payload_keys import EXTRA_STATE_KEY, MODEL_KEY, OTHERS_KEY, PAYLOAD_KEYS, RNG_KEY
from ckpt_lib.core.plain import check_run_config
from ckpt_lib.core.wording import shown
from ckpt_lib.errors import CheckpointError, ConfigError, NotACheckpointError, UnsafePayloadError
from ckpt_lib.foreign.base import Facts, ForeignCheckpoint, StoredObject
from ckpt_lib.foreign.mapping import to_payload

_WHAT_TO_DO = (
    "`ckpt inspect` shows what it holds. Load it with the program that wrote it, and save the state dicts of what it "
    "returns: CheckpointManager.save_checkpoint takes them."
)


@dataclass(frozen=True)
class Taken:
    """A payload with all of its keys, whose tensors have not been read."""

    payload: dict[str, Any]
    facts: Facts
    """With an epoch, a step, metrics and a configuration that a manifest may hold."""
    left_out: tuple[str, ...]
    """What the payload lacks, and what the checkpoint does not say: one sentence each."""


def taken(found: ForeignCheckpoint, key_map: Mapping[str, str] | None = None) -> Taken:
    """Return what can be taken of a checkpoint; ``key_map`` says what its parts are, such as ``{"net": "model"}``.

    Raises :class:`~ckpt_lib.errors.UnsafePayloadError` where only code of its program could load it,
    :class:`~ckpt_lib.errors.NotACheckpointError` where it cannot be loaded for another reason, and
    :class:`~ckpt_lib.errors.ConfigError` for a ``key_map`` that does not fit.
    """
    states, facts, left_out = _states_of(found, check_key_map(key_map))
    checked, notes = _checked(facts)
    payload = {
        **dict.fromkeys(PAYLOAD_KEYS.values()),
        **states,
        OTHERS_KEY: states.get(OTHERS_KEY) or {},
        "epoch": checked.epoch,
        "step": checked.step,
        "metrics": dict(checked.metrics),
        "config": dict(checked.config),
        EXTRA_STATE_KEY: states.get(EXTRA_STATE_KEY) or {},
    }
    return Taken(payload, checked, (*left_out, *notes))


def facts_of(found: ForeignCheckpoint, key_map: Mapping[str, str] | None = None) -> Facts | None:
    """Return what a checkpoint says of itself, as :func:`taken` reads it; ``None`` for one that it would refuse."""
    try:
        return _states_of(found, check_key_map(key_map))[1]
    except CheckpointError:
        return None


def check_key_map(key_map: Mapping[str, str] | None) -> Mapping[str, str] | None:
    """Return a ``key_map`` of names to names. Raises :class:`~ckpt_lib.errors.ConfigError` for anything else."""
    if key_map is None:
        return None
    pairs = key_map.items() if isinstance(key_map, Mapping) else [(None, None)]
    if not all(isinstance(name, str) and name for pair in pairs for name in pair):
        raise ConfigError(
            "key_map must map names of the checkpoint to those of ours",
            expected='{"state_dict": "model", "opt": "optimizer"}',
            got=shown(key_map),
        )
    return dict(key_map) or None


def _states_of(
    found: ForeignCheckpoint, key_map: Mapping[str, str] | None
) -> tuple[Mapping[str, Any], Facts, tuple[str, ...]]:
    if key_map is not None and found.can_be_mapped:
        mapped = to_payload(found.contents, key_map)
        payload, obstacle, left_out = mapped.payload, mapped.obstacle, mapped.left_out
        facts = _joined(found.facts, mapped.facts, key_map.values())
        if payload is not None and found.payload and RNG_KEY in found.payload:  # it lies in files of its own
            payload = {**payload, RNG_KEY: found.payload[RNG_KEY]}
    else:
        payload, obstacle, left_out, facts = found.payload, found.obstacle, found.left_out, found.facts
    if payload is None or obstacle is not None:
        raise _obstacle(found, obstacle or "what it holds is not known")
    if not isinstance(payload.get(MODEL_KEY), Mapping):
        raise _obstacle(found, "no state of a model was found in it")
    return payload, facts, left_out


def _joined(found: Facts, mapped: Facts, asked: Collection[str]) -> Facts:
    """Return what the mapping found, and what the checkpoint says where that is nothing and nobody ``asked`` for it."""
    return Facts(
        **{
            name: value if name in asked or value not in (None, {}) else getattr(found, name)
            for name, value in vars(mapped).items()
        }
    )


def _obstacle(found: ForeignCheckpoint, reason: str) -> CheckpointError:
    kind = UnsafePayloadError if _holds_objects(found.contents) else NotACheckpointError
    return kind(
        f"it is {found.title}, and cannot be imported: {reason}",
        path=found.files.path,
        hint=_WHAT_TO_DO,
    )


def _holds_objects(value: Any) -> bool:
    """Tell whether an object of an unknown class is among what was found."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, StoredObject):
            return True
        waiting += item.values() if isinstance(item, Mapping) else item if isinstance(item, list | tuple) else ()
    return False


def _checked(facts: Facts) -> tuple[Facts, list[str]]:
    """Return facts that a manifest may hold, and a sentence on each that is missing or cannot be held."""
    notes = []
    counts: dict[str, int] = {}
    for name in ("epoch", "step"):
        value = getattr(facts, name)
        is_count = type(value) is int and 0 <= value < MAX_COUNT
        counts[name] = value if is_count else 0
        if value is None and name == "epoch":
            notes.append("It does not say its epoch: 0 stands for that.")
        elif value is not None and not is_count:
            notes.append(f"Its {name} {shown(value)} is no count: 0 stands for it.")
    metrics: dict[str, Any] = {}
    for name, metric in facts.metrics.items():
        try:
            metrics |= check_metrics({name: metric})
        except CheckpointError as error:
            notes.append(f"The metric {shown(name)} was left out: {error.message}.")
    try:
        config = check_run_config(dict(facts.config))
    except CheckpointError as error:
        config = {}
        notes.append(f"Its configuration was left out: {error.message}.")
    return replace(facts, epoch=counts["epoch"], step=counts["step"], metrics=metrics, config=config), notes
