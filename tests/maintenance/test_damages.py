"""Random damages of real files, of each kind: noticed, told where they are, and kept from reaching the caller."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.torture.damaged_samples import Copy, Shelf, build_shelf, inflicted, linear, missed
from tests.torture.damages import DAMAGES, flip_a_bit, inflict_many
from tests.torture.fingerprints import fingerprint

SEED = "20261124"


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return build_shelf(tmp_path_factory.mktemp("damages"))


@pytest.mark.parametrize("kind", ["a bit flipped", *DAMAGES])
def test_no_damage_is_missed(shelf: Shelf, kind: str) -> None:
    """Both checks and both ways to load refuse it, name the file and exactly the chunks; the model is unchanged."""
    kinds = {"a bit flipped": flip_a_bit, **DAMAGES}
    outcome = inflict_many([shelf], {kind: kinds[kind]}, 8, SEED)
    assert (outcome.injected, outcome.violations) == (8, [])


def test_what_is_not_damaged_is_loaded(shelf: Shelf) -> None:
    """The other side: nothing is reported of files that are as they were saved, and loading does change the model."""
    for number, sample in enumerate(shelf.samples):
        manager, checkpoint_id = shelf.manager(), sample.original.checkpoint_id
        assert manager.validate_checkpoint(checkpoint_id)
        assert manager.validate_checkpoint(checkpoint_id, deep=False)
        assert shelf.manager_of_backups().validate_backup(checkpoint_id)
        fresh = linear(*[(48, 64, 16), (48, 64, 16), (2, 1), (300, 200), (3, 2)][number])
        before = fingerprint(fresh.state_dict())
        loaded = manager.load_checkpoint(checkpoint_id, model=fresh)
        assert fingerprint(fresh.state_dict()) == fingerprint(loaded["model_state_dict"]) != before


def test_the_judge_sees_what_is_missed(tmp_path: Path) -> None:
    """Told of a damage that is not there, it complains at every door: each of them is asked."""
    shelf = build_shelf(tmp_path)
    sample = shelf.samples[0]

    def complaints(copy: Copy, path: Path) -> str:
        return "\n".join(missed(shelf, {path: b"altered" + copy.files()[path]}))

    for path in sample.original.files():
        said = complaints(sample.original, path)
        for door in ("validate_checkpoint(deep=True)", "validate_checkpoint(deep=False)"):
            assert f"{door} finds it intact" in said
        assert "load_checkpoint() takes it" in said
    for path in sample.backup.files():
        said = complaints(sample.backup, path)
        assert "validate_backup(deep=True) finds it intact" in said
        assert "restore_checkpoint takes it" in said


def test_the_judge_wants_the_right_place(shelf: Shelf) -> None:
    """A damage in one chunk that is taken for one in another is a miss."""
    copy = shelf.samples[3].original
    ((path, data),) = copy.payload_files.items()
    altered, expected = bytearray(data), bytearray(data)
    altered[100] ^= 1
    expected[-100] ^= 1
    with inflicted(shelf, {path: bytes(altered)}):
        assert list(missed(shelf, {path: bytes(altered)})) == []
        said = list(missed(shelf, {path: bytes(expected)}))
    assert any("validate_checkpoint(deep=True) tells of" in reason for reason in said)
