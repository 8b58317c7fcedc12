"""Payload files kept in memory: bounded, verified, and nobody else's."""

from __future__ import annotations

import io
import threading

import pytest

from ckpt_lib.errors import CorruptCheckpointError
from ckpt_lib.stream import VerifiedFile
from ckpt_lib.stream.cache import CacheKey, PayloadCache
from tests.stream.samples import entry_of


def key(name: str) -> CacheKey:
    return (name, "1", "0" * 64)


def found(cache: PayloadCache, name: str, data: bytes) -> bytes | None:
    """What the cache has, of a file that held ``data``."""
    return content(cache.open(key(name), entry_of(data)))


def admitted(cache: PayloadCache, name: str, data: bytes) -> bytes | None:
    return content(cache.admit(key(name), io.BytesIO(data), entry_of(data)))


def content(file: VerifiedFile | None) -> bytes | None:
    if file is None:
        return None
    with file:
        return bytes(file.view(0, file.size_bytes))


def test_the_cache_forgets_what_was_not_asked_for_longest() -> None:
    """Within its bound in bytes at any time; what is larger than it is not taken in."""
    cache = PayloadCache(300)
    for name in "abc":
        assert admitted(cache, name, name.encode() * 100) == name.encode() * 100
    assert found(cache, "a", b"a" * 100) == b"a" * 100
    assert admitted(cache, "d", b"d" * 150) == b"d" * 150
    assert [found(cache, name, name.encode() * 100) for name in "abc"] == [b"a" * 100, None, None]
    assert found(cache, "d", b"d" * 150) == b"d" * 150
    assert cache.size_bytes == 250
    source = io.BytesIO(b"x" * 301)
    assert cache.admit(key("x"), source, entry_of(b"x" * 301)) is None
    assert source.read() == b"x" * 301
    assert admitted(cache, "d", b"D" * 300) == b"D" * 300
    assert found(cache, "a", b"a" * 100) is None
    assert found(cache, "d", b"D" * 300) == b"D" * 300
    cache.clear()
    assert cache.size_bytes == 0
    assert found(cache, "d", b"D" * 300) is None


@pytest.mark.parametrize("damaged", [b"x" * 99 + b"y", b"x" * 99, b"x" * 101], ids=["altered", "short", "long"])
def test_damage_is_not_taken_into_the_cache(damaged: bytes) -> None:
    """A damaged payload raises the usual error and leaves nothing in the cache."""
    cache = PayloadCache(1000)
    with pytest.raises(CorruptCheckpointError) as refused:
        cache.admit(key("a"), io.BytesIO(damaged), entry_of(b"x" * 100))
    assert refused.value.damages
    assert found(cache, "a", b"x" * 100) is None
    assert cache.size_bytes == 0


def test_no_reader_changes_what_is_kept() -> None:
    """Each reader has memory of its own, the first one too, which stays when the copy is dropped."""
    data = bytes(range(200))
    cache = PayloadCache(len(data))
    readers = [cache.admit(key("a"), io.BytesIO(data), entry_of(data)), cache.open(key("a"), entry_of(data))]
    views = [reader.view(0, 200) for reader in readers if reader]
    for view in views:
        assert bytes(view) == data
        view[:] = bytes(200)
    assert found(cache, "a", data) == data
    cache.clear()
    assert [bytes(view) for view in views] == [bytes(200)] * 2


def test_threads_share_a_cache() -> None:
    """Threads that share a small cache each get the payload that they requested."""
    cache = PayloadCache(250)
    wrong: list[str] = []

    def work(seed: int) -> None:
        for turn in range(50):
            name = "abcde"[(seed + turn * turn) % 5]
            data = name.encode() * 100
            if (found(cache, name, data) or admitted(cache, name, data)) != data:
                wrong.append(name)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert cache.size_bytes <= 250
