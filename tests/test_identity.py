"""The identity file: a new store is told from a missing one."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ckpt_lib import CheckpointConfig, CheckpointManager, init_store, list_experiments, open_store
from ckpt_lib.errors import ConfigError, ExperimentNotFoundError, NotAStoreError
from ckpt_lib.experiments import check_experiment_exists
from ckpt_lib.identity import IDENTITY_NAME, read_identity
from tests.helpers import build


def save(store: Path, name: str = "run") -> CheckpointManager:
    manager = CheckpointManager(CheckpointConfig(checkpoint_dir=str(store)), name)
    manager.save_checkpoint(model=build().model, epoch=1)
    return manager


def test_the_first_save_makes_a_store(tmp_path: Path) -> None:
    """A first save writes the identity file, and later ones, of any experiment, leave it as it is."""
    save(tmp_path / "store")
    identity = read_identity(open_store(tmp_path / "store"))
    save(tmp_path / "store", "another")
    assert read_identity(open_store(tmp_path / "store")) == identity == init_store(str(tmp_path / "store"))


def test_an_import_makes_a_store(tmp_path: Path) -> None:
    """A store whose first checkpoint was imported has an identity; the folder of an export has none."""
    exported = save(tmp_path / "store").export_checkpoint("latest", tmp_path / "export")
    CheckpointManager(CheckpointConfig(checkpoint_dir=str(tmp_path / "other")), "run").import_checkpoint(exported)
    assert read_identity(open_store(tmp_path / "other")).uid != read_identity(open_store(tmp_path / "store")).uid
    assert not (tmp_path / "export" / IDENTITY_NAME).exists()


def test_an_initialised_store_may_be_empty(tmp_path: Path) -> None:
    """A new store holds no experiments, which is no error; a folder without the file is no store."""
    init_store(str(tmp_path / "store"))
    assert list_experiments(open_store(tmp_path / "store")) == []
    with pytest.raises(ExperimentNotFoundError, match="none yet"):
        check_experiment_exists(open_store(tmp_path / "store"), "run")
    (tmp_path / "mount-point").mkdir()
    for missing in ("mount-point", "typo"):
        with pytest.raises(NotAStoreError, match="ckpt init"):
            list_experiments(open_store(tmp_path / missing))
        assert list_experiments(open_store(tmp_path / missing), missing_ok=True) == []


def test_many_at_once_make_one_identity(tmp_path: Path) -> None:
    """Of several first calls, one writes the file and all return what it holds."""
    with ThreadPoolExecutor(8) as threads:
        found = set(threads.map(lambda _: init_store(str(tmp_path / "store")).uid, range(16)))
    assert len(found) == 1


@pytest.mark.parametrize("content", ["", "{", "[]", '{"uid": "x"}', '{"uid": 1}'])
def test_a_damaged_identity_is_told(tmp_path: Path, content: str) -> None:
    """A file that is no identity is named with what to do; the experiments beside it are found all the same."""
    save(tmp_path / "store")
    (tmp_path / "store" / IDENTITY_NAME).write_text(content)
    with pytest.raises(NotAStoreError, match="damaged"):
        init_store(str(tmp_path / "store"))
    assert list_experiments(open_store(tmp_path / "store")) == ["run"]


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
