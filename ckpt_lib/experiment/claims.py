"""Claims: how an id becomes one writer's, and how it ends when nothing comes of it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import chain, count

from ckpt_lib.core.manifest import Claim, Manifest, is_payload_name, new_token
from ckpt_lib.core.names import CheckpointId
from ckpt_lib.core.owners import Owner, is_proven_dead
from ckpt_lib.errors import (
    CheckpointError,
    NotDurableError,
    StorageFullError,
    StoreError,
    StorePermissionError,
    StoreUnavailableError,
    UnsupportedFormatError,
    VersionConflictError,
)
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.experiment.found import NOTHING, Found
from ckpt_lib.experiment.layout import FOLDER_SUFFIX, manifest_name, payload_name, payload_owner
from ckpt_lib.store.base import Condition, Delete

GONE_FOR = timedelta(days=1)
"""How long after the time in its id a ``gone`` record stays, so that nobody gets the id again."""
ABANDONED_AFTER_SECONDS = 86_400.0
"""A claim that nobody renewed for so long is given up by anyone."""
PATIENCE_SECONDS = 120.0
"""How long to wait for another process that saves or copies the same checkpoint."""
RENEW_AFTER_SECONDS = ABANDONED_AFTER_SECONDS / 8
"""How often whoever writes files shows that it is alive."""
_under_way: set[str] = set()
"""The tokens of this process's claims that something may still come of. It may be unable to end the others in the
store, as on a full disk; nobody need wait for them."""


@dataclass
class HeldClaim:
    """A claim of this process. Its files are nobody else's, now and ever after."""

    experiment: Experiment
    claim: Claim
    found: Found
    suffix: str
    renewed_at: float
    claimed_before: datetime
    """By the store's clock."""

    @property
    def checkpoint_id(self) -> str:
        return self.claim.checkpoint_id

    @property
    def has_plain_name(self) -> bool:
        """True when the payload has the name that only the first claim of an id gets."""
        return self.claim.files == (payload_name(self.checkpoint_id, self.suffix),)

    def file_name(self, name: str) -> str:
        """Return the name of a payload file in the experiment; ``name`` is ``""`` unless the format writes a folder.

        Raises :class:`~ckpt_lib.errors.UnsupportedFormatError`.
        """
        return file_name_below(self.claim.files[0], name, self.checkpoint_id)

    def confirm(self) -> None:
        """Take a name that no one had before, if the claim came so late that an earlier one may have ended.

        An earlier claim of the id was ``gone`` for a day after its time stamp.
        """
        if self.has_plain_name and self.claimed_before - CheckpointId.parse(self.checkpoint_id).timestamp >= GONE_FOR:
            self._rewrite(files=(payload_name(self.checkpoint_id, self.suffix, self.claim.claim),))

    def renew(self) -> None:
        """Show that the owner is alive, if it has been a while."""
        if time.monotonic() - self.renewed_at >= RENEW_AFTER_SECONDS:
            self._rewrite()

    def _rewrite(self, **facts: object) -> None:
        claim = self.claim.changed(**facts)
        self.found = self.experiment.put_record(claim, self.found.version)
        self.claim, self.renewed_at = claim, time.monotonic()


def file_name_below(start: str, name: str, checkpoint_id: str) -> str:
    """Return the name of a payload file, where ``start`` is what was claimed: a file, or a folder that ends with ``/``.

    Raises :class:`~ckpt_lib.errors.UnsupportedFormatError`.
    """
    if bool(name) != start.endswith(FOLDER_SUFFIX) or not is_payload_name(start + name, checkpoint_id):
        raise UnsupportedFormatError(
            f"the format cannot name a file {name!r}",
            expected="a plain name in a folder, or none where the payload is a single file",
        )
    return start + name


WITHOUT_FILES = ""
"""The suffix of a claim that names no files: those of its checkpoint are there already, and never its own to remove."""


def claim_new(experiment: Experiment, wanted: CheckpointId, uid: str, suffix: str) -> HeldClaim:
    """Claim an id for a new checkpoint: ``wanted``, or the first suffix that was never given.

    Raises :class:`~ckpt_lib.errors.ConfigError` where the store cannot keep two writers apart.
    """
    attempts = (claim_over(experiment, checkpoint_id, uid, suffix) for checkpoint_id in new_ids(wanted))
    return next(held for held in attempts if held)


