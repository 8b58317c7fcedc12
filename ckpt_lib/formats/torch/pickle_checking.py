"""Executes the pickle of a torch file step by step, before a faster unpickler, or torch's own, reads it.

No unpickler limits what a pickle costs. One number can make it reserve gigabytes. A key of nested tuples takes a
hundred bytes to write and years to hash. So this one accepts only the opcodes that ``torch.save`` writes, trusts no
length, and counts what it builds. A pickle that passes costs time and memory in proportion to its length.
"""

from __future__ import annotations

import pickle
import re
import struct
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any

import torch

from ckpt_lib.core.wording import shown
from ckpt_lib.errors import CheckpointError, CorruptCheckpointError
from ckpt_lib.formats.gc_pause import CollectionPause
from ckpt_lib.formats.limits import CONTAINERS, MAX_LEVELS, is_deeper
from ckpt_lib.formats.preparing import METHODS
from ckpt_lib.formats.torch.limits import check_sharing, max_steps, max_structure_bytes, unsafe

_MAX_OPEN = 10_000
_MAX_NAME_BYTES = 500
_MAX_NAMES = 10_000  # each costs a look-up; a pickler writes a name once and then refers to it
_MAX_KEY_PARTS = 1000  # of a tuple used as a key, with all tuples nested in it
_MAX_EQUAL_HASHES = 100  # among the keys of one dict: each further key is compared with all of these

_NUMBERS = re.compile(rb"(?:K.|M..|J.{4}|G.{8}|[N\x88\x89]){8,50000}", re.DOTALL)
_LEAVES = {str, int, float, bool, type(None), complex, bytes, torch.dtype, torch.device}
_STOP = ord(pickle.STOP)


class UnusualPayloadError(Exception):
    """The payload is valid, but only ``torch.load`` can read it. Never leaves this package."""


class Unknown:
    """The placeholder for a name that is not on our list, or for the result of calling it.

    Whether such a name is safe is left to ``torch.load``.
    """

    def __init__(self, name: str, *, is_object: bool = False) -> None:
        self.name = name
        self.is_object = is_object

    @property
    def may_change(self) -> bool:
        """True when a pickle may set its state. The state of a tensor would exchange its memory."""
        return self.is_object or not self.name.startswith("torch.")

    def __call__(self, *_: Any) -> Unknown:
        return self.result(is_object=False)

    def result(self, *, is_object: bool) -> Unknown:
        """Return the placeholder for the result of a call. Refuse to allocate memory of a size named in the pickle."""
        if self.name.startswith("torch.") and self.name.endswith(("Tensor", "Storage", "Parameter")):
            raise unsafe(f"it makes an empty {self.name}")
        return Unknown(f"{self.name}()", is_object=is_object)


