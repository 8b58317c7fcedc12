"""What lies in a tree of files: which files and folders may be checkpoints, and what each says of itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial

from ckpt_lib.core.manifest import Manifest, is_own_name
from ckpt_lib.core.names import CheckpointId, is_checkpoint_id
from ckpt_lib.errors import CheckpointError, NotACheckpointError
from ckpt_lib.experiment.layout import MANIFEST_SUFFIX, OWN_PREFIX
from ckpt_lib.foreign import FoundFiles, found_files
from ckpt_lib.foreign.opening import described, kind_of
from ckpt_lib.foreign.payloads import facts_of
from ckpt_lib.maintenance import imports
from ckpt_lib.maintenance.foreign import kind_of as name_of_kind
from ckpt_lib.maintenance.import_report import ImportedItem, Result
from ckpt_lib.maintenance.imports import Imported

_SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors", ".bin", ".tar")
"""What the names of checkpoints end with. A file of such a name that is none was meant to be one."""


@dataclass(frozen=True)
class Thing:
    """What may be a checkpoint: a file, or a folder."""

    path: str
    find_files: Callable[[], FoundFiles]
    source: str
    """What to import; the same as the files, but for the direct files of the tree itself."""
    is_part: bool = False
    """True for the direct files of a folder, whose other files are not part of it."""
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

    def item(self, result: Result, reason: str | None = None, imported: Imported | None = None) -> ImportedItem:
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


def things_in(files: FoundFiles, root: str, below: str = "") -> Iterator[Thing]:
    """Yield what may be a checkpoint in a folder: the folder itself, or its files and what is in its folders."""
    direct = sorted(name for name in files.names if "/" not in name)
    folders = sorted({name.partition("/")[0] for name in files.names if "/" in name})
    if below and _is_known(files):
        yield _thing(root, below)
        return
    is_part = not below and direct and _is_known(files.where(lambda name: "/" not in name))
    if is_part:
        find_files = partial(_direct_files, root)
        yield Thing("", find_files, root, is_part=True)
    own = {name.removesuffix(MANIFEST_SUFFIX) for name in direct if _is_manifest(name)}
    for name in () if is_part else direct:
        if not _is_own(name, own):
            yield _thing(root, _joined(below, name))
    for name in folders:
        if name in own:
            yield _thing(root, _joined(below, name))
        elif not (_is_own(name, own) or name.startswith(OWN_PREFIX)):
            yield from things_in(files.below(name), root, _joined(below, name))


def _thing(root: str, below: str) -> Thing:
    source = f"{root.rstrip('/')}/{below}"
    return Thing(below, partial(found_files, source), source)


def _joined(below: str, name: str) -> str:
    return f"{below}/{name}" if below else name


def _direct_files(root: str) -> FoundFiles:
    return found_files(root).where(lambda name: "/" not in name)


def _is_manifest(name: str) -> bool:
    return name.endswith(MANIFEST_SUFFIX) and is_checkpoint_id(name.removesuffix(MANIFEST_SUFFIX))


def _is_own(name: str, own: set[str]) -> bool:
    """Tell whether a name in a folder is that of a file of ours which is no payload."""
    if _is_manifest(name) or name.startswith(OWN_PREFIX):
        return True
    return bool(own) and is_own_name(name) and not is_checkpoint_id(name.partition(".")[0])


def _is_known(files: FoundFiles) -> bool:
    """Tell whether a known program writes such folders; files that cannot be read are none of its."""
    with suppress(CheckpointError, OSError):
        return kind_of(files) is not None
    return False


# --- what it is ---


def described_thing(thing: Thing, experiment_name: str, key_map: Mapping[str, str] | None = None) -> Thing:
    """Return the thing with what it says of itself by ``key_map``, read from its structure."""
    try:
        if (manifest := _manifest_of(thing, experiment_name)) is not None:
            return _of_ours(thing, manifest)
        with thing.find_files() as files:
            if kind_of(files) is None:
                return _unknown(thing, files)
            found = described(files)
            taken = facts_of(found, key_map)
            facts = taken or found.facts
            time = facts.saved_at or datetime.fromtimestamp(_latest(files), UTC)
            return replace(
                thing,
                title=found.title,
                epoch=facts.epoch,
                step=facts.step,
                saved_seconds=(time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp(),
                size_bytes=files.size_bytes,
                has_obstacle=taken is None,
            )
    except (CheckpointError, OSError) as error:
        return replace(thing, title=_title_of(thing), failure=error)


def _manifest_of(thing: Thing, experiment_name: str) -> Manifest | None:
    """Return the manifest that lies beside a payload of ours; ``None`` where there is none."""
    if not is_checkpoint_id(thing.source.rpartition("/")[2].partition(".")[0]):
        return None
    with suppress(NotACheckpointError):
        origin, name = imports.locate(thing.source, experiment_name)
        record = origin.read(name).record if is_checkpoint_id(name) else None
        return record if isinstance(record, Manifest) and record.is_visible else None
    return None


def _of_ours(thing: Thing, manifest: Manifest) -> Thing:
    return replace(
        thing,
        title="a checkpoint with its manifest",
        epoch=manifest.epoch,
        step=manifest.step,
        saved_seconds=manifest.timestamp.timestamp(),
        size_bytes=manifest.size_bytes,
    )


def _unknown(thing: Thing, files: FoundFiles) -> Thing:
    """Return a thing that no known program writes: a payload of ours, by its name, or no checkpoint."""
    title = name_of_kind(files.open()) if files.is_one_file else "a folder of an unknown kind"
    size_bytes, name = files.size_bytes, files.title
    if is_checkpoint_id(name.partition(".")[0]):
        saved = CheckpointId.parse(name.partition(".")[0])
        return replace(
            thing,
            title="a payload of this library without its manifest",
            epoch=saved.epoch,
            step=saved.step,
            saved_seconds=saved.timestamp.timestamp(),
            size_bytes=size_bytes,
        )
    failure = NotACheckpointError(f"it is {title}, and no program is known that writes such checkpoints")
    return replace(
        thing, title=title, size_bytes=size_bytes, failure=failure, is_checkpoint=name.lower().endswith(_SUFFIXES)
    )


def _title_of(thing: Thing) -> str:
    """Name the kind of a file that cannot be described, as far as its first bytes tell."""
    with suppress(CheckpointError, OSError), thing.find_files() as files:
        return name_of_kind(files.open()) if files.is_one_file else "a folder"
    return "a file that cannot be read"


def _latest(files: FoundFiles) -> float:
    return max(files.modified_seconds.values(), default=0.0)


def in_order(things: Sequence[Thing]) -> list[Thing]:
    """Sort by what all say that can be imported: their steps, or their epochs, or else their times."""
    sound = [thing for thing in things if thing.failure is None and not thing.has_obstacle]
    if sound and all(thing.step is not None for thing in sound):
        return sorted(things, key=lambda thing: (thing.step or 0, thing.epoch or 0, thing.saved_seconds, thing.path))
    if sound and all(thing.epoch is not None for thing in sound):
        return sorted(things, key=lambda thing: (thing.epoch or 0, thing.saved_seconds, thing.path))
    return sorted(things, key=lambda thing: (thing.saved_seconds, thing.path))