def new_ids(wanted: CheckpointId) -> Iterator[str]:
    """Yield ``wanted`` and the ids of the same second that follow it."""
    later = count(max(wanted.suffix, 1) + 1)
    numbers = chain([wanted.suffix], later)
    return (str(CheckpointId(wanted.epoch, wanted.step, wanted.timestamp, number)) for number in numbers)


def claim_over(
    experiment: Experiment, checkpoint_id: str, uid: str, suffix: str, over: Found = NOTHING, *, replace: bool = False
) -> HeldClaim | None:
    """Claim one id, in the place of what was found there; ``None`` when it is another's.

    A file of the payload's name without a record is left alone, and the id with it, unless ``replace`` says otherwise.
    """
    experiment.check_writable()
    plain = payload_name(checkpoint_id, suffix)
    is_foreign = over is NOTHING and _is_taken(experiment, checkpoint_id, suffix)
    if is_foreign and not replace:
        return None
    token = new_token()
    has_plain_name = over is NOTHING and not is_foreign and experiment.has_conditions
    name = plain if has_plain_name else payload_name(checkpoint_id, suffix, token)
    files = () if suffix == WITHOUT_FILES else (name,)
    claim = Claim(checkpoint_id=checkpoint_id, uid=uid, claim=token, state="saving", owner=Owner.current(), files=files)
    started, started_at = time.monotonic(), datetime.now(UTC)
    _under_way.add(token)
    try:
        found = experiment.put_record(claim, over.version)
    except BaseException as error:
        _under_way.discard(token)
        if isinstance(error, VersionConflictError):
            return None
        raise
    # A file may be dated before it gets its key, at most by as long as the call took; one of the clocks may stand
    # still while the machine sleeps.
    took = max(timedelta(seconds=time.monotonic() - started), datetime.now(UTC) - started_at)
    claimed_before = datetime.fromtimestamp(found.modified_seconds, UTC) + took
    return HeldClaim(experiment, claim, found, suffix, started, claimed_before)


def _is_taken(experiment: Experiment, checkpoint_id: str, suffix: str) -> bool:
    """Tell whether a file has the name that the payload would get. A claim without files must not meet any."""
    if suffix == WITHOUT_FILES:
        names = (entry.key.removeprefix(f"{experiment.path}/") for entry in experiment.store.list(experiment.path))
        return any(payload_owner(name) == checkpoint_id for name in names)
    name = payload_name(checkpoint_id, suffix)
    key = experiment.key(name)
    if name.endswith(FOLDER_SUFFIX):
        return bool(experiment.store.list(key))
    return experiment.store.stat(key) is not None


def note_committed(held: HeldClaim) -> None:
    """Forget a claim that has become a checkpoint."""
    _under_way.discard(held.claim.claim)


def give_up(held: HeldClaim, reason: BaseException | None = None) -> None:
    """End a claim that nothing came of, unless it was committed after all; never raises an error of the library.

    What cannot be done now is left to the sweep. The claim is ended before its files go: a commit that is still under
    way would else publish a checkpoint without them. Where the ``reason`` is a full store, no commit is under way, and
    the files go first: the end of the claim needs their room. The first claim of an id leaves no record there, which
    would take more of that room: nobody has seen it end, so nobody removes files of that name later.
    """
    _under_way.discard(held.claim.claim)
    with contextlib.suppress(CheckpointError, OSError):
        found = held.experiment.read(held.checkpoint_id)
        record = found.record
        if isinstance(record, Manifest) and record.claim == held.claim.claim:
            return
        is_mine = isinstance(record, Claim) and record.claim == held.claim.claim and record.state == "saving"
        if isinstance(reason, StorageFullError):
            remove_files(held.experiment, held.claim.files)
            name = manifest_name(held.checkpoint_id)
            if is_mine and held.has_plain_name and held.experiment.delete_key(name, found.version):
                return
        if is_mine:
            abandon(held.experiment, found)
        else:  # taken for dead: the key is not ours any more, the files still are
            remove_files(held.experiment, held.claim.files)


def abandon(experiment: Experiment, found: Found) -> bool:
    """End a claim that is ``saving`` or ``abandoned``: its state first, then its files, then its key.

    ``False`` when it went on meanwhile. Killed on the way, the next sweep goes on.
    """
    claim = found.claim
    try:
        if claim.state == "saving":
            found = experiment.put_record(claim.changed(state="abandoned"), found.version)
    except VersionConflictError:
        return False
    remove_files(experiment, claim.files)
    end(experiment, found)
    return True


