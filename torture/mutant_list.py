"""What :mod:`torture.mutants` takes out of the code: each barrier, rename, lease check and verification by itself.

``original`` must occur just once in its file, so that the list is noticed to be old when the code moves on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One safeguard, the code without it, and the tests one of which must fail then."""

    name: str
    """What is taken out, in words."""
    path: str
    original: str
    replacement: str
    tests: tuple[str, ...]
    """As pytest takes them."""


def _of(path: str, rows: Iterable[tuple[str, str, str, str]]) -> list[Mutant]:
    """Mutants of one file; the last part of each row names tests, by what follows ``tests/``."""
    return [
        Mutant(name, path, original, replacement, tuple(f"tests/{test}" for test in tests.split(" | ")))
        for name, original, replacement, tests in rows
    ]


_COMMIT = _of(
    "ckpt_lib/commit.py",
    [
        # --- saving ---
        (
            "a saved payload's fsync",
            "        pending.sync()\n        if verify:",
            "        if verify:",
            "test_commit.py::test_the_steps_of_a_save",
        ),
        (
            "reading a payload back before its commit",
            "        if verify:\n            _read_back(folder, pending, digests)\n",
            "",
            "test_barriers.py::test_a_save_that_went_wrong_on_the_way_is_refused",
        ),
        (
            "the verdict on what was read back",
            '        damages = find_damages(file, _file_entry("the new payload", digests))\n',
            "        damages: list = []\n",
            "test_barriers.py::test_a_save_that_went_wrong_on_the_way_is_refused",
        ),
        (
            "asking for the idempotency key again under the lock",
            "            # Another process may have saved the same thing while this one was writing.\n"
            "            if earlier := index.with_idempotency_key(draft.idempotency_key):\n"
            "                return earlier\n",
            "",
            "test_manager_concurrency.py::test_the_same_save_may_finish_elsewhere_while_this_one_writes",
        ),
        (
            "the marker of an unfinished save",
            "    held.put(marker, manifest.to_bytes(), durable=False)\n",
            "",
            "test_commit.py::test_the_steps_of_a_save",
        ),
        (
            "the folder's fsync between a payload's name and its manifest's",
            "        held.sync()\n        held.put(folder.manifest_path(manifest.checkpoint_id), manifest.to_bytes())\n",
            "        held.put(folder.manifest_path(manifest.checkpoint_id), manifest.to_bytes())\n",
            "test_commit.py::test_the_steps_of_a_save",
        ),
        (
            "a new manifest's fsync",
            "        held.sync()\n        held.put(folder.manifest_path(manifest.checkpoint_id), manifest.to_bytes())\n",
            "        held.sync()\n"
            "        held.put(folder.manifest_path(manifest.checkpoint_id), manifest.to_bytes(), durable=False)\n",
            "test_commit.py::test_the_steps_of_a_save",
        ),
        (
            "the folder's fsync before a save is acknowledged",
            "    held.delete(marker)\n    held.sync()\n\n\ndef _mark_deleted",
            "    held.delete(marker)\n\n\ndef _mark_deleted",
            "test_commit.py::test_the_steps_of_a_save",
        ),
        (
            "leaving the payload of a manifest that got its name after all",
            "            if folder.store.stat(folder.manifest_path(manifest.checkpoint_id)) is None:\n"
            "                held.delete(folder.payload_path(manifest))\n",
            "            held.delete(folder.payload_path(manifest))\n",
            "test_commit.py",
        ),
        (
            "freeing an id only of a save that was not committed",
            "    if unfinished and folder.store.stat(folder.manifest_path(checkpoint_id)) is None:\n",
            "    if unfinished:\n",
            "test_commit.py",
        ),
        # --- copying ---
        (
            "a copied payload's fsync",
            "        pending.sync()\n        with target.lock() as held:\n            published",
            "        with target.lock() as held:\n            published",
            "test_barriers.py::test_each_barrier_is_an_fsync_of_the_kernel",
        ),
        (
            "choosing the manifest of a restored checkpoint under the lock",
            "            published = choose_manifest() if choose_manifest else manifest\n",
            "            published = manifest\n",
            "test_transfer.py::test_a_restore_keeps_what_was_edited_while_it_copied",
        ),
        (
            "comparing the digest of a copied payload",
            "            if (digests.size_bytes, digests.sha256) == (manifest.payload.size_bytes, manifest.payload.sha256):\n"
            "                return\n",
            "            return\n",
            "test_commit.py::test_damage_is_never_copied",
        ),
        (
            "holding what is being copied",
            '            source.hold(manifest.checkpoint_id, "being copied"),\n',
            "            contextlib.nullcontext(),\n",
            "test_manager_concurrency.py",
        ),
        (
            "telling a deletion from damage while copying",
            "        source.read_manifest(manifest.checkpoint_id)  # raises when it was deleted meanwhile, which is no damage\n"
            "        damages = [missing",
            "        damages = [missing",
            "test_commit.py | test_transfer.py",
        ),
        (
            "an adopted payload's fsync",
            "        pending.sync()\n        with target.lock() as held:\n            if earlier",
            "        with target.lock() as held:\n            if earlier",
            "test_torture.py::test_row[3-power loss]",
        ),
        (
            "looking for an adopted uid again under the lock",
            "            if earlier := index.with_uid(manifest.uid):\n                return earlier\n            _clear",
            "            _clear",
            "test_commit.py::test_an_adopted_checkpoint_is_the_newest_and_comes_once",
        ),
        (
            "clearing what a killed move left of an id",
            "            _clear_unfinished(target, held, manifest.checkpoint_id)\n",
            "",
            "test_degradation.py::test_stopped_at_each_step_a_rerun_converges",
        ),
        # --- editing ---
        (
            "an edited manifest's fsync",
            "        held.put(folder.manifest_path(checkpoint_id), changed.to_bytes())\n",
            "        held.put(folder.manifest_path(checkpoint_id), changed.to_bytes(), durable=False)\n",
            "test_commit.py::test_the_steps_of_an_edit",
        ),
        (
            "the folder's fsync before an edit is acknowledged",
            "        held.sync()\n    return changed\n",
            "    return changed\n",
            "test_commit.py::test_the_steps_of_an_edit",
        ),
        # --- mending ---
        (
            "comparing the version of a payload before it is mended",
            "found is None or found.version != version or not is_same",
            "found is None or not is_same",
            "test_repair.py::test_a_file_that_was_exchanged_is_not_written_to",
        ),
        (
            "comparing the uid of a checkpoint before it is mended",
            "found is None or found.version != version or not is_same",
            "found is None or found.version != version",
            "test_repair.py",
        ),
        # --- deleting ---
        (
            "asking whether to delete under the lock",
            "        if error := unless(manifest):\n            raise error\n        _mark_deleted",
            "        _mark_deleted",
            "test_commit.py::test_a_deletion_asks_first",
        ),
        (
            "the fsync of a deletion's marker",
            "        held.put(marker, manifest.to_bytes())\n    except StorageFullError:  # which",
            "        held.put(marker, manifest.to_bytes(), durable=False)\n    except StorageFullError:  # which",
            "test_commit.py::test_the_steps_of_a_deletion",
        ),
        (
            "the folder's fsync between a deletion's marker and the manifest's removal",
            '        _drop_other_markers(folder, held, checkpoint_id, "deleted")\n        held.sync()\n',
            '        _drop_other_markers(folder, held, checkpoint_id, "deleted")\n',
            "test_commit.py::test_the_steps_of_a_deletion",
        ),
        (
            "the folder's fsync between the removal of a manifest and that of its payload",
            "        held.sync()\n        if error := unless(manifest):\n            _bring_back",
            "        if error := unless(manifest):\n            _bring_back",
            "test_commit.py::test_the_steps_of_a_deletion",
        ),
        (
            "asking again when nobody can begin to use a checkpoint any more",
            "        if error := unless(manifest):\n"
            '            _bring_back(folder, held, manifest, "deleted")\n'
            "            raise error\n",
            "",
            "test_commit.py::test_a_deletion_that_is_regretted_under_way_is_undone",
        ),
        (
            "keeping the payload of a deleted checkpoint that somebody holds",
            "        if grace_seconds <= 0 and checkpoint_id not in folder.held():\n",
            "        if grace_seconds <= 0:\n",
            "test_commit.py::test_what_is_held_is_not_removed",
        ),
        (
            "keeping the payload of a deleted checkpoint for the grace period",
            "        if grace_seconds <= 0 and checkpoint_id not in folder.held():\n",
            "        if checkpoint_id not in folder.held():\n",
            "test_commit.py::test_what_was_deleted_comes_back_as_it_was",
        ),
        (
            "the folder's fsync between the removal of a payload and that of its marker",
            "    held.delete(folder.payload_path(manifest))\n    held.sync()\n",
            "    held.delete(folder.payload_path(manifest))\n",
            "test_commit.py::test_the_steps_of_a_deletion",
        ),
        # --- bringing back ---
        (
            "looking for the payload before an undeletion",
            "        if not folder.is_complete(manifest):\n            raise CheckpointNotFoundError(\n",
            "        if False:\n            raise CheckpointNotFoundError(\n",
            "test_commit.py",
        ),
        (
            "leaving a checkpoint alone that is there when it is undeleted",
            "        with contextlib.suppress(CheckpointNotFoundError):\n            return folder.read_manifest(checkpoint_id)\n",
            "",
            "test_commit.py",
        ),
        (
            "the fsync of a manifest that is brought back",
            "        held.put(folder.manifest_path(manifest.checkpoint_id), manifest.to_bytes())\n    except StorageFullError:\n",
            "        held.put(folder.manifest_path(manifest.checkpoint_id), manifest.to_bytes(), durable=False)\n"
            "    except StorageFullError:\n",
            "test_commit.py::test_the_steps_of_an_undeletion",
        ),
        (
            "the folder's fsync before an undeletion is acknowledged",
            "    held.sync()\n    held.delete(folder.marker_path(manifest.checkpoint_id, mark))\n\n\ndef _drop_other",
            "    held.delete(folder.marker_path(manifest.checkpoint_id, mark))\n\n\ndef _drop_other",
            "test_commit.py::test_the_steps_of_an_undeletion",
        ),
        # --- setting aside ---
        (
            "refusing to set aside what somebody holds",
            "        _refuse_held(folder, checkpoint_id)\n        if not is_unchanged():",
            "        if not is_unchanged():",
            "test_quarantine.py::test_one_in_use_is_refused",
        ),
        (
            "comparing with what the report is about before setting aside",
            "        if not is_unchanged():\n            return False\n",
            "",
            "test_quarantine.py",
        ),
        (
            "the fsync of a quarantine's marker",
            '        held.put(folder.marker_path(checkpoint_id, "quarantined"), record)\n',
            '        held.put(folder.marker_path(checkpoint_id, "quarantined"), record, durable=False)\n',
            "test_torture.py::test_row[3-power loss]",
        ),
        (
            "the folder's fsync between a quarantine's marker and the manifest's removal",
            '        _drop_other_markers(folder, held, checkpoint_id, "quarantined")\n        held.sync()\n',
            '        _drop_other_markers(folder, held, checkpoint_id, "quarantined")\n',
            "test_torture.py::test_row[3-power loss]",
        ),
        (
            "the folder's fsync before a quarantine is acknowledged",
            "        held.sync()\n    return True\n\n\ndef release",
            "    return True\n\n\ndef release",
            "test_torture.py::test_row[3-power loss]",
        ),
        (
            "removing older markers before a checkpoint is set aside",
            '        _drop_other_markers(folder, held, checkpoint_id, "quarantined")\n',
            "",
            "test_quarantine.py::test_a_stale_deletion_does_not_take_what_is_set_aside",
        ),
        (
            "comparing the version of a payload before it leaves quarantine",
            "        if entry is None or entry.version != version or not is_there:\n",
            "        if entry is None or not is_there:\n",
            "test_quarantine.py",
        ),
        (
            "looking whether a checkpoint is in quarantine before it is released",
            "        if entry is None or entry.version != version or not is_there:\n",
            "        if entry is None or entry.version != version:\n",
            "test_quarantine.py",
        ),
        (
            "looking whether a checkpoint is in quarantine before it is removed for good",
            "        if folder.store.stat(marker) is None or folder.store.stat(folder.manifest_path(checkpoint_id)):\n",
            "        if folder.store.stat(marker) is None:\n",
            "test_quarantine.py::test_only_what_is_in_quarantine_is_deleted_so",
        ),
        (
            "refusing to remove from quarantine what somebody holds",
            "        _refuse_held(folder, checkpoint_id)\n        freed_bytes = 0\n",
            "        freed_bytes = 0\n",
            "test_quarantine.py",
        ),
        (
            "the folder's fsync between the removal of a quarantined payload and that of its marker",
            "        held.sync()\n        held.delete(marker)\n        held.sync()\n    return freed_bytes\n",
            "        held.delete(marker)\n        held.sync()\n    return freed_bytes\n",
            "test_torture.py::test_row[3-power loss]",
        ),
        (
            "the folder's fsync before a removal from quarantine is acknowledged",
            "        held.delete(marker)\n        held.sync()\n    return freed_bytes\n",
            "        held.delete(marker)\n    return freed_bytes\n",
            "test_torture.py::test_row[3-power loss]",
        ),
        # --- adopting ---
        (
            "comparing the version of a payload before it gets a manifest",
            "        if entry is None or entry.version != version or folder.store.stat(manifest_path):\n",
            "        if entry is None or folder.store.stat(manifest_path):\n",
            "test_doctor.py",
        ),
        (
            "looking whether a payload has a manifest by now before it gets one",
            "        if entry is None or entry.version != version or folder.store.stat(manifest_path):\n",
            "        if entry is None or entry.version != version:\n",
            "test_doctor.py",
        ),
        (
            "the fsync of a payload that gets a manifest",
            "        held.patch(path, (), size_bytes=entry.size_bytes)  # nobody knows whether its bytes are durable\n",
            "",
            "test_torture.py::test_row[3-power loss]",
        ),
        (
            "the fsync of an adopted payload's manifest",
            "        held.put(manifest_path, manifest.to_bytes())\n",
            "        held.put(manifest_path, manifest.to_bytes(), durable=False)\n",
            "test_torture.py::test_row[3-power loss]",
        ),
        (
            "the folder's fsync before an adoption is acknowledged",
            "        held.sync()\n        for mark in get_args(Mark):",
            "        for mark in get_args(Mark):",
            "test_torture.py::test_row[3-power loss]",
        ),
        (
            "reading a damaged marker again before it is removed",
            "        try:\n            folder.read_marker(checkpoint_id, mark)\n        except CorruptManifestError:\n",
            '        try:\n            raise CorruptManifestError("damaged")\n        except CorruptManifestError:\n',
            "test_doctor.py",
        ),
        # --- sweeping ---
        (
            "looking beside a marker for its manifest before sweeping",
            '            if checkpoint_id in listed or (mark == "saving" and checkpoint_id in set_aside):\n',
            '            if mark == "saving" and checkpoint_id in set_aside:\n',
            "test_commit.py::test_a_sweep_takes_leftovers_alone",
        ),
        (
            "leaving the payload of a restoration that was killed",
            '            if checkpoint_id in listed or (mark == "saving" and checkpoint_id in set_aside):\n',
            "            if checkpoint_id in listed:\n",
            "test_quarantine.py::test_a_killed_restoration_takes_nothing_away",
        ),
        (
            "the grace period of the trash in a sweep",
            "            is_old = held.time_seconds - entry.modified_seconds >= grace_seconds\n",
            "            is_old = True\n",
            "test_commit.py::test_the_trash_is_emptied_when_its_time_is_over",
        ),
        (
            "leaving in the trash what somebody holds",
            '            return mark == "deleted" and is_old and checkpoint_id not in in_use\n',
            '            return mark == "deleted" and is_old\n',
            "test_commit.py::test_what_is_held_is_not_removed",
        ),
        (
            "leaving what is in quarantine when sweeping",
            '            return mark == "deleted" and is_old and checkpoint_id not in in_use\n',
            "            return is_old and checkpoint_id not in in_use\n",
            "test_quarantine.py::test_no_cleanup_removes_it",
        ),
        (
            "the folder's fsync before a sweep goes by a marker",
            "            held.sync()\n        for checkpoint_id, mark in due:",
            "            pass\n        for checkpoint_id, mark in due:",
            "test_barriers.py::test_a_sweep_makes_durable_what_it_goes_on_from",
        ),
        (
            "leaving what somebody holds when room is made",
            "            if checkpoint_id in listed or checkpoint_id in folder.held():\n",
            "            if checkpoint_id in listed:\n",
            "test_degradation.py",
        ),
        (
            "looking beside a marker for its manifest when room is made",
            "            if checkpoint_id in listed or checkpoint_id in folder.held():\n",
            "            if checkpoint_id in folder.held():\n",
            "test_degradation.py",
        ),
        (
            "refusing a marker that is damaged or another checkpoint's",
            "        return folder.read_marker(checkpoint_id, mark)\n    except (IntegrityError",
            "        return Manifest.from_bytes(folder._marker(checkpoint_id, mark), path='')\n    except (IntegrityError",
            "test_commit.py::test_a_tombstone_that_is_not_whole_deletes_nothing",
        ),
    ],
)

