"""Files of other programs, made by hand, and what is read of them."""

from __future__ import annotations

import io
import pickle
import warnings
from pathlib import Path
from typing import Any

import torch

from ckpt_lib.foreign import ForeignCheckpoint, StoredObject, materialise, open_checkpoint
from ckpt_lib.foreign.torch_files import contents_of
from ckpt_lib.stream import VerifiedFile

LAYOUTS = [("zip", protocol) for protocol in range(1, 6)] + [("legacy", protocol) for protocol in range(1, 6)]
"""The format of the file and the protocol of its pickle. Torch itself cannot read tensors in protocol 0."""


def saved(value: Any, layout: tuple[str, int] = ("zip", 2)) -> bytes:
    """What ``torch.save`` writes."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of classes without source
        torch.save(value, buffer, pickle_protocol=layout[1], _use_new_zipfile_serialization=layout[0] == "zip")
    return buffer.getvalue()


def read(data: bytes) -> Any:
    """All that a file holds, with its tensors."""
    return materialise(contents_of(VerifiedFile(io.BytesIO(data), None)).value)


class Opened:
    """What was said of a file while it was open, and its payload."""

    def __init__(self, path: Path, data: bytes) -> None:
        path.write_bytes(data)
        with open_checkpoint(path) as found:
            self.checkpoint: ForeignCheckpoint = found
            self.payload: Any = None if found.payload is None else materialise(found.payload)
        self.contents, self.facts = found.contents, found.facts
        self.kind, self.obstacle = found.kind, found.obstacle or ""
        self.left_out, self.findings = " ".join(found.left_out), " ".join(found.findings)


class Calls:
    """Pickles as a call of any function, which a loader that runs code would make."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self._call


def objects_in(value: Any) -> list[StoredObject]:
    """Every object of an unknown class in nested containers."""
    if isinstance(value, StoredObject):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple | set) else ()
    return [found for item in items for found in objects_in(item)]


def pickled_alone(value: Any, protocol: int = 2) -> bytes:
    """A pickle without a file of torch around it."""
    return pickle.dumps(value, protocol)
