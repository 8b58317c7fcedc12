"""Stores by URL."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from ckpt_lib.errors import ConfigError
from ckpt_lib.store import location, open_store, registry
from ckpt_lib.store.memory import MemoryStore

NAMES = ["a b", "a%20b", "a#b", "a?b", "a*[b]", "ü", "a::b", "a:b", "a\nb", "'\"", "~", "$HOME", "-rf", "trailing/"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("prefix", ["", "file://"])
def test_a_root_of_any_name_is_that_folder(tmp_path: Path, prefix: str, name: str) -> None:
    """No character of a path is taken for a pattern, an escape, a fragment or a home directory."""
    store = open_store(f"{prefix}{tmp_path}/{name}")
    store.put("e/x", b"1")
    found = [path for path in tmp_path.rglob("*") if path.is_file() and ".ckpt-tmp" not in path.parts]
    assert found == [tmp_path / name / "e" / "x"]
    assert location(store, "e/x") == str(tmp_path / name / "e" / "x")
    assert location(store) == str(tmp_path / name)


def test_a_relative_root_is_relative_to_where_it_was_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that changes its directory later goes on writing to the same place; its URL leads there, too."""
    monkeypatch.chdir(tmp_path)
    store = open_store("checkpoints")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    store.put("e/x", b"1")
    assert (tmp_path / "checkpoints" / "e" / "x").exists()
    assert open_store(store.url).stat("e/x") is not None


def test_a_path_object_is_a_root(tmp_path: Path) -> None:
    """``pathlib`` is how most people spell paths."""
    assert location(open_store(tmp_path), "x") == str(tmp_path / "x")


def test_stores_in_memory_go_by_their_name() -> None:
    """Those of one name are one store; a person reads the URL of a key."""
    store = open_store("memory://one")
    store.put("e/x", b"1")
    assert open_store("memory://one").stat("e/x") == store.stat("e/x")
    assert open_store("memory://two").stat("e/x") is None
    assert location(store, "e/x") == "memory://one/e/x"
    store.delete("e/x")


def test_the_clock_of_a_store_in_memory_can_be_set() -> None:
    """For all clients of that name."""
    store = MemoryStore("clock")
    store.clock = lambda: 1_700_000_000.0
    assert MemoryStore("clock").put("x", b"1").modified_seconds == 1_700_000_000.0


@pytest.mark.parametrize("url", ["nonsense://x", "http://x", "s3://bucket"])
def test_an_unknown_scheme_is_refused_by_name(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With those there are; it never becomes a folder called ``http:``."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"{url.partition(':')[0]}.*file://, memory://"):
        open_store(url)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("url", ["", "a\0b", "\ud800", b"bytes", 7, None])
def test_what_is_neither_a_path_nor_a_url_is_refused(url: str) -> None:
    """Before anything looks for it."""
    with pytest.raises(ConfigError, match="named by a path or a URL"):
        open_store(url)


def test_another_package_serves_its_scheme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By an entry point of the group; one that cannot be loaded is named with its package's line."""
    package = tmp_path / "lake-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: lake\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[ckpt_lib.stores]\nlake = lake:LakeStore\nbroken = lake:Nothing\n")
    (tmp_path / "lake.py").write_text(
        "from ckpt_lib.store.memory import MemoryStore\n"
        "class LakeStore(MemoryStore):\n"
        "    def __init__(self, url):\n        super().__init__(url.removeprefix('lake://'))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    registry._installed.cache_clear()
    try:
        assert type(open_store("lake://x")).__name__ == "LakeStore"
        with pytest.raises(ConfigError, match="lake:Nothing"):
            open_store("broken://x")
        with pytest.raises(ConfigError, match="lake://"):
            open_store("river://x")
    finally:
        registry._installed.cache_clear()
        sys.modules.pop("lake", None)


def test_a_registered_factory_serves_a_scheme_for_a_while(tmp_path: Path) -> None:
    """Contexts may be nested; afterwards all is as before."""
    with registry.registered("file", lambda _: MemoryStore("outer")):
        with registry.registered("file", lambda _: MemoryStore("inner")):
            assert open_store(tmp_path).url == "memory://inner"
        assert open_store(tmp_path).url == "memory://outer"
    assert open_store(tmp_path).url == str(tmp_path)
