"""Row 32: archives and folders that say one thing to one reader and another to the next, or lead elsewhere."""

from __future__ import annotations

import io
import random
import shutil
import stat
import struct
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from ckpt_lib.core.manifest import Manifest
from ckpt_lib.errors import CheckpointError
from ckpt_lib.formats.in_memory import Files
from tests.torture import folder_attacks
from tests.torture.attacker import PLANTED_ID, small_payload, torch_file
from tests.torture.planted import (
    PLAIN_BYTES,
    as_stored,
    has_pickle,
    is_original,
    manifest_of,
    open_planted,
    plant_files,
    sound_files,
)
from tests.torture.rows import Outcome, Row
from tests.torture.sandbox import run_in_child
from tests.torture.settings import FORMATS, Setting, Site, everything_installed, setting, told_settings

Records = list[tuple[zipfile.ZipInfo, bytes]]


def _records() -> Records:
    with zipfile.ZipFile(io.BytesIO(torch_file(small_payload()))) as archive:
        return [(zipfile.ZipInfo(info.filename), archive.read(info)) for info in archive.infolist()]


def _zipped(records: Records, comment: bytes = b"") -> bytearray:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w") as archive:
        warnings.simplefilter("ignore")  # of repeated names
        archive.comment = comment
        for info, data in records:
            archive.writestr(info, data)
    return bytearray(buffer.getvalue())


def _elsewhere(choice: random.Random) -> bytearray:
    """A record of another place beside the sound ones, or in the place of one."""
    target = choice.choice(
        [
            "../../escaped",
            "/tmp/escaped",
            "archive/../../escaped",
            "archive/data/../../../escaped",
            "C:\\escaped",
            "archive\\..\\escaped",
            "archive//escaped",
            "./escaped",
            "~/escaped",
            "archive/\n",
            "archive/\u202etxt",
        ]
    )
    records = _records()
    extra = (zipfile.ZipInfo(target), b"escaped")
    return _zipped([*records, extra] if choice.random() < 0.5 else [extra, *records])


def _special(choice: random.Random) -> bytearray:
    """A link, a device, a pipe or a folder among the records."""
    kind = choice.choice([stat.S_IFLNK, stat.S_IFBLK, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFDIR])
    info = zipfile.ZipInfo("archive/data/0")
    info.external_attr = (kind | 0o777) << 16
    records = [record for record in _records() if record[0].filename != "archive/data/0"]
    return _zipped([*records, (info, b"/etc/passwd" + bytes(13))])


def _repeated(choice: random.Random) -> bytearray:
    records = _records()
    info, data = choice.choice(records)
    return _zipped([*records, (zipfile.ZipInfo(info.filename), bytes(len(data)))])