_FILES = [
    *_of(
        "ckpt_lib/store/direct.py",
        [
            (
                "looking at a payload's length before its name",
                "        if found != self.size_bytes:\n",
                "        if False:\n",
                "test_direct.py::test_a_file_that_lost_bytes_is_an_error",
            ),
            (
                "the call of fsync for a payload",
                "        os.fsync(self._descriptor)\n",
                "",
                "test_barriers.py::test_each_barrier_is_an_fsync_of_the_kernel",
            ),
        ],
    ),
    *_of(
        "ckpt_lib/store/pending.py",
        [
            (
                "looking at a small file's length before its name",
                "        if found != len(content):\n",
                "        if False:\n",
                "test_store_local.py::test_bytes_that_the_file_system_lost_are_noticed",
            ),
            (
                "the call of fsync for a small file",
                "        if durable:\n            os.fsync(descriptor)\n",
                "",
                "test_barriers.py::test_each_barrier_is_an_fsync_of_the_kernel",
            ),
            (
                "leaving a parent's unfinished file when a fork ends",
                "                if self._lease is not None and self._lease.is_ours:\n",
                "                if self._lease is not None:\n",
                "test_leases.py::test_a_fork_that_ends_what_the_parent_began_takes_nothing_from_it",
            ),
            (
                "reading a written file from the disk and not from memory",
                "            forget(file.fileno(), 0, 0)  # what is durable is read from the disk again\n",
                "",
                "test_store_local.py | test_barriers.py",
            ),
        ],
    ),
    *_of(
        "ckpt_lib/store/patching.py",
        [
            (
                "the call of fsync for a repaired file",
                "    os.fsync(descriptor)\n",
                "",
                "test_repair.py | test_store_local.py",
            ),
            (
                "reading repaired bytes from the disk and not from memory",
                "        forget(descriptor, start, length)  # so that what is read next is what the disk has kept\n",
                "        pass\n",
                "test_repair.py",
            ),
        ],
    ),
    *_of(
        "ckpt_lib/store/directory.py",
        [
            (
                "the call of fsync for a folder",
                "            os.fsync(self._descriptor)\n",
                "            pass\n",
                "test_barriers.py::test_a_folder_that_a_killed_process_made_is_made_durable",
            ),
            (
                "the fsync of a folder's own name",
                "            parent.sync()\n        except BaseException:\n",
                "            pass\n        except BaseException:\n",
                "test_commit.py::test_the_folder_of_the_first_save_is_durable",
            ),
            (
                "the fsync of a folder's own name that another process made",
                "    if is_new or (create and child.identity not in _surely_named):\n",
                "    if is_new:\n",
                "test_barriers.py::test_a_folder_that_a_killed_process_made_is_made_durable",
            ),
            (
                "the fsync of a new root's own name",
                "    _sync_folder(folder.parent)\n",
                "",
                "test_commit.py | test_barriers.py | test_store_local.py",
            ),
            (
                "the fsync of a root's own name that another process made",
                "            _sync_folder(root.parent)\n",
                "            pass\n",
                "test_barriers.py::test_a_folder_that_a_killed_process_made_is_made_durable",
            ),
            (
                "looking whether a folder is where it was",
                "        return (found.st_dev, found.st_ino) == self.identity\n",
                "        return True\n",
                "test_hostile.py",
            ),
        ],
    ),
]

