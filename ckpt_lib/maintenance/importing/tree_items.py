"""``TreeItem``: a file or folder in a tree that may be a checkpoint, and what it says of itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from ckpt_lib.core.manifest import Manifest, is_own_name
from ckpt_lib.core.names import CheckpointId, is_checkpoint_id
from ckpt_lib.errors import CheckpointError, NotACheckpointError
from ckpt_lib.experiment.at_path import checkpoint_at
from ckpt_lib.experiment.layout import MANIFEST_SUFFIX, OWN_PREFIX
from ckpt_lib.foreign import FoundFiles, found_files
from ckpt_lib.foreign.file_types import describe_file
from ckpt_lib.foreign.opening import describe_checkpoint, kind_of
from ckpt_lib.foreign.payloads import facts_of
from ckpt_lib.foreign.trees import LIKELY_SUFFIXES, candidates_in, tree_of
from ckpt_lib.maintenance.importing.report import Imported, ImportedItem, Result


@dataclass(frozen=True)
class TreeItem:
    """What may be a checkpoint: a file, or a folder."""

    path: str
    find_files: Callable[[], FoundFiles]
    source: str
    """What to import; the same as the files, but for some of the files of a folder."""
    is_part: bool = False
    """True for some of the files of a folder, whose other files are not part of it."""
    title: str = ""
    """What it is, for a person."""
    epoch: int | None = None
    step: int | None = None
    saved_seconds: float = 0.0
    size_bytes: int = 0
    failure: CheckpointError | OSError | None = field(default=None, compare=False)
    """Why it cannot be imported."""
    has_obstacle: bool = False
    """True for one that can be imported by another ``key_map``, or not at all."""
    is_checkpoint: bool = True
    """False for what nobody would take for one."""

    def reported(self, result: Result, reason: str | None = None, imported: Imported | None = None) -> ImportedItem:
        """Return what a report says of it."""
        manifest = imported.manifest if imported else None
        return ImportedItem(
            path=self.path,
            title=self.title or "a file of an unknown kind",
            result=result,
            checkpoint_id=manifest.checkpoint_id if manifest else None,
            epoch=manifest.epoch if manifest else self.epoch,
            step=manifest.step if manifest else self.step,
            size_bytes=self.size_bytes,
            reason=reason,
            left_out=imported.left_out if imported else (),
        )


# --- what there is ---


def items_in(files: FoundFiles, root: str) -> Iterator[TreeItem]:
    """Yield what may be a checkpoint in a folder: the folder itself, and its files and folders that are no parts."""
    own = {name.removesuffix(MANIFEST_SUFFIX) for name in files.names if _is_manifest(name)}
    own_folders = {path.rpartition("/")[0] for path in own}
    sizes = {name: size for name, size in files.sizes_bytes.items() if not _is_own(name, own_folders)}
    found = candidates_in(tree_of(sizes), partial(_opened, files), is_whole=own.__contains__)
    for candidate in sorted(found, key=lambda candidate: candidate.path):
        source = f"{root.rstrip('/')}/{candidate.path}" if candidate.path else root
        if candidate.is_alone or candidate.path in own:
            yield TreeItem(candidate.path, partial(found_files, source), source)
        else:
            names = frozenset(
                name.removeprefix(f"{candidate.path}/" if candidate.path else "") for name in candidate.names
            )
            yield TreeItem(candidate.path, partial(_some_files, source, names), source, is_part=True)


def _opened(files: FoundFiles, path: str, sizes_bytes: Mapping[str, int]) -> FoundFiles:
    return (files.below(path) if path else files).where(sizes_bytes.__contains__)


def _some_files(source: str, names: frozenset[str]) -> FoundFiles:
    return found_files(source).where(names.__contains__)


def _is_manifest(path: str) -> bool:
    return path.endswith(MANIFEST_SUFFIX) and is_checkpoint_id(path.rpartition("/")[2].removesuffix(MANIFEST_SUFFIX))


def _is_own(path: str, own_folders: set[str]) -> bool:
    """Tell whether a file is one of ours, or in a folder of ours, that is no payload."""
    folder = ""
    for name in path.split("/"):
        if name.startswith(OWN_PREFIX) or (
            folder in own_folders and is_own_name(name) and not is_checkpoint_id(name.partition(".")[0])
        ):
            return True
        folder = f"{folder}/{name}" if folder else name
    return _is_manifest(path)


# --- what it is ---


def described_item(item: TreeItem, key_map: Mapping[str, str] | None = None) -> TreeItem:
    """Return the item with what it says of itself by ``key_map``, read from its structure."""
    try:
        if (manifest := _manifest_of(item)) is not None:
            return _of_ours(item, manifest)
        with item.find_files() as files:
            if kind_of(files) is None:
                return _unknown(item, files)
            found = describe_checkpoint(files)
            mapped = facts_of(found, key_map)
            facts = mapped or found.facts
            time = facts.saved_at or datetime.fromtimestamp(_latest(files), UTC)
            return replace(
                item,
                title=found.title,
                epoch=facts.epoch,
                step=facts.step,
                saved_seconds=(time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp(),
                size_bytes=files.size_bytes,
                has_obstacle=mapped is None,
            )
    except (CheckpointError, OSError) as error:
        return replace(item, **_seen(item), failure=error)


def _manifest_of(item: TreeItem) -> Manifest | None:
    """Return the manifest that lies beside a payload of ours; ``None`` where there is none."""
    if not is_checkpoint_id(item.source.rpartition("/")[2].partition(".")[0]):
        return None
    if (found := checkpoint_at(item.source)) is None:
        return None
    origin, checkpoint_id = found
    record = origin.read(checkpoint_id).record
    return record if isinstance(record, Manifest) and record.is_visible else None


def _of_ours(item: TreeItem, manifest: Manifest) -> TreeItem:
    return replace(
        item,
        title="a checkpoint with its manifest",
        epoch=manifest.epoch,
        step=manifest.step,
        saved_seconds=manifest.timestamp.timestamp(),
        size_bytes=manifest.size_bytes,
    )


def _unknown(item: TreeItem, files: FoundFiles) -> TreeItem:
    """Return an item that no known program writes: a payload of ours, by its name, or no checkpoint."""
    title = describe_file(files.open()) if files.is_one_file else "a folder of an unknown kind"
    size_bytes, name = files.size_bytes, files.title
    if is_checkpoint_id(name.partition(".")[0]):
        saved = CheckpointId.parse(name.partition(".")[0])
        return replace(
            item,
            title="a payload of this library without its manifest",
            epoch=saved.epoch,
            step=saved.step,
            saved_seconds=saved.timestamp.timestamp(),
            size_bytes=size_bytes,
        )
    failure = NotACheckpointError(f"it is {title}, and no program is known that writes such checkpoints")
    return replace(
        item, title=title, size_bytes=size_bytes, failure=failure, is_checkpoint=name.lower().endswith(LIKELY_SUFFIXES)
    )


def _seen(item: TreeItem) -> dict[str, Any]:
    """Return title and size of what cannot be described, as far as its first bytes tell."""
    with suppress(CheckpointError, OSError), item.find_files() as files:
        title = describe_file(files.open()) if files.is_one_file else "a folder"
        return {"title": title, "size_bytes": files.size_bytes}
    return {"title": "a file that cannot be read"}


def _latest(files: FoundFiles) -> float:
    return max(files.modified_seconds.values(), default=0.0)


def in_order(items: Sequence[TreeItem]) -> list[TreeItem]:
    """Sort by what all say that can be imported and say anything: their steps, or their epochs, or else their times.

    Those that say neither come first: what follows them is the newest, whatever the time of a file that was copied.
    """
    told = [item for item in items if _is_told(item)]
    if all(item.step is not None for item in told):
        return sorted(items, key=lambda item: (_is_told(item), item.step or 0, item.epoch or 0, *_by_time(item)))
    if all(item.epoch is not None for item in told):
        return sorted(items, key=lambda item: (_is_told(item), item.epoch or 0, *_by_time(item)))
    return sorted(items, key=lambda item: (_is_told(item), *_by_time(item)))


def _is_told(item: TreeItem) -> bool:
    is_sound = item.failure is None and not item.has_obstacle
    return is_sound and (item.step is not None or item.epoch is not None)


def _by_time(item: TreeItem) -> tuple[float, str]:
    return item.saved_seconds, item.path