def _packed(choice: random.Random) -> bytearray:
    """Compressed, a thousand times or a little."""
    records = [(info, data) for info, data in _records() if choice.random() < 0.9]
    records.append((zipfile.ZipInfo("archive/data/9"), bytes(10 ** choice.randint(1, 7))))
    method = choice.choice([zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    for info, _ in records:
        info.compress_type = method
    return _zipped(records)


def _centrals(data: bytearray) -> list[int]:
    start = struct.unpack_from("<I", data, len(data) - 6)[0]
    found, position = [], start
    while data[position : position + 4] == b"PK\1\2":
        found.append(position)
        position += 46 + sum(struct.unpack_from("<3H", data, position + 28))
    return found


_CENTRAL_FIELDS = {
    "flags": (8, "<H"),
    "method": (10, "<H"),
    "packed": (20, "<I"),
    "size": (24, "<I"),
    "name length": (28, "<H"),
    "extra length": (30, "<H"),
    "comment length": (32, "<H"),
    "disk": (34, "<H"),
    "start": (42, "<I"),
}
_LOCAL_FIELDS = {"flags": (6, "<H"), "method": (8, "<H"), "name length": (26, "<H"), "extra length": (28, "<H")}
_END_FIELDS = {
    "disk": (4, "<H"),
    "here": (8, "<H"),
    "count": (10, "<H"),
    "size": (12, "<I"),
    "start": (16, "<I"),
    "comment": (20, "<H"),
}


def _altered(choice: random.Random, data: bytearray, start: int, fields: dict[str, tuple[int, str]]) -> None:
    offset, form = fields[choice.choice(list(fields))]
    (old,) = struct.unpack_from(form, data, start + offset)
    limit = 2 ** (8 * struct.calcsize(form)) - 1
    values = [
        old + 1,
        old - 1,
        0,
        1,
        limit,
        limit - 1,
        choice.randint(0, limit),
        old ^ 1 << choice.randint(0, 15),
        len(data),
    ]
    struct.pack_into(form, data, start + offset, choice.choice([value for value in values if value != old]) & limit)


def _lying_directory(choice: random.Random) -> bytearray:
    data = _zipped(_records())
    _altered(choice, data, choice.choice(_centrals(data)), _CENTRAL_FIELDS)
    return data


def _lying_head(choice: random.Random) -> bytearray:
    data = _zipped(_records())
    local = struct.unpack_from("<I", data, choice.choice(_centrals(data)) + 42)[0]
    if choice.random() < 0.3:  # another name than the directory's
        data[local + 30 + choice.randint(0, 9)] ^= 1
    else:
        _altered(choice, data, local, _LOCAL_FIELDS)
    return data


def _lying_end(choice: random.Random) -> bytearray:
    data = _zipped(_records())
    _altered(choice, data, len(data) - 22, _END_FIELDS)
    return data


def _overlapping(choice: random.Random) -> bytearray:
    """Two records in one place, or one that reaches into the next."""
    data = _zipped(_records())
    first, second = choice.sample(_centrals(data), 2)
    if choice.random() < 0.5:
        data[second + 42 : second + 46] = data[first + 42 : first + 46]
    else:
        more = struct.unpack_from("<I", data, first + 20)[0] + choice.randint(60, 5000)
        struct.pack_into("<2I", data, first + 20, more, more)
    return data


def _commented(choice: random.Random) -> bytearray:
    """Something behind the directory: a comment, another end, another archive."""
    data = _zipped(_records())
    kind = choice.randrange(4)
    if kind == 0:
        return _zipped(_records(), comment=b"x" * choice.randint(1, 65535))
    if kind == 1:
        return _zipped(_records(), comment=bytes(data[-22:]))
    if kind == 2:
        return data + _zipped(_records())
    return data + bytes(choice.randint(1, 100))


def _prefixed(choice: random.Random) -> bytearray:
    return bytearray(choice.choice([b"#!/bin/sh\n", b"\0" * 64, b"PK\3\4", b"MZ"])) + _zipped(_records())


def _cut(choice: random.Random) -> bytearray:
    data = _zipped(_records())
    return data[: choice.randrange(len(data))]


def _zip64(choice: random.Random) -> bytearray:
    """The larger end record and the extra fields, with numbers that do not agree with the smaller ones."""
    data = _zipped(_records())
    count, size, start = struct.unpack_from("<2x H 2L", data, len(data) - 14)
    numbers = [0, 0, count, count, size, start]
    place = choice.randrange(7)
    if place < 6:
        numbers[place] = choice.choice(
            [numbers[place] + 1, 2**32 - 1, *([2**32, 2**63, 2**64 - 1] if place > 1 else [])]
        )
    stop = len(data) - 22 if place < 6 else choice.choice([0, 2**40, len(data)])
    large = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, *numbers)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, stop, 1)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return data[:-22] + large + locator + end


def _without_parts(choice: random.Random) -> bytearray:
    records = _records()
    gone = choice.choice(["data.pkl", "data/0", "data/1"])
    return _zipped([record for record in records if not record[0].filename.endswith(gone)])


def _scripted(choice: random.Random) -> bytearray:
    records = _records()
    records.append((zipfile.ZipInfo("archive/constants.pkl"), b"\x80\x02cos\nsystem\nX\4\0\0\0true\x85R."))
    records.append((zipfile.ZipInfo("archive/code/__torch__.py"), b"import os"))
    return _zipped(records if choice.random() < 0.5 else records[::-1])