_LOCK = _of(
    "ckpt_lib/store/folder_lock.py",
    [
        (
            "one thread at a time in a folder's lock",
            "        if not mutex.acquire(timeout=LOCK_TIMEOUT_SECONDS):\n",
            "        mutex = threading.Lock()\n        if not mutex.acquire(timeout=LOCK_TIMEOUT_SECONDS):\n",
            "test_store_local.py::TestByPath::test_the_lock_excludes_threads",
        ),
        (
            "whether the owner's lease is over before the lock is taken over",
            "    if not leases.is_over(directory, token):\n        return False\n    leases.bury",
            "    leases.bury",
            "test_leases.py::test_a_lock_is_kept_over_a_short_pause",
        ),
        (
            "taking everything from an owner before the lock is taken over",
            "    leases.bury(directory, token)\n    return True\n",
            "    return True\n",
            "test_leases.py::test_whoever_lost_the_lock_changes_nothing",
        ),
        (
            "taking everything from owners that are over when the lock says nothing of its own",
            "            _bury_all_that_are_over(directory, own_token)  # whoever it was goes by a lease that is among these\n",
            "",
            "test_leases.py",
        ),
        (
            "watching a lock that says nothing of its owner before it is taken over",
            "            return leases.is_unchanged_for(leases.LEASE_SECONDS, directory, name, directory.lstat(name))\n",
            "            return True\n",
            "test_leases.py",
        ),
        (
            "taking the lock at once that this process did not give up",
            '    if token in ("", own_token):\n',
            '    if token == "":\n',
            "test_leases.py",
        ),
        (
            "leaving one's own lease in a sweep",
            "    for token in sorted(leases.tokens(directory) - {own_token}):\n",
            "    for token in sorted(leases.tokens(directory)):\n",
            "test_leases.py",
        ),
        (
            "whether a lease is over before it is swept",
            "        if leases.is_over(directory, token):\n            buried",
            "        if True:\n            buried",
            "test_leases.py::test_a_fork_has_leases_of_its_own",
        ),
        (
            "looking whether the lock that was made is the last one",
            "    is_last = max(numbers) == number\n",
            "    is_last = True\n",
            "test_leases.py",
        ),
        (
            "leaving a parent's lock when a fork ends",
            "        if lease.is_ours:  # and not of a fork that unwinds what its parent was doing\n",
            "        if True:\n",
            "test_leases.py::test_a_fork_that_ends_what_the_parent_began_takes_nothing_from_it",
        ),
        (
            "looking whose the lock is that an interrupt may have left",
            "    return not is_own or _give_up(lease, last)\n",
            "    return last == 0 or _give_up(lease, last)\n",
            "test_leases.py",
        ),
        (
            "giving up the lock that an interrupt may have left",
            "    return not is_own or _give_up(lease, last)\n",
            "    return True\n",
            "test_leases.py::test_an_interrupt_while_the_lock_is_taken_leaves_it_free",
        ),
        (
            "ending a lease whose lock could not be given up",
            "            leases.leases.give_back(lease, is_spoilt=not _give_up(lease, number))\n",
            "            _give_up(lease, number)\n            leases.leases.give_back(lease)\n",
            "test_leases.py",
        ),
        (
            "refusing a file that was begun in another folder",
            "pending.directory.identity != self._directory.identity",
            "False",
            "test_store_local.py",
        ),
        (
            "moving a payload into the lock's lease before its name",
            "                staged = self._staged_name()\n                pending.move(staged)\n",
            "                staged = str(pending._name)\n",
            "test_leases.py",
        ),
        (
            "giving a name only if nobody has it",
            "                self._give_name(staged, name, replace=replace)\n",
            "                self._give_name(staged, name, replace=True)\n",
            "test_store_local.py::TestByPath::test_a_taken_name_is_refused_and_left_alone",
        ),
        (
            "giving a name by a link, which finds it taken",
            "            self._directory.link(staged, name)\n        except FileExistsError:",
            "            self._directory.replace(staged, name)\n        except FileExistsError:",
            "test_store_local.py::TestByPath::test_a_taken_name_is_refused_and_left_alone",
        ),
        (
            "looking for a name where there are no links",
            "            if self._directory.exists(name):\n                raise self._taken(name) from None\n",
            "",
            "test_store_local.py::test_a_file_system_without_hard_links_works",
        ),
        (
            "giving a small file its name by a rename",
            "                write_all(self._directory, staged, content, durable=durable)\n"
            "                self._give_name(staged, name, replace=True)\n",
            "                with contextlib.suppress(FileNotFoundError):\n"
            "                    self._directory.unlink(name)\n"
            "                write_all(self._directory, name, content, durable=durable)\n",
            "test_leases.py::test_a_lock_that_was_taken_away_is_lost_whatever_else_is_left",
        ),
        (
            "renaming a marker that is a link to the manifest",
            "            self._directory.link(self._name_of(path), staged)\n"
            "            self._directory.touch(staged)\n"
            "            self._directory.replace(staged, self._name_of(other))\n",
            "            self._directory.link(self._name_of(path), self._name_of(other))\n"
            "            self._directory.touch(self._name_of(other))\n",
            "test_store_local.py | test_failing_disks.py | test_commit.py",
        ),
        (
            "the age of a marker that is a link to the manifest",
            "            self._directory.touch(staged)\n",
            "",
            "test_store_local.py | test_failing_disks.py | test_commit.py",
        ),
        (
            "taking a name by a rename into the lease",
            "                self._directory.rename(name, staged)\n",
            "                self._directory.unlink(name)\n                return\n",
            "test_leases.py::test_whoever_lost_the_lock_changes_nothing",
        ),
        (
            "telling a lost lock when there is nothing to delete",
            "                self._check_still_held()\n                return\n",
            "                return\n",
            "test_leases.py::test_whoever_lost_the_lock_changes_nothing",
        ),
        (
            "whether the lock is still held before a file is patched",
            "                self._check_still_held()\n                overwrite",
            "                overwrite",
            "test_leases.py::test_whoever_lost_the_lock_changes_nothing",
        ),
        (
            "whether the folder is where it was before it is said to be durable",
            "            if not self._directory.is_where_it_was():\n                raise StoreError(",
            "            if False:\n                raise StoreError(",
            "test_hostile.py",
        ),
        (
            "removing leases that were never finished",
            "            leases.remove_new(self._directory)\n",
            "",
            "test_leases.py | test_kills.py",
        ),
        (
            "refusing a lock that a fork inherited",
            "        if not self._lease.is_ours:\n            raise StoreError(",
            "        if False:\n            raise StoreError(",
            "test_leases.py::test_a_fork_that_ends_what_the_parent_began_takes_nothing_from_it",
        ),
        (
            "telling a lost lock from a file that somebody removed",
            "            except FileNotFoundError as error:\n                self._check_still_held()\n",
            "            except FileNotFoundError as error:\n",
            "test_leases.py::test_whoever_lost_the_lock_changes_nothing",
        ),
        (
            "telling a lost file from one that somebody removed",
            "                if pending.is_lost:\n                    raise _lost(self._directory) from None\n",
            "",
            "test_leases.py::test_a_file_that_was_begun_under_a_lost_lease_is_not_published",
        ),
        (
            "telling a lost lease while the lock is taken",
            "        if lease.is_there:\n            raise\n        raise _lost(directory) from None\n",
            "        raise\n",
            "test_leases.py",
        ),
    ],
)

