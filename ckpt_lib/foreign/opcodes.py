"""Executes pickles of every protocol step by step, in bounded time and memory, with a draft for each unknown object.

:class:`~ckpt_lib.formats.torch.pickle_checking.PickleChecker` knows the opcodes of protocol 2. This adds those that
``torch.save`` writes with other protocols and on Python 2. No opcode calls, imports or looks up anything outside of the
list in :mod:`ckpt_lib.formats.torch.tensor_specs`.
"""

from __future__ import annotations

import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from ckpt_lib.formats.torch.limits import unsafe
from ckpt_lib.formats.torch.pickle_checking import (
    STEPS,
    PickleChecker,
    Step,
    Unknown,
    UnusualPayloadError,
    pushes,
    with_number,
)
from ckpt_lib.formats.torch.tensor_specs import TensorSpec

_MAX_NAME_CHARACTERS = 500
_MAX_LINE_BYTES = 5_000
_MAX_INT_BYTES = 2_000
"""How long a whole number may be: reading a decimal one takes time with the square of its length."""
_STEPS_ALLOWED, _STEPS_A_RECORD = 750_000, 200
"""How many opcodes may be executed: a step takes half a microsecond, and what it makes up to 250 bytes of memory."""
_NUMBERS_ALLOWED = 3_000_000
"""How many numbers may lie in long rows, of which a whole row is one step."""
_OBJECTS_ALLOWED, _OBJECTS_A_RECORD = 100_000, 20
"""How many calls may make objects; each takes longer than any other step. A pickled module takes about three."""
_FROM_TYPE = "torch._tensor._rebuild_from_type_v2"
_WITH_STATE = "torch._utils._rebuild_parameter_with_state"
_UNVERSIONED = "torch._utils._rebuild_tensor"
_PLAIN_TENSORS = {"torch.Tensor", "torch._tensor.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer"}
_NEW_OBJECT = {f"{module}.{name}" for module in ("copyreg", "copy_reg") for name in ("_reconstructor", "__newobj__")}
_SETS = {"builtins.set", "builtins.frozenset", "__builtin__.set", "__builtin__.frozenset"}


class Draft(Unknown):
    """A name in a pickle, or the object that a call of it makes: what its pickle says so far."""

    def __init__(self, name: str, call: Callable[..., Any] | None = None) -> None:
        super().__init__(name)
        self.call = call
        """The harmless function of this name, if it is on the list."""
        self.is_made = False
        self.arguments: tuple[Any, ...] = ()
        self.state: Any = None
        self.entries: dict[Any, Any] | list[Any] | None = None

    def made(self, arguments: tuple[Any, ...]) -> Draft:
        """Return the object that a call of this name with these arguments makes."""
        draft = Draft(self.name)
        draft.is_made, draft.arguments = True, arguments
        return draft


