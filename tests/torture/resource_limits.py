"""Row 35: small files that ask for much memory or time."""

from __future__ import annotations

import json
import random
import shutil
import struct
import zipfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ckpt_lib import CheckpointManager
from ckpt_lib.core.manifest import Manifest
from ckpt_lib.formats.in_memory import Files
from ckpt_lib.formats.torch.limits import max_structure_bytes
from tests.formats.every_format import NPZ
from tests.torture import file_bombs
from tests.torture.attacker import PLANTED_ID, archive_of, manifest_for, resigned
from tests.torture.file_bombs import claimed_bytes
from tests.torture.pickles import call, name, quantized, storage, tensor, text
from tests.torture.planted import as_stored, manifest_of, open_planted, plant_files, sound_files
from tests.torture.rows import Outcome, Row
from tests.torture.sandbox import run_in_child
from tests.torture.settings import FORMATS, SETTINGS, Setting, Site, everything_installed, setting, told_settings


def _long(value: int) -> bytes:
    data = value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def _sizes(*numbers: int) -> bytes:
    return b"(" + b"".join(map(_long, numbers)) + b"t"


def _tensor(count: int, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    return tensor(storage(_long(count)), _long(offset), _sizes(*size), _sizes(*stride))


def _payload(value: bytes, records: dict[str, bytes] | None = None) -> bytes:
    return archive_of(b"\x80\x02}" + text("model_state_dict") + value + b"s.", records)


def _quantized(choice: random.Random) -> bytes:
    size = _sizes(10 ** choice.randint(10, 12))
    return _payload(quantized(storage(_long(8), "QInt8Storage"), size, _sizes(0), scale=0.0))


def _many_expanded(choice: random.Random) -> bytes:
    return _payload(b"](" + _tensor(8, 0, (2 * 10**7 + choice.randint(0, 99),), (0,)) * 20 + b"e")


def _key_of_tuples(levels: int) -> bytes:
    """Two bytes for each doubling of the time that its hash takes."""
    return (
        b"}K\x01"
        + b"".join(b"q" + bytes([number]) + b"h" + bytes([number]) + b"\x86" for number in range(levels))
        + b"Ns"
    )


def _deep_key(levels: int) -> bytes:
    return b"}K\x01" + b"\x85" * levels + b"Ns"


def _shared(levels: int, code: bytes) -> bytes:
    steps = b"".join(code + b"(h" + bytes([n]) + b"h" + bytes([n]) + b"eq" + bytes([n + 1]) for n in range(levels))
    return b"](](K\x01eq\0" + steps + b"e"


def _colliding(count: int) -> bytes:
    pairs = b"".join(_long(number * (2**61 - 1)) + b"N" for number in range(1, count))
    return b"}(" + pairs + b"u"


def _swollen_archive(choice: random.Random) -> bytes:
    data = archive_of(b"\x80\x02}.", {"data/0": bytes(2**26 + choice.randint(0, 999))}, zipfile.ZIP_DEFLATED)
    assert len(data) < 2**20
    return data


def _crowded_archive(records: int) -> bytes:
    """One record under many names."""
    one = archive_of(b"\x80\x02}.", {})
    end = one.rindex(b"PK\5\6")
    start = one.index(b"PK\1\2")
    entry = one[start : one.index(b"PK\1\2", start + 4)]
    ending = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    directory = entry * records
    stop = start + len(directory)
    large = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, records, records, len(directory), start)
    assert end > start
    return one[:start] + directory + large + struct.pack("<4sLQL", b"PK\6\7", 0, stop, 1) + ending


def _lying_count(choice: random.Random) -> bytes:
    data = bytearray(archive_of(b"\x80\x02}.", {}))
    struct.pack_into("<2H", data, len(data) - 14, *[choice.randint(1000, 65534)] * 2)
    return bytes(data)