_LEASES = _of(
    "ckpt_lib/store/leases.py",
    [
        (
            "giving a lease its name when it is whole",
            "        new = NEW_PREFIX + self.token\n        while True:",
            "        new = self.name\n        while True:",
            "test_leases.py | test_crash.py",
        ),
        (
            "making a lock's next number in one step that one process can do",
            "            _link_or_copy(self.directory, self._file, name)\n",
            "            signature = self.new_name()\n"
            "            _link_or_copy(self.directory, self._file, signature)\n"
            "            self.directory.replace(signature, name)\n",
            "test_leases.py",
        ),
        (
            "leaving the number of a lock that was given up",
            "        self.directory.replace(free, name)\n",
            "        self.directory.unlink(name)\n        self.directory.unlink(free)\n",
            "test_leases.py",
        ),
        (
            "replacing the signature of a lock in one step",
            "        self.directory.replace(free, name)\n",
            "        self.directory.unlink(name)\n        self.directory.rename(free, name)\n",
            "test_leases.py",
        ),
        (
            "writing a hold down",
            "            if is_new:\n                self._rewrite()\n",
            "            pass\n",
            "test_leases.py::test_what_is_held_is_seen_by_all_and_only_while_it_lasts",
        ),
        (
            "replacing the content of a lease in one step",
            "        self.directory.replace(pending, self._file)\n",
            "        self.directory.unlink(self._file)\n        self.directory.rename(pending, self._file)\n",
            "test_leases.py | test_crash.py",
        ),
        (
            "leaving a parent's hold when a fork ends",
            "        elif self.is_ours:\n            self.holds.remove",
            "        else:\n            self.holds.remove",
            "test_leases.py::test_a_fork_that_ends_what_the_parent_began_takes_nothing_from_it",
        ),
        (
            "leaving a parent's lease when a fork ends",
            "        if self.is_ours:\n            try:\n                remove_tree",
            "        if True:\n            try:\n                remove_tree",
            "test_leases.py::test_a_fork_that_ends_what_the_parent_began_takes_nothing_from_it",
        ),
        (
            "telling that a lease was taken away when it is renewed",
            "        except FileNotFoundError:\n            return False\n        except OSError as error:  # the store",
            "        except OSError as error:  # the store",
            "test_leases.py::test_what_is_held_is_held_again_after_the_lease_was_lost",
        ),
        (
            "touching a lease to renew it",
            "            self.directory.touch(self._file)\n",
            "            pass\n",
            "test_leases.py::test_a_lease_is_renewed_as_long_as_it_is_used",
        ),
        (
            "renewing leases that are due",
            "            due = [lease for lease in self._leases.values() if now - lease.renewed_at >= LEASE_SECONDS / 4]\n",
            "            due: list[Lease] = []\n",
            "test_leases.py::test_a_lease_is_renewed_as_long_as_it_is_used",
        ),
        (
            "going on although one renewal failed",
            '            logger.warning("the lease on %s was not renewed: %s", self.directory.path, error)\n',
            "            return False\n",
            "test_leases.py::test_a_store_that_is_away_for_a_moment_costs_no_lease",
        ),
        (
            "beginning a new thread for one that died",
            "        if self._thread is None or not self._thread.is_alive():\n",
            "        if self._thread is None:\n",
            "test_leases.py::test_a_thread_that_died_is_replaced",
        ),
        (
            "looking whether a lease was taken away before it is used again",
            "            elif not lease.is_there:  # it was taken away\n                lease = self._replace(lease)\n",
            "",
            "test_leases.py::test_a_file_that_was_begun_under_a_lost_lease_is_not_published",
        ),
        (
            "not using a lease again whose lock could not be given up",
            "        if is_spoilt and is_current and lease.users > 0:\n",
            "        if False:\n",
            "test_leases.py",
        ),
        (
            "taking a lease again that was lost",
            "                self._take_again(lease)\n",
            "                pass\n",
            "test_leases.py::test_what_is_held_is_held_again_after_the_lease_was_lost",
        ),
        (
            "holding what a lost lease held",
            "Lease(lost.directory, lost.holds)\n",
            "Lease(lost.directory)\n",
            "test_leases.py::test_what_is_held_is_held_again_after_the_lease_was_lost",
        ),
        (
            "leaving the leases of the parent in a fork",
            "        state.__init__()  # type: ignore[misc]\n",
            "        pass\n",
            "test_leases.py::test_a_fork_has_leases_of_its_own",
        ),
        (
            "timing a lease by one's own monotonic clock",
            '    return _seen.unchanged_seconds(f"{directory.identity}/{name}", version) > seconds\n',
            "    return time.time() - found.st_mtime > seconds\n",
            "test_leases.py::test_the_time_of_day_has_no_say",
        ),
        (
            "beginning to count anew when a lease was renewed",
            "            if earlier is None or earlier.version != version:\n",
            "            if earlier is None:\n",
            "test_leases.py::test_a_lease_is_renewed_as_long_as_it_is_used",
        ),
        (
            "not waiting for a lease that this process could not remove",
            "    if token in _abandoned:\n        return True\n",
            "",
            "test_leases.py | test_failing_disks.py",
        ),
        (
            "not waiting for an owner that is known to be dead",
            "    if content is not None and is_proven_dead(content.owner):\n        return True\n",
            "",
            "test_store_local.py::TestByPath::test_the_lock_of_a_killed_process_is_free",
        ),
        (
            "not waiting for a lease that is gone",
            "        if not directory.exists(LEASE_PREFIX + token):\n            return True\n",
            "",
            "test_leases.py",
        ),
        (
            "the longest time that a lease may say of itself",
            "min(content.ttl_seconds, MAX_LEASE_SECONDS)",
            "content.ttl_seconds",
            "test_leases.py::test_no_lease_lasts_for_ever",
        ),
        (
            "looking whether a lease is over before its holds count",
            "        if content is not None and content.holds and not is_over(directory, token):\n",
            "        if content is not None and content.holds:\n",
            "test_leases.py::test_a_hold_ends_with_its_process",
        ),
        (
            "renaming a lease away before what is in it is removed",
            '        directory.rename(LEASE_PREFIX + token, f"{BROKEN_PREFIX}{token}-{secrets.token_hex(4)}")\n'
            "    removed = []\n",
            "        pass\n"
            '    removed = [f"{LEASE_PREFIX}{token}/{inner}" for inner in remove_tree(directory, LEASE_PREFIX + token)]\n',
            "test_leases.py",
        ),
        (
            "removing what a burial left that was killed",
            '        if name.startswith(f"{BROKEN_PREFIX}{token}-"):\n',
            "        if False:\n",
            "test_leases.py",
        ),
        (
            "renaming an unfinished lease away before it is removed",
            "                directory.rename(name, broken)\n                remove_tree(directory, broken)\n",
            "                remove_tree(directory, name)\n",
            "test_leases.py",
        ),
    ],
)

