"""Small files of the formats without a pickle, and of codecs, that ask for much memory or time."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from typing import Any

from ckpt_lib.compression.table import MAX_FRAME_SIZE_BYTES
from ckpt_lib.formats.in_memory import Files
from tests.compression.hostile import HOSTILE, entry_of_table, planes_file, seekable
from tests.torture.planted import sound_files
from tests.torture.settings import Setting

Bomb = Callable[[random.Random, Setting], Files]
BARE = "bare file"
"""What no manifest vouches for: it is imported. A manifest may say that a payload is large, and then it is."""
STRUCTURES = {"safetensors": "state.json", "npz": "structure.json"}


def _with_part(setting: Setting, part: bytes) -> Files:
    """A payload whose structure holds some other JSON where the model's state should be."""
    files, name = sound_files(setting), STRUCTURES[setting.format]
    fields = json.loads(files[name])
    fields["payload"]["model_state_dict"] = "HERE"
    return {**files, name: json.dumps(fields).encode().replace(b'"HERE"', part)}


def _part(make: Callable[[random.Random], bytes]) -> Bomb:
    return lambda choice, setting: _with_part(setting, make(choice))


def _whole(data: Callable[[random.Random], bytes]) -> Bomb:
    return lambda choice, setting: {**sound_files(setting), STRUCTURES[setting.format]: data(choice)}


def _view(**facts: Any) -> Bomb:
    def make(choice: random.Random, setting: Setting) -> Files:
        name = "model/weight" if setting.format == "safetensors" else "0"
        view = {"dtype": "float32", "shape": [2, 3], "stride": [3, 1], "offset": 0, **facts}
        return _with_part(setting, json.dumps({"$tensor": name, "view": view}).encode())

    return make


def _pairs_of_one_hash(count: int) -> bytes:
    return json.dumps({"$dict": [[{"$int": str(number * (2**61 - 1))}, 0] for number in range(count)]}).encode()


_STRUCTURED: dict[str, Bomb] = {
    "deep lists": _whole(lambda choice: b"[" * 10 ** choice.randint(4, 7)),
    "deep and closed": _part(lambda choice: b"[" * 50_000 + b"]" * 50_000),
    "levels": _part(lambda choice: b"[" * 150 + b"]" * 150),
    "empty lists": _part(lambda choice: b"[" + b"[]," * 5_000_000 + b"[]]"),
    "empty objects": _part(lambda choice: b"[" + b"{}," * 5_000_000 + b"{}]"),
    "numbers without end": _part(lambda choice: b"[" + b"1," * 15_000_000 + b"1]"),
    "a text too long": _part(lambda choice: b'"' + b"x" * (65 * 2**20) + b'"'),
    "escapes without end": _part(lambda choice: b'"' + b"\\u1234" * 8_000_000 + b'"'),
    "keys of one hash": _part(lambda choice: _pairs_of_one_hash(10 ** choice.randint(3, 5))),
    "a number in digits": _part(lambda choice: b"9" * 10 ** choice.randint(5, 7)),
    "a long number in text": _part(lambda choice: b'{"$int":"' + b"9" * 10**6 + b'"}'),
    "bytes by length": _part(lambda choice: b'{"$bytes":' + b"9" * 12 + b"}"),
    "stride 0": _view(shape=[10**9, 10**3], stride=[0, 0]),
    "a product beyond 64 bits": _view(shape=[2**31, 2**31, 2**31], stride=[0, 0, 0]),
    "a size beyond 64 bits": _view(shape=[2**70], stride=[0]),
    "a view beyond its memory": _view(offset=2**40),
}


def _first_bytes(change: Callable[[random.Random], bytes]) -> Bomb:
    def make(choice: random.Random, setting: Setting) -> Files:
        return {**sound_files(setting), "model.safetensors": change(choice)}

    return make


def _header(text: bytes, length: int = 0) -> bytes:
    return (length or len(text)).to_bytes(8, "little") + text


def _described(shape: list[int], stop: int) -> bytes:
    return _header(json.dumps({"weight": {"dtype": "F32", "shape": shape, "data_offsets": [0, stop]}}).encode())