def end(experiment: Experiment, *ended: Found) -> None:
    """Remove records without files whose ids are old; turn the others to ``gone``, and all where the store cannot tell.

    ``gone`` is what :func:`remove_gone` removes later.
    """
    may_remove = experiment.store.capabilities.delete_if_version
    removed: list[Delete] = []
    gone: list[tuple[Claim, Condition]] = []
    for found in ended:
        record = found.record
        assert record is not None
        assert isinstance(found.version, str)
        if may_remove and _is_old(record.checkpoint_id, found.modified_seconds):
            removed.append(Delete(experiment.key(manifest_name(record.checkpoint_id)), found.version))
        else:
            gone.append((_gone(record.checkpoint_id, record.uid, record.claim), found.version))
    experiment.store.delete_many(removed)
    for answer in experiment.put_records(gone):
        if isinstance(answer, StorePermissionError):
            raise answer


def end_unreadable(experiment: Experiment, checkpoint_id: str, uid: str, version: str) -> None:
    """Turn a record that cannot be read to ``gone``, unless somebody has replaced it already."""
    with contextlib.suppress(VersionConflictError):
        experiment.put_record(_gone(checkpoint_id, uid, new_token()), version)


def _gone(checkpoint_id: str, uid: str, token: str) -> Claim:
    return Claim(checkpoint_id=checkpoint_id, uid=uid, claim=token, state="gone", owner=Owner.current(), files=())


def remove_gone(experiment: Experiment, found: Found, now: datetime) -> None:
    """Remove the key of a ``gone`` record a day after the id's time: no save with that plain name is under way then."""
    assert found.record is not None
    if _is_old(found.record.checkpoint_id, now.timestamp()):
        with contextlib.suppress(VersionConflictError):
            experiment.delete_key(manifest_name(found.record.checkpoint_id), found.version)


def _is_old(checkpoint_id: str, now_seconds: float) -> bool:
    return now_seconds - CheckpointId.parse(checkpoint_id).timestamp.timestamp() >= GONE_FOR.total_seconds()


UNFINISHED_NAME = "unfinished"
"""The name of no file of a payload; see :func:`remove_files`."""


def remove_files(experiment: Experiment, names: Iterable[str]) -> None:
    """Remove payload files; a name that ends with ``/`` means all below. A folder where a file should be stays.

    A deletion also clears what a dead process has left in the key's folder without a key. So where there is no file
    yet, one is deleted that never is there.
    """
    store = experiment.store
    keys: list[str] = []
    for name in names:
        key = experiment.key(name)
        if name.endswith(FOLDER_SUFFIX):
            below = [entry.key for entry in store.list(key, recursive=True)]
            keys += below or [f"{key}{UNFINISHED_NAME}"]
        else:
            keys.append(key)
    try:
        store.delete_many([Delete(key) for key in keys])
    except (NotDurableError, StoreUnavailableError):
        raise
    except StoreError:  # of some of them, which need not be there
        for key in keys:
            _remove_file(experiment, key)


def _remove_file(experiment: Experiment, key: str) -> None:
    try:
        experiment.store.delete(key)
    except StoreError:
        if experiment.store.stat(key) is not None:
            raise


def is_dead(found: Found, now: datetime, *, abandoned_after_seconds: float = ABANDONED_AFTER_SECONDS) -> bool:
    """Tell whether nothing comes of a claim any more.

    Its owner is a process of this host that has ended, or this one, which gave it up; or nobody renewed it for so long.
    """
    claim = found.claim
    return is_over(claim.owner, claim.claim, now.timestamp() - found.modified_seconds, abandoned_after_seconds)


def is_over(owner: Owner, token: str, idle_seconds: float, abandoned_after_seconds: float) -> bool:
    """Tell whether nothing comes of what ``owner`` has claimed under ``token``, and last renewed so long ago."""
    if is_proven_dead(owner):
        return True
    if owner == Owner.current() and token not in _under_way:
        return True
    return idle_seconds >= abandoned_after_seconds


def note_begun(token: str) -> None:
    """Remember that something may come of a claim of this process."""
    _under_way.add(token)


def note_ended(token: str) -> None:
    """Forget a claim of this process that has come to its end, or of which nothing comes."""
    _under_way.discard(token)