_OWNERS = _of(
    "ckpt_lib/store/owners.py",
    [
        (
            "comparing the running system before an owner is called dead",
            'if os.name != "posix" or owner.system != _system():',
            'if os.name != "posix":',
            "test_leases.py::test_only_a_process_of_this_system_can_be_proven_dead",
        ),
        (
            "the boot in the name of a running system",
            '        return f"{boot}/{os.stat',
            '        return f"{os.stat',
            "test_leases.py",
        ),
        (
            "the namespace in the name of a running system",
            "        return f\"{boot}/{os.stat(_PROCESSES / 'self/ns/pid').st_ino}\"\n",
            "        return boot\n",
            "test_leases.py",
        ),
        (
            "comparing when a process began",
            "        return started != owner.started\n",
            "        return False\n",
            "test_leases.py::test_a_number_that_was_given_again_is_not_the_owner",
        ),
        (
            "taking a zombie for dead",
            '            return "ended"  # and not',
            "            return fields[19]  # and not",
            "test_leases.py::test_a_killed_process_that_nobody_asked_for_is_dead",
        ),
        (
            "waiting for the other threads of a zombie",
            ' and len(os.listdir(_PROCESSES / str(pid) / "task")) <= 1:',
            ":",
            "test_leases.py",
        ),
        (
            "asking for a process of which nothing is said",
            "        os.kill(owner.pid, 0)\n",
            "        raise ProcessLookupError\n",
            "test_leases.py::test_a_process_that_cannot_be_seen_is_not_dead",
        ),
    ],
)

