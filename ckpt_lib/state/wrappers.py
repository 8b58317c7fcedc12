"""Tells the levels that wrappers add to the names of a model's state from names that are the model's own.

``DistributedDataParallel`` and ``DataParallel`` put ``module.`` before the names of what they wrap, ``torch.compile``
puts ``_orig_mod.``. A model may have submodules of these names itself. Of the model at hand the objects tell which is
which. Of a stored state there are only names: such a level is a wrapper's where it stands alone and the model has no
level of that name in its place. A name without the levels of wrappers is called bare here.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any

_LEVELS = ("module", "_orig_mod")
_MOST_WRAPPERS = 4
"""More wrappers around one module are not looked for."""
_MOST_LEVELS = 200
"""Names with more dots are not looked into: no model has them, and a tree of them would be large."""
_CHECKPOINT_WRAPPER = "_checkpoint_wrapped_module"
"""The level of activation checkpointing, which ``named_parameters()`` shows and ``state_dict()`` does not."""


@dataclass
class _Level:
    """One level of the tree that dotted names make."""

    prefix: str = ""
    """What stands before the names of this level, in the spelling of the state."""
    names: dict[str, str] = field(default_factory=dict)
    """Full names by the last part of the bare ones."""
    below: dict[str, _Level] = field(default_factory=dict)

    def next_below(self, part: str) -> _Level:
        if part not in self.below:
            self.below[part] = _Level(f"{self.prefix}{part}.")
        return self.below[part]

    @property
    def wrapped(self) -> _Level | None:
        """The level below, if a wrapper may have added this one: it has nothing else."""
        if self.names or len(self.below) != 1:
            return None
        return next((self.below[part] for part in _LEVELS if part in self.below), None)


class ModelNames:
    """The names in a model's state, and what they are without its wrappers. They are looked at once that is asked."""

    def __init__(self, model: Any, names: Iterable[str]) -> None:
        self._model = model
        self._names = tuple(names)

    @cached_property
    def by_bare_name(self) -> Mapping[str, str]:
        """The names by what they are without wrappers."""
        return {self.bare(name): name for name in self._names}

    @cached_property
    def _bare_prefixes(self) -> Mapping[str, str]:
        return dict(_prefixes_of(self._model))

    @cached_property
    def _tree(self) -> _Level:
        tree = _tree_of(self.by_bare_name)
        for prefix, bare in self._bare_prefixes.items():  # the wrapped modules come after their wrappers
            if (level := _level_at(tree, bare)) is not None:
                level.prefix = prefix
        return tree

    def bare(self, name: str) -> str:
        """Return a name in the model's state without the levels that its wrappers added."""
        prefix = _longest_prefix(name, self._bare_prefixes)
        return name if prefix is None else self._bare_prefixes[prefix] + name[len(prefix) :]

    def spellings_of(self, stored: Iterable[str]) -> dict[str, str]:
        """Map stored names to the model's, with the levels of wrappers dropped and added as the model has them.

        Names that the model does not have are mapped as if it had them.
        """
        names = list(stored)
        found, prefixes = _paired(_tree_of({name: name for name in names if is_usual(name)}), self._tree)
        return {name: found.get(name) or _with_prefix_of(name, prefixes) for name in names}


def bare_spellings(names: Iterable[str]) -> dict[str, str]:
    """Map names to what they are if every level that a wrapper may have added was added by one."""
    known = list(names)
    tree = _tree_of({name: name for name in known if is_usual(name)})
    return {name: _bare_in(tree, name) if is_usual(name) else name for name in known}


def is_usual(name: str) -> bool:
    """Tell whether a name has as few levels as those of models."""
    return name.count(".") <= _MOST_LEVELS


def state_name(parameter: str) -> str:
    """Return the name that a parameter has in ``state_dict()``, from its name in ``named_parameters()``."""
    return parameter.replace(f"{_CHECKPOINT_WRAPPER}.", "")


