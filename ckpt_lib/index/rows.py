"""Records of checkpoints as rows of the index, and back.

Each row holds a digest of its own content: a database file says nothing of a byte that was altered in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import xxhash

from ckpt_lib.core.manifest import Claim, Manifest
from ckpt_lib.index.listing import Known
from ckpt_lib.index.places import microseconds_of
from ckpt_lib.index.queries import TAG_SEPARATOR, metric_key, metric_text
from ckpt_lib.index.selection import searched_text
from ckpt_lib.index.tables import folders, records

FACTS = tuple(column.name for column in records.columns if column.name not in ("digest", "record"))
"""The columns that the digest of a row is of; the record has one of its own."""
_FOLDER_FACTS = tuple(column.name for column in folders.columns if column.name not in ("folder_id", "digest"))


class DamagedIndexError(Exception):
    """The database does not hold what was written."""


def row_of(folder_id: int, known: Known) -> dict[str, Any]:
    """Return a record as a row."""
    record = known.record
    text = record.model_dump_json().encode()
    row = {
        "folder_id": folder_id,
        "checkpoint_id": record.checkpoint_id,
        "version": known.version,
        "uid": record.uid,
        "record_digest": _digest(text),
        "is_complete": known.is_complete,
        **(_facts_of(record) if isinstance(record, Manifest) else _NO_FACTS),
    }
    return {**row, "digest": _digest_of(row, FACTS), "record": text}


def _facts_of(manifest: Manifest) -> dict[str, Any]:
    texts = (manifest.checkpoint_id, manifest.description, *manifest.tags)
    metrics = {metric_key(name): metric_text(value) for name, value in manifest.metrics.items()}
    return {
        "is_listed": manifest.is_visible and manifest.quarantined is None,
        "sequence": manifest.sequence,
        "timestamp_microseconds": microseconds_of(manifest.timestamp),
        "epoch": manifest.epoch,
        "step": manifest.step,
        "size_bytes": manifest.size_bytes,
        "model_name": manifest.model_name,
        "run_id": manifest.run_id,
        "pinned": manifest.pinned,
        "healthy": manifest.healthy,
        "tags": TAG_SEPARATOR.join(("", *manifest.tags, "")),
        "searched": searched_text(texts),
        "metrics": json.dumps(metrics, ensure_ascii=False),
    }


_NO_FACTS: dict[str, Any] = {
    "is_listed": False,
    "sequence": 0,
    "timestamp_microseconds": 0,
    "epoch": 0,
    "step": 0,
    "size_bytes": 0,
    "model_name": "",
    "run_id": None,
    "pinned": False,
    "healthy": False,
    "tags": "",
    "searched": "",
    "metrics": "{}",
}


def known_of(row: Mapping[str, Any]) -> Known:
    """Return the record of a row. Raises :class:`DamagedIndexError` if a byte was altered."""
    check_row(row)
    if _digest(row["record"]) != row["record_digest"]:
        raise DamagedIndexError("a record was altered")
    kind = Manifest if row["sequence"] else Claim
    return Known(row["version"], kind.model_validate_json(row["record"]), row["is_complete"])


def check_row(row: Mapping[str, Any]) -> None:
    """Raise :class:`DamagedIndexError` if a fact of a row was altered."""
    if _digest_of(row, FACTS) != row["digest"]:
        raise DamagedIndexError("a row was altered")


def folder_row(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row of a folder, with its digest."""
    return {**facts, "digest": _digest_of(facts, _FOLDER_FACTS)}


def check_folder_row(row: Mapping[str, Any]) -> None:
    """Raise :class:`DamagedIndexError` if the row of a folder was altered."""
    if _digest_of(row, _FOLDER_FACTS) != row["digest"]:
        raise DamagedIndexError("the row of a folder was altered")


def _digest_of(row: Mapping[str, Any], names: Sequence[str]) -> str:
    return _digest(repr([row[name] for name in names]).encode())


def _digest(data: bytes) -> str:
    return xxhash.xxh3_128_hexdigest(data)
