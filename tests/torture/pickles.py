"""Row 34: pickles that would run something, each with a canary that shows whether they did."""

from __future__ import annotations

import io
import pickle
import random
import shutil
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ckpt_lib.formats.in_memory import Files
from tests.formats.every_format import NPZ
from tests.torture.attacker import PLANTED_ID, archive_of, plant
from tests.torture.planted import (
    as_stored,
    has_pickle,
    is_original,
    manifest_of,
    open_planted,
    plant_files,
    sound_files,
)
from tests.torture.rows import Outcome, Row, told
from tests.torture.sandbox import Ending, run_in_child
from tests.torture.settings import Setting, Site, everything_installed, setting, told_settings

Attack = Callable[[str], bytes]
"""From a line of Python to the steps of a pickle that leave something on the stack and should have run it."""


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def call(module: str, attribute: str, *arguments: bytes) -> bytes:
    return name(module, attribute) + b"(" + b"".join(arguments) + b"tR"


_NO_HOOKS = call("collections", "OrderedDict")


def _stack_global(module: str, attribute: str) -> bytes:
    words = (b"\x8c" + bytes([len(word)]) + word.encode() for word in (module, attribute))
    return b"".join(words) + b"\x93"


def _shell(line: str) -> str:
    return f"python3 -c '{line}'"


def storage(count: bytes, kind: str = "FloatStorage") -> bytes:
    return b"(" + text("storage") + name("torch", kind) + text("0") + text("cpu") + count + b"tQ"


def tensor(of: bytes, offset: bytes, size: bytes, stride: bytes, hooks: bytes = _NO_HOOKS) -> bytes:
    return call("torch._utils", "_rebuild_tensor_v2", of, offset, size, stride, b"\x89", hooks)


def quantized(of: bytes, size: bytes, stride: bytes, scale: float) -> bytes:
    parameters = b"(" + name("torch", "per_tensor_affine") + b"G" + struct.pack(">d", scale) + b"K\0t"
    return call("torch._utils", "_rebuild_qtensor", of, b"K\0", size, stride, parameters, b"\x89", _NO_HOOKS)


