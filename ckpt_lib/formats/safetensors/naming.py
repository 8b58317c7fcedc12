"""Names the tensors of a payload, and the groups of files that hold them.

=====================  =========================================================================
group                  what it holds
=====================  =========================================================================
``model``              the tensors of the model, by the names of its state dict
``<name>``             those of one model of several, by its name
``optimizer``          those of the optimizer's state
``state``              all others, by their dotted names in the payload
=====================  =========================================================================
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Collection, Mapping
from typing import Any

from ckpt_lib.core.names import is_device_name
from ckpt_lib.core.payload_keys import MODEL_KEY, OPTIMIZER_KEY
from ckpt_lib.formats.safetensors.header import METADATA_KEY

STATE_FILE = "state.json"
MODEL_GROUP, OPTIMIZER_GROUP, STATE_GROUP = "model", "optimizer", "state"
SUFFIX = ".safetensors"
INDEX_SUFFIX = ".safetensors.index.json"
"""The index of a group of several files, by the name under which Hugging Face's libraries look for it."""

_GROUP = re.compile(r"(?!.*-\d{5,}-of-\d{5,}$)[A-Za-z0-9_][A-Za-z0-9_-]{0,99}")
_RESERVED = {MODEL_GROUP, OPTIMIZER_GROUP, STATE_GROUP}
_DICTS = (dict, OrderedDict)


def file_name(group: str, number: int, count: int) -> str:
    """Return the name of one file of a group; the first is number 1."""
    return f"{group}{SUFFIX}" if count == 1 else f"{group}-{number:05}-of-{count:05}{SUFFIX}"


class Names:
    """The names of one payload's tensors. No two of a group have the same, and each is a name that JSON can hold."""

    def __init__(self, payload: Mapping[str, Any]) -> None:
        self._models = _model_names(payload.get(MODEL_KEY))
        self._taken: set[tuple[str, str]] = set()

    def place(self, dotted_name: str) -> tuple[str, str]:
        """Return the group of a tensor, and its name there as far as nothing else has it."""
        key, is_inner, rest = dotted_name.partition(".")
        if key == MODEL_KEY and is_inner:
            model, is_inner, inner = rest.partition(".")
            return (model, inner) if model in self._models and is_inner else (MODEL_GROUP, rest)
        return (OPTIMIZER_GROUP, rest) if key == OPTIMIZER_KEY and is_inner else (STATE_GROUP, dotted_name)

    def take(self, dotted_name: str, note: str = "") -> tuple[str, str]:
        """Return the group and the name of a tensor, which no other will get; a number tells like names apart."""
        group, wanted = self.place(dotted_name)
        wanted = wanted.encode(errors="backslashreplace").decode() + note
        name, number = wanted, 1
        while name == METADATA_KEY or (group, name) in self._taken:
            number += 1
            name = f"{wanted}#{number}"
        self._taken.add((group, name))
        return group, name

    def is_taken(self, group: str, name: str) -> bool:
        """Tell whether a tensor of the group has this name."""
        return (group, name) in self._taken


def _model_names(state: Any) -> Collection[str]:
    """Return the names of several models, if each can be that of a file."""
    if type(state) not in _DICTS or not all(type(item) in _DICTS for item in state.values()):
        return ()
    names = [name for name in state if type(name) is str and _can_be_a_file(name)]
    is_usable = len(names) == len(state) == len({name.casefold() for name in names})
    return frozenset(names) if is_usable else ()


def _can_be_a_file(name: str) -> bool:
    is_free = name.casefold() not in _RESERVED and not is_device_name(name)
    return is_free and _GROUP.fullmatch(name) is not None