SAFETENSORS: dict[str, Bomb] = {
    **_STRUCTURED,
    "a header by length": _first_bytes(lambda choice: _header(b"{}", 2 ** choice.randint(20, 63))),
    "a deep header": _first_bytes(lambda choice: _header(b'{"a":' * 10 ** choice.randint(3, 6))),
    "a header without end": _first_bytes(lambda choice: _header(b'{"a":[' + b"[]," * 5_000_000 + b"0]}")),
    "names without end": _first_bytes(
        lambda choice: _header(b"{" + b",".join(b'"%d":{}' % number for number in range(10**6)) + b"}")
    ),
    "a tensor by length": _first_bytes(lambda choice: _described([2 ** choice.randint(30, 61)], 2**62)),
    "a tensor beyond 64 bits": _first_bytes(lambda choice: _described([2**62, 2**62], 2**126)),
}


def _array(text: bytes, version: int = 1, length: int = 0) -> Bomb:
    def make(choice: random.Random, setting: Setting) -> Files:
        size = struct.pack("<H" if version == 1 else "<I", length or len(text))
        return {**sound_files(setting), "0.npy": b"\x93NUMPY" + bytes([version, 0]) + size + text}

    return make


def _facts(shape: str) -> bytes:
    return b"{'descr': '<f4', 'fortran_order': False, 'shape': %b, }\n" % shape.encode()


ARRAYS: dict[str, Bomb] = {
    **_STRUCTURED,
    "an array by length": _array(_facts(f"({2**62},)")),
    "an array beyond 64 bits": _array(_facts(f"({2**62}, {2**62})")),
    "an array of nothing, beyond 64 bits": _array(_facts(f"({2**70}, 0)")),
    "an array of negative length": _array(_facts("(-6,)")),
    "a header by length": _array(_facts("(6,)"), 2, 2**32 - 1),
    "a short header by length": _array(_facts("(6,)"), 1, 65535),
    "a deep header": _array(b"(" * 3000 + b")" * 3000),
    "a power": _array(_facts("(9**9**9,)")),
    "a type of many fields": _array(b"{'descr': [" + b"('a', '<f4')," * 200 + b"], 'fortran_order': False}"),
    "a type by length": _array(b"{'descr': '|V99999999999', 'fortran_order': False, 'shape': (1,), }\n"),
}


def _container(name: str) -> Bomb:
    return lambda choice, setting: {"": HOSTILE[name]()[1]}


def _zeros(frames: int) -> Bomb:
    """Frames of the largest size, each of zeros: a thousand times as large as they are stored, and more."""

    def make(choice: random.Random, setting: Setting) -> Files:
        import zstandard

        frame = zstandard.ZstdCompressor(write_checksum=True).compress(bytes(MAX_FRAME_SIZE_BYTES))
        if setting.format.endswith("zstd"):
            return {"": seekable([(len(frame), MAX_FRAME_SIZE_BYTES)] * frames, frames=frame * frames)}
        size_bytes = MAX_FRAME_SIZE_BYTES * frames
        table = entry_of_table(len(frame), 1) * frames
        return {
            "": planes_file(table, size=size_bytes, count=frames, frame=MAX_FRAME_SIZE_BYTES, frames=frame * frames)
        }

    return make


def _growing(choice: random.Random, setting: Setting) -> Files:
    """A frame that becomes a gigabyte, and says that it becomes 64 bytes."""
    import zstandard

    data = zstandard.ZstdCompressor().compress(bytes(2**27))
    if setting.format.endswith("zstd"):
        return {"": seekable([(len(data), 64)], frames=data)}
    return {"": planes_file(entry_of_table(len(data), 1), size=64, count=1, frame=64, frames=data)}


def containers(codec: str) -> dict[str, Bomb]:
    """Compressed files that claim, or become, too much."""
    made = {f"file: {name}": _container(name) for name, make in HOSTILE.items() if make()[0] == codec}
    return {**made, f"{BARE}: zeros": _zeros(65), f"{BARE}: zeros without end": _zeros(1000), "file: growing": _growing}


def claimed_bytes(data: bytes) -> int:
    """How many bytes the table of a compressed file says that it becomes: the manifest says so too."""
    if data.endswith(b"CKPLEND\n"):
        return min(int(struct.unpack_from("<Q", data, len(data) - 40)[0]), 2**63 - 1)
    count = struct.unpack_from("<I", data, len(data) - 9)[0]
    start = len(data) - 9 - 8 * count
    return sum(struct.unpack_from("<II", data, start + 8 * number)[1] for number in range(count)) if start >= 0 else 64
