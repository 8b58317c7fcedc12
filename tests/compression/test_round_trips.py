"""What was compressed comes back, and nothing else ever does."""

from __future__ import annotations

import random
import shutil
import struct
import subprocess
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ckpt_lib.compression import CODECS, planes
from ckpt_lib.errors import CheckpointError, CorruptCheckpointError
from tests.compression.files import opened, stored

EACH_CODEC = pytest.mark.parametrize("codec", sorted(CODECS))
BOUNDED = settings(derandomize=True, database=None, deadline=None, max_examples=60)


def weights(dtype: torch.dtype, count: int = 2**18) -> bytes:
    """Numbers as a model holds them: normal, of several scales."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.rand(count // 2**12, 1, generator=generator) * 0.1
    numbers = (torch.randn(count // 2**12, 2**12, generator=generator) * scales).to(dtype)
    return numbers.view(torch.uint8).numpy().tobytes()


@st.composite
def plain_bytes(draw: st.DrawFn) -> bytes:
    """Noise, repetitions, and words whose bytes differ by their place, in any order and of any length."""
    kinds = st.one_of(
        st.binary(max_size=200),
        st.builds(lambda byte, count: bytes([byte]) * count, st.integers(0, 255), st.integers(0, 300)),
        st.builds(
            lambda width, count, seed: b"".join(
                random.Random(seed + number).randbytes(width - 1) + bytes([60 + number % 3]) for number in range(count)
            ),
            st.sampled_from([2, 4, 8]),
            st.integers(0, 80),
            st.integers(0, 9),
        ),
    )
    return b"".join(draw(st.lists(kinds, max_size=5)))


@EACH_CODEC
@BOUNDED
@given(data=plain_bytes(), frame=st.integers(1, 700), cuts=st.lists(st.integers(0, 1200), max_size=4))
@example(data=b"", frame=64, cuts=[])
@example(data=bytes(64), frame=64, cuts=[])
def test_any_bytes_come_back(codec: str, data: bytes, frame: int, cuts: list[int]) -> None:
    """Whatever they are, wherever frames end, and in whatever pieces they were written; twice the same file."""
    places = sorted({0, *(min(cut, len(data)) for cut in cuts), len(data)})
    pieces = [data[start:stop] for start, stop in pairwise(places)]
    kept, entry = stored(pieces, codec, frame_size_bytes=frame)
    assert entry.compression is not None
    assert entry.compression.plain_size_bytes == len(data)
    with opened(kept, codec, entry) as file:
        assert file.read() == data
        assert b"".join(map(bytes, file.blocks())) == data
    assert stored([data], codec, frame_size_bytes=frame, workers=1)[0] == kept


@BOUNDED
@given(data=plain_bytes(), how=st.sampled_from(planes.SPLITS))
def test_planes_are_joined_to_the_same_words(data: bytes, how: planes.Split) -> None:
    """Of any number of whole words; the rest is left to others."""
    whole = len(data) // how.width * how.width
    target = bytearray(whole)
    planes.join([plane.data for plane in planes.split(data, how)], how, memoryview(target), planes.Room())
    assert target == data[:whole]


@pytest.mark.parametrize(
    ("dtype", "most"), [(torch.float32, 0.86), (torch.bfloat16, 0.72), (torch.float16, 0.93), (torch.float64, 0.95)]
)
def test_weights_become_smaller(dtype: torch.dtype, most: float) -> None:
    """By about what their exponents have in common, and by more than zstd alone can do."""
    data = weights(dtype)
    by_planes = len(stored([data], "planes", frame_size_bytes=2**18, chunk_size_bytes=2**20)[0]) / len(data)
    by_zstd = len(stored([data], "zstd", frame_size_bytes=2**18, chunk_size_bytes=2**20)[0]) / len(data)
    assert by_planes < most
    assert by_planes < by_zstd


def test_noise_is_stored_as_it_is() -> None:
    """It costs its table and nothing else."""
    data = random.Random(0).randbytes(2**20)
    kept, _ = stored([data], "planes", frame_size_bytes=2**18, chunk_size_bytes=2**20)
    assert kept[8 : 8 + len(data)] == data
    assert len(kept) < len(data) + 200


@EACH_CODEC
def test_zeros_cost_nothing(codec: str) -> None:
    """As the state of an optimizer before its first steps."""
    kept, _ = stored([bytes(2**20)], codec, frame_size_bytes=2**18, chunk_size_bytes=2**20)
    assert len(kept) < 1_000


@pytest.mark.parametrize("size", [0, 1, 64, 1000])
def test_other_programs_read_it(size: int, tmp_path: Path) -> None:
    """``zstd -d`` and any library: the same bytes, without knowing of frames or tables."""
    data = bytes(random.Random(size).choices(b"abc", k=size))
    kept, _ = stored([data], "zstd")
    with zstandard.ZstdDecompressor().stream_reader(kept, read_across_frames=True) as reader:
        assert reader.read() == data
    if (program := shutil.which("zstd")) is not None:
        path = tmp_path / "payload.pt.zst"
        path.write_bytes(kept)
        found = subprocess.run([program, "-d", "-c", "-q", path], check=True, capture_output=True, timeout=30)
        assert found.stdout == data


@EACH_CODEC
@pytest.mark.parametrize("verify", [False, True])
def test_no_altered_byte_goes_unnoticed(codec: str, verify: bool) -> None:
    """Each byte of a file in turn, also where no chunk is compared: what is returned is right, or it is an error."""
    words = b"".join(struct.pack("<f", number / 7) for number in range(1, 40))
    data = words + random.Random(0).randbytes(64) + bytes(70)
    kept, entry = stored([data], codec, frame_size_bytes=96)
    noticed = 0
    for place in range(len(kept)):
        for flip in (0x01, 0x80, 0xFF):
            damaged = bytearray(kept)
            damaged[place] ^= flip
            try:
                with opened(bytes(damaged), codec, entry, verify=verify) as file:
                    assert file.read() == data, (place, flip)
            except CheckpointError:
                noticed += 1
    assert noticed > 2.9 * len(kept)
    assert not verify or noticed == 3 * len(kept)


@EACH_CODEC
def test_a_part_of_a_file_is_no_file(codec: str) -> None:
    """Cut off anywhere, and with more at its end; without a manifest to say so."""
    kept, _ = stored([random.Random(0).randbytes(300)], codec)
    for size in range(len(kept)):
        with pytest.raises(CorruptCheckpointError), opened(kept[:size], codec) as file:
            file.require_all()
    with pytest.raises(CorruptCheckpointError), opened(kept + b"\0", codec) as file:
        file.require_all()


@EACH_CODEC
@BOUNDED
@given(data=st.binary(max_size=300), place=st.integers(0, 299))
def test_what_is_no_compressed_file_is_refused(codec: str, data: bytes, place: int) -> None:
    """Random bytes, and a sound file into which they were written."""
    kept, _ = stored([bytes(range(256))], codec)
    for forged in (data, kept[:place] + data + kept[place + len(data) :]):
        try:
            with opened(forged, codec) as file:
                assert file.read() == bytes(range(256))
        except CheckpointError:
            pass


def test_frames_of_different_kinds_lie_in_one_file() -> None:
    """Each has the method that suits it."""
    noise = random.Random(0).randbytes(2**14)
    parts = [noise, bytes(2**14), weights(torch.bfloat16)[: 2**14], weights(torch.float32)[: 2**14], noise[:77]]
    kept, entry = stored(parts, "planes", frame_size_bytes=2**14, chunk_size_bytes=2**16)
    with opened(kept, "planes", entry) as file:
        assert file.table.methods.tolist() == [0, 1, 7, 8, 0]
        assert file.read() == b"".join(parts)


def test_a_sample_tells_the_size_of_words() -> None:
    """Of 2, 4 or 8 bytes, and from a few kilobytes."""
    for dtype, width in ((np.float16, 2), (np.float32, 4), (np.int64, 8)):
        numbers = (np.random.default_rng(0).standard_normal(2**16) * 100).astype(dtype)
        sample = planes.sample_of(numbers.tobytes())
        assert len(sample) <= 2**14
        assert planes.best_split(sample).how.width == width