class DraftingUnpickler(PickleChecker):
    """Executes one pickle of any protocol. ``find_name`` returns a :class:`Draft` for whatever may be called."""

    def __init__(
        self,
        data: bytes,
        *,
        find_name: Callable[[str, str], Any],
        find_reference: Callable[[Any], Any],
        records: int = 0,
    ) -> None:
        super().__init__(data, find_name=find_name, find_reference=find_reference, records=records)
        self._known: dict[int, Any] = {}
        self._max_objects = _OBJECTS_ALLOWED + _OBJECTS_A_RECORD * records
        self._objects = 0
        self._max_steps = _STEPS_ALLOWED + _STEPS_A_RECORD * records
        self._numbers = 0

    @property
    def _steps(self) -> dict[int, Step]:
        return _ALL_STEPS

    def execute(self) -> Any:
        """Return what the pickle describes, with drafts in it. Bytes that are no pickle raise errors of many types."""
        return self._run()

    def _count_numbers(self, count: int) -> None:
        self._numbers += count
        if self._numbers > _NUMBERS_ALLOWED:
            raise unsafe(f"its structure holds more than {_NUMBERS_ALLOWED} numbers")

    # --- objects ---

    def _note(self, value: Any) -> None:
        """Do nothing: every name is expected here."""

    def _call(self, function: Any, arguments: tuple[Any, ...]) -> Any:
        if not isinstance(function, Draft) or function.is_made:
            raise TypeError("a call of something that is no name")
        if function.name in _NEW_OBJECT and arguments and isinstance(arguments[0], Draft):
            return _new_object(function.name, arguments)
        if function.name in _SETS:
            return self._set_of(arguments)
        if function.call is OrderedDict:
            return self._ordered(arguments)
        self._count_object()
        found = self._tensor(function, arguments)
        return function.made(arguments) if found is None else found

    def _count_object(self) -> None:
        self._objects += 1
        if self._objects > self._max_objects:
            raise unsafe(f"its structure makes more than {self._max_objects} objects")

    def _tensor(self, function: Draft, arguments: tuple[Any, ...]) -> Any:
        """Return what a function on the list makes of its arguments; ``None`` if it makes nothing of them."""
        match arguments:
            case (Draft() as rebuild, Draft() as kind, tuple(inner), state) if function.name == _FROM_TYPE:
                made = self._call(rebuild, inner)
                return made if kind.name in _PLAIN_TENSORS else _with(kind.made((made,)), state)
            case (TensorSpec() as data, bool(), hooks, _) if function.name == _WITH_STATE and not hooks:
                return data
        if function.call is None:
            return None
        try:
            return function.call(*arguments)
        except UnusualPayloadError:
            return None

    def _set_of(self, arguments: tuple[Any, ...]) -> set[Any]:
        match arguments:
            case ():
                return set()
            case (list() | tuple() | set() as items,):
                return set(self._checked_keys(arguments, list(items)))
        raise TypeError("a set of something else than a list")

    def _ordered(self, arguments: tuple[Any, ...]) -> OrderedDict[Any, Any]:
        """Return a dict, which Python 2 makes of a list of pairs."""
        made: OrderedDict[Any, Any] = OrderedDict()
        match arguments:
            case ():
                return made
            case (list(pairs),) if all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
                keys = self._checked_keys(made, [key for key, _ in pairs])
                made.update(zip(keys, (value for _, value in pairs), strict=True))
                return made
        raise TypeError("a dict of something else than pairs")

    def _new(self, position: int) -> int:
        arguments, kind = self._stack.pop(), self._stack.pop()
        self._stack.append(self._made(kind, arguments))
        return position

    def _new_with_names(self, position: int) -> int:
        named, arguments, kind = self._stack.pop(), self._stack.pop(), self._stack.pop()
        if type(named) is not dict or type(arguments) is not tuple:
            raise TypeError("an object is made of something else than arguments")
        self._stack.append(self._made(kind, (*arguments, named) if named else arguments))
        return position

    def _made(self, kind: Any, arguments: Any) -> Any:
        if type(arguments) is not tuple:
            raise TypeError("an object is made of something else than arguments")
        return self._call(kind, arguments)

    def _build(self, position: int) -> int:
        target = self._stack[-2]
        if isinstance(target, Draft):
            if not target.is_made or target.state is not None:
                raise unsafe("it changes what it refers to by name, or sets the state of an object twice")
            target.state = self._stack.pop()
            return position
        return super()._build(position)

    # --- containers ---

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, Draft) and target.is_made:
            target.entries = [] if target.entries is None else target.entries
            target = target.entries
        if type(target) is not list:
            raise TypeError("an item is appended to an object that is no list")
        target += items

    def _set_all(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, Draft) and target.is_made:
            target.entries = {} if target.entries is None else target.entries
            target = target.entries
        if not isinstance(target, dict) or len(items) % 2:
            raise TypeError("an entry is set in an object that is no dict")
        target.update(zip(self._checked_keys(target, items[::2]), items[1::2], strict=True))

    def _checked_keys(self, target: Any, keys: list[Any]) -> list[Any]:
        """Return keys that can be hashed. A tensor as a key, as in an optimizer that was pickled whole, has no hash."""
        keys = [Draft("torch.Tensor").made((key,)) if isinstance(key, TensorSpec) else key for key in keys]
        if not self._are_keys(target, keys):
            raise unsafe("a key in it is no plain value")
        return keys

    def _add_items(self, position: int) -> int:
        items = self._since_mark()
        target = self._stack[-1]
        if type(target) is not set:
            raise TypeError("an item is added to an object that is no set")
        target.update(self._checked_keys(target, items))
        return position

    def _frozen_set(self, position: int) -> int:
        items = self._since_mark()
        self._stack.append(set(self._checked_keys(items, items)))
        return position

    def _dict(self, position: int) -> int:
        items = self._since_mark()
        self._stack.append({})
        self._set_all(items)
        return position

    def _list(self, position: int) -> int:
        self._stack.append(self._since_mark())
        return position

    # --- what is remembered ---

    def _remember(self, number: int) -> None:
        self._known[number] = self._stack[-1]

    def _recall(self, number: int) -> None:
        self._stack.append(self._known[number])

    def _memoize(self, position: int) -> int:
        self._remember(len(self._known))
        return position

    def _remember_by_text(self, position: int) -> int:
        line, position = self._line(position)
        self._remember(_whole_number(line))
        return position

    def _recall_by_text(self, position: int) -> int:
        line, position = self._line(position)
        self._recall(_whole_number(line))
        return position

    def _pop(self, position: int) -> int:
        if self._marks and self._marks[-1] == len(self._stack):
            self._marks.pop()
        else:
            self._stack.pop()
        return position

    def _pop_mark(self, position: int) -> int:
        self._since_mark()
        return position

    # --- values ---

    def _protocol(self, position: int) -> int:
        if self._data[position] > pickle.HIGHEST_PROTOCOL:
            raise unsafe(f"its structure is a pickle of protocol {self._data[position]}, which is not known")
        return position + 1

    def _line(self, position: int, most: int = _MAX_LINE_BYTES) -> tuple[bytes, int]:
        stop = self._data.index(b"\n", position, position + most)
        return self._data[position:stop], stop + 1

    def _int_text(self, position: int) -> int:
        line, position = self._line(position)
        self._stack.append({b"00": False, b"01": True}[line] if line in (b"00", b"01") else _whole_number(line))
        return position

    def _float_text(self, position: int) -> int:
        line, position = self._line(position)
        self._stack.append(float(line))
        return position

    def _string_text(self, position: int) -> int:
        line, position = self._line(position, len(self._data))
        if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
            raise ValueError("a text without quotation marks")
        self._stack.append(
            _python_2_text(line[1:-1].decode("ascii").encode().decode("unicode_escape").encode("latin1"))
        )
        return position

    def _unicode_text(self, position: int) -> int:
        line, position = self._line(position, len(self._data))
        self._stack.append(line.decode("raw_unicode_escape"))
        return position

    def _stack_name(self, position: int) -> int:
        name, module = self._stack.pop(), self._stack.pop()
        if type(name) is not str or type(module) is not str or len(name) + len(module) > _MAX_NAME_CHARACTERS:
            raise TypeError("a name that is no text")
        self._count_name()
        self._stack.append(self._find_name(module, name))
        return position

    def _frame(self, position: int) -> int:
        return position + 8


