"""Converts the values of a run's configuration to values that JSON can hold.

==============================================  ==========================================
given                                           stored
==============================================  ==========================================
NumPy scalar, 0-d array or tensor               the number
array or tensor of at most 1,000 elements       nested lists
``Path``                                        its text
``Enum``                                        its value
dataclass, ``Namespace``, pydantic model        a mapping
date, time, ``timedelta``, dtype, device, UUID  their text
``tuple``, ``set``                              a list; sets are sorted by their text
key that is a number, a boolean or ``None``     its text
NaN and infinities                              the texts "NaN", "Infinity" and "-Infinity"
==============================================  ==========================================
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import enum
import json
import math
import os
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from ckpt_lib.core.wording import shown
from ckpt_lib.errors import ConfigError

MAX_CONFIG_BYTES = 2**20
MAX_LEVELS = 100
MAX_ELEMENTS = 1_000
MAX_VALUES = 10_000
_TEXTS = (datetime.date, datetime.time, datetime.timedelta, uuid.UUID)


def plain_mapping(value: Any, name: str) -> dict[str, Any]:
    """Return a mapping, or an object with named fields, as a dict of plain values. Paths in errors begin with ``name``.

    Raises :class:`~ckpt_lib.errors.ConfigError` with the path of the first value that cannot be stored.
    """
    fields = _fields(value)
    if fields is None:
        raise ConfigError(
            f"{name} must be a mapping, a dataclass or a Namespace",
            expected="{'learning_rate': 0.1}",
            got=type(value).__name__,
        )
    return _Conversion(name).mapping(fields, name, 0)


def check_run_config(config: Any) -> dict[str, Any]:
    """Return a run's configuration as JSON holds it, or raise :class:`ConfigError` for what a manifest cannot store."""
    if config is None:
        return {}
    plain = plain_mapping(config, "config")
    try:
        text = json.dumps(plain, allow_nan=False, ensure_ascii=False)
        text.encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the run's config cannot be stored as JSON: {error}", expected="text in Unicode") from error
    if reason := config_excess(plain, len(text)):
        raise ConfigError(f"the run's config cannot be stored: {reason}", hint="Large values belong in extra_state.")
    return plain


def config_excess(config: Any, size_bytes: int) -> str | None:
    """Name the limit that a run's configuration exceeds. Writers and readers ask the same."""
    if size_bytes > MAX_CONFIG_BYTES:
        return f"it takes {size_bytes} bytes, more than {MAX_CONFIG_BYTES}"
    if is_deeper(config, MAX_LEVELS):
        return f"it is nested too deeply, more than {MAX_LEVELS} levels"
    if is_deeper(config, MAX_LEVELS, most_values=MAX_VALUES):
        return f"it has more than {MAX_VALUES} values"
    return None


def is_deeper(value: Any, levels: int, *, most_values: int | None = None) -> bool:
    """Tell whether JSON nests more than ``levels`` deep or holds more than ``most_values``. It does not recurse."""
    layer, count = [value], 0
    for _ in range(levels + 1):
        if not layer:
            return False
        containers = [item for item in layer if isinstance(item, dict | list)]
        count += sum(map(len, containers))
        if most_values is not None and count > most_values:
            return True
        layer = [item for found in containers for item in (found.values() if isinstance(found, dict) else found)]
    return bool(layer)


def changed_values(given: Any, stored: Any, path: str) -> Iterator[str]:
    """Describe each value whose type :func:`plain_mapping` changed, such as "config.betas: tuple as list".

    Numbers that stay numbers, and objects with fields that become a mapping, are left out.
    """
    fields = _fields(given)
    if fields is not None and isinstance(stored, dict):
        for (key, value), (name, plain) in zip(fields.items(), stored.items(), strict=True):
            entry_path = f"{path}.{name}"
            if not isinstance(key, str):
                yield f"{entry_path}: key of type {type(key).__name__} as str"
            yield from changed_values(value, plain, entry_path)
        return
    if isinstance(given, list | tuple) and isinstance(stored, list):
        for number, (value, plain) in enumerate(zip(given, stored, strict=True)):
            yield from changed_values(value, plain, f"{path}[{number}]")
    if (isinstance(stored, str | list) and not isinstance(given, type(stored))) or isinstance(given, enum.Enum):
        yield f"{path}: {_kind(given)} as {type(stored).__name__}"


