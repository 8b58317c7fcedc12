"""The benchmarks: that they measure everything and write it down. How long anything takes is not tested."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks import (
    asynchronous,
    checking,
    formats,
    loading,
    memory,
    report,
    retiring,
    saving,
    served,
    stalls,
    tensors,
    training,
)
from benchmarks.harness import Row, compare, interleave, size_bytes_of
from benchmarks.limits import cached_bytes, drop_cached
from tests.folders import disk_folder

ROW = Row(name="save", state="few large", size_bytes=10**6, peer="torch.save", target=2.0, met=True, ratio=0.5)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Where one run of everything, as ``make bench`` does it but tiny, has been and has left its results."""
    with tempfile.TemporaryDirectory(dir=disk_folder()) as name:  # in memory, no read is cold
        yield _measured(Path(name))


def _measured(folder: Path) -> Path:
    # Nothing is timed here that would have to wait until the disk has finished what other tests have written.
    unsettled = "import os, runpy; os.sync = lambda: None; runpy.run_module('benchmarks', run_name='__main__')"
    command = [sys.executable, "-c", unsettled, "--size", "100KB", "--rounds", "1", "--warm-up", "0"]
    command += ["--step-seconds", "0", "--folder", str(folder), "--output", str(folder / "out")]
    subprocess.run(command, cwd=Path(__file__).parent.parent, check=True)
    return folder


def rows_in(folder: Path) -> list[dict[str, Any]]:
    """What ``results.json`` holds."""
    rows: list[dict[str, Any]] = json.loads((folder / "out" / report.RESULTS_NAME).read_text(encoding="utf-8"))
    return rows


def test_every_part_gives_rows(folder: Path) -> None:
    """Each thing that is promised to be measured is, against what is always installed."""
    names = {row["name"] for row in rows_in(folder)}
    wanted = {saving.SAVE, saving.BACKUP, loading.WARM, loading.COLD, loading.COLD_MODEL, asynchronous.STALL}
    wanted |= {asynchronous.FIRST, stalls.DEFAULT, stalls.OVERLAPPED, training.STEP}
    wanted |= {tensors.SAVE, tensors.LOAD}
    wanted |= {formats.COMPRESSED_SAVE, formats.COMPRESSED_LOAD, formats.SAFETENSORS_SAVE, formats.SAFETENSORS_LOAD}
    wanted |= {checking.SCRUB, checking.REPAIR, memory.PEAK}
    wanted |= {retiring.CLEANUP.format(count=6, kept=kept) for kept in (1, 3)}

    assert names >= wanted


def test_rows_are_complete(folder: Path) -> None:
    """Both sides of every comparison were measured, and the ratio is theirs."""
    for row in rows_in(folder):
        if row["name"] == memory.PEAK:
            assert row["ours_bytes"] > 0
            assert row["peer_bytes"] is not None
        else:
            assert row["ratio"] == pytest.approx(row["ours_seconds"] / row["peer_seconds"])
            for side in ("ours", "peer"):
                assert row["spread"][side][0] <= row[f"{side}_seconds"] <= row["spread"][side][1]


def test_the_page_holds_every_row(folder: Path) -> None:
    """What was measured can be read on the page, and nothing else is left behind."""
    page = (folder / "out" / report.PAGE_NAME).read_text(encoding="utf-8")

    assert all(row["peer"] in page for row in rows_in(folder))
    assert [path.name for path in folder.iterdir()] == ["out"]


def test_a_part_replaces_its_rows_alone(tmp_path: Path) -> None:
    """A row that is measured anew takes the place of the earlier one, and others stay."""
    other = Row(name="load", state="few large", size_bytes=10**6, peer="torch.load")
    report.write(tmp_path, [ROW, other])
    again = Row(name=ROW.name, state=ROW.state, size_bytes=ROW.size_bytes, peer=ROW.peer, ratio=0.7)

    assert report.merged(tmp_path, [again]) == [again, other]


