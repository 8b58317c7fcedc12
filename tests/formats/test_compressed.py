"""Formats that are compressed do what every format must do: what lies between them and the store changes nothing."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import pytest
import torch

from ckpt_lib.core.manifest import is_payload_name
from ckpt_lib.errors import CorruptCheckpointError, UnsupportedFormatError
from ckpt_lib.formats import Format, check_format_name, format_named, plain_source
from ckpt_lib.formats.compressed import CODECS, CompressedFormat
from ckpt_lib.formats.registry import CODEC_SUFFIXES, codec_name_of
from ckpt_lib.testing.format_contract import FormatContract
from ckpt_lib.testing.payloads import MemorySink, MemorySource, assert_same, encode
from tests.formats.folder_format import NAMES, FolderFormat


class _CompressedContract(FormatContract):
    def test_it_has_a_name_and_a_suffix(self, payload_format: Format) -> None:
        """The name is that of the format and of the codec, which no format has by itself."""
        plain, _, codec = payload_format.name.partition("+")
        assert plain.isidentifier()
        assert codec in CODECS
        assert is_payload_name(f"x{payload_format.suffix}", "x", is_file=payload_format.suffix != "/")

    def test_the_predicted_size_is_enough_and_hardly_more(self, payload_format: Format) -> None:
        """It is enough for what does not become smaller; how much smaller the rest becomes, nobody can tell."""
        noise = torch.randint(0, 256, (2**22,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        for state in ({"x": noise}, {}, {"x": torch.zeros(2**20)}):
            layout, sink = payload_format.lay_out({"model_state_dict": state, "epoch": 1}), MemorySink()
            layout.write(sink)
            assert sink.size_bytes <= layout.size_bytes
        assert layout.size_bytes > 100 * sink.size_bytes

    def test_tensors_are_found_in_their_files(self, payload_format: Format) -> None:
        """The bytes of the file without which a tensor cannot be had: damage anywhere else does not matter to it."""
        tensor = torch.randn(2**20, generator=torch.Generator().manual_seed(0))
        files = encode(payload_format, {"model_state_dict": {"a": tensor}, "optimizer_state_dict": {"b": tensor * 2}})
        wanted = {"model_state_dict.a": tensor, "optimizer_state_dict.b": tensor * 2}
        places = {}
        for name in files:
            for found, ((start, stop),) in payload_format.tensor_ranges(MemorySource(files), name).items():
                places[found] = (name, (start + stop) // 2)
        assert set(places) == set(wanted)
        for damaged, (name, place) in places.items():
            data = bytearray(files[name])
            data[place] ^= 1
            for found, value in wanted.items():
                part, _, key = found.partition(".")
                if found == damaged:
                    with pytest.raises(CorruptCheckpointError):
                        payload_format.read(MemorySource({**files, name: bytes(data)}), keys=[found])
                else:
                    read = payload_format.read(MemorySource({**files, name: bytes(data)}), keys=[found])
                    assert torch.equal(read[part][key], value)


class TestZstd(_CompressedContract):
    """``torch``, compressed for every program."""

    @pytest.fixture
    def payload_format(self) -> Format:
        return format_named("torch+zstd")


class TestFolderInPlanes(_CompressedContract):
    """A format of several files, compressed for numbers."""

    @pytest.fixture
    def payload_format(self) -> Format:
        return CompressedFormat(FolderFormat(), CODECS["planes"])


def payload() -> dict[str, Any]:
    torch.manual_seed(0)
    return {"model_state_dict": {"w": torch.randn(700, 700), "b": torch.randn(700)}, "epoch": 1}


@pytest.mark.parametrize("codec", sorted(CODECS))
def test_each_file_of_a_folder_is_compressed_by_itself(codec: str) -> None:
    """Under its own name with the codec's suffix; a file that has another is no part of such a payload."""
    folder = CompressedFormat(FolderFormat(), CODECS[codec])
    files = encode(folder, payload())
    assert set(files) == {name + CODECS[codec].suffix for name in NAMES}
    source, plain = plain_source(folder, MemorySource(files))
    assert_same(plain.read(source), payload())
    with pytest.raises(CorruptCheckpointError, match="not compressed"):
        _ = plain_source(folder, MemorySource({**files, "notes.txt": b""}))[0].names


@pytest.mark.parametrize("codec", sorted(CODECS))
def test_the_plain_file_is_that_of_the_format(codec: str) -> None:
    """Byte for byte, so that whoever decompresses it has an ordinary file."""
    data = encode(format_named(f"torch+{codec}"), payload())[""]
    source, plain = plain_source(format_named(f"torch+{codec}"), MemorySource({"": data}))
    wanted = encode(plain, payload())[""]
    assert source.open().read() == wanted
    assert zipfile.ZipFile(io.BytesIO(wanted)).testzip() is None
    assert len(data) < len(wanted)
    assert codec_name_of(data[:8]) == codec
    assert codec_name_of(wanted[:8]) is None


@pytest.mark.parametrize("codec", sorted(CODECS))
def test_a_payload_that_needs_torch_load_is_read(codec: str) -> None:
    """Also by that the compressed file is a file."""
    stored = format_named(f"torch+{codec}")
    source = MemorySource(encode(stored, payload()))
    assert_same(stored.read(source, trust_pickle=True), payload())
    assert_same(stored.read(source, map_location=lambda storage, _: storage), payload())


@pytest.mark.parametrize("codec", sorted(CODECS))
def test_tensors_lie_in_the_frames_that_hold_them(codec: str) -> None:
    """In the stored file: of a large one several, and its neighbour shares the last."""
    stored = format_named(f"torch+{codec}")
    data = encode(stored, payload())[""]
    found = stored.tensor_ranges(MemorySource({"": data}))
    ((start, stop),) = found["model_state_dict.w"]
    ((other, end),) = found["model_state_dict.b"]
    assert 0 <= start < other < stop <= end < len(data)


def test_names_of_codecs_are_no_names_of_formats() -> None:
    """A configuration says them by ``compression``; what a newer version wrote is said to be unknown."""
    with pytest.raises(UnsupportedFormatError):
        check_format_name("torch+zstd")
    with pytest.raises(UnsupportedFormatError, match="brotli"):
        format_named("torch+brotli")
    with pytest.raises(UnsupportedFormatError, match="unheard"):
        format_named("unheard+zstd")
    assert tuple(codec.suffix for codec in CODECS.values()) == CODEC_SUFFIXES
    assert all(is_payload_name(f"x.pt{suffix}", "x") for suffix in CODEC_SUFFIXES)
