"""A part of a file reads as a file of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckpt_lib.errors import CorruptCheckpointError
from ckpt_lib.stream import VerifiedFile
from ckpt_lib.stream.part import FilePart


def test_a_part_reads_as_a_file(tmp_path: Path) -> None:
    """Its bytes are those between start and stop, from position 0 on."""
    path = tmp_path / "whole"
    path.write_bytes(bytes(range(200)))
    with VerifiedFile(path.open("rb", buffering=0), None) as whole:
        part = FilePart(whole, 50, 120)
        assert part.size_bytes == 70
        assert part.read() == bytes(range(50, 120))
        part.seek(10)
        assert part.read(5) == bytes(range(60, 65))
        assert bytes(part.view(69, 70)) == bytes([119])


def test_a_part_of_a_file_that_became_shorter_is_refused(tmp_path: Path) -> None:
    """Reading it raises instead of ending the process by a signal, as memory beyond the end of a file would."""
    path = tmp_path / "whole"
    path.write_bytes(bytes(2**20))
    with VerifiedFile(path.open("rb", buffering=0), None) as whole:
        part = FilePart(whole, 2**19, 2**20)
        path.write_bytes(b"short")
        with pytest.raises(CorruptCheckpointError, match="shorter"):
            part.view(2**18, 2**18 + 10)