_RETENTION = [
    *_of(
        "ckpt_lib/retirement.py",
        [
            (
                "verifying what must stay before a plan is made",
                "    assessment.find_pillars(monitors)\n",
                "",
                "test_retirement.py::test_the_cleanup_after_a_save_finds_damage_too",
            ),
            (
                "verifying the newest healthy checkpoint",
                "for candidates in (manifests[::-1], healthy[::-1], *(",
                "for candidates in (manifests[::-1], *(",
                "test_health.py | test_retirement.py",
            ),
            (
                "verifying the best checkpoint",
                "healthy[::-1], *(ranked(manifests, monitor) for monitor in monitors)):",
                "healthy[::-1]):",
                "test_retirement.py",
            ),
            (
                "reading a checkpoint whose file is not the one that was seen intact",
                "        if self._known is not None and self._known.is_intact(self._folder, manifest):\n",
                "        if self._known is not None:\n",
                "test_retirement.py::test_the_cleanup_after_a_save_finds_damage_too",
            ),
            (
                "reading what stays while others go",
                "            assessment.is_valid(checkpoint_id)\n    if dry_run",
                '            assessment._statuses[checkpoint_id] = "valid"\n    if dry_run',
                "test_retirement.py::test_silent_rot_takes_no_place",
            ),
            (
                "counting what other processes hold as in use",
                "    protected = {**folder.held(), **(protected or {})}\n",
                "    protected = {**(protected or {})}\n",
                "test_retirement.py | test_manager_concurrency.py",
            ),
            (
                "counting what the runs took for the best",
                "dict.fromkeys([monitor, *(manifest.monitor for manifest in manifests)])",
                "dict.fromkeys([monitor])",
                "test_retirement.py::test_the_best_by_what_a_run_monitored_stays",
            ),
            (
                "sparing what was changed since the plan",
                "        if current.model_dump_json() != planned_text:\n",
                "        if False:\n",
                "test_retirement.py::test_an_edit_between_plan_and_execution_spares",
            ),
            (
                "sparing what is held since the plan",
                "        elif in_use := folder.held().get(current.checkpoint_id):\n",
                '        elif in_use := "":\n',
                "test_manager_concurrency.py::test_what_is_held_while_it_is_being_retired_stays",
            ),
            (
                "sparing all when what was to stay is gone",
                "        elif not all(map(is_there, relied_on)):\n",
                "        elif False:\n",
                "test_retirement.py::test_what_a_plan_relies_on_is_still_there_when_it_deletes",
            ),
            (
                "looking for the manifest of what was to stay",
                "folder.store.stat(folder.manifest_path(kept.checkpoint_id)) is not None and folder.is_complete(kept)",
                "folder.is_complete(kept)",
                "test_retirement.py::test_what_a_plan_relies_on_is_still_there_when_it_deletes",
            ),
            (
                "looking for the payload of what was to stay",
                "folder.store.stat(folder.manifest_path(kept.checkpoint_id)) is not None and folder.is_complete(kept)",
                "folder.store.stat(folder.manifest_path(kept.checkpoint_id)) is not None",
                "test_retirement.py::test_what_a_plan_relies_on_is_still_there_when_it_deletes",
            ),
        ],
    ),
    *_of(
        "ckpt_lib/policies/retention.py",
        [
            (
                "always keeping what is in use",
                " | dict(protected or {}) | _always_kept",
                " | _always_kept",
                "test_retention.py::test_the_precious_ones_are_never_given_up",
            ),
            (
                "always keeping pinned ones",
                '    keep((record for record in records if record.pinned), "pinned")\n',
                "",
                "test_retention.py::test_the_precious_ones_are_never_given_up",
            ),
            (
                "always keeping damaged ones",
                '    keep((record for record in records if record.status == "damaged"), "damaged: waits for repair")\n',
                "",
                "test_retention.py::test_a_damaged_checkpoint_counts_for_nothing",
            ),
            (
                "giving damaged ones no place",
                'whole = [record for record in newest_first if record.status != "damaged"]',
                "whole = newest_first",
                "test_retention.py::test_a_damaged_checkpoint_counts_for_nothing",
            ),
            (
                "always keeping the newest",
                '            keep([record], _said_of(record, f"newest {record.status}"))\n',
                "            pass\n",
                "test_retention.py::test_no_policy_deletes_everything",
            ),
            (
                "always keeping the newest that was verified",
                'for candidates in (whole, [record for record in whole if record.status == "valid"]):',
                "for candidates in (whole,):",
                "test_retention.py::test_an_unverified_newest_does_not_cost_the_newest_valid_one",
            ),
            (
                "always keeping the newest that is not known to be damaged",
                'for candidates in (whole, [record for record in whole if record.status == "valid"]):',
                'for candidates in ([record for record in whole if record.status == "valid"],):',
                "test_retention.py::test_a_plan_is_what_the_model_says",
            ),
            (
                "always keeping the best",
                '                keep([record], f"best {record.status} by {monitor.metric}")\n',
                "                pass\n",
                "test_retention.py::test_the_precious_ones_are_never_given_up",
            ),
            (
                "keeping unhealthy ones out of the newest and the best",
                "        healthy = [record for record in candidates if record.healthy]\n",
                "        healthy = list(candidates)\n",
                "test_retention.py::test_unhealthy_ones_cost_no_healthy_one",
            ),
            (
                "judging unhealthy ones apart",
                "        alike = [record for record in whole if record.healthy is healthy]\n",
                "        alike = list(whole)\n",
                "test_retention.py::test_a_diverged_run_takes_no_healthy_ones_place",
            ),
        ],
    ),
    *_of(
        "ckpt_lib/manager.py",
        [
            (
                "refusing to delete a pinned checkpoint",
                "    if not manifest.pinned:\n        return None\n",
                "    return None\n",
                "test_commit.py | test_manager_concurrency.py | test_interface.py | test_bad_input.py",
            ),
            (
                "keeping what this process goes on from",
                'protected={} if in_use is None else {in_use: "in use: loaded or saved last by this process"},',
                "protected={},",
                "test_retirement.py::test_the_one_in_use_stays",
            ),
            (
                "keeping backups of damaged checkpoints",
                '        protected = dict.fromkeys(damaged, "its checkpoint is damaged")\n',
                "        protected: dict[str, str] = {}\n",
                "test_retirement.py::test_backups_of_damaged_checkpoints_stay",
            ),
            (
                "keeping the backup that was just made",
                '            protected[just_made] = "made just now"\n',
                "            pass\n",
                "test_retirement.py | test_transfer.py | test_interface.py",
            ),
            (
                "holding what was loaded",
                '            stack.enter_context(folder.hold(manifest.checkpoint_id, "in use: loaded"))\n',
                "",
                "test_manager_concurrency.py::test_what_is_being_loaded_stays",
            ),
            (
                "looking whether a checkpoint is still there once it is held",
                "            folder.read_manifest(manifest.checkpoint_id)  # raises when it was deleted before it was held\n",
                "",
                "test_manager_concurrency.py",
            ),
            (
                "holding on to what was loaded",
                "            self._going_on_from.push(stack.pop_all())\n",
                "            stack.pop_all().close()\n",
                "test_leases.py::test_a_manager_holds_what_it_goes_on_from_until_it_is_gone",
            ),
            (
                "holding what was loaded where it was moved to",
                '            self._going_on_from.enter_context(self._folder.hold(self._loaded_id, "in use: loaded"))\n',
                "",
                "test_degradation.py::test_a_stranded_one_that_is_gone_on_from_is_followed_home",
            ),
            (
                "verifying what a run resumes from",
                "read = partial(read_payload, verify=True, map_location",
                "read = partial(read_payload, verify=self.config.validate_checkpoints, map_location",
                "test_manager_resume.py::test_resume_verifies_whatever_the_configuration_says",
            ),
            (
                "telling a deletion from damage while validating",
                "            folder.read_manifest(manifest.checkpoint_id)  # raises when it was deleted meanwhile, which is no damage\n",
                "            pass\n",
                "test_manager_concurrency.py::test_resuming_and_validating_while_another_retires",
            ),
        ],
    ),
]

