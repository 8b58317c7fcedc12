"""Manifests and values for the tests of this folder: random ones, and a small one of every kind."""

from __future__ import annotations

import math
import struct
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import strategies as st

from ckpt_lib.core.manifest import FileEntry, Manifest, parse_record
from ckpt_lib.core.metadata import check_metrics
from ckpt_lib.core.monitor import Monitor
from ckpt_lib.core.names import CheckpointId, check_tag
from ckpt_lib.errors import InvalidNameError

ID = "checkpoint_epoch_0001_step_000100_20231201_143022"

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)
visible = st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S"]), min_size=1, max_size=20)
metric_values = st.none() | st.integers(1 - 2**63, 2**63 - 1) | st.floats() | visible.filter(str.isprintable)
hex32, hex64 = (st.text("0123456789abcdef", min_size=n, max_size=n) for n in (32, 64))


def _is_tag(text: str) -> bool:
    try:
        return check_tag(text) == text
    except InvalidNameError:
        return False


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    seconds = draw(st.integers(0, 4_000_000_000))
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
    epoch, step = draw(st.integers(0, 10**18 - 1)), draw(st.integers(0, 10**18 - 1))
    checkpoint_id = str(CheckpointId(epoch, step, moment, draw(st.integers(0, 99))))
    chunk, chunks = draw(st.integers(1, 2**40)), draw(st.lists(hex32, max_size=3))
    short = draw(st.integers(0, chunk - 1)) if chunks else 0
    return Manifest(
        checkpoint_id=checkpoint_id,
        timestamp=moment,
        epoch=epoch,
        step=step,
        model_name=draw(visible),
        experiment_name=draw(visible),
        metrics=check_metrics(draw(st.dictionaries(visible.filter(str.isprintable), metric_values, max_size=4))),
        config=draw(st.dictionaries(st.text(max_size=5), json_values, max_size=3)),
        tags=tuple(draw(st.lists(visible.filter(_is_tag), max_size=3))),
        description=draw(visible | st.just("")),
        sequence=draw(st.integers(1, 10**12)),
        parent_id=draw(st.none() | st.just(ID)),
        pinned=draw(st.booleans()),
        uid=draw(hex32),
        claim="c" * 16,
        state="live",
        format=draw(visible),
        files=(
            FileEntry(
                name=checkpoint_id + draw(st.sampled_from([".pt", ".safetensors", ".pt.zst"])),
                size_bytes=chunk * len(chunks) - short,
                sha256=draw(hex64),
                chunk_size_bytes=chunk,
                chunk_xxh3_128=tuple(chunks),
            ),
        ),
        monitor=Monitor(metric=draw(visible), mode=draw(st.sampled_from(["min", "max"]))),
        libraries=draw(st.dictionaries(visible, visible, max_size=2)),
        idempotency_key=draw(st.none() | st.text(max_size=9)),
    )


def example(**facts: Any) -> Manifest:
    """A small manifest with every kind of value in it."""
    fields: dict[str, Any] = {
        "checkpoint_id": ID,
        "timestamp": datetime(2023, 12, 1, 14, 30, 22, tzinfo=UTC),
        "epoch": 1,
        "step": 100,
        "model_name": "Net",
        "experiment_name": "e",
        "metrics": {"loss": 0.5, "nan": math.nan, "note": "é"},
        "sequence": 1,
        "uid": "0" * 32,
        "claim": "c" * 16,
        "state": "live",
        "format": "torch",
        "files": (
            FileEntry(name=f"{ID}.pt", size_bytes=3, sha256="a" * 64, chunk_size_bytes=8, chunk_xxh3_128=("b" * 32,)),
        ),
    }
    return Manifest(**(fields | facts))


def read(data: bytes) -> Manifest:
    found = parse_record(data, path="somewhere.json")
    assert isinstance(found, Manifest)
    return found


def nested_lists(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def bits(value: object) -> object:
    """Something by which NaN equals NaN and 1 differs from 1.0."""
    if isinstance(value, float):
        return "nan" if math.isnan(value) else struct.pack("<d", value)
    return (type(value), value)