def _kind(value: Any) -> str:
    return repr(float(value)) if isinstance(value, float) else type(value).__name__


class _Conversion:
    """One call of :func:`plain_mapping`. It counts values, since a few lists that share parts may stand for many."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._count = 0

    def plain(self, value: Any, path: str, level: int) -> Any:
        if level > MAX_LEVELS:
            raise ConfigError(f"{self._name} is nested too deeply", expected=f"at most {MAX_LEVELS} levels")
        if isinstance(value, enum.Enum):
            value = value.value
        if value is None or isinstance(value, bool | str | int | float):
            return _scalar(value)
        if (fields := _fields(value)) is not None:
            return self.mapping(fields, path, level)
        if isinstance(value, list | tuple | set | frozenset):
            self._add(len(value))
            items = [self.plain(item, f"{path}[{number}]", level + 1) for number, item in enumerate(value)]
            return items if isinstance(value, list | tuple) else sorted(items, key=str)
        return self._of_library(value, path, level)

    def mapping(self, fields: Mapping[Any, Any], path: str, level: int) -> dict[str, Any]:
        self._add(len(fields))
        found: dict[str, Any] = {}
        for key, value in fields.items():
            name = _key(key, path)
            if name in found:
                raise ConfigError(f"{path} has two keys that are the same text", got=repr(name))
            found[name] = self.plain(value, f"{path}.{name}", level + 1)
        return found

    def _add(self, count: int) -> None:
        self._count += count
        if self._count > MAX_VALUES:
            raise ConfigError(
                f"{self._name} has more than {MAX_VALUES} values", hint="Large values belong in extra_state."
            )

    def _of_library(self, value: Any, path: str, level: int) -> Any:
        """Convert a value of NumPy, PyTorch or the standard library, without importing either of the first two."""
        if isinstance(value, os.PathLike):
            return os.fspath(value)
        if isinstance(value, _TEXTS):
            return value.isoformat() if hasattr(value, "isoformat") else str(value)
        kind = type(value)
        is_tensor = callable(getattr(value, "tolist", None)) and hasattr(value, "shape")
        if kind.__module__.partition(".")[0] not in ("torch", "numpy") or not (is_tensor or _is_dtype_or_device(kind)):
            raise _refusal(value, path)
        return self._of_array(value, path, level) if is_tensor else str(value)

    def _of_array(self, value: Any, path: str, level: int) -> Any:
        shape = tuple(getattr(value, "shape", ()))
        if math.prod(shape) > MAX_ELEMENTS:
            raise ConfigError(
                f"{path} is too large for a configuration",
                expected=f"at most {MAX_ELEMENTS} elements",
                got=f"shape {shape}",
                hint="Tensors and arrays belong in extra_state.",
            )
        listed = value.tolist()
        if type(listed) is type(value):  # a long double has no plain number
            raise _refusal(value, path)
        return self.plain(listed, path, level + 1)


def _scalar(value: Any) -> Any:
    """Convert a number or text of a subclass to the plain type."""
    if isinstance(value, float):
        return json_number(float(value))
    for kind in (bool, int):
        if isinstance(value, kind):
            return kind(value)
    return value if value is None else str.__str__(value)


def _is_dtype_or_device(kind: type) -> bool:
    return any(base.__name__ in ("dtype", "device") for base in kind.__mro__)


def _fields(value: Any) -> Mapping[Any, Any] | None:
    if isinstance(value, Mapping):
        return value
    if isinstance(value, argparse.Namespace):
        return vars(value)
    if isinstance(value, BaseModel):
        return {name: getattr(value, name) for name in type(value).model_fields}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return None


def _key(key: Any, path: str) -> str:
    if isinstance(key, enum.Enum):
        key = key.value
    if isinstance(key, str):
        return str.__str__(key)
    if key is None or isinstance(key, bool | int | float):
        return str(key)
    raise ConfigError(f"{path} has a key that cannot be stored", expected="text or a number", got=shown(key))


def json_number(value: float) -> float | str:
    """Return a number as JSON holds it, which has neither NaN nor infinities: their names are stored as text."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _refusal(value: Any, path: str) -> ConfigError:
    return ConfigError(
        f"{path} cannot be stored",
        expected="numbers, text, booleans, None, paths, dates, enums, and lists, mappings and dataclasses of them",
        got=f"{type(value).__module__}.{type(value).__qualname__}",
        hint="Leave it out, or pass its name. CheckpointManager.check() tells this before training.",
    )