_VERIFICATION = [
    *_of(
        "ckpt_lib/quarantine.py",
        [
            (
                "refusing to set aside what is intact",
                "        if report:\n            raise ProtectedCheckpointError(\n",
                "        if False:\n            raise ProtectedCheckpointError(\n",
                "test_quarantine.py::test_an_intact_one_is_refused",
            ),
            (
                "comparing versions before a checkpoint is set aside",
                "    return lambda: versions() == before\n",
                "    return lambda: True\n",
                "test_quarantine.py",
            ),
            (
                "verifying before a checkpoint leaves quarantine",
                "entry is None or not validate(folder, manifest, experiment_name, progress):",
                "entry is None:",
                "test_quarantine.py::test_it_stays_when_nothing_helps",
            ),
            (
                "comparing the version of a payload without manifest before it is set aside",
                "entry is not None and entry.version == version and not has_manifest",
                "entry is not None and not has_manifest",
                "test_doctor.py | test_quarantine.py",
            ),
            (
                "looking for a manifest before a payload without one is set aside",
                "entry is not None and entry.version == version and not has_manifest",
                "entry is not None and entry.version == version",
                "test_doctor.py | test_quarantine.py",
            ),
        ],
    ),
    *_of(
        "ckpt_lib/repair.py",
        [
            (
                "the SHA-256 of a payload whose chunks all agree, before a repair",
                "            found = validate(self.folder, manifest, self.experiment_name)\n",
                "            pass\n",
                "test_repair.py",
            ),
            (
                "comparing the uid of the other copy",
                "    if twin.uid != manifest.uid:\n",
                "    if False:\n",
                "test_repair.py::test_another_checkpoint_of_that_id_is_no_source",
            ),
            (
                "looking whether a payload is still the one that was examined",
                "        if self.folder.payload_entry(manifest) != entry:\n            return None\n",
                "",
                "test_repair.py",
            ),
            (
                "verifying the other copy's chunks before anything is written",
                "        if lacking := _differing(self.other, manifest, numbers):\n"
                "            return self.by_copy(found, altered_chunks(manifest.payload, lacking))\n",
                "",
                "test_repair.py",
            ),
            (
                "verifying each chunk once more as it is written",
                "        if not _is_sound(source, entry, number, buffer):\n            raise",
                "        if not _is_sound(source, entry, number, buffer) and False:\n            raise",
                "test_repair.py",
            ),
            (
                "reading repaired chunks back",
                "        return self.folder.is_complete(manifest) and not _differing(self.folder, manifest, numbers)\n",
                "        return self.folder.is_complete(manifest)\n",
                "test_repair.py",
            ),
            (
                "looking at a repaired payload's length",
                "        return self.folder.is_complete(manifest) and not _differing(self.folder, manifest, numbers)\n",
                "        return not _differing(self.folder, manifest, numbers)\n",
                "test_repair.py",
            ),
        ],
    ),
    *_of(
        "ckpt_lib/transfer.py",
        [
            (
                "comparing the uid of an earlier backup",
                "        _same_or_raise(existing, manifest, backups)\n",
                "",
                "test_transfer.py::test_a_different_checkpoint_in_the_backup_location_is_left_alone",
            ),
            (
                "reading an earlier backup when that was asked for",
                "        if is_whole and (not verify_existing or validate(backups, existing, existing.experiment_name)):\n",
                "        if is_whole:\n",
                "test_transfer.py::test_a_rotten_backup_is_found_when_it_is_read",
            ),
            (
                "looking at an earlier backup's length",
                "        if is_whole and (not",
                "        if (not",
                "test_transfer.py::test_a_broken_backup_is_made_anew",
            ),
            (
                "comparing the uid of what a restore replaces",
                "            _same_or_raise(current, saved, folder)\n",
                "            pass\n",
                "test_transfer.py",
            ),
            (
                "comparing the uid of an earlier export",
                "        _same_or_raise(existing, manifest, target)\n",
                "        pass\n",
                "test_transfer.py::test_an_export_never_overwrites_a_foreign_file",
            ),
            (
                "reading an earlier export",
                "    identical = validate(target, manifest, manifest.experiment_name).is_valid\n",
                "    identical = target.is_complete(manifest)\n",
                "test_transfer.py::test_an_export_never_overwrites_a_foreign_file",
            ),
            (
                "looking for a foreign file in the place of an exported manifest",
                "    if not (existing or identical) and target.store.stat",
                "    if False and target.store.stat",
                "test_transfer.py::test_an_export_never_overwrites_a_foreign_file",
            ),
            (
                "reading what was imported before",
                "        _intact_or_raise(folder, earlier)\n",
                "",
                "test_transfer.py::test_importing_again_does_not_call_damage_intact",
            ),
        ],
    ),
    *_of(
        "ckpt_lib/adoption.py",
        [
            (
                "verifying a payload before it gets the manifest of another copy",
                "    return is_named and validate(orphan.folder, manifest, manifest.experiment_name, progress).is_valid\n",
                "    return is_named\n",
                "test_doctor.py::test_a_payload_that_is_not_what_its_backup_is_stays",
            ),
            (
                "comparing a payload's checksums before it is adopted",
                "    if damaged is not None:\n",
                "    if False:\n",
                "test_doctor.py::test_what_cannot_be_adopted_is_set_aside",
            ),
            (
                "reading of an adopted payload what was digested",
                "    with VerifiedFile(_open(orphan), entry) as file:\n",
                "    with VerifiedFile(_open(orphan), None) as file:\n",
                "test_doctor.py",
            ),
            (
                "holding a payload that is examined",
                '        with orphan.folder.hold(orphan.checkpoint_id, "being examined"):\n',
                "        if True:\n",
                "test_doctor.py",
            ),
            (
                "comparing epoch and step with an adopted payload's name",
                "        if check_count(name, payload[name]) != expected:\n",
                "        if False:\n",
                "test_doctor.py::test_what_cannot_be_adopted_is_set_aside",
            ),
        ],
    ),
    *_of(
        "ckpt_lib/fallback.py",
        [
            (
                "looking into the trash at home",
                "        if any(item.uid == manifest.uid for item in view.deleted):  # it",
                "        if False:  # it",
                "test_degradation.py::test_what_was_deleted_at_home_does_not_come_back",
            ),
            (
                "the folder's fsync of what another process brought home",
                "                held.sync()\n        self._verify(brought)\n",
                "                pass\n        self._verify(brought)\n",
                "test_torture.py::test_row[3-power loss]",
            ),
            (
                "verifying at home before the stranded one goes",
                "        self._verify(brought)\n        self._remove(manifest)\n",
                "        self._remove(manifest)\n",
                "test_degradation.py::test_a_copy_that_is_damaged_at_home_does_not_cost_the_good_one",
            ),
            (
                "holding what is verified at home",
                '        with self._home.hold(brought.checkpoint_id, "being moved home"):\n',
                "        if True:\n",
                "test_degradation.py",
            ),
            (
                "looking whether it is still at home once it is held",
                "            self._home.read_manifest(brought.checkpoint_id)\n",
                "",
                "test_degradation.py",
            ),
            (
                "comparing the uid before a stranded one goes",
                "            if current.uid == manifest.uid:\n                return None\n",
                "            return None\n",
                "test_degradation.py",
            ),
            (
                "comparing the space at home with the size",
                "            self._require_room(manifest)\n",
                "",
                "test_degradation.py::test_without_room_at_home_nothing_is_begun",
            ),
        ],
    ),
    *_of(
        "ckpt_lib/degradation.py",
        [
            (
                "looking for what an attempt committed before it is tried again",
                "            if left := self._left_behind(draft):\n                return left\n",
                "",
                "test_degradation.py::test_a_lost_acknowledgement_makes_no_second_checkpoint",
            ),
            (
                "the folder's fsync of what an earlier attempt committed",
                "                held.sync()\n        return found\n",
                "                pass\n        return found\n",
                "test_degradation.py",
            ),
            (
                "looking for what was committed before a full store is tried again",
                "            if self.index.with_uid(draft.uid):\n                raise  # committed, but for the last barrier\n",
                "",
                "test_degradation.py",
            ),
            (
                "remembering as intact only what this process wrote",
                "        if manifest.uid == draft.uid:  # else another",
                "        if True:  # else another",
                "test_degradation.py | test_manager_concurrency.py",
            ),
            (
                "comparing the free space with the size",
                "        if free_bytes >= needed_bytes:\n            return\n        error",
                "        return\n        error",
                "test_degradation.py::test_too_little_space_is_said_before_anything_is_written",
            ),
        ],
    ),
    *_of(
        "ckpt_lib/stream/reader.py",
        [
            (
                "verifying chunks before they are handed out",
                "        elif damages := self._damages_of(self._entry, numbers):\n",
                "        elif damages := self._damages_of(self._entry, numbers) and []:\n",
                "test_stream.py::test_damage_is_found_exactly_where_it_is_asked_for",
            ),
            (
                "comparing the size before anything is handed out",
                "        if damages := size_damage(entry, self.size_bytes):\n",
                "        if damages := []:\n",
                "test_stream.py::test_a_damaged_file_is_refused_before_anything_is_handed_out",
            ),
            (
                "verifying an empty file",
                "        if not self.size_bytes:  # nothing will ever be asked for\n            self._verify_whole(entry)\n",
                "",
                "test_stream.py::test_what_an_empty_file_should_have_been_is_compared_too",
            ),
            (
                "the SHA-256 of a file without a chunk table",
                "        if damages := find_damages(_Viewed(self._held.view), entry):\n",
                "        if damages := []:\n",
                "test_stream.py::test_without_a_chunk_table_the_whole_is_verified_first",
            ),
        ],
    ),
    *_of(
        "ckpt_lib/stream/checking.py",
        [
            (
                "comparing the SHA-256 of a payload",
                "    if not damages and found.sha256 != entry.sha256:\n",
                "    if False:\n",
                "test_stream.py::test_sha256_has_the_last_word",
            ),
            (
                "comparing the size of a payload",
                "    damages = size_damage(entry, found.size_bytes)\n",
                "    damages: list[Damage] = []\n",
                "test_stream.py::test_a_truncated_file_is_told_from_an_altered_one",
            ),
            (
                "comparing the chunks of a payload",
                "    damages += [altered(entry, start, stop) for start, stop in ranges]\n",
                "",
                "test_stream.py::test_altered_bytes_are_located_to_their_chunks",
            ),
            (
                "comparing chunks in the quick check of a local file",
                "    return [*size_damage(entry, size_bytes), *altered_chunks(entry, numbers)]\n",
                "    return size_damage(entry, size_bytes)\n",
                "test_stream.py::test_both_checks_of_both_kinds_of_file_find_the_same",
            ),
            (
                "comparing the size in the quick check of a local file",
                "    return [*size_damage(entry, size_bytes), *altered_chunks(entry, numbers)]\n",
                "    return altered_chunks(entry, numbers)\n",
                "test_stream.py::test_both_checks_of_both_kinds_of_file_find_the_same",
            ),
            (
                "comparing chunks in the quick check of any other file",
                "    return [*size_damage(entry, total_bytes), *altered_chunks(entry, differing)]\n",
                "    return size_damage(entry, total_bytes)\n",
                "test_stream.py::test_both_checks_of_both_kinds_of_file_find_the_same",
            ),
            (
                "comparing the size in the quick check of any other file",
                "    return [*size_damage(entry, total_bytes), *altered_chunks(entry, differing)]\n",
                "    return altered_chunks(entry, differing)\n",
                "test_stream.py::test_both_checks_of_both_kinds_of_file_find_the_same",
            ),
        ],
    ),
    *_of(
        "ckpt_lib/metadata.py",
        [
            (
                "comparing the digest of a manifest",
                "        if not _is_canonical(fields, data):\n",
                "        if False:\n",
                "test_metadata.py::test_a_block_of_other_bytes_is_noticed",
            ),
            (
                "refusing the manifest of a newer version",
                "        if version > SCHEMA_VERSION:\n",
                "        if False:\n",
                "test_metadata.py::test_a_newer_schema_is_refused_by_number",
            ),
            (
                "comparing a payload's name with its checkpoint's id",
                "        _check_names(manifest, path)\n",
                "",
                "test_metadata.py::test_a_manifest_names_its_own_payload_and_nothing_else",
            ),
        ],
    ),
    *_of(
        "ckpt_lib/folder.py",
        [
            (
                "comparing the id in a manifest with its file's name",
                "        if manifest.checkpoint_id != checkpoint_id:\n",
                "        if False:\n",
                "test_commit.py::test_a_tombstone_that_is_not_whole_deletes_nothing",
            ),
            (
                "comparing the length of a payload with its manifest",
                "        return entry is not None and entry.size_bytes == manifest.payload.size_bytes\n",
                "        return entry is not None\n",
                "test_commit.py::test_a_damaged_checkpoint_does_not_answer_for_its_key",
            ),
        ],
    ),
    *_of(
        "ckpt_lib/integrity.py",
        [
            (
                "comparing the version of a file that was seen intact",
                "self._intact.get(folder.payload_location(manifest)) == entry.version\n",
                "folder.payload_location(manifest) in self._intact\n",
                "test_retirement.py::test_the_cleanup_after_a_save_finds_damage_too",
            ),
            (
                "comparing the uid of the copy that tells where tensors lie",
                "        if folder.read_manifest(manifest.checkpoint_id).uid != manifest.uid:\n",
                "        if False:\n",
                "test_validation.py::test_a_different_checkpoint_of_that_id_tells_nothing",
            ),
        ],
    ),
    *_of(
        "ckpt_lib/index.py",
        [
            (
                "looking for the payload of an earlier save with the same key",
                "            if manifest.idempotency_key == key and self._folder.is_complete(manifest):\n",
                "            if manifest.idempotency_key == key:\n",
                "test_commit.py::test_a_damaged_checkpoint_does_not_answer_for_its_key",
            ),
            (
                "looking for every name of an id before it is given",
                "            return checkpoint_id not in same and names_of(checkpoint_id, suffix).isdisjoint(view.entries)\n",
                "            return checkpoint_id not in same\n",
                "test_commit.py::test_an_id_that_a_foreign_file_has_is_not_taken",
            ),
        ],
    ),
    *_of(
        "ckpt_lib/loading.py",
        [
            (
                "holding what is being read",
                '            folder.hold(manifest.checkpoint_id, "being read"),\n',
                "",
                "test_manager_concurrency.py | test_loading.py",
            ),
            (
                "telling a deletion from damage while loading",
                "        folder.read_manifest(manifest.checkpoint_id)  # raises when it was deleted meanwhile, which is no damage\n"
                "        damage",
                "        damage",
                "test_manager_concurrency.py | test_manager_resume.py",
            ),
        ],
    ),
    *_of(
        "ckpt_lib/scrub.py",
        [
            (
                "comparing the version of what a scrub has read already",
                "                and (outcome.version, outcome.sha256) == (entry.version, item.manifest.payload.sha256)\n",
                "",
                "test_scrub.py::test_what_changed_since_is_read_again",
            ),
            (
                "telling a deletion from damage while scrubbing",
                "            except CheckpointNotFoundError:  # deleted meanwhile, which is no damage\n                return None\n",
                "            except CheckpointNotFoundError:\n                pass\n",
                "test_scrub.py::test_what_is_deleted_meanwhile_is_no_damage",
            ),
        ],
    ),
]

MUTANTS: tuple[Mutant, ...] = (
    *_COMMIT,
    *_FILES,
    *_LOCK,
    *_LEASES,
    *_OWNERS,
    *_RETENTION,
    *_VERIFICATION,
)
