"""Reads the small YAML files that people write: a configuration, a retention policy."""

from __future__ import annotations

import os
import stat
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from ckpt_lib.errors import ConfigError

MAX_FILE_BYTES = 65_536


class _Loader(yaml.SafeLoader):
    """Accepts only plain values. It refuses aliases, which could stand for any amount of text, and repeated keys."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not read: repeat the value")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                problem = f"the key {key.value[:100]!r} is there twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep=deep)


def read_yaml(path: str | os.PathLike[str], what: str) -> Any:
    """Return the content of a YAML file. ``what`` names the file in errors.

    Raises :class:`ConfigError` unless the file is a regular one of at most 64 KiB with plain values.
    """
    try:
        with open(Path(path), "rb", opener=_open_at_once) as file:
            kind = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(kind):
                raise ConfigError(f"{what} is no regular file", path=str(path))
            text = file.read(MAX_FILE_BYTES + 1)
        if len(text) > MAX_FILE_BYTES:
            raise ConfigError(f"{what} is too large", path=str(path), expected=f"at most {MAX_FILE_BYTES} bytes")
        return yaml.load(text.decode("utf-8"), _Loader)  # noqa: S506  # a SafeLoader that takes less
    except RecursionError as error:
        raise ConfigError(f"{what} cannot be read: it is nested too deeply", path=str(path)) from error
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{what} cannot be read: {error}", path=str(path)) from error


def _open_at_once(path: str, flags: int) -> int:
    """Open without blocking, as a FIFO would until another process opens its other end."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