PAYLOADS: dict[str, Callable[[random.Random], bytes]] = {
    "810x deflate": _swollen_archive,
    "stride 0": lambda choice: _payload(_tensor(8, 0, (10**9 + choice.randint(0, 99),), (0,))),
    "many of stride 0": _many_expanded,
    "strides of 1 that overlap": lambda choice: _payload(_tensor(8, 0, (4, 4, *[2] * 40), (1, 1, *[0] * 40))),
    "a product beyond 64 bits": lambda choice: _payload(_tensor(8, 0, (2**31,) * 3, (0, 0, 0))),
    "a size beyond 64 bits": lambda choice: _payload(_tensor(8, 0, (2 ** choice.randint(63, 200),), (0,))),
    "negative stride": lambda choice: _payload(_tensor(8, 7, (8,), (-choice.randint(1, 9),))),
    "negative size": lambda choice: _payload(_tensor(8, 0, (-(10**9),), (1,))),
    "a storage longer than its record": lambda choice: _payload(_tensor(10 ** choice.randint(3, 15), 0, (1,), (1,))),
    "a storage of negative length": lambda choice: _payload(_tensor(-8, 0, (1,), (1,))),
    "a quantized tensor": _quantized,
    "an empty tensor by size": lambda choice: _payload(call("torch", "FloatTensor", _long(10**10))),
    "an empty storage by size": lambda choice: _payload(call("torch.storage", "UntypedStorage", _long(10**11))),
    "bytes by length": lambda choice: _payload(call("builtins", "bytearray", _long(10**11))),
    "a memo with a gap": lambda choice: _payload(b"K\x01r" + struct.pack("<I", 2 ** choice.randint(20, 31))),
    "a text by length": lambda choice: _payload(b"X" + struct.pack("<I", 2**32 - 1) + b"x"),
    "a long text by length": lambda choice: _payload(b"\x8d" + struct.pack("<Q", 2**40) + b"x"),
    "a byte array by length": lambda choice: _payload(b"\x96" + struct.pack("<Q", 2 ** choice.randint(34, 44))),
    "a frame by length": lambda choice: _payload(b"\x95" + struct.pack("<Q", 2**44)),
    "a number by length": lambda choice: _payload(b"\x8b" + struct.pack("<i", 2**31 - 1) + b"\x01"),
    "a number in digits": lambda choice: _payload(b"I" + b"9" * 10**6 + b"\n"),
    "a key of tuples of tuples": lambda choice: _payload(_key_of_tuples(choice.randint(40, 200))),
    "a deep key": lambda choice: _payload(_deep_key(10 ** choice.randint(4, 6))),
    "a list shared and shared": lambda choice: _payload(_shared(choice.randint(30, 90), b"]")),
    "a tuple shared and shared": lambda choice: _payload(b"K\x01" + b"2\x86" * 60),
    "a list in itself": lambda choice: _payload(b"]q\0h\0a"),
    "keys of one hash": lambda choice: _payload(_colliding(10 ** choice.randint(3, 5))),
    "lists without end": lambda choice: _payload(b"](" + b"]" * 2**24 + b"e"),
    "nothings without end": lambda choice: _payload(b"](" + b"NK\x01h\0" * 2**23 + b"e"),
    "marks without end": lambda choice: _payload(b"(" * 2**24),
    "dicts without end": lambda choice: _payload(b"](" + b"ccollections\nOrderedDict\nq\0)R" + b"h\0)R" * 2**22 + b"e"),
    "names without end": lambda choice: _payload(b"](" + name("torch", "float32") * 2**22 + b"e"),
    "a structure too long": lambda choice: _payload(text("x" * max_structure_bytes(10))),
    "many records": lambda choice: _crowded_archive(10 ** choice.randint(5, 6)),
    "more records than there are": _lying_count,
}


def _with_chunks(chunks: int, chunk_size_bytes: int) -> Callable[[random.Random], bytes]:
    def make(_: random.Random) -> bytes:
        fields = json.loads(manifest_for(b"x").to_bytes())
        table = ["0" * 32] * chunks
        size_bytes = chunks * chunk_size_bytes
        fields["files"][0] |= {"size_bytes": size_bytes, "chunk_size_bytes": chunk_size_bytes, "chunk_xxh3_128": table}
        return resigned(fields)

    return make


