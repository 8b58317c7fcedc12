"""Whether stored bytes are the bytes that were saved."""

from __future__ import annotations

import threading

from pydantic import BaseModel, ConfigDict

from ckpt_lib.errors import CheckpointError, StoreError
from ckpt_lib.folder import CheckpointFolder
from ckpt_lib.metadata import Manifest
from ckpt_lib.stream import Damage, Progress, find_damages, missing_file


class ValidationReport(BaseModel):
    """The outcome of validating one checkpoint; true when it is intact."""

    model_config = ConfigDict(frozen=True)

    checkpoint_id: str
    experiment_name: str
    size_bytes: int = 0
    sha256: str = ""
    damages: tuple[Damage, ...] = ()

    @property
    def is_valid(self) -> bool:
        return not self.damages

    def __bool__(self) -> bool:
        return self.is_valid

    @property
    def message(self) -> str:
        """One line for a table or a log."""
        return "; ".join(damage.message for damage in self.damages) or "intact"


def validate(
    folder: CheckpointFolder, manifest: Manifest, experiment_name: str, progress: Progress | None = None
) -> ValidationReport:
    """Read a checkpoint's payload to its end and compare size, SHA-256 and every chunk digest.

    Bytes that the disk cannot give back are damage. A store that does not answer or refuses access is an error.
    """
    try:
        with folder.store.open_read(folder.payload_path(manifest)) as file:
            damages = find_damages(file, manifest.payload, progress)
    except FileNotFoundError:
        damages = [missing_file(manifest.payload.name)]
    except StoreError as error:
        if not is_unreadable(error):
            raise
        message = f"{manifest.payload.name} cannot be read: {error.message}"
        damages = [Damage(file=manifest.payload.name, kind="unreadable", message=message)]
    return ValidationReport(
        checkpoint_id=manifest.checkpoint_id,
        experiment_name=experiment_name,
        size_bytes=manifest.payload.size_bytes,
        sha256=manifest.payload.sha256,
        damages=tuple(damages),
    )


def is_unreadable(error: CheckpointError) -> bool:
    """Whether the store failed at just these bytes, as at a bad sector, and not as a whole."""
    return type(error) is StoreError


def unreadable_report(error: CheckpointError, checkpoint_id: str, experiment_name: str) -> ValidationReport:
    """The report of a checkpoint whose manifest cannot be read."""
    damage = Damage(file=f"{checkpoint_id}.json", kind="manifest", message=error.message)
    return ValidationReport(checkpoint_id=checkpoint_id, experiment_name=experiment_name, damages=(damage,))


class KnownVersions:
    """Which file versions this process has seen to be intact, so that it need not read them again.

    A version is what the store tells of a file without reading it. It does not change when bits rot, so this spares
    work after each save and is not asked when someone wants to know.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._intact: dict[str, str] = {}

    def remember(self, folder: CheckpointFolder, manifest: Manifest) -> None:
        """Note that the payload, as it now lies there, has been written or read and is intact."""
        if entry := folder.payload_entry(manifest):
            with self._lock:
                self._intact[folder.payload_location(manifest)] = entry.version

    def is_intact(self, folder: CheckpointFolder, manifest: Manifest) -> bool:
        """Whether the payload has not changed since it was remembered."""
        entry = folder.payload_entry(manifest)
        with self._lock:
            return entry is not None and self._intact.get(folder.payload_location(manifest)) == entry.version
