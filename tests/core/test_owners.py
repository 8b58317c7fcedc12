"""Whether the process that wrote something is proven dead."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_lib.core import owners
from ckpt_lib.core.owners import Owner, is_proven_dead
from tests.store.helpers import Fork, eventually


def _ended_child() -> Owner:
    with Fork(lambda tell: tell(Owner.current().model_dump_json())) as child:
        owner = Owner.model_validate_json(child.heard())
        child.wait()
    return owner


def test_only_a_process_of_this_system_can_be_proven_dead() -> None:
    """The same number elsewhere, before the last boot, in another container or a clone of the machine says nothing."""
    dead = _ended_child()
    assert is_proven_dead(dead)
    for system in ("another boot/1", dead.system + "0", ""):
        assert not is_proven_dead(dead.model_copy(update={"system": system}))
    assert not is_proven_dead(dead.model_copy(update={"host": dead.host + "-clone"}))


@given(start=st.text("0123456789", min_size=1, max_size=12))
def test_a_number_that_was_given_again_is_not_the_owner(start: str) -> None:
    """A living process that began at another time is somebody else."""
    me = Owner.current()
    assert is_proven_dead(me.model_copy(update={"started": start})) is (start != me.started)


@pytest.mark.skipif(not Path("/proc/self/ns/pid").exists(), reason="there is no /proc")
def test_a_system_is_a_boot_and_a_namespace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is gone here may be alive in another container, and its number means nothing since a boot."""
    dead = _ended_child()
    assert is_proven_dead(dead)
    (tmp_path / "boot_id").write_text("another boot\n")
    (tmp_path / "self" / "ns").mkdir(parents=True)
    (tmp_path / "self" / "ns" / "pid").touch()
    for name, path in (("_BOOT_ID", tmp_path / "boot_id"), ("_PROCESSES", tmp_path)):
        with monkeypatch.context() as patched:
            patched.setattr(owners, name, path)
            assert not is_proven_dead(dead)
    assert is_proven_dead(dead)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="there is no /proc")
def test_a_process_whose_first_thread_ended_is_not_dead() -> None:
    """It looks like one that was killed; its other threads write on."""
    code = "import ctypes, threading, time; threading.Thread(target=time.sleep, args=(60,)).start(); "
    child = subprocess.Popen([sys.executable, "-c", f"{code}ctypes.CDLL(None).pthread_exit(None)"])
    try:
        status = Path(f"/proc/{child.pid}/stat")
        eventually(lambda: status.read_text().rpartition(")")[2].split()[0] == "Z")
        started = owners._start(child.pid)
        assert started not in (None, "ended")
        assert not is_proven_dead(Owner.current().model_copy(update={"pid": child.pid, "started": started}))
    finally:
        child.kill()
        child.wait()


def test_a_killed_process_that_nobody_waited_for_is_dead() -> None:
    """A zombie has its number, and does nothing any more."""
    with Fork(lambda _: time.sleep(60)) as child:
        started = owners._start(child.pid)
        assert started is not None
        owner = Owner.current().model_copy(update={"pid": child.pid, "started": started})
        assert not is_proven_dead(owner)
        os.kill(child.pid, signal.SIGKILL)
        eventually(lambda: is_proven_dead(owner))


def test_a_process_that_cannot_be_seen_is_not_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where /proc shows users their own processes alone (hidepid), one that is not shown may be at work."""
    me, dead = Owner.current(), _ended_child()
    monkeypatch.setattr(owners, "_start", lambda _: None)
    assert not is_proven_dead(me)
    assert is_proven_dead(dead)