class PickleChecker:
    """Executes one pickle, and calls nothing but what ``find_name`` returns for the names in it.

    After :meth:`load`, ``unusual`` tells why only torch can read the pickle. It is ``None`` for any other.
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
        self.end = 0
        """Where the pickle ended, after it was executed."""

    def load(self) -> Any:
        """Return the object that the pickle describes.

        Raises :class:`CorruptCheckpointError` for bytes that are no pickle, and
        :class:`~ckpt_lib.errors.UnsafePayloadError` for opcodes that no state needs, or too many of them.
        """
        if len(self._data) > self._max_bytes:
            raise unsafe(f"its structure is longer than {self._max_bytes} bytes")
        try:
            with CollectionPause():
                loaded = self._run()
        except (CheckpointError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # bytes that are no pickle raise errors of many types
            reason = f"its structure is damaged: {shown(error)}"
            raise CorruptCheckpointError(f"the payload is not a torch file: {reason}") from error
        if self._has_shared:
            check_sharing(loaded)
        if is_deeper(loaded, MAX_LEVELS + 1):
            raise unsafe(f"its structure is nested more than {MAX_LEVELS} levels deep")
        return loaded

    def _run(self) -> Any:
        data, steps, position = self._data, self._steps, 0
        for _ in range(self._max_steps):
            if (code := data[position]) == _STOP:
                (loaded,) = self._stack
                self.end = position + 1
                return loaded
            step = steps.get(code)
            if step is None:
                raise unsafe(
                    f"its structure uses an opcode that torch.save does not write: {bytes([code])!r} at {position}"
                )
            position = step(self, position + 1)
        raise unsafe(f"its structure takes more than {self._max_steps} steps")

    @property
    def _steps(self) -> dict[int, Step]:
        return STEPS

    def _since_mark(self) -> list[Any]:
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    # --- the steps: each takes the position after its opcode, and returns the position of the next opcode ---

    def _protocol(self, position: int) -> int:
        if self._data[position] != 2:
            raise unsafe("its structure is no pickle of protocol 2")
        return position + 1

    def _mark(self, position: int) -> int:
        if len(self._marks) >= _MAX_OPEN:
            raise unsafe("its structure is nested too deeply")
        self._marks.append(len(self._stack))
        while found := _NUMBERS.match(self._data, position):  # many numbers at once, in C
            numbers = pickle.loads(b"(" + found[0] + b"t.")  # noqa: S301 - the pattern matches only numbers
            self._count_numbers(len(numbers))
            self._stack += numbers
            position = found.end()
        return position

    def _count_numbers(self, count: int) -> None:
        """Do nothing: each takes at least a byte of the pickle, and its length has a limit."""

    def _push(self, number: float) -> None:
        self._stack.append(number)

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

    def _tuple(self, position: int) -> int:
        self._stack.append(tuple(self._since_mark()))
        return position

    def _join(self, count: int) -> None:
        items = tuple(self._stack[-count:])
        if len(items) < count:
            raise IndexError("too little on the stack")
        del self._stack[-count:]
        self._stack.append(items)

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
            raise TypeError("an item is appended to an object that is no list")
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
            raise TypeError("an entry is set in an object that is no dict")
        keys = items[::2]
        if self._are_keys(target, keys) and isinstance(target, dict):
            target.update(zip(keys, items[1::2], strict=True))

    def _remember(self, number: int) -> None:
        if number > len(self._memo):  # an unpickler would allocate all numbers below
            raise unsafe("its structure numbers what it remembers with gaps")
        self._memo[number : number + 1] = [self._stack[-1]]

    def _recall(self, number: int) -> None:
        value = self._memo[number]
        self._stack.append(value)
        if type(value) in CONTAINERS:
            self._has_shared = True

    def _name(self, position: int) -> int:
        middle = self._data.index(b"\n", position, position + _MAX_NAME_BYTES)
        stop = self._data.index(b"\n", middle + 1, middle + _MAX_NAME_BYTES)
        self._count_name()
        found = self._find_name(self._data[position:middle].decode(), self._data[middle + 1 : stop].decode())
        self._note(found)
        self._stack.append(found)
        return stop + 1

    def _count_name(self) -> None:
        self._names += 1
        if self._names > _MAX_NAMES:
            raise unsafe("its structure names more things than there are")

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
            raise unsafe("it makes an object without calling its type")
        self._stack.append(function.result(is_object=True))
        return position

    def _call(self, function: Any, arguments: tuple[Any, ...]) -> Any:
        if function is set:
            return set(*arguments) if self._are_keys(arguments, *arguments) else Unknown("set()")
        if function is OrderedDict and arguments:
            raise unsafe("it makes a dict of values that were not checked")
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
            if type(state) is not dict or not all(type(name) is str for name in state) or METHODS & state.keys():
                raise unsafe("it sets attributes that a dict does not have")
            vars(target).update(state)
        elif not isinstance(target, Unknown) or not target.may_change:
            raise unsafe("it changes an object that it has built")
        return position

    def _note(self, value: Any) -> None:
        if isinstance(value, Unknown):
            self.unusual = self.unusual or value.name

    # --- the cost of keys ---

    def _are_keys(self, target: Any, keys: Any) -> bool:
        """Tell whether all ``keys`` can be hashed here. Refuses keys slow to hash, and too many equal hashes."""
        odd = [key for key in keys if type(key) is not str]
        if not all(map(_is_key, odd)):
            self.unusual = self.unusual or "a key that is no plain value"
            return False
        for key in odd:
            identity = (id(target), hash(key))
            self._hashes[identity] += 1
            if self._hashes[identity] > _MAX_EQUAL_HASHES:
                raise unsafe("too many keys of a dict have one hash")
        return True


def _is_key(key: Any) -> bool:
    """Tell whether ``key`` can be hashed here. Refuses a large tuple: it is hashed with every part that it repeats."""
    waiting, count = [key], 0
    while waiting:
        part = waiting.pop()
        if isinstance(part, tuple):
            count += len(part) + 1
            if count > _MAX_KEY_PARTS:
                raise unsafe("a key in it has too many parts")
            waiting += part
        elif type(part) not in _LEAVES and not isinstance(part, Unknown):
            return False
    return True


Step = Callable[[Any, int], int]
"""Executes one opcode of an unpickler, from the position after it, and returns the position of the next one."""


def pushes(make: Callable[[], Any]) -> Step:
    """Return the step of an opcode that stands for a value by itself."""

    def step(checker: PickleChecker, position: int) -> int:
        checker._stack.append(make())
        return position

    return step


def _joins(count: int) -> Step:
    """Return the step of an opcode that makes a tuple of the last values."""

    def step(checker: PickleChecker, position: int) -> int:
        checker._join(count)
        return position

    return step


def with_number(code: str, use: Callable[[PickleChecker, Any], None]) -> Step:
    """Return the step of an opcode that a number follows, in the format ``code`` of :mod:`struct`."""
    layout = struct.Struct(code)

    def step(checker: PickleChecker, position: int) -> int:
        use(checker, layout.unpack_from(checker._data, position)[0])
        return position + layout.size

    return step


STEPS: dict[int, Step] = {
    ord(code): step
    for code, step in (
        (pickle.PROTO, PickleChecker._protocol),
        (pickle.MARK, PickleChecker._mark),
        (pickle.NONE, pushes(lambda: None)),
        (pickle.NEWTRUE, pushes(lambda: True)),
        (pickle.NEWFALSE, pushes(lambda: False)),
        (pickle.BININT1, with_number("<B", PickleChecker._push)),
        (pickle.BININT2, with_number("<H", PickleChecker._push)),
        (pickle.BININT, with_number("<i", PickleChecker._push)),
        (pickle.BINFLOAT, with_number(">d", PickleChecker._push)),
        (pickle.LONG1, PickleChecker._long),
        (pickle.BINUNICODE, PickleChecker._text),
        (pickle.EMPTY_TUPLE, pushes(tuple)),
        (pickle.EMPTY_LIST, pushes(list)),
        (pickle.EMPTY_DICT, pushes(dict)),
        (pickle.TUPLE, PickleChecker._tuple),
        (pickle.TUPLE1, _joins(1)),
        (pickle.TUPLE2, _joins(2)),
        (pickle.TUPLE3, _joins(3)),
        (pickle.APPEND, PickleChecker._append),
        (pickle.APPENDS, PickleChecker._appends),
        (pickle.SETITEM, PickleChecker._set_item),
        (pickle.SETITEMS, PickleChecker._set_items),
        (pickle.BINPUT, with_number("<B", PickleChecker._remember)),
        (pickle.LONG_BINPUT, with_number("<I", PickleChecker._remember)),
        (pickle.BINGET, with_number("<B", PickleChecker._recall)),
        (pickle.LONG_BINGET, with_number("<I", PickleChecker._recall)),
        (pickle.GLOBAL, PickleChecker._name),
        (pickle.BINPERSID, PickleChecker._reference),
        (pickle.REDUCE, PickleChecker._reduce),
        (pickle.NEWOBJ, PickleChecker._new),
        (pickle.BUILD, PickleChecker._build),
    )
}
