"""What is unfinished in a local folder and nobody's, told from what living processes are at work on."""

from __future__ import annotations

import stat

from ckpt_lib.store import leases
from ckpt_lib.store.base import Leftover
from ckpt_lib.store.directory import Directory
from ckpt_lib.store.leases import BROKEN_PREFIX, LEASE_PREFIX, PENDING_PREFIX, PREPARED_PREFIX

_KINDS = {
    PENDING_PREFIX: "an unfinished file",
    LEASE_PREFIX: "the lease",
    PREPARED_PREFIX: "a lock that was never taken",
    BROKEN_PREFIX: "a lock that was taken away",
}


def find_leftovers(directory: Directory) -> list[Leftover]:
    """See :meth:`ckpt_lib.store.base.Store.leftovers`."""
    over = {token: leases.is_over(directory, token) for token in leases.tokens(directory)}
    now_seconds = _now_seconds(directory)
    found = []
    for name, status in sorted(directory.scan()):
        prefix = next((prefix for prefix in _KINDS if name.startswith(prefix)), None)
        if prefix is None or (token := name[len(prefix) :].partition("-")[0]) not in over:
            continue
        if over[token]:
            size_bytes = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
            found.append(Leftover(name, size_bytes, f"{_KINDS[prefix]} of a dead process"))
        elif prefix == LEASE_PREFIX and (silent := _silent(directory, token, now_seconds - status.st_mtime)):
            found.append(silent)
    return found


def _now_seconds(directory: Directory) -> float:
    """The time by the clock of the store, which gives it to a lease of ours; long ago where nothing can be written."""
    try:
        with leases.leases.using(directory) as lease:
            return directory.lstat(lease.name).st_mtime
    except OSError:
        return 0.0


def _silent(directory: Directory, token: str, age_seconds: float) -> Leftover | None:
    """A lease that looks as if it were over, by the store's clock; to be sure, it has to be watched."""
    try:
        content = leases.read_lease(directory, token)
    except FileNotFoundError:
        return None
    ttl_seconds = leases.ttl_seconds(content)
    if age_seconds <= ttl_seconds:
        return None
    owner = "an unknown process" if content is None else str(content.owner)
    message = f"the lease of {owner} was not renewed for {age_seconds:.0f} s"
    return Leftover(LEASE_PREFIX + token, 0, message, over_in_seconds=ttl_seconds)
