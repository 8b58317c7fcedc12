"""The payload that a checkpoint of another program becomes, with the facts that its manifest will hold."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from ckpt_lib.core.metadata import MAX_COUNT, check_metrics
from ckpt_lib.core.payload_keys import EXTRA_STATE_KEY, MODEL_KEY, OTHERS_KEY, PAYLOAD_KEYS, RNG_KEY
from ckpt_lib.core.plain import check_run_config
from ckpt_lib.core.wording import shown
from ckpt_lib.errors import CheckpointError, ConfigError, NotACheckpointError, UnsafePayloadError
from ckpt_lib.foreign.base import Facts, ForeignCheckpoint, StoredObject
from ckpt_lib.foreign.known_facts import FACTS
from ckpt_lib.foreign.mapping import to_payload
from ckpt_lib.foreign.tree import walk

_WHAT_TO_DO = (
    "`ckpt inspect` shows what it holds. Load it with the program that wrote it, and save the state dicts of what it "
    "returns: CheckpointManager.save_checkpoint takes them."
)


def with_payload(found: ForeignCheckpoint, key_map: Mapping[str, str] | None = None) -> ForeignCheckpoint:
    """Return a checkpoint with the payload that it becomes here, under all of our keys, and facts for a manifest.

    ``key_map`` says what its parts are, such as ``{"net": "model"}``. No tensor is read. ``left_out`` says what the
    payload lacks, and what the checkpoint does not say. Raises :class:`~ckpt_lib.errors.UnsafePayloadError` where only
    code of its program could load it, :class:`~ckpt_lib.errors.NotACheckpointError` where it cannot be loaded for
    another reason, and :class:`~ckpt_lib.errors.ConfigError` for a ``key_map`` that does not fit.
    """
    mapped = _mapped(found, check_key_map(key_map))
    states = mapped.payload or {}
    facts, missing = _checked(mapped.facts)
    payload = {
        **dict.fromkeys(PAYLOAD_KEYS.values()),
        **states,
        OTHERS_KEY: states.get(OTHERS_KEY) or {},
        "epoch": facts.epoch,
        "step": facts.step,
        "metrics": dict(facts.metrics),
        "config": dict(facts.config),
        EXTRA_STATE_KEY: states.get(EXTRA_STATE_KEY) or {},
    }
    return replace(mapped, payload=payload, facts=facts, left_out=(*mapped.left_out, *missing))


def facts_of(found: ForeignCheckpoint, key_map: Mapping[str, str] | None = None) -> Facts | None:
    """Return what a checkpoint says of itself by ``key_map``; ``None`` for one that :func:`with_payload` refuses."""
    try:
        return _mapped(found, check_key_map(key_map)).facts
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


def _mapped(found: ForeignCheckpoint, key_map: Mapping[str, str] | None) -> ForeignCheckpoint:
    """Return a checkpoint with its entries under our keys, by ``key_map`` if there is one. Raises for an obstacle."""
    if key_map is not None and found.can_be_mapped:
        mapped = to_payload(found.contents, key_map)
        payload = mapped.payload
        if payload is not None and found.payload and RNG_KEY in found.payload:  # it lies in files of its own
            payload = {**payload, RNG_KEY: found.payload[RNG_KEY]}
        found = replace(
            found,
            payload=payload,
            obstacle=mapped.obstacle,
            facts=_joined(found.facts, mapped.facts, key_map.values()),
            left_out=(*mapped.left_out, *found.unread),
        )
    if found.payload is None or found.obstacle is not None:
        raise _obstacle(found, found.obstacle or "what it holds is not known")
    if not isinstance(found.payload.get(MODEL_KEY), Mapping):
        raise _obstacle(found, "no state of a model was found in it")
    return found


def _joined(found: Facts, mapped: Facts, asked: Collection[str]) -> Facts:
    """Return what the mapping found, and what the checkpoint says where that is nothing and nobody ``asked`` for it."""
    told = {name: value for name in FACTS if (value := getattr(mapped, name)) not in (None, {}) or name in asked}
    return replace(found, saved_at=found.saved_at or mapped.saved_at, **told)


def _obstacle(found: ForeignCheckpoint, reason: str) -> CheckpointError:
    has_objects = any(isinstance(item, StoredObject) for _, item in walk(found.contents))
    kind = UnsafePayloadError if has_objects else NotACheckpointError
    return kind(
        f"it is {found.title}, and cannot be imported: {reason}",
        path=found.files.path,
        hint=_WHAT_TO_DO,
    )


def _checked(facts: Facts) -> tuple[Facts, list[str]]:
    """Return facts that a manifest may hold, and a sentence on each that is missing or cannot be held."""
    missing = []
    counts: dict[str, int] = {}
    for name in ("epoch", "step"):
        value = getattr(facts, name)
        is_count = type(value) is int and 0 <= value < MAX_COUNT
        counts[name] = value if is_count else 0
        if value is None and name == "epoch":
            missing.append("It does not say its epoch: 0 stands for that.")
        elif value is not None and not is_count:
            missing.append(f"Its {name} {shown(value)} is no count: 0 stands for it.")
    metrics: dict[str, Any] = {}
    for name, metric in facts.metrics.items():
        try:
            metrics |= check_metrics({name: metric})
        except CheckpointError as error:
            missing.append(f"The metric {shown(name)} was left out: {error.message}.")
    try:
        config = check_run_config(dict(facts.config))
    except CheckpointError as error:
        config = {}
        missing.append(f"Its configuration was left out: {error.message}.")
    return replace(facts, epoch=counts["epoch"], step=counts["step"], metrics=metrics, config=config), missing
