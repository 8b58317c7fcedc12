"""What thinning would free: told by the structure of a payload, without reading its tensors."""

from __future__ import annotations

from collections.abc import Iterable

from ckpt_lib.core.manifest import Manifest
from ckpt_lib.core.payload_keys import RESUME_ONLY_KEYS
from ckpt_lib.errors import CheckpointError, StoreUnavailableError
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.experiment.stored_payload import StoredPayload, errors_named, format_of
from ckpt_lib.formats import Format, is_compressed, plain_source
from ckpt_lib.formats.base import PayloadSource
from ckpt_lib.maintenance.thin import droppable

Range = tuple[int, int]
_ALIKE_BYTES = 4096
"""Payloads of one run whose sizes differ by less have the same structure: the numbers in them have more digits."""


class Savings:
    """Of several checkpoints of a run that are of one size, the structure of one is read."""

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment
        self._shares: dict[tuple[object, ...], float] = {}

    def bytes_of(self, manifest: Manifest) -> int:
        """Return about how many bytes thinning a checkpoint frees; 0 where it would drop nothing, or cannot be told."""
        if manifest.is_in_place:
            return 0
        alike = (manifest.format, manifest.run_id, manifest.model_name, manifest.plain_size_bytes // _ALIKE_BYTES)
        if alike not in self._shares:
            self._shares[alike] = self._share(manifest)
        return int(self._shares[alike] * manifest.size_bytes)

    def _share(self, manifest: Manifest) -> float:
        try:
            if not manifest.size_bytes or not droppable(self._experiment, manifest):
                return 0.0
            return self._dropped_bytes(manifest) / manifest.size_bytes
        except StoreUnavailableError:
            raise
        except CheckpointError:  # deleted meanwhile, or damaged, which validation reports
            return 0.0

    def _dropped_bytes(self, manifest: Manifest) -> int:
        stored, files = format_of(manifest), manifest.files
        payload = StoredPayload(self._experiment, files, verify=False)
        with errors_named(self._experiment, manifest, files), payload as source:
            least, most = _bounds(stored, source)
            if least == most or not is_compressed(manifest.format):
                return least
            # Frames hold parts of several tensors: about as much of them goes as of what they hold.
            plain_files, plain_format = plain_source(stored, source)
            plain, _ = _bounds(plain_format, plain_files)
            return max(least, min(plain * manifest.size_bytes // manifest.plain_size_bytes, most))


def _bounds(stored: Format, source: PayloadSource) -> tuple[int, int]:
    """Return how many bytes hold only what is dropped, and how many hold any of it."""
    least = most = 0
    for name in source.names:
        ranges = stored.tensor_ranges(source, name)
        dropped = [item for tensor, found in ranges.items() if is_resume_only(tensor) for item in found]
        kept = [item for tensor, found in ranges.items() if not is_resume_only(tensor) for item in found]
        least += length([*dropped, *kept]) - length(kept)
        most += length(dropped)
    return least, most


def is_resume_only(tensor: str) -> bool:
    """Tell whether only a run that goes on needs the tensor of a dotted name."""
    return tensor.partition(".")[0] in RESUME_ONLY_KEYS


def length(ranges: Iterable[Range]) -> int:
    """Return how many bytes lie in at least one of the ranges."""
    total, reached = 0, 0
    for start, stop in sorted(ranges):
        total += max(0, stop - max(start, reached))
        reached = max(reached, stop)
    return total
