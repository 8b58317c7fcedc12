"""Free space: too little of it is said before anything is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckpt_lib.errors import StorageFullError
from ckpt_lib.formats.torch.writing import ArchiveLayout
from ckpt_lib.store.local import LocalStore
from tests.helpers import MakeManager, experiment_folder, ids, payload_path, save
from tests.saving.failing_stores import files

pytestmark = pytest.mark.usefixtures("_no_waiting")


def test_too_little_space_is_said_before_anything_is_written(
    make_manager: MakeManager, store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error has how much is needed, how much is there, and where."""
    manager = make_manager()
    save(manager, 1)
    before = files(store_path)
    monkeypatch.setattr(LocalStore, "free_bytes", lambda self: 5000)
    monkeypatch.setattr(LocalStore, "open_write", lambda self, key: pytest.fail("something was written"))
    with pytest.raises(StorageFullError) as raised:
        save(manager, 2)
    needed_bytes = int(raised.value.expected.split()[0])  # type: ignore[attr-defined]
    assert needed_bytes > payload_path(manager, ids(manager)[0]).stat().st_size
    assert raised.value.got == "5000 bytes free"
    assert raised.value.path == str(experiment_folder(manager))
    assert files(store_path) == before


def test_where_there_is_plenty_nothing_is_predicted_twice(
    make_manager: MakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Laying a payload out takes as long as writing a small one: the first save's size is enough to go by."""
    asked: list[int] = []
    original = ArchiveLayout.size_bytes

    def counted(self: ArchiveLayout) -> int:
        asked.append(original.__get__(self))
        return asked[-1]

    monkeypatch.setattr(ArchiveLayout, "size_bytes", property(counted))
    manager = make_manager(save_rng=False)
    saved = [save(manager, epoch) for epoch in range(3)]
    assert asked == [payload_path(manager, saved[0]).stat().st_size]
    monkeypatch.setattr(LocalStore, "free_bytes", lambda self: 36_000)
    save(manager, 4)
    assert len(asked) == 2


def test_a_store_that_does_not_tell_is_written_to(make_manager: MakeManager, monkeypatch: pytest.MonkeyPatch) -> None:
    """As object stores do not, and some network file systems."""
    monkeypatch.setattr(LocalStore, "free_bytes", lambda self: None)
    save(make_manager(), 1)


def test_a_file_system_that_says_it_has_no_size_does_not_tell(tmp_path: Path) -> None:
    """``/proc`` is one."""
    assert LocalStore("/proc").free_bytes() is None
    assert (LocalStore(str(tmp_path / "not/there/yet")).free_bytes() or 0) > 0
