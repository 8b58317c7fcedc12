"""The structure of a payload as JSON, beside its tensors: for formats that store the two apart, as most would.

Writing, :func:`take_apart` gives the JSON and the tensors that its files have to hold, each byte once, however many
tensors share it; :func:`write_tensor` puts one into a file. Reading, :func:`parse` checks the JSON, and
:class:`StructureReader` builds the payload of it, once the format has said where each tensor lies. What is spelled how
is in :mod:`ckpt_lib.formats.structure.values`.
"""

from ckpt_lib.formats.structure.decoding import TensorRef
from ckpt_lib.formats.structure.entries import Entry, Home
from ckpt_lib.formats.structure.reading import StructureReader, parse
from ckpt_lib.formats.structure.writing import Structured, prepared, take_apart
from ckpt_lib.formats.tensor_bytes import write_tensor

__all__ = [
    "Entry",
    "Home",
    "StructureReader",
    "Structured",
    "TensorRef",
    "parse",
    "prepared",
    "take_apart",
    "write_tensor",
]