def test_the_page_keeps_what_others_wrote(tmp_path: Path) -> None:
    """Only the part between the markers is written anew, and the plot is an image with a bar for each target."""
    page = tmp_path / report.PAGE_NAME
    page.write_text(f"# Results\n\nabove\n\n{report.BEGIN}\nold\n{report.END}\n\nbelow\n", encoding="utf-8")

    report.write(tmp_path, [ROW])

    text = page.read_text(encoding="utf-8")
    assert text.startswith("# Results\n\nabove\n")
    assert text.endswith(f"{report.END}\n\nbelow\n")
    assert "old" not in text
    assert "| met |" in text
    assert "<svg" in (tmp_path / report.PLOT_NAME).read_text(encoding="utf-8")


def test_contenders_take_turns() -> None:
    """Each runs once a round and each is the first in some round; rounds of warming up do not count."""
    calls: list[str] = []

    def measure(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    samples = interleave({name: partial(measure, name) for name in "abc"}, rounds=6, warm_up=1)

    rounds = [calls[start : start + 3] for start in range(0, len(calls), 3)]
    assert all(sorted(found) == ["a", "b", "c"] for found in rounds)
    assert {found[0] for found in rounds} == {"a", "b", "c"}
    assert {name: len(seconds) for name, seconds in samples.items()} == {"a": 6, "b": 6, "c": 6}
    assert min(min(seconds) for seconds in samples.values()) == 4


def test_a_row_compares_medians() -> None:
    """The ratio is that of the medians, and a target is met when the ratio is at most the target."""
    samples = {"ours": [1.0, 9.0, 2.0], "peer": [4.0, 4.0, 1.0]}

    row = compare(samples, "ours", "peer", name="save", state="few large", size_bytes=1, target=0.5)

    assert (row.ours_seconds, row.peer_seconds, row.ratio, row.met) == (2.0, 4.0, 0.5, True)
    assert row.spread == {"ours": [1.0, 9.0], "peer": [1.0, 4.0]}


def test_a_cold_file_is_not_in_memory(disk_path: Path) -> None:
    """Dropping takes every page of a file out of the page cache."""
    path = disk_path / "file"
    path.write_bytes(b"x" * 2**20)
    before = cached_bytes(path)

    drop_cached([path])

    assert (before, cached_bytes(path)) == (2**20, 0)


@pytest.mark.parametrize("size", ["", "1", "MB", "0MB", "1.5GB", "-1GB", "1TB"])
def test_a_size_that_is_none_is_refused(size: str) -> None:
    """Sizes are whole numbers of KB, MB or GB."""
    with pytest.raises(ValueError, match="a size looks like"):
        size_bytes_of(size)


def test_what_compression_saves_is_a_table() -> None:
    """A row for each state and choice: weights become smaller, zeros vanish, and noise stays as it is."""
    command = [sys.executable, "-m", "benchmarks.compression", "--steps", "1", "--rounds", "1", "--noise-mb", "1"]
    root = Path(__file__).parent.parent
    shown = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in shown.splitlines() if line.startswith("| ")]
    found = {(row[0], row[2]): float(row[4]) for row in rows[1:] if row[2] != "zipnn"}
    assert {choice for _, choice in found} == {"off", "zstd", "True"}
    assert found["trained weights, bfloat16", "True"] < found["trained weights, bfloat16", "zstd"] < 0.9
    assert found["moments of AdamW before the first step", "True"] < 0.01
    assert 0.99 < found["random bytes", "True"] < 1.01


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [([0.0104], "10 ms | 10 ms | 10 ms"), ([n / 100 for n in range(1, 102)], "510 ms | 960 ms | 1,010 ms")],
)
def test_times_are_told_in_three_columns(seconds: list[float], expected: str) -> None:
    """The median, the 95th percentile and the slowest, also of a single time."""
    assert served.columns(seconds) == expected