def _int(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


_ONE = b"K\x01\x85"
"""A shape, or the steps of one, of a single dimension."""

ATTACKS: dict[str, Attack] = {
    "eval": lambda line: call("builtins", "eval", text(line)),
    "exec": lambda line: call("builtins", "exec", text(line)),
    "exec of Python 2": lambda line: call("__builtin__", "exec", text(line)),
    "compile and eval": lambda line: call(
        "builtins", "eval", call("builtins", "compile", text(line), text("x"), text("eval"))
    ),
    "os.system": lambda line: call("os", "system", text(_shell(line))),
    "posix.system": lambda line: call("posix", "system", text(_shell(line))),
    "subprocess": lambda line: call("subprocess", "getoutput", text(_shell(line))),
    "getattr": lambda line: (
        call("builtins", "getattr", name("builtins", "__dict__"), text("get"))
        + call("builtins", "eval", text(line))
        + b"\x86"
    ),
    "timeit": lambda line: call("timeit", "timeit", text(line)),
    "runpy": lambda line: call(
        "runpy", "_run_code", call("builtins", "compile", text(line), text("x"), text("exec")), b"}"
    ),
    "pdb": lambda line: call("pdb", "run", text(line)),
    "code": lambda line: call("code", "interact", text(line)),
    "map": lambda line: call(
        "builtins", "list", call("builtins", "map", name("builtins", "eval"), b"](" + text(line) + b"e")
    ),
    "torch.hub": lambda line: call("torch.hub", "load", text("owner/repository"), text("model")),
    "torch.load": lambda line: call("torch", "load", text("/proc/self/environ")),
    "torch.jit": lambda line: call("torch.jit._script", "CompilationUnit", text(line)),
    "numpy": lambda line: call("numpy.testing._private.utils", "runstring", text(line), b"}"),
    "a dtype's name": lambda line: call("torch", "os.system", text(_shell(line))),
    "dotted name": lambda line: call("torch.serialization", "os.system", text(_shell(line))),
    "ours": lambda line: call("tests.torture.pickles", "fire", text(line)),
    "inst": lambda line: b"(" + text(line) + b"ibuiltins\neval\n",
    "obj": lambda line: b"(" + name("builtins", "eval") + text(line) + b"o",
    "newobj": lambda line: name("builtins", "eval") + b"(" + text(line) + b"t\x81",
    "newobj ex": lambda line: name("builtins", "eval") + b"(" + text(line) + b"t}\x92",
    "stack global": lambda line: _stack_global("builtins", "eval") + b"(" + text(line) + b"tR",
    "extension": lambda line: b"\x82\x01(" + text(line) + b"tR",
    "build": lambda line: call("collections", "OrderedDict") + b"}" + text("items") + name("builtins", "eval") + b"sb",
    "build of slots": lambda line: (
        call("collections", "OrderedDict") + b"N}" + text("items") + name("builtins", "eval") + b"s\x86b"
    ),
    "setstate": lambda line: name("tests.torture.pickles", "Fires") + b")\x81" + text(line) + b"b",
    "a persistent id": lambda line: call("builtins", "eval", text(line)) + b"Q",
    "another reference": lambda line: b"(" + text("module") + call("builtins", "eval", text(line)) + b"tQ",
    "a textual id": lambda line: b"P" + line.encode() + b"\n",
    "a lying storage": lambda line: tensor(storage(_int(2**30)), b"K\0", _int(2**20) + b"\x85", _ONE),
    "a lying quantized storage": lambda line: quantized(
        storage(_int(2**30), "QInt8Storage"), _int(2**30) + b"\x85", _ONE, scale=1.0
    ),
    "a storage as a tensor": lambda line: tensor(call("builtins", "eval", text(line)), b"K\0", b")", b")"),
    "backward hooks": lambda line: tensor(
        storage(b"K\x08"), b"K\0", _ONE, _ONE, hooks=b"}K\0" + name("builtins", "eval") + b"s"
    ),
    "a type's own": lambda line: call(
        "torch._tensor",
        "_rebuild_from_type_v2",
        name("builtins", "eval"),
        name("torch", "Tensor"),
        b"(" + text(line) + b"t",
        b"}",
    ),
    "a wrapper": lambda line: call(
        "torch._utils", "_rebuild_wrapper_subclass", name("tests.torture.pickles", "Fires"), text(line)
    ),
    "numpy in a tensor": lambda line: call(
        "torch._utils",
        "_rebuild_device_tensor_from_numpy",
        call("builtins", "eval", text(line)),
        name("torch", "float32"),
        text("cpu"),
        b"\x89",
    ),
    "a codec": lambda line: call("_codecs", "encode", text(line), text("unknown\0codec")),
    "a counter": lambda line: call("collections", "Counter", call("builtins", "eval", text(line))),
    "a set": lambda line: call("builtins", "set", b"](" + call("builtins", "eval", text(line)) + b"e"),
}


def fire(line: str) -> None:
    """Reached only when a pickle is trusted."""
    exec(line)


class Fires:
    """An object whose state is run."""

    def __setstate__(self, line: str) -> None:
        fire(line)


def structure(choice: random.Random, attack: bytes) -> bytes:
    """The attack somewhere in a payload: as a value, in a list, as a key, or beside what is sound."""
    places = (
        b"}" + text("model_state_dict") + attack + b"s",
        b"}" + text("model_state_dict") + b"](" + attack + b"es",
        b"}" + attack + b"K\x01s",
        b"}(" + text("epoch") + b"K\x01" + text("extra_state") + b"}" + text("x") + attack + b"su",
        attack,
    )
    return b"\x80" + bytes([choice.choice((2, 2, 2, 4))]) + choice.choice(places) + b"."


def malicious_pickles(count: int, seed: str, folder: Path) -> Outcome:
    """Each attack through every door that reads a payload: as a torch file and now and then as a bare pickle, in the
    place of a file of a format without pickles, or beside its files.
    """
    outcome, struck, kinds = Outcome(), Counter[Setting](), Counter[str]()
    if not _fires_when_trusted(folder / "control"):
        outcome.violations.append("the canary does not fire for who trusts the pickle: the attacks prove nothing")
    names = list(ATTACKS)
    with everything_installed():
        for number in range(count):
            choice, place = random.Random(f"{seed} {number}"), setting(number)
            chosen = names[number % len(names)] if count >= len(names) else choice.choice(names)
            site, canary = Site(folder / str(number), place.kind), folder / f"canary-{number}"
            pickled = structure(choice, ATTACKS[chosen](_fire_line(canary)))
            files, where = _placed(choice, place, pickled)
            ending = _through_every_door(site, place, files, choice, where)
            struck[place] += 1
            kinds[ending.what.partition(":")[0] or "not looked at"] += 1
            is_right = ending.kind == ("returned" if where == BESIDE else "refused")
            problem = ending.broken_promise() or (None if is_right else f"was {ending.kind}: {ending.what}")
            if canary.exists():
                problem = "ran"
            outcome.note(f"seed {seed!r} {number}, {place}, {chosen}, {where}", [problem] if problem else [])
            shutil.rmtree(site.root, ignore_errors=True)
    outcome.detail = told(kinds) + told_settings(struck)
    return outcome


BESIDE = "beside"
_PLACES = ("in the place of a file", "in an array", BESIDE)


def _placed(choice: random.Random, place: Setting, pickled: bytes) -> tuple[Files, str]:
    """The files of a payload with the pickle in them, and where it is."""
    data = pickled if choice.random() < 0.1 else archive_of(pickled)
    if has_pickle(place):
        return {"": data}, "as the payload"
    files, where = sound_files(place), choice.choice(_PLACES)
    if where == BESIDE:
        return {**files, choice.choice(["x.pkl", "pytorch_model.bin", "optimizer.pt", "data.pkl"]): data}, where
    if where == "in an array" and place.format == NPZ:
        data = _object_array(pickled)
    name = choice.choice([name for name in sorted(files) if where != "in an array" or not name.endswith(".json")])
    return {**files, name: data}, where


def _object_array(pickled: bytes) -> bytes:
    """An array of objects, which NumPy reads by unpickling it."""
    stream = io.BytesIO()
    facts = {"descr": "|O", "fortran_order": False, "shape": (2, 3)}
    np.lib.format.write_array_header_1_0(stream, facts)
    return stream.getvalue() + pickled


def _fire_line(canary: Path) -> str:
    return f'open("{canary}", "w").close()'


def _through_every_door(site: Site, place: Setting, files: Files, choice: random.Random, where: str) -> Ending:
    def act() -> None:
        stored = {name: as_stored(place, data) for name, data in files.items()}
        plain_size_bytes = sum(map(len, files.values())) if has_pickle(place) else 0
        plant_files(site, place, stored, manifest_of(place, stored, plain_size_bytes=plain_size_bytes).to_bytes())
        manager = open_planted(site, place)
        found = [damage.kind for damage in manager.validate_checkpoint(PLANTED_ID).damages]
        expected = [] if where == BESIDE else ["unloadable"]
        assert found == expected, "its manifest vouches for every byte, but no one could load it"
        keys: dict[str, Any] = {"keys": ["model_state_dict"]} if choice.random() < 0.3 else {}
        assert is_original(manager.load_checkpoint(PLANTED_ID, **keys)), "another state was loaded"

    return run_in_child(act)


def _fires_when_trusted(folder: Path) -> bool:
    canary = folder / "canary"
    pickled = pickle.PROTO + b"\x02}" + text("x") + ATTACKS["exec"](_fire_line(canary)) + b"s."

    def act() -> None:
        plant(folder, archive_of(pickled)).load_checkpoint(PLANTED_ID, trust_pickle=True)

    run_in_child(act)
    return canary.exists()


ROWS = [
    Row(
        number=34,
        fault="malicious pickle",
        must_hold="no stored code runs; refused without opt-in",
        unit="pickles",
        count=126,
        sample=30,
        run=malicious_pickles,
    )
]