def starts_of(name: str) -> Iterator[str]:
    """Yield ``a.b.``, ``a.`` and the empty text for ``a.b.c``; of a forged name of many levels the outer ones."""
    parts = name.split(".", _MOST_LEVELS)[:-1]
    for count in range(len(parts), 0, -1):
        yield ".".join([*parts[:count], ""])
    yield ""


def _level_added_by(module: Any) -> str | None:
    """Return the level that a wrapper adds to names; ``None`` for any other module."""
    from torch import nn

    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return "module"
    # Importing these takes long. A model cannot be of their classes before somebody has imported them.
    if _is_of(module, "torch._dynamo.eval_frame", "OptimizedModule"):
        return "_orig_mod"
    if _is_of(module, "torch.distributed.algorithms._checkpoint.checkpoint_wrapper", "ActivationWrapper"):
        return _CHECKPOINT_WRAPPER
    return None


def _is_of(module: Any, home: str, name: str) -> bool:
    kind = getattr(sys.modules.get(home), name, None)
    return isinstance(kind, type) and isinstance(module, kind)


def _prefixes_of(model: Any) -> Iterator[tuple[str, str]]:
    """Yield the prefix of each module's names in the state, and the bare prefix, outer modules first."""
    waiting: deque[tuple[Any, str, str, frozenset[int]]] = deque([(model, "", "", frozenset())])
    while waiting:
        module, prefix, bare, around = waiting.popleft()
        yield prefix, bare
        added = _level_added_by(module)
        for part, child in getattr(module, "_modules", {}).items():
            if child is None or id(child) in around:  # a module that contains itself has no end
                continue
            within = around | {id(module)}
            if part != added:
                waiting.append((child, f"{prefix}{part}.", f"{bare}{part}.", within))
            elif added == _CHECKPOINT_WRAPPER:
                waiting.append((child, prefix, bare, within))
            else:
                waiting.append((child, f"{prefix}{part}.", bare, within))


def _tree_of(names: Mapping[str, str]) -> _Level:
    """Return the tree of the bare names; each leads to a full name."""
    root = _Level()
    for bare, name in names.items():
        level = root
        *parts, last = bare.split(".")
        for part in parts:
            level = level.next_below(part)
        level.names[last] = name
    return root


def _level_at(level: _Level, prefix: str) -> _Level | None:
    for part in prefix.split(".")[:-1]:
        found = level.below.get(part)
        if found is None:
            return None
        level = found
    return level


def _paired(stored: _Level, wanted: _Level) -> tuple[dict[str, str], dict[str, str]]:
    """Return which stored names, and which of their prefixes, stand for which of the model.

    Where levels of the stored names may be a wrapper's, the reading that gives more of the model's names is taken.
    """
    best: tuple[dict[str, str], dict[str, str]] = ({}, {stored.prefix: wanted.prefix})
    for level in _readings(stored):
        names = {name: wanted.names[last] for last, name in level.names.items() if last in wanted.names}
        prefixes = {level.prefix: wanted.prefix}
        for part in level.below.keys() & wanted.below.keys():
            more_names, more_prefixes = _paired(level.below[part], wanted.below[part])
            names |= more_names
            prefixes |= more_prefixes
        if len(names) > len(best[0]):
            best = names, prefixes
    return best


def _readings(level: _Level) -> Iterator[_Level]:
    """Yield a level, and the levels below that take its place if it is a wrapper's."""
    return islice(_chain_of(level), _MOST_WRAPPERS + 1)


def _chain_of(level: _Level) -> Iterator[_Level]:
    found: _Level | None = level
    while found is not None:
        yield found
        found = found.wrapped


def _bare_in(level: _Level, name: str) -> str:
    kept = []
    *parts, last = name.split(".")
    for part in parts:
        if level.wrapped is None:
            kept.append(part)
        level = level.below[part]
    return ".".join([*kept, last])


def _longest_prefix(name: str, prefixes: Mapping[str, Any]) -> str | None:
    return next((start for start in starts_of(name) if start in prefixes), None)


def _with_prefix_of(name: str, prefixes: Mapping[str, str]) -> str:
    prefix = _longest_prefix(name, prefixes)
    return name if prefix is None else prefixes[prefix] + name[len(prefix) :]
