"""From what a kind or a format tells of a checkpoint to an inspection."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from contextlib import suppress
from importlib.util import find_spec
from typing import Any

from ckpt_lib.core.wording import count_of, listed
from ckpt_lib.errors import CheckpointError
from ckpt_lib.foreign import ForeignCheckpoint, FoundFiles
from ckpt_lib.foreign.dangerous_names import runs_commands
from ckpt_lib.foreign.file_types import describe_file
from ckpt_lib.foreign.opening import kind_of
from ckpt_lib.inspecting.holdings import (
    Named,
    bytes_by_dtype,
    bytes_in,
    distinct,
    elements_in,
    listed_tensors,
    model_of,
    parameters_of,
    states_of,
    tensors_and_objects,
)
from ckpt_lib.inspecting.plain import plain
from ckpt_lib.inspecting.results import Inspection, TensorStatistics
from ckpt_lib.inspecting.statistics import statistics_of
from ckpt_lib.inspecting.suspicions import of_statistics, suspicions
from ckpt_lib.stream import Progress

_NOTHING = "Nothing: it holds tensors and plain values alone."
_PROVIDED = {
    "builtins",
    "__builtin__",
    "collections",
    "copyreg",
    "copy_reg",
    "torch",
    "argparse",
    "pathlib",
    "datetime",
}
"""The packages of classes that are there wherever torch is."""


def summary_of(
    found: ForeignCheckpoint, *, stats: bool, progress: Progress | None, more_findings: Sequence[str] = ()
) -> Inspection:
    """Describe a checkpoint; with ``stats``, read its tensors."""
    tensors, objects = tensors_and_objects(found.contents)
    once, model = distinct(tensors), model_of(found, tensors)
    classes = tuple(dict.fromkeys(item.class_name for item in objects))
    listing = listed_tensors(tensors)
    if stats:
        read = _statistics(tensors, progress)
        listing = tuple(
            item.model_copy(update={"statistics": found}) for item, found in zip(listing, read, strict=True)
        )
    needs, to_load = _needs(found, classes)
    facts = found.facts
    return Inspection(
        path=found.files.path,
        kind=found.kind,
        title=found.title,
        writer=facts.writer,
        saved_at=facts.saved_at,
        size_bytes=found.files.size_bytes,
        file_count=len(found.files.names),
        tensors=listing,
        tensor_bytes=bytes_in(once),
        bytes_by_dtype=bytes_by_dtype(once),
        model_element_count=elements_in(model),
        parameter_count=parameters_of(model, objects),
        states=states_of(found),
        epoch=facts.epoch,
        step=facts.step,
        metrics=plain(facts.metrics),
        config=plain(facts.config),
        classes=classes,
        to_load=to_load,
        needs=needs,
        left_out=found.left_out,
        findings=(*suspicions(found, tensors, classes), *of_statistics(listing), *more_findings),
    )


def _statistics(tensors: Named, progress: Progress | None) -> list[TensorStatistics | None]:
    """Return the statistics of each tensor; elements that are known to be those of another are read once."""
    read: dict[Hashable, TensorStatistics | None] = {}
    listed = []
    for _, tensor in tensors:
        places = tuple((region.file, region.start, region.stop) for region in tensor.regions())
        key = (tensor.dtype, places) if places else id(tensor)
        if key not in read:
            read[key] = statistics_of(tensor, progress)
        listed.append(read[key])
    return listed


def _needs(found: ForeignCheckpoint, classes: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """Return what it takes to load a checkpoint, for programs and for people."""
    if found.obstacle is not None:
        return ("program",), f"{found.obstacle[:1].upper()}{found.obstacle[1:].rstrip('.')}."
    if not classes:
        return (), _NOTHING
    packages = sorted({name.partition(".")[0] for name in classes if not runs_commands(name)} - _PROVIDED)
    missing = [name for name in packages if not _is_installed(name)]
    text = (
        "Its tensors and plain values: nothing. Its objects as well: trust_pickle, which runs the code of their classes"
    )
    if missing:
        text += f", and {listed(missing, most=5)}, not installed here"
    return ("trust_pickle", *(f"package:{name}" for name in missing)), f"{text}."


def _is_installed(package: str) -> bool:
    """Tell whether a package could be imported. None is."""
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def summary_of_unreadable(
    files: FoundFiles, problem: str | CheckpointError, *, needs: tuple[str, ...], **facts: Any
) -> Inspection:
    """Describe what cannot be read: of which kind it seems to be, and how large it is."""
    kind = None
    with suppress(CheckpointError):  # which is the problem already
        kind = kind_of(files) if files.size_bytes else None
    if isinstance(problem, CheckpointError):
        problem.path = problem.checkpoint_id = None  # the inspection says these
        problem = str(problem)
    title = describe_file(files.open()) if files.is_one_file else f"a folder of {count_of(len(files.names), 'file')}"
    return Inspection(
        path=files.path,
        kind=kind.name if kind else "unknown",
        title=title,
        size_bytes=files.size_bytes,
        file_count=len(files.names),
        problem=problem,
        needs=needs,
        **facts,
    )