ATTACKS: dict[str, Callable[[random.Random], bytearray]] = {
    "elsewhere": _elsewhere,
    "link or device": _special,
    "repeated record": _repeated,
    "compressed": _packed,
    "lying directory": _lying_directory,
    "lying head": _lying_head,
    "lying end": _lying_end,
    "overlapping": _overlapping,
    "something behind": _commented,
    "something before": _prefixed,
    "cut off": _cut,
    "lying zip64": _zip64,
    "a part missing": _without_parts,
    "a script inside": _scripted,
}


def archive_attacks(count: int, seed: str, folder: Path) -> Outcome:
    """Load, name the tensors of, import and export each; the folder around the store must stay as it is."""
    outcome, refused, struck = Outcome(), 0, Counter[Setting]()
    with everything_installed():
        for number in range(count):
            choice, place = random.Random(f"{seed} {number}"), setting(number)
            attacks = ATTACKS if has_pickle(place) else folder_attacks.ATTACKS
            kind = list(attacks)[number // len(FORMATS) % len(attacks)]
            forged = _forged(kind, choice, place)
            site = Site(folder / str(number), place.kind)
            ending = run_in_child(lambda: _strike(site, place, forged))  # noqa: B023 - called at once
            refused += ending.kind == "refused"
            struck[place] += 1
            problem = ending.broken_promise()
            outcome.note(f"seed {seed!r} {number}, {place}, {kind}", [problem] if problem else [])
            site.discard()
            shutil.rmtree(site.root, ignore_errors=True)
    outcome.detail = f"{refused} refused, {outcome.injected - refused} loaded as they were saved{told_settings(struck)}"
    return outcome


def _forged(kind: str, choice: random.Random, place: Setting) -> tuple[Files, Manifest]:
    if not has_pickle(place):
        forged = folder_attacks.ATTACKS[kind](choice, place)
        return forged.files, forged.manifest(place)
    data = bytes(ATTACKS[kind](choice))
    files = {"": as_stored(place, data)}
    return files, manifest_of(place, files, plain_size_bytes=len(data))


def _strike(site: Site, place: Setting, forged: tuple[Files, Manifest]) -> None:
    files, manifest = forged
    site.write(site.root / "beside" / "kept", b"as it was")
    plant_files(site, place, files, manifest.to_bytes())
    plant_files(site, place, files, manifest.to_bytes(), folder="offered")
    sound = sound_files(place)
    other = manifest_of(place, sound, plain_size_bytes=PLAIN_BYTES, uid="b" * 32)
    plant_files(site, place, sound, other.to_bytes(), folder="other/run")  # so that the import gets another id
    try:
        _enter(site, place)
    finally:
        outside = {path for path in site.files() if path.relative_to(site.root).parts[0] not in _OURS}
        assert outside == {site.root / "beside" / "kept"}, f"wrote {outside}"
        assert site.read(site.root / "beside" / "kept") == b"as it was", "changed what is outside"


_OURS = {"store", "other", "exported", "offered"}


def _enter(site: Site, place: Setting) -> None:
    """By each door: valid and loaded as it was saved, or neither."""
    manager, target = open_planted(site, place), open_planted(site, place, "other")
    is_valid = bool(manager.validate_checkpoint(PLANTED_ID))
    try:
        manager.export_checkpoint(PLANTED_ID, site.url("exported"))
        loaded = manager.load_checkpoint(PLANTED_ID)
        target.import_checkpoint(f"{site.url('offered')}/{PLANTED_ID}{place.suffix}")
    except CheckpointError:
        assert not is_valid, "it counts as valid, and was refused"
        raise
    assert is_valid, "it counts as damaged, and was taken"
    assert is_original(loaded), "another state was loaded"


ROWS = [
    Row(
        number=32,
        fault="archive attack",
        must_hold="nothing outside the destination; refused, or what was saved",
        unit="archives",
        count=210,
        sample=30,
        run=archive_attacks,
    )
]