MANIFESTS: dict[str, Callable[[random.Random], bytes]] = {
    "deep lists": lambda choice: b"[" * 10 ** choice.randint(3, 7),
    "deep objects": lambda choice: b'{"x":' * 10 ** choice.randint(3, 6),
    "deep config": lambda choice: b'{"config": ' + b'{"x": ' * 190 + b"[" * 50 + b"]" * 50 + b"}" * 191,
    "lists without end": lambda choice: b'{"schema_version": 1, "x": [' + b"[]," * 5_000_000 + b"0]}",
    "numbers without end": lambda choice: b'{"schema_version": 1, "x": [' + b"1," * 7_000_000 + b"0]}",
    "a number of digits": lambda choice: b'{"schema_version": ' + b"9" * 10 ** choice.randint(4, 7) + b"}",
    "a large text": lambda choice: b'{"description": "' + "\U0001f680".encode() * 4_000_000 + b'"}',
    "many small chunks": _with_chunks(300_000, 1),
    "many chunks": _with_chunks(350_000, 8 * 2**20),
    "a giant": lambda choice: b" " * (Manifest.MAX_BYTES * 8),
}
Bomb = Callable[[random.Random, Setting], Files]


def _as_payload(make: Callable[[random.Random], bytes]) -> Bomb:
    return lambda choice, place: {"": make(choice)}


_PICKLES = {name: _as_payload(make) for name, make in PAYLOADS.items()}
PAYLOADS_OF: dict[str, dict[str, Bomb]] = {
    "torch": _PICKLES,
    "safetensors": file_bombs.SAFETENSORS,
    "torch+zstd": {**file_bombs.containers("zstd"), **_PICKLES},
    "torch+planes": {**file_bombs.containers("planes"), **_PICKLES},
    NPZ: file_bombs.ARRAYS,
}


def ask_for_too_much(count: int, seed: str, folder: Path) -> Outcome:
    """Load each, by a manifest that vouches for it, or list it where the manifest is the bomb."""
    outcome, struck = Outcome(), Counter[Setting]()
    with everything_installed():
        for number in range(count):
            choice, place = random.Random(f"{seed} {number}"), setting(number)
            bombs: dict[str, Any] = {**PAYLOADS_OF[place.format], **MANIFESTS}
            kind = list(bombs)[number // len(FORMATS) % len(bombs)] if count > SETTINGS else choice.choice(list(bombs))
            site = Site(folder / str(number), place.kind)
            _plant_bomb(site, place, choice, kind)
            manager = open_planted(site, place)
            ending = run_in_child(partial(_open_bomb, manager, site, place, kind))
            problem = ending.broken_promise() or (None if ending.kind == "refused" else "was loaded")
            outcome.note(f"seed {seed!r} {number}, {place}, {kind}", [problem] if problem else [])
            struck[place] += 1
            site.discard()
            shutil.rmtree(site.root, ignore_errors=True)
    outcome.detail = told_settings(struck).removeprefix("; ")
    return outcome


def _open_bomb(manager: CheckpointManager, site: Site, place: Setting, kind: str) -> None:
    if kind.startswith(file_bombs.BARE):
        manager.import_checkpoint(f"{site.url('offered')}/payload{place.suffix}")
    else:
        manager.load_checkpoint(PLANTED_ID)


def _plant_bomb(site: Site, place: Setting, choice: random.Random, kind: str) -> None:
    if kind in MANIFESTS:
        plant_files(site, place, dict.fromkeys(sound_files(place), b"x"), MANIFESTS[kind](choice))
        return
    files = PAYLOADS_OF[place.format][kind](choice, place)
    if kind.startswith(file_bombs.BARE):
        site.write(site.root / "offered" / f"payload{place.suffix}", files[""])
        return
    if kind.startswith("file: "):
        manifest = manifest_of(place, files, plain_size_bytes=claimed_bytes(files[""]))
    else:
        sizes = {name: len(data) for name, data in files.items()}
        files = {name: as_stored(place, data) for name, data in files.items()}
        manifest = manifest_of(place, files, plain_size_bytes=sizes.get("", 0))
    plant_files(site, place, files, manifest.to_bytes())


ROWS = [
    Row(
        number=35,
        fault="tensor bomb",
        must_hold="refused in less than 2 s and 1 GB",
        unit="bombs",
        count=330,
        sample=12,
        run=ask_for_too_much,
    )
]
