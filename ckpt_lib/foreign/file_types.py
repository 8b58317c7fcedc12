"""Name the kind of a foreign file, from its first bytes or its zip directory. Nothing is unpickled."""

from __future__ import annotations

import zipfile
from typing import BinaryIO

_LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""What ``torch.save`` before version 1.6 began a file with: ``torch.serialization.MAGIC_NUMBER``, pickled."""
_MAGICS = {
    _LEGACY_TORCH: "a file that torch.save wrote in its legacy format",
    b"\x80": "a pickle",
    b"\x89HDF": "an HDF5 file",
    b"GGUF": "a GGUF file",
    b"\x93NUMPY": "a NumPy array",
    b"\x1f\x8b": "a gzip file",
    b"\x28\xb5\x2f\xfd": "a zstd file",
    b"\x93CKPLANE": "a compressed payload",
}
_NUMBER_BYTES = 8


def describe_file(file: BinaryIO) -> str:
    """Name the kind of a file, such as ``"a TorchScript archive"``."""
    start = file.read(64)
    if start.startswith(b"PK"):
        return _describe_zip(file)
    if start[_NUMBER_BYTES:].startswith(b"{") and int.from_bytes(start[:_NUMBER_BYTES], "little") < 2**32:
        return "a safetensors file"
    if not start:
        return "an empty file"
    return next((kind for magic, kind in _MAGICS.items() if start.startswith(magic)), "a file of an unknown kind")


def _describe_zip(file: BinaryIO) -> str:
    try:
        names = zipfile.ZipFile(file).namelist()
    except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError):
        return "a damaged zip archive"
    if any(name.endswith("/constants.pkl") for name in names):
        return "a TorchScript archive"
    if any(name.endswith("/data.pkl") for name in names):
        return "a file of torch.save"
    return "a NumPy archive" if names and all(name.endswith(".npy") for name in names) else "a zip archive"
