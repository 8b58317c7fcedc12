"""Torch files in memory, written and read as a save and a load do it."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from ckpt_lib.formats import Payload
from ckpt_lib.formats.torch.format import TorchZipFormat
from ckpt_lib.stream import VerifiedFile
from ckpt_lib.testing.payloads import encode


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