def _new_object(function: str, arguments: tuple[Any, ...]) -> Draft:
    """Return the object that a function of ``copyreg`` makes: of a class, its base, and what that one would hold."""
    kind, *rest = arguments
    assert isinstance(kind, Draft)  # as its caller has made sure
    if function.endswith("__newobj__"):
        return kind.made(tuple(rest))
    _, held = rest
    made = kind.made(() if held is None or isinstance(held, dict | list) else (held,))
    made.entries = held if isinstance(held, dict | list) else None
    return made


def _with(draft: Draft, state: Any) -> Draft:
    draft.state = state or None
    return draft


def _whole_number(line: bytes) -> int:
    digits = line.removesuffix(b"L")
    if len(digits) > _MAX_INT_BYTES:
        raise unsafe("a whole number in it is too long")
    return int(digits)


def _python_2_text(data: bytes) -> str | bytes:
    """Return the text of Python 2, which does not say whether it is text."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


def _long_number(data: bytes) -> int:
    if len(data) > _MAX_INT_BYTES:
        raise unsafe("a whole number in it is too long")
    return int.from_bytes(data, "little", signed=True)


def _with_bytes(code: str, make: Callable[[bytes], Any]) -> Step:
    """Return the step of an opcode that a length in the format ``code`` of :mod:`struct` follows, and so many bytes."""
    layout = struct.Struct(code)

    def step(unpickler: PickleChecker, position: int) -> int:
        start = position + layout.size
        stop = start + layout.unpack_from(unpickler._data, position)[0]
        if stop < start:
            raise ValueError("a negative length")
        unpickler._stack.append(make(unpickler._slice(start, stop)))
        return int(stop)

    return step


_ALL_STEPS: dict[int, Step] = {
    **STEPS,
    **{
        ord(code): step
        for code, step in (
            # protocol 0 and 1, and texts of Python 2
            (pickle.INT, DraftingUnpickler._int_text),
            (pickle.LONG, DraftingUnpickler._int_text),
            (pickle.FLOAT, DraftingUnpickler._float_text),
            (pickle.STRING, DraftingUnpickler._string_text),
            (pickle.BINSTRING, _with_bytes("<i", _python_2_text)),
            (pickle.SHORT_BINSTRING, _with_bytes("<B", _python_2_text)),
            (pickle.UNICODE, DraftingUnpickler._unicode_text),
            (pickle.DICT, DraftingUnpickler._dict),
            (pickle.LIST, DraftingUnpickler._list),
            (pickle.PUT, DraftingUnpickler._remember_by_text),
            (pickle.GET, DraftingUnpickler._recall_by_text),
            (pickle.POP, DraftingUnpickler._pop),
            (pickle.POP_MARK, DraftingUnpickler._pop_mark),
            # protocol 2 and later
            (pickle.LONG1, _with_bytes("<B", _long_number)),
            (pickle.LONG4, _with_bytes("<i", _long_number)),
            (pickle.BINBYTES, _with_bytes("<I", bytes)),
            (pickle.SHORT_BINBYTES, _with_bytes("<B", bytes)),
            (pickle.BINBYTES8, _with_bytes("<Q", bytes)),
            (pickle.BYTEARRAY8, _with_bytes("<Q", bytearray)),
            (pickle.SHORT_BINUNICODE, _with_bytes("<B", _text)),
            (pickle.BINUNICODE8, _with_bytes("<Q", _text)),
            (pickle.EMPTY_SET, pushes(set)),
            (pickle.ADDITEMS, DraftingUnpickler._add_items),
            (pickle.FROZENSET, DraftingUnpickler._frozen_set),
            (pickle.NEWOBJ_EX, DraftingUnpickler._new_with_names),
            (pickle.STACK_GLOBAL, DraftingUnpickler._stack_name),
            (pickle.MEMOIZE, DraftingUnpickler._memoize),
            (pickle.FRAME, DraftingUnpickler._frame),
        )
    },
}
# A step of the class above replaces the one of the same name in the table that it extends.
_ALL_STEPS.update(
    {
        ord(pickle.PROTO): DraftingUnpickler._protocol,
        ord(pickle.NEWOBJ): DraftingUnpickler._new,
        ord(pickle.BUILD): DraftingUnpickler._build,
        ord(pickle.BINPUT): with_number("<B", lambda unpickler, number: unpickler._remember(number)),
        ord(pickle.LONG_BINPUT): with_number("<I", lambda unpickler, number: unpickler._remember(number)),
        ord(pickle.BINGET): with_number("<B", lambda unpickler, number: unpickler._recall(number)),
        ord(pickle.LONG_BINGET): with_number("<I", lambda unpickler, number: unpickler._recall(number)),
    }
)
