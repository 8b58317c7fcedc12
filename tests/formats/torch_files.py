"""Torch files in memory, written and read as a save and a load do it."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ckpt_lib.formats import Payload
from ckpt_lib.formats.torch.format import TorchZipFormat
from ckpt_lib.stream import VerifiedFile
from ckpt_lib.testing.payloads import encode
from tests.stream.samples import entry_of


class OneFile:
    """The source of a payload that is a single file."""

    names = ("",)

    def __init__(self, file: VerifiedFile) -> None:
        self._file = file

    def open(self, name: str = "") -> VerifiedFile:
        assert name == ""
        return self._file


def encoded(payload: Mapping[str, Any]) -> bytes:
    """The torch file of a payload."""
    return encode(TorchZipFormat(), payload)[""]


def source_of(file: VerifiedFile | bytes | io.BytesIO) -> OneFile:
    """A file as the format is given it; bytes are not verified."""
    if isinstance(file, VerifiedFile):
        return OneFile(file)
    return OneFile(VerifiedFile(io.BytesIO(file if isinstance(file, bytes) else file.getvalue()), None))


def read(file: VerifiedFile | bytes | io.BytesIO, **options: Any) -> Payload:
    """What the format reads of a file."""
    return TorchZipFormat().read(source_of(file), **options)


def saved(payload: Any, **options: Any) -> bytes:
    """What plain torch writes."""
    buffer = io.BytesIO()
    torch.save(payload, buffer, **options)
    return buffer.getvalue()


def opened(data: bytes, original: bytes | None = None, chunk_size_bytes: int = 64) -> VerifiedFile:
    """``data`` as a verified file that should hold ``original``."""
    return VerifiedFile(io.BytesIO(data), entry_of(original or data, chunk_size_bytes))


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def rezipped(data: bytes, change: Callable[[str, bytes], bytes | None], compression: int = zipfile.ZIP_STORED) -> bytes:
    """The same archive with its records changed, or left out where ``change`` says ``None``."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(target, "w", compression) as archive:
        for info in source.infolist():
            record = change(info.filename, source.read(info))
            if record is not None:
                archive.writestr(info.filename, record)
    return target.getvalue()
