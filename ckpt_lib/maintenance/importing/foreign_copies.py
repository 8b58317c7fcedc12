"""Imports of checkpoints of other programs: saved anew in a format of ours, as the newest of an experiment.

The checkpoint is described first, which reads its structure and runs no code: what cannot be loaded is refused before a
byte is written. Then its files are digested, and each byte is compared with these digests when it is used. The digest
of all files is the idempotency key, so that the same checkpoint becomes one of ours only once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from ckpt_lib.core.facts import CheckpointFacts, GivenFacts
from ckpt_lib.core.manifest import FileEntry, Manifest, payload_sha256
from ckpt_lib.core.monitor import Monitor
from ckpt_lib.core.names import MAX_DESCRIPTION_LENGTH
from ckpt_lib.core.wording import visible
from ckpt_lib.experiment import commit, keys
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.foreign import ForeignCheckpoint, FoundFiles, materialise
from ckpt_lib.foreign.checksums import check_checksums
from ckpt_lib.foreign.opening import describe_checkpoint
from ckpt_lib.foreign.payloads import check_key_map, with_payload
from ckpt_lib.formats import Format
from ckpt_lib.maintenance.importing.refusals import refuse_older, require_intact, was_changed
from ckpt_lib.maintenance.importing.report import UNPROVEN_TAG, Imported
from ckpt_lib.state.health import HealthCheck
from ckpt_lib.stream import Progress, StreamDigest, VerifiedFile
from ckpt_lib.stream.digests import BLOCK_SIZE_BYTES

_MOST_SENTENCES = 50


@dataclass(frozen=True)
class ForeignImport:
    """One import of a checkpoint of another program into ``experiment``."""

    experiment: Experiment
    monitor: Monitor
    key_map: Mapping[str, str] | None = None
    progress: Progress | None = None
    health_check: bool = True
    """Look for NaN and infinities, which keep a run from resuming from it."""
    newest: Manifest | None = None
    """What is older than this checkpoint is refused."""

    def copy(self, find_files: Callable[[], FoundFiles], stored: Format) -> Imported:
        """Save in the format ``stored`` what the files hold that ``find_files`` returns.

        Raises what :func:`~ckpt_lib.foreign.open_checkpoint` and :func:`~ckpt_lib.foreign.payloads.with_payload`
        raise, :class:`~ckpt_lib.errors.UnsupportedStateError` for a state that no format stores, and
        :class:`~ckpt_lib.errors.CorruptCheckpointError` where an earlier copy is damaged; nothing is written then.
        Killed on the way, call it again.
        """
        key_map = check_key_map(self.key_map)
        with find_files() as files:
            with_payload(describe_checkpoint(files), key_map)  # raises before all of it is read
            entries = {name: digest_of(files.open(name), name or files.title, self.progress) for name in files.names}
            key = import_key(entries, key_map)
            unchecked = check_checksums(files)
            with files.verified(entries) as verified:
                found = with_payload(describe_checkpoint(verified), key_map)
                if earlier := keys.find(self.experiment, key):
                    require_intact(self.experiment, earlier)
                    return Imported(earlier, found.title, is_new=False, left_out=found.left_out)
                manifest, is_new = self._save(found, key, stored, find_files, *unchecked)
        return Imported(manifest, found.title, is_new=is_new, left_out=found.left_out)

    def _save(
        self,
        found: ForeignCheckpoint,
        key: str,
        stored: Format,
        find_files: Callable[[], FoundFiles],
        *unchecked: str,
    ) -> tuple[Manifest, bool]:
        facts = self.facts_of(found, *unchecked)
        payload = stored.prepare({**materialise(found.payload), "metrics": facts.metrics, "config": facts.config})
        layout = stored.lay_out(payload)
        hint = "Nothing was written. `ckpt cleanup` and `ckpt trash --empty` free space."
        if lack := commit.lack_of_room(self.experiment, layout.size_bytes, "for the checkpoint", hint=hint):
            raise lack
        unhealthy = self.fault_of(payload, facts)

        def write(sink: commit.Payload) -> None:
            layout.write(sink)
            require_unchanged(found.files, find_files)

        facts = replace(facts, idempotency_key=key, unhealthy=unhealthy)
        manifest = commit.save(self.experiment, facts, write, format_name=stored.name, suffix=stored.suffix)
        return manifest, manifest.uid == facts.uid

    def fault_of(self, payload: Mapping[str, Any], facts: CheckpointFacts) -> str | None:
        """Return why no run should resume from it; ``None`` if there is no reason, or nobody asked."""
        return HealthCheck(self.monitor).find_fault(payload, facts.metrics) if self.health_check else None

    def facts_of(self, found: ForeignCheckpoint, *sentences: str) -> CheckpointFacts:
        """Return what the manifest will say; ``sentences`` are added to the description."""
        given = GivenFacts(
            epoch=found.facts.epoch,
            step=found.facts.step,
            metrics=found.facts.metrics,
            config=found.facts.config,
            tags=[UNPROVEN_TAG],
            description=description_of(found, (*sentences, *found.left_out)),
        )
        checked = given.checked(
            model_name="unknown", experiment_name=self.experiment.name, monitor=self.monitor, with_environment=True
        )
        refuse_older(self.newest, epoch=found.facts.epoch, step=found.facts.step)
        return replace(checked, timestamp=time_of(found), libraries={})


def digest_of(file: VerifiedFile, name: str, progress: Progress | None) -> FileEntry:
    """Return the entry of a file, all of which is read."""
    digest = StreamDigest()
    for start in range(0, file.size_bytes, BLOCK_SIZE_BYTES):
        with file.view(start, min(start + BLOCK_SIZE_BYTES, file.size_bytes)) as block:
            digest.update(block)
            if progress:
                progress(len(block))
    return FileEntry(name=name, **vars(digest.finish()))


def import_key(entries: Mapping[str, FileEntry], key_map: Mapping[str, str] | None) -> str:
    """Return the idempotency key of an import: the same bytes, taken in the same way, become one checkpoint."""
    sha256 = payload_sha256({name: entry.sha256 for name, entry in entries.items()})
    how = f" by {json.dumps(key_map, sort_keys=True)}" if key_map else ""
    return f"import of {sha256}{how}"


def require_unchanged(files: FoundFiles, find_files: Callable[[], FoundFiles]) -> None:
    """Raise :class:`~ckpt_lib.errors.CorruptCheckpointError` if a file was written to since it was found."""
    with find_files() as now:
        if (now.sizes_bytes, now.modified_seconds) != (files.sizes_bytes, files.modified_seconds):
            raise was_changed(files.path)


def time_of(found: ForeignCheckpoint) -> datetime:
    """Return when a checkpoint was saved, as far as it or its files tell; never a time to come."""
    now = datetime.now(UTC).replace(microsecond=0)
    if (saved_at := found.facts.saved_at) is not None:
        known = saved_at if saved_at.tzinfo else saved_at.replace(tzinfo=UTC)
        seconds = known.timestamp()
    else:
        seconds = max(found.files.modified_seconds.values(), default=now.timestamp())
    return min(now, datetime.fromtimestamp(min(max(0, int(seconds)), int(now.timestamp())), UTC))


def description_of(found: ForeignCheckpoint, more: Iterable[str]) -> str:
    """Return the description of an import: what it was, where from, and what of it is not there."""
    writer = f", written by {found.facts.writer}" if found.facts.writer else ""
    sentences = [f"Imported from {found.files.path}: {found.title}{writer}.", *more, *found.findings]
    if len(sentences) > _MOST_SENTENCES:
        sentences[_MOST_SENTENCES:] = [f"And {len(sentences) - _MOST_SENTENCES} more."]
    text = "\n".join(map(visible, sentences))
    return text if len(text) <= MAX_DESCRIPTION_LENGTH else f"{text[: MAX_DESCRIPTION_LENGTH - 2]} …"
