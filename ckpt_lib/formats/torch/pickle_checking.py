"""Carries the pickle of a torch file out step by step, before a faster unpickler, or torch's own, sees it.

No unpickler asks what a pickle will cost. One number can make it reserve gigabytes, and a key of nested tuples, which
takes a hundred bytes to write, years to hash. So here every step is one of the few that ``torch.save`` writes, no
length is taken on trust, and what is built is counted. A pickle that passes costs time and memory in proportion to
its length.
"""

from __future__ import annotations

import pickle
import re
import struct
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import torch

from ckpt_lib.errors import CheckpointError, CorruptCheckpointError, UnsafePayloadError
from ckpt_lib.formats.torch.collection import CollectionPause

_STRUCTURE_BYTES, _BYTES_A_RECORD = 64 * 2**20, 400
_STEPS_ALLOWED, _STEPS_A_RECORD = 4_000_000, 200

MAX_LEVELS = 100
"""How deep containers may nest below each entry of a payload."""

_MAX_OPEN = 10_000
_MAX_NAME_BYTES = 500
_MAX_NAMES = 10_000  # each is looked up; a pickler names a thing once, and then remembers it
_MAX_KEY_PARTS = 1000  # of a tuple that is a key, with those of the tuples in it
_MAX_EQUAL_HASHES = 100  # of the keys of one dict: each more is compared with all of these
# How much longer a structure may get when all that is shared in it is written out.
_MAX_SHARED_FACTOR, _MAX_UNSHARED = 16, 1_000_000


def max_structure_bytes(records: int) -> int:
    """How long a pickle may be that describes what so many records hold; that is not in it."""
    return _STRUCTURE_BYTES + _BYTES_A_RECORD * records


def max_steps(records: int) -> int:
    """How many steps it may take: each builds up to 80 bytes. Long lists of numbers are one step for thousands of them.

    A tensor takes forty, and has a record as a rule, so that there is room for as many tensors as there are records.
    """
    return _STEPS_ALLOWED + _STEPS_A_RECORD * records


_NUMBERS = re.compile(rb"(?:K.|M..|J.{4}|G.{8}|[N\x88\x89]){8,50000}", re.DOTALL)
_LEAVES = {str, int, float, bool, type(None), complex, bytes, torch.dtype, torch.device}
_CONTAINERS = {dict, list, tuple, OrderedDict, set}
_METHODS = frozenset(dir(OrderedDict))
_STOP = ord(pickle.STOP)


class UnusualPayloadError(Exception):
    """Nothing wrong, but something that only ``torch.load`` reads. Never leaves this package."""


class Unknown:
    """What a name stands for that is not looked up here, or what came of it: torch may know, or refuse, it."""

    def __init__(self, name: str, *, is_object: bool = False) -> None:
        self.name = name
        self.is_object = is_object

    @property
    def may_change(self) -> bool:
        """Whether torch may be told to change it: no tensor, whose memory would be exchanged."""
        return self.is_object or not self.name.startswith("torch.")

    def __call__(self, *_: Any) -> Unknown:
        return self.made(is_object=False)

    def made(self, *, is_object: bool) -> Unknown:
        """What torch may make of it, but no memory of a size that a pickle only names."""
        if self.name.startswith("torch.") and self.name.endswith(("Tensor", "Storage", "Parameter")):
            raise refused(f"it makes an empty {self.name}")
        return Unknown(f"{self.name}()", is_object=is_object)


