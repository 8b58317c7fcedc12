"""Checkpoints for the tests of the index, and the databases they are put into."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from hypothesis import strategies as st

from ckpt_lib.core.manifest import FileEntry, Manifest, new_token
from ckpt_lib.core.metadata import CheckpointMetadata, Metric
from ckpt_lib.core.names import CheckpointId
from ckpt_lib.index.conditions import Condition, Operator
from ckpt_lib.index.database import IndexDatabase
from ckpt_lib.index.listing import FolderKey, Known, Listing
from ckpt_lib.index.overview import ExperimentOverview
from ckpt_lib.index.selection import Selection

STORE = "store"
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
EXPERIMENTS = ("a", "b b", "c=1")
NAMES = ("loss", "epoch", 'q"uote', "back\\slash", "ä.b", "$[0]", "1")
TAGS = ("keep", "Keep", "ke", "100%", "_", "ÄÖ")
TEXTS = ("", "A long Run", "straße", "STRASSE", "50%", "a_b", "e\u0301")
NUMBERS: Sequence[Metric] = (
    0.0,
    -0.0,
    1,
    -1,
    0.1,
    0.30000000000000004,
    2**53,
    2**53 + 1,
    -(2**62),
    1e308,
    5e-324,
    -0.1,
)
VALUES: Sequence[Metric] = (*NUMBERS, math.nan, math.inf, None, "3", "good", "")
COUNTS = (0, 1, 7, 10**17)
OPERATORS: Sequence[Operator] = ("<", "<=", "==", "!=", ">=", ">")


@st.composite
def experiments(draw: st.DrawFn) -> dict[str, list[Manifest]]:
    """Some manifests of some experiments, in the order of saving."""
    names = draw(st.lists(st.sampled_from(EXPERIMENTS), unique=True, max_size=3))
    return {name: [draw(_manifests(name, number)) for number in range(1, draw(st.integers(1, 7)))] for name in names}


@st.composite
def _manifests(draw: st.DrawFn, experiment_name: str, number: int) -> Manifest:
    moment = BEGIN + timedelta(seconds=number, microseconds=draw(st.integers(0, 999_999)))
    epoch, step = draw(st.sampled_from(COUNTS)), draw(st.sampled_from(COUNTS))
    checkpoint_id = str(CheckpointId(epoch, step, moment, suffix=number + 1))
    size_bytes = draw(st.sampled_from([0, 1, 10**12]))
    file = FileEntry(
        name=f"{checkpoint_id}.pt",
        size_bytes=size_bytes,
        sha256="0" * 64,
        chunk_size_bytes=2**40,
        chunk_xxh3_128=("0" * 32,) * min(size_bytes, 1),
    )
    return Manifest(
        checkpoint_id=checkpoint_id,
        uid=f"{number:032x}",
        claim=new_token(),
        state=draw(st.sampled_from(["live", "live", "leaving"])),
        timestamp=moment,
        epoch=epoch,
        step=step,
        model_name=draw(st.sampled_from(["Net", "net", "N't"])),
        experiment_name=experiment_name,
        metrics=draw(st.dictionaries(st.sampled_from(NAMES), st.sampled_from(VALUES), max_size=4)),
        tags=tuple(draw(st.lists(st.sampled_from(TAGS), unique=True, max_size=3))),
        description=draw(st.sampled_from(TEXTS)),
        sequence=number,
        run_id=draw(st.sampled_from([None, "r", "s"])),
        pinned=draw(st.booleans()),
        unhealthy=draw(st.sampled_from([None, "NaN"])),
        format="torch",
        files=(file,),
    )


@st.composite
def conditions(draw: st.DrawFn) -> Condition:
    """One condition on a metric or a fact."""
    operator = draw(st.sampled_from(OPERATORS))
    equality: Operator = draw(st.sampled_from(["==", "!="]))
    numbers = st.sampled_from([*NUMBERS, *COUNTS, 0.5, -3, 10**30, -(10**30)])
    found: Condition = draw(
        st.one_of(
            st.builds(Condition, st.sampled_from(NAMES).map("metrics.".__add__), st.just(operator), numbers),
            st.builds(Condition, st.sampled_from(["loss", "1"]), st.just(equality), st.sampled_from(["3", "good", ""])),
            st.builds(Condition, st.sampled_from(["epoch", "step", "sequence"]), st.just(operator), numbers),
            st.builds(Condition, st.just("file_size"), st.just(operator), st.sampled_from([0, 1, 10**12])),
            st.builds(
                Condition,
                st.just("timestamp"),
                st.just(operator),
                st.integers(0, 7_000_000).map(lambda number: BEGIN + timedelta(microseconds=number)),
            ),
            st.builds(Condition, st.sampled_from(["pinned", "healthy"]), st.just(equality), st.booleans()),
            st.builds(Condition, st.just("model_name"), st.just(equality), st.sampled_from(["Net", "net", "N't"])),
            st.builds(Condition, st.just("run_id"), st.just(equality), st.sampled_from(["r", "t"])),
        )
    )
    return found


SELECTIONS = st.builds(
    Selection.of,
    where=st.lists(conditions(), max_size=3),
    tags=st.lists(st.sampled_from(TAGS), max_size=2),
    search=st.sampled_from(["", "", "LONG", "strasse", "%", "_", "\u00e9", "epoch_0007", "ke"]),
    sort_by=st.sampled_from(["sequence", "timestamp", "epoch", "step", "checkpoint_id", "file_size", *NAMES]),
    descending=st.booleans(),
    limit=st.none() | st.integers(0, 5),
)


def described(experiments: dict[str, list[Manifest]]) -> list[CheckpointMetadata]:
    """What a list of all of them shows, in the order of saving."""
    return [
        item.describe(is_best=number == 0, is_latest=number == len(found) - 1)
        for _, found in sorted(experiments.items())
        for number, item in enumerate(found)
    ]


def note(database: IndexDatabase, experiment: str, manifests: Sequence[Manifest], **listing: object) -> bool:
    """Tell a database that a folder holds these, and nothing else."""
    facts = {
        "listed_seconds": time.time(),
        "folder_version": "v1",
        "records": {item.checkpoint_id: Known(f"v{item.revision}", item, True) for item in manifests},
        "overview": overview(experiment, manifests),
        **listing,
    }
    return database.note(FolderKey(STORE, experiment), Listing(**facts))  # type: ignore[arg-type]


def overview(experiment: str, manifests: Sequence[Manifest]) -> ExperimentOverview:
    return ExperimentOverview(
        experiment_name=experiment,
        total_checkpoints=len(manifests),
        total_size_bytes=sum(item.size_bytes for item in manifests),
        best_checkpoint=manifests[0].checkpoint_id if manifests else None,
        latest_checkpoint=manifests[-1].checkpoint_id if manifests else None,
        as_of=BEGIN,
    )
