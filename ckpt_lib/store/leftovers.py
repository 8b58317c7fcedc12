"""What is unfinished in a local folder and nobody's, told from what living processes are at work on."""

from __future__ import annotations

import contextlib

from ckpt_lib.core.wording import duration
from ckpt_lib.store import leases
from ckpt_lib.store.base import Leftover
from ckpt_lib.store.directory import Directory
from ckpt_lib.store.leases import BROKEN_PREFIX, FREE_FILE, LEASE_FILE, LEASE_PREFIX, NEW_PREFIX


def find_leftovers(directory: Directory) -> list[Leftover]:
    """See :meth:`ckpt_lib.store.base.Store.leftovers`."""
    names = sorted(name for name in directory.names() if leases.is_of_leases(name))
    found = []
    for name in names:
        with contextlib.suppress(FileNotFoundError):  # its owner removes it
            if (leftover := _examine(directory, name)) is not None:
                found.append(leftover)
    return found


def _examine(directory: Directory, name: str) -> Leftover | None:
    token = name.removeprefix(LEASE_PREFIX)
    if name.startswith((BROKEN_PREFIX, NEW_PREFIX)) or leases.is_over(directory, token):
        sizes = [directory.lstat(f"{name}/{inner}").st_size for inner in _unfinished(directory, name)]
        files = f", with {len(sizes)} unfinished files" if sizes else ""
        return Leftover(name, sum(sizes), f"the lease of a dead process{files}")
    content = leases.read_lease(directory, token)
    ttl_seconds = leases.ttl_seconds(content)
    age_seconds = _now_seconds(directory) - leases.lstat(directory, token).st_mtime
    if age_seconds <= ttl_seconds:
        return None
    owner = "an unknown process" if content is None else str(content.owner)
    message = f"the lease of {owner} was not renewed for {duration(age_seconds)}"
    return Leftover(name, 0, message, over_in_seconds=ttl_seconds)


def _unfinished(directory: Directory, name: str) -> list[str]:
    try:
        return [inner for inner in directory.names(name) if inner not in (LEASE_FILE, FREE_FILE)]
    except NotADirectoryError:  # something else has that name; a sweep removes it all the same
        return []


def _now_seconds(directory: Directory) -> float:
    """The time by the clock of the store, which a lease of ours is given; long ago where nothing can be written."""
    try:
        with leases.leases.using(directory) as lease:
            lease.renew()
            return directory.lstat(f"{lease.name}/{LEASE_FILE}").st_mtime
    except OSError:
        return 0.0
