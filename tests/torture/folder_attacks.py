"""Folders of files that say one thing to one reader and another to the next, or lead elsewhere."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from ckpt_lib.core.manifest import Manifest
from ckpt_lib.formats.in_memory import Files
from tests.torture.attacker import PLANTED_ID, small_payload, torch_file
from tests.torture.planted import manifest_of, sound_files
from tests.torture.settings import Setting

_STRUCTURES = {"safetensors": "state.json", "npz": "structure.json"}
_ELSEWHERE = (
    "../escaped",
    "../../escaped",
    f"{PLANTED_ID}/../../escaped",
    "/tmp/escaped",
    f"{PLANTED_ID}/a/../../../escaped",
    f"{PLANTED_ID}\\..\\escaped",
    f"{PLANTED_ID}//escaped",
    f"{PLANTED_ID}/./escaped",
    f"{PLANTED_ID}/\n",
    f"{PLANTED_ID}/\u202etxt",
    f"{PLANTED_ID}/.ckpt-tmp/x",
    f"{PLANTED_ID}.json",
    "checkpoint_metadata.json",
)


@dataclass
class Forged:
    """A folder, and what its manifest says."""

    files: Files
    names: dict[str, str] = field(default_factory=dict)
    """What the manifest calls a file that lies where it should."""
    repeated: list[str] = field(default_factory=list)
    """What the manifest names once more."""

    def manifest(self, setting: Setting) -> Manifest:
        found = manifest_of(setting, self.files, names=self.names)
        again = [file for file in found.files if file.part in self.repeated]
        return found.changed(files=(*found.files, *again))


Attack = Callable[[random.Random, Setting], Forged]


def _any(choice: random.Random, files: Files) -> str:
    return choice.choice(sorted(files))


def _elsewhere(choice: random.Random, setting: Setting) -> Forged:
    files = sound_files(setting)
    return Forged(files, {_any(choice, files): choice.choice(_ELSEWHERE)})


def _named_twice(choice: random.Random, setting: Setting) -> Forged:
    files = sound_files(setting)
    return Forged(files, repeated=[_any(choice, files)])


def _one_name_for_two(choice: random.Random, setting: Setting) -> Forged:
    files = sound_files(setting)
    one, other = choice.sample(sorted(files), 2)
    return Forged(files, {one: f"{PLANTED_ID}/{other}"})


def _structure_of_elsewhere(choice: random.Random, setting: Setting) -> Forged:
    """The structure names a file of another folder, or a tensor that is none."""
    files, structure = sound_files(setting), _STRUCTURES[setting.format]
    found = rb'"model\.safetensors"' if setting.format == "safetensors" else rb'"\$tensor": ?"[^"]*"'
    other = choice.choice([b"../../x", b"/etc/passwd", b"..", b"", b"state.json", b"model/../../0"])
    named = b'"%b"' % other if setting.format == "safetensors" else b'"$tensor":"%b"' % other
    text = re.sub(found, lambda _: named, files[structure], count=1)
    assert text != files[structure]
    return Forged({**files, structure: text})


def _of_one_file(change: Callable[[random.Random, bytes], bytes]) -> Attack:
    def attack(choice: random.Random, setting: Setting) -> Forged:
        files = sound_files(setting)
        name = _any(choice, files)
        return Forged({**files, name: change(choice, files[name])})

    return attack


def _lying_number(choice: random.Random, data: bytes) -> bytes:
    """Another digit in a header or a structure."""
    places = [found.start() for found in re.finditer(rb"[0-9]", data)]
    place = choice.choice(places)
    return data[:place] + choice.choice([b"9", b"0", b"-1", b"99999999999999999999", b"1.5"]) + data[place + 1 :]


def _lying_start(choice: random.Random, data: bytes) -> bytes:
    """The length of a header, or the kind of the file."""
    place = choice.randrange(min(10, len(data)))
    return data[:place] + bytes([choice.randrange(256)]) + data[place + 1 :]


def _twice_in_it(choice: random.Random, data: bytes) -> bytes:
    """An entry of a header or a structure once more, with another meaning."""
    names = re.findall(rb'"([a-z_]+)":', data) or [b"descr"]
    start = data.find(b"{") + 1
    text = data[:start] + b'"%b":{},' % choice.choice(names) + data[start:]
    if data[8:9] == b"{":  # safetensors: its header has become longer
        return (int.from_bytes(data[:8], "little") + len(text) - len(data)).to_bytes(8, "little") + text[8:]
    return text


def _missing(choice: random.Random, setting: Setting) -> Forged:
    files = sound_files(setting)
    files.pop(_any(choice, files))
    return Forged(files)


def _exchanged(choice: random.Random, setting: Setting) -> Forged:
    """An array of NumPy carries no name: whoever writes manifests may exchange two, as he may write any weights."""
    files = sound_files(setting)
    one, other = choice.sample(sorted(files), 2)
    if setting.format == "npz":
        one = _STRUCTURES["npz"]
        other = choice.choice(sorted(files.keys() - {one}))
    return Forged({**files, one: files[other], other: files[one]})


ATTACKS: dict[str, Attack] = {
    "elsewhere": _elsewhere,
    "named twice": _named_twice,
    "one name for two": _one_name_for_two,
    "a structure of elsewhere": _structure_of_elsewhere,
    "a lying number": _of_one_file(_lying_number),
    "a lying start": _of_one_file(_lying_start),
    "an entry twice": _of_one_file(_twice_in_it),
    "a part missing": _missing,
    "parts exchanged": _exchanged,
    "something behind": _of_one_file(lambda choice, data: data + bytes(choice.randint(1, 100))),
    "something before": _of_one_file(lambda choice, data: choice.choice([b"PK\3\4", b"\0" * 64, b"{}"]) + data),
    "cut off": _of_one_file(lambda choice, data: data[: choice.randrange(len(data))]),
    "an archive in its place": _of_one_file(lambda choice, data: torch_file(small_payload())),
    "a file that none names": lambda choice, setting: Forged(
        {**sound_files(setting), "x.pkl": torch_file(small_payload())}
    ),
}