class PickleChecker:
    """Carries one pickle out, and calls nothing but what ``find_name`` gives for the names in it.

    ``unusual`` tells afterwards why only torch can read it; ``None`` when all was understood.
    """

    def __init__(
        self,
        data: bytes,
        *,
        find_name: Callable[[str, str], Any],
        find_reference: Callable[[Any], Any],
        records: int = 0,
    ) -> None:
        self._data = data
        self._max_steps = max_steps(records)
        self._max_bytes = max_structure_bytes(records)
        self._find_name = find_name
        self._find_reference = find_reference
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: list[Any] = []
        self._names = 0
        self._has_shared = False
        self._hashes: Counter[tuple[int, int]] = Counter()
        self.unusual: str | None = None

    def load(self) -> Any:
        """What the pickle describes.

        Raises :class:`CorruptCheckpointError` when it is none, and :class:`UnsafePayloadError` for what no state needs.
        """
        if len(self._data) > self._max_bytes:
            raise refused(f"its structure is longer than {self._max_bytes} bytes")
        try:
            with CollectionPause():
                loaded = self._run()
        except (CheckpointError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # of many kinds, when the bytes are something else
            reason = f"its structure is damaged: {ascii(error)[:120]}"
            raise CorruptCheckpointError(f"the payload is not a torch file: {reason}") from error
        if self._has_shared:
            self._check_sharing(loaded)
        if is_deeper(loaded, MAX_LEVELS + 1):
            raise refused(f"its structure is nested more than {MAX_LEVELS} levels deep")
        return loaded

    def _run(self) -> Any:
        data, steps, position = self._data, _STEPS, 0
        for _ in range(self._max_steps):
            if (code := data[position]) == _STOP:
                (loaded,) = self._stack
                return loaded
            step = steps.get(code)
            if step is None:
                raise refused(f"its structure takes a step that none of ours does: {bytes([code])!r} at {position}")
            position = step(self, position + 1)
        raise refused(f"its structure takes more than {self._max_steps} steps")

    def _since_mark(self) -> list[Any]:
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    # --- the steps: each takes the position behind its code, and returns that of the next ---

    def _protocol(self, position: int) -> int:
        if self._data[position] != 2:
            raise refused("its structure is no pickle of protocol 2")
        return position + 1

    def _mark(self, position: int) -> int:
        if len(self._marks) >= _MAX_OPEN:
            raise refused("its structure is nested too deeply")
        self._marks.append(len(self._stack))
        while found := _NUMBERS.match(self._data, position):  # which is quicker by the million
            self._stack += pickle.loads(b"(" + found[0] + b"t.")  # noqa: S301 - only steps that push a number
            position = found.end()
        return position

    def _none(self, position: int) -> int:
        self._stack.append(None)
        return position

    def _true(self, position: int) -> int:
        self._stack.append(True)
        return position

    def _false(self, position: int) -> int:
        self._stack.append(False)
        return position

    def _int1(self, position: int) -> int:
        self._stack.append(self._data[position])
        return position + 1

    def _int2(self, position: int) -> int:
        self._stack += struct.unpack_from("<H", self._data, position)
        return position + 2

    def _int4(self, position: int) -> int:
        self._stack += struct.unpack_from("<i", self._data, position)
        return position + 4

    def _float(self, position: int) -> int:
        self._stack += struct.unpack_from(">d", self._data, position)
        return position + 8

    def _long(self, position: int) -> int:
        start = position + 1
        stop = start + self._data[position]
        self._stack.append(int.from_bytes(self._slice(start, stop), "little", signed=True))
        return stop

    def _text(self, position: int) -> int:
        start = position + 4
        stop = start + int.from_bytes(self._data[position:start], "little")
        self._stack.append(self._slice(start, stop).decode("utf-8", "surrogatepass"))
        return stop

    def _slice(self, start: int, stop: int) -> bytes:
        if stop > len(self._data):
            raise ValueError("it is cut off")
        return self._data[start:stop]

    def _empty_tuple(self, position: int) -> int:
        self._stack.append(())
        return position

    def _empty_list(self, position: int) -> int:
        self._stack.append([])
        return position

    def _empty_dict(self, position: int) -> int:
        self._stack.append({})
        return position

    def _tuple(self, position: int) -> int:
        self._stack.append(tuple(self._since_mark()))
        return position

    def _tuple1(self, position: int) -> int:
        return self._tuple_of(1, position)

    def _tuple2(self, position: int) -> int:
        return self._tuple_of(2, position)

    def _tuple3(self, position: int) -> int:
        return self._tuple_of(3, position)

    def _tuple_of(self, count: int, position: int) -> int:
        items = tuple(self._stack[-count:])
        if len(items) < count:
            raise IndexError("too little on the stack")
        del self._stack[-count:]
        self._stack.append(items)
        return position

    def _append(self, position: int) -> int:
        item = self._stack.pop()
        self._extend([item])
        return position

    def _appends(self, position: int) -> int:
        self._extend(self._since_mark())
        return position

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not list:
            raise TypeError("something is appended to what is no list")
        target += items

    def _set_item(self, position: int) -> int:
        value, key = self._stack.pop(), self._stack.pop()
        self._set_all([key, value])
        return position

    def _set_items(self, position: int) -> int:
        self._set_all(self._since_mark())
        return position

    def _set_all(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict | Unknown) or len(items) % 2:
            raise TypeError("an entry is put into what is no dict")
        keys = items[::2]
        if self._are_keys(target, keys) and isinstance(target, dict):
            target.update(zip(keys, items[1::2], strict=True))

    def _put1(self, position: int) -> int:
        self._remember(self._data[position])
        return position + 1

    def _put4(self, position: int) -> int:
        self._remember(int.from_bytes(self._slice(position, position + 4), "little"))
        return position + 4

    def _remember(self, number: int) -> None:
        if number > len(self._memo):  # an unpickler makes room for all below it
            raise refused("its structure numbers what it remembers with gaps")
        self._memo[number : number + 1] = [self._stack[-1]]

    def _get1(self, position: int) -> int:
        self._recall(self._data[position])
        return position + 1

    def _get4(self, position: int) -> int:
        self._recall(int.from_bytes(self._slice(position, position + 4), "little"))
        return position + 4

    def _recall(self, number: int) -> None:
        value = self._memo[number]
        self._stack.append(value)
        if type(value) in _CONTAINERS:
            self._has_shared = True

    def _name(self, position: int) -> int:
        middle = self._data.index(b"\n", position, position + _MAX_NAME_BYTES)
        stop = self._data.index(b"\n", middle + 1, middle + _MAX_NAME_BYTES)
        self._names += 1
        if self._names > _MAX_NAMES:
            raise refused("its structure names more things than there are")
        found = self._find_name(self._data[position:middle].decode(), self._data[middle + 1 : stop].decode())
        self._note(found)
        self._stack.append(found)
        return stop + 1

    def _reference(self, position: int) -> int:
        self._stack.append(self._find_reference(self._stack.pop()))
        return position

    def _reduce(self, position: int) -> int:
        arguments, function = self._stack.pop(), self._stack.pop()
        if type(arguments) is not tuple:
            raise TypeError("a call without a tuple of arguments")
        self._stack.append(self._call(function, arguments))
        return position

    def _new(self, position: int) -> int:
        arguments, function = self._stack.pop(), self._stack.pop()
        if not isinstance(function, Unknown) or type(arguments) is not tuple:
            raise refused("it makes an object without calling its type")
        self._stack.append(function.made(is_object=True))
        return position

    def _call(self, function: Any, arguments: tuple[Any, ...]) -> Any:
        if function is set:
            return set(*arguments) if self._are_keys(arguments, *arguments) else Unknown("set()")
        if function is OrderedDict and arguments:
            raise refused("it makes a dict of what was not looked at")
        if type(function) is type and function not in (set, OrderedDict, complex):
            raise TypeError(f"a call of {function!r}")
        try:
            return function(*arguments)
        except UnusualPayloadError as error:
            self.unusual = self.unusual or str(error)
            return Unknown(f"torch.{function}")

    def _build(self, position: int) -> int:
        state, target = self._stack.pop(), self._stack[-1]
        if type(target) is OrderedDict:
            if type(state) is not dict or not all(type(name) is str for name in state) or _METHODS & state.keys():
                raise refused("it sets what a dict does not let be set")
            vars(target).update(state)
        elif not isinstance(target, Unknown) or not target.may_change:
            raise refused("it changes what it has built")
        return position

    def _note(self, value: Any) -> None:
        if isinstance(value, Unknown):
            self.unusual = self.unusual or value.name

    # --- what would cost out of proportion ---

    def _are_keys(self, target: Any, keys: Any) -> bool:
        """Whether all can be hashed here. Refuses what takes long to hash, and too many that hash to the same."""
        odd = [key for key in keys if type(key) is not str]
        if not all(map(_is_key, odd)):
            self.unusual = self.unusual or "a key that is no plain value"
            return False
        for key in odd:
            identity = (id(target), hash(key))
            self._hashes[identity] += 1
            if self._hashes[identity] > _MAX_EQUAL_HASHES:
                raise refused("too many keys of a dict have one hash")
        return True

    def _check_sharing(self, loaded: Any) -> None:
        """Refuse what is as long as its pickle only until someone walks through it."""
        sizes: dict[int, int] = {}
        waiting: list[tuple[Any, bool]] = [(loaded, False)]
        while waiting:
            item, is_done = waiting.pop()
            parts = [part for part in _parts(item) if type(part) in _CONTAINERS]
            if is_done:
                sizes[id(item)] = 1 + sum(sizes[id(part)] for part in parts)
            elif id(item) not in sizes:
                sizes[id(item)] = -1
                waiting.append((item, True))
                waiting += [(part, False) for part in parts if id(part) not in sizes]
                if any(sizes.get(id(part)) == -1 for part in parts):
                    raise refused("a container in it contains itself")
        if sizes[id(loaded)] > _MAX_UNSHARED + _MAX_SHARED_FACTOR * len(sizes):
            raise refused("its structure repeats itself without end")


def refused(reason: str) -> UnsafePayloadError:
    return UnsafePayloadError(
        f"the payload was not read: {reason}",
        hint="If you trust whoever wrote it, load it with trust_pickle=True, which may run code stored in it.",
    )


def _is_key(key: Any) -> bool:
    """Whether it can be hashed. Refuses a tuple that takes long to, for it is hashed with all that it repeats."""
    waiting, count = [key], 0
    while waiting:
        part = waiting.pop()
        if isinstance(part, tuple):
            count += len(part) + 1
            if count > _MAX_KEY_PARTS:
                raise refused("a key in it has too many parts")
            waiting += part
        elif type(part) not in _LEAVES and not isinstance(part, Unknown):
            return False
    return True


def is_deeper(value: Any, levels: int) -> bool:
    """Whether containers nest more than ``levels`` deep in ``value``, of which nothing contains itself."""
    layer = [value] if type(value) in _CONTAINERS else []
    for _ in range(levels):
        layer = [part for item in layer for part in _parts(item) if type(part) in _CONTAINERS]
    return bool(layer)


def _parts(item: Any) -> Iterable[Any]:
    if isinstance(item, OrderedDict):
        return [*item.keys(), *item.values(), *vars(item).values()]
    if isinstance(item, dict):
        return [*item.keys(), *item.values()]
    return item if type(item) in _CONTAINERS else ()


_STEPS: dict[int, Callable[[PickleChecker, int], int]] = {
    ord(code): step
    for code, step in (
        (pickle.PROTO, PickleChecker._protocol),
        (pickle.MARK, PickleChecker._mark),
        (pickle.NONE, PickleChecker._none),
        (pickle.NEWTRUE, PickleChecker._true),
        (pickle.NEWFALSE, PickleChecker._false),
        (pickle.BININT1, PickleChecker._int1),
        (pickle.BININT2, PickleChecker._int2),
        (pickle.BININT, PickleChecker._int4),
        (pickle.BINFLOAT, PickleChecker._float),
        (pickle.LONG1, PickleChecker._long),
        (pickle.BINUNICODE, PickleChecker._text),
        (pickle.EMPTY_TUPLE, PickleChecker._empty_tuple),
        (pickle.EMPTY_LIST, PickleChecker._empty_list),
        (pickle.EMPTY_DICT, PickleChecker._empty_dict),
        (pickle.TUPLE, PickleChecker._tuple),
        (pickle.TUPLE1, PickleChecker._tuple1),
        (pickle.TUPLE2, PickleChecker._tuple2),
        (pickle.TUPLE3, PickleChecker._tuple3),
        (pickle.APPEND, PickleChecker._append),
        (pickle.APPENDS, PickleChecker._appends),
        (pickle.SETITEM, PickleChecker._set_item),
        (pickle.SETITEMS, PickleChecker._set_items),
        (pickle.BINPUT, PickleChecker._put1),
        (pickle.LONG_BINPUT, PickleChecker._put4),
        (pickle.BINGET, PickleChecker._get1),
        (pickle.LONG_BINGET, PickleChecker._get4),
        (pickle.GLOBAL, PickleChecker._name),
        (pickle.BINPERSID, PickleChecker._reference),
        (pickle.REDUCE, PickleChecker._reduce),
        (pickle.NEWOBJ, PickleChecker._new),
        (pickle.BUILD, PickleChecker._build),
    )
}
