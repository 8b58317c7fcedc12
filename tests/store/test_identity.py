"""The identity file: a new store is told from a missing one."""

from __future__ import annotations

import json
import secrets
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from ckpt_lib.errors import ConfigError, NotAStoreError
from ckpt_lib.store import open_store
from ckpt_lib.store.identity import IDENTITY_NAME, ensure_identity, init_store, read_identity
from ckpt_lib.store.memory import ALL, MemoryStore


def test_a_store_is_initialised_once(tmp_path: Path) -> None:
    """The first call writes the file, and later ones leave it as it is; two stores have two identities."""
    identity = init_store(str(tmp_path / "store"))
    assert read_identity(open_store(tmp_path / "store")) == identity == init_store(str(tmp_path / "store"))
    assert init_store(str(tmp_path / "other")).uid != identity.uid


def test_a_store_without_identity_is_told(tmp_path: Path) -> None:
    """With what to do about it."""
    with pytest.raises(NotAStoreError, match="ckpt init"):
        read_identity(open_store(tmp_path))


def test_many_at_once_make_one_identity(tmp_path: Path) -> None:
    """Of several first calls, one writes the file and all return what it holds."""
    with ThreadPoolExecutor(8) as threads:
        found = set(threads.map(lambda _: init_store(str(tmp_path / "store")).uid, range(16)))
    assert len(found) == 1


def test_a_store_without_conditions_gets_an_identity() -> None:
    """Written by the one process that writes there."""
    store = MemoryStore(secrets.token_hex(8), replace(ALL, create_if_absent=False))
    ensure_identity(store)
    before = read_identity(store)
    ensure_identity(store)
    assert read_identity(store) == before


@pytest.mark.parametrize("content", ["", "{", "[]", '{"uid": "x"}', '{"uid": 1}'])
def test_a_damaged_identity_is_told(tmp_path: Path, content: str) -> None:
    """A file that is no identity is named with what to do, and left as it is."""
    path = tmp_path / "store" / IDENTITY_NAME
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(NotAStoreError, match="damaged"):
        init_store(str(tmp_path / "store"))
    assert path.read_text() == content


def test_a_later_version_is_read(tmp_path: Path) -> None:
    """Fields that a newer version added do no harm."""
    identity = init_store(str(tmp_path / "store"))
    path = tmp_path / "store" / IDENTITY_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), "region": "eu"}))
    assert read_identity(open_store(tmp_path / "store")).uid == identity.uid


def test_a_scheme_that_no_store_serves(tmp_path: Path) -> None:
    """A URL that no store serves is refused, as everywhere."""
    with pytest.raises(ConfigError, match="no store serves"):
        init_store("nosuch://bucket")
