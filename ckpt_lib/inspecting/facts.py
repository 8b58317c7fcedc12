"""What an inspection says, as names and texts for a person: the same on the command line and on the page."""

from __future__ import annotations

from datetime import UTC

from ckpt_lib.core.wording import count_of, size_text
from ckpt_lib.inspecting.results import Inspection


def facts_of(found: Inspection) -> dict[str, str]:
    """Return what there is to say, in order; what is not known is left out."""
    stored = found.checkpoint
    facts = {
        "path": found.path,
        "kind": found.title,
        "problem": found.problem,
        "id": stored.checkpoint_id if stored else "",
        "experiment": stored.experiment_name if stored else "",
        "tags": ", ".join(stored.tags) if stored else "",
        "writer": found.writer,
        "saved": f"{found.saved_at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC" if found.saved_at else "",
        "size": _size(found),
        "compression": _compression(found),
        "epoch": "" if found.epoch is None else str(found.epoch),
        "step": "" if found.step is None else str(found.step),
        "parameters": "" if found.parameter_count is None else f"{found.parameter_count:,}",
        "values": _values(found),
        "tensors": f"{len(found.tensors):,}, {size_text(found.tensor_bytes)}" if found.tensors else "",
        "types": ", ".join(f"{name} {size_text(size)}" for name, size in found.bytes_by_dtype.items()),
        "states": "\n".join(
            f"{state.name}: {count_of(state.tensor_count, 'tensor')}, {size_text(state.size_bytes)}"
            for state in found.states
        ),
        "to load": found.to_load,
    }
    return {name: value for name, value in facts.items() if value}


def _size(found: Inspection) -> str:
    count = "" if found.file_count == 1 else f" in {count_of(found.file_count, 'file')}"
    return f"{size_text(found.size_bytes)} ({found.size_bytes:,} bytes){count}"


def _values(found: Inspection) -> str:
    """Say how many values there are, where what is a parameter and what a buffer cannot be told."""
    if found.parameter_count is not None or not found.tensors:
        return ""
    has_model = any(state.name == "model" for state in found.states)
    of_what = "the tensors of the model, buffers included" if has_model else "tensors"
    return f"{found.model_element_count:,} in {of_what}"


def _compression(found: Inspection) -> str:
    stored = found.checkpoint
    if stored is None or stored.compression_ratio is None:
        return ""
    return f"{stored.compression_ratio:.1%} of {size_text(stored.plain_size_bytes)}"
