"""The formats and kinds of stores that damages and attacks are tried on, and the files of such stores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ckpt_lib.formats import format_named
from ckpt_lib.store.memory import ALL, SCHEME, MemoryStore
from ckpt_lib.store.registry import registered
from tests.formats.every_format import NPZ, options_of
from tests.plugins.installing import npz_installed
from tests.torture.places import LOCAL, MISSING, lacks_conditions

FORMATS = ("torch", "safetensors", "torch+zstd", "torch+planes", NPZ)
KINDS = (LOCAL, *MISSING)
"""One more than formats: counted through side by side, each format meets each kind."""
SETTINGS = len(FORMATS) * len(KINDS)


@dataclass(frozen=True)
class Setting:
    """A format on a kind of store."""

    format: str = "torch"
    kind: str = LOCAL

    def __str__(self) -> str:
        return f"{self.format}, {self.kind}"

    @property
    def options(self) -> dict[str, Any]:
        """The options of a configuration that saves there."""
        return {**options_of(self.format), "single_writer": lacks_conditions(self.kind)}

    @property
    def suffix(self) -> str:
        """What follows the id in the name of a payload: nothing for a folder."""
        return format_named(self.format).suffix.removesuffix("/")


def setting(number: int) -> Setting:
    """The setting of this number: every thirty in a row are all different."""
    return Setting(FORMATS[number % len(FORMATS)], KINDS[number % len(KINDS)])


@contextmanager
def everything_installed() -> Iterator[None]:
    """Have the format of another package, and in memory the stores that each lack something."""
    with ExitStack() as stack:
        stack.enter_context(npz_installed())
        stack.enter_context(registered("memory", _lacking_store))
        yield


def _lacking_store(url: str) -> MemoryStore:
    first = url.removeprefix(SCHEME).partition("/")[0]
    return MemoryStore(url, replace(ALL, **dict.fromkeys(_LACKS.get(first, ()), False)))


def slug(kind: str) -> str:
    """The first part of the names of stores in memory of a kind."""
    return kind.replace(" ", "-")


_LACKS = {slug(kind): lacks for kind, lacks in MISSING.items()}


@dataclass(frozen=True)
class Site:
    """Stores of one kind side by side. Each is a folder of ``root``, on the disk or by the same path in memory."""

    root: Path
    kind: str = LOCAL

    def url(self, store: str = "") -> str:
        """The URL of a store, or of what lies at a path in it."""
        path = self.root / store
        return str(path) if self.kind == LOCAL else f"{SCHEME}{slug(self.kind)}{path.as_posix()}"

    def read(self, path: Path) -> bytes | None:
        """The bytes of a file; ``None`` if there is none."""
        if self.kind == LOCAL:
            return path.read_bytes() if path.is_file() else None
        store, key = self._find(path)
        try:
            with store.open_read(key) as reader:
                return bytes(reader.read_at(0, reader.size_bytes))
        except FileNotFoundError:
            return None

    def write(self, path: Path, data: bytes | None) -> None:
        """Put bytes past the library, as a disk or a person would; ``None`` takes the file away."""
        if self.kind == LOCAL:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True) if data is None else path.write_bytes(data)
            return
        store, key = self._find(path)
        store.delete(key) if data is None else store.put(key, data)

    def files(self) -> dict[Path, bytes]:
        """Everything that lies in any of the stores."""
        if self.kind == LOCAL:
            return {path: path.read_bytes() for path in sorted(self.root.rglob("*")) if path.is_file()}
        start = f"{slug(self.kind)}{self.root.as_posix()}/"
        found: dict[Path, bytes] = {}
        for name, content in MemoryStore._contents.items():
            if name.startswith(start):
                folder = self.root / name.removeprefix(start)
                found |= {folder / key: data for key, (data, _) in content.objects.items()}
        return dict(sorted(found.items()))

    def discard(self) -> None:
        """Free what the stores in memory take."""
        start = f"{slug(self.kind)}{self.root.as_posix()}/"
        for name in [name for name in MemoryStore._contents if name.startswith(start)]:
            del MemoryStore._contents[name]

    def _find(self, path: Path) -> tuple[MemoryStore, str]:
        name, *parts = path.relative_to(self.root).parts
        return MemoryStore(self.url(name)), "/".join(parts)


def told_settings(counted: Mapping[Setting, int], without: Mapping[str, str] | None = None) -> str:
    """How often each format and each kind of store was struck; ``without`` has a word for what has no meaning."""
    without = without or {}
    formats, kinds = Counter[str](), Counter[str]()
    for found, number in counted.items():
        formats[found.format] += number
        kinds[found.kind] += number
    parts = [f"{without.get(name, formats[name])} {name}" for name in FORMATS]
    stores = [f"{without.get(name, kinds[name])} {name}" for name in KINDS]
    return f"; formats: {', '.join(parts)}; stores: {', '.join(stores)}"
