"""The checksums within files of torch.save: of every file of a checkpoint, before it is used."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch

from ckpt_lib.errors import CorruptCheckpointError
from ckpt_lib.foreign import found_files
from ckpt_lib.foreign.checksums import check_checksums
from tests.helpers import flip_bit


@pytest.mark.parametrize("damaged", ["model.bin", "deep/optimizer.pt"])
def test_each_file_of_a_folder_is_compared(tmp_path: Path, damaged: str) -> None:
    """A flipped bit is found in any of them; whole ones, and files of other kinds, pass."""
    (tmp_path / "deep").mkdir()
    for name in ("model.bin", "deep/optimizer.pt"):
        torch.save({"weight": torch.zeros(100_000)}, tmp_path / name)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "empty.txt").touch()
    with found_files(tmp_path) as files:
        check_checksums(files)
    flip_bit(tmp_path / damaged, (tmp_path / damaged).stat().st_size // 2)
    with found_files(tmp_path) as files, pytest.raises(CorruptCheckpointError, match="is damaged"):
        check_checksums(files)


def test_an_archive_that_names_a_record_often_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading it once for each name would take for ever: a small file can name gigabytes. Its reader refuses it."""
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("archive/data/0", bytes(1000))
        archive.filelist *= 1000
    monkeypatch.setattr(zipfile.ZipFile, "testzip", lambda _: pytest.fail("its records are read"))
    with found_files(tmp_path / "a.pt") as files:
        check_checksums(files)
