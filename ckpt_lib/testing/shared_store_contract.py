"""Tests what a store must do besides that several processes open by its URL."""

from __future__ import annotations

import subprocess
import sys

from ckpt_lib.store import Store
from ckpt_lib.testing.store_contract import StoreContract, get, keys, upload

_PROCESS = """
import sys
from ckpt_lib.store import ABSENT, open_store
from ckpt_lib.errors import VersionConflictError
from ckpt_lib.testing.store_contract import add

store, number = open_store(sys.argv[1]), sys.argv[2]
print("ready", flush=True)
sys.stdin.readline()
"""
_CREATE = """
won = []
for key in range(100):
    try:
        store.put(f"e/{key}", number.encode(), if_version=ABSENT)
        won.append(key)
    except VersionConflictError:
        pass
print(won)
"""
_ADD = """
add(store, "e/x", 50)
print("done")
"""
_KILLED = """
upload = store.open_write("e/x")
upload.write(bytes(100_000))
print("begun", flush=True)
sys.stdin.readline()
"""


class SharedStoreContract(StoreContract):
    """For stores that other processes open by ``store.url``."""

    processes = 3

    def start(self, store: Store, code: str, number: int = 0) -> subprocess.Popen[str]:
        """Start a process that waits for a line, then runs ``code`` with ``store`` and ``number``."""
        command = [sys.executable, "-c", _PROCESS + code, store.url, str(number)]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        return child

    def run(self, store: Store, code: str) -> list[str]:
        """Run ``code`` in some processes at once; return what each printed."""
        children = [self.start(store, code, number) for number in range(self.processes)]
        for child in children:
            assert child.stdin is not None
            child.stdin.write("\n")
            child.stdin.flush()
        outputs = [child.communicate(timeout=60)[0] for child in children]
        assert [child.returncode for child in children] == [0] * self.processes
        return outputs

    def test_one_of_many_processes_creates_each_key(self, store: Store) -> None:
        """Each key is created by the one that was told so."""
        assert store.capabilities.create_if_absent
        won = [line.strip("[]\n").split(", ") for line in self.run(store, _CREATE)]
        assert sorted(int(key) for found in won for key in found if key) == list(range(100))
        for number, found in enumerate(won):
            assert all(get(store, f"e/{key}") == b"%d" % number for key in found if key)

    def test_no_change_of_a_process_is_lost(self, store: Store) -> None:
        """Numbers that several processes add to at once are the sum of all."""
        assert store.capabilities.replace_if_version
        store.put("e/x", b"0")
        self.run(store, _ADD)
        assert get(store, "e/x") == b"%d" % (50 * self.processes)

    def test_an_upload_of_a_killed_process_never_appears(self, store: Store) -> None:
        """Its key can be written by others."""
        child = self.start(store, _KILLED)
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write("\n")
        child.stdin.flush()
        assert child.stdout.readline() == "begun\n"
        child.kill()
        child.communicate()
        assert keys(store, recursive=True) == []
        upload(store, "e/x", b"1")
        assert keys(store, recursive=True) == ["e/x"]
