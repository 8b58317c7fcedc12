"""The formats that promises are tested in: of this library, compressed, and of a package of someone else."""

from __future__ import annotations

from typing import Any

NPZ = "npz"
EVERY_FORMAT = ("torch", "safetensors", "torch+zstd", "torch+planes", "safetensors+planes", NPZ)

_COMPRESSIONS: dict[str, Any] = {"": False, "zstd": "zstd", "planes": True}


def options_of(stored_format: str) -> dict[str, Any]:
    """The options of a configuration that saves in a format."""
    plain, _, codec = stored_format.partition("+")
    return {"format": plain, "compression": _COMPRESSIONS[codec]}
