"""The ``torch`` format: an ordinary file of ``torch.save``, readable by ``torch.load(path, weights_only=True)``."""

from __future__ import annotations

import contextlib
import io
import pickle
from collections.abc import Collection, Mapping
from typing import Any, BinaryIO

import torch

from ckpt_lib.errors import CheckpointError, CorruptCheckpointError, UnsupportedStateError
from ckpt_lib.formats.base import Payload, PayloadSource
from ckpt_lib.formats.placing import check_device, first_line
from ckpt_lib.formats.preparing import prepare, too_deep
from ckpt_lib.formats.selection import select
from ckpt_lib.formats.torch.limits import needs_trust
from ckpt_lib.formats.torch.pickle_checking import UnusualPayloadError
from ckpt_lib.formats.torch.reading import TorchReader, tensor_ranges
from ckpt_lib.formats.torch.writing import ArchiveLayout
from ckpt_lib.state.memory import check_memory, is_per_channel
from ckpt_lib.state.sameness import first_difference


class TorchZipFormat:
    """Reads and writes the files of ``torch.save``."""

    name = "torch"
    suffix = ".pt"

    def prepare(self, payload: Mapping[str, Any]) -> Payload:
        """Check that ``weights_only`` loading will accept every object. NumPy scalars become Python numbers."""
        return prepare(payload, check_readable)

    def lay_out(self, payload: Payload) -> ArchiveLayout:
        """Lay out the archive that ``torch.save`` would write; see :mod:`ckpt_lib.formats.torch.writing`."""
        try:
            return ArchiveLayout(payload)
        except RecursionError as error:
            raise too_deep() from error

    def read(
        self,
        source: PayloadSource,
        *,
        map_location: Any = "cpu",
        trust_pickle: bool = False,
        keys: Collection[str] | None = None,
    ) -> Payload:
        """Read a payload as views of the verified file, or through ``torch.load`` where only that can read it.

        Raises :class:`~ckpt_lib.errors.ConfigError` for a device that this machine does not have.
        """
        check_device(map_location)
        file = source.open()
        if trust_pickle:
            file.require_all()
        else:
            if keys is None:
                file.require_all()
            reader = TorchReader(file)
            if map_location is None or isinstance(map_location, str | torch.device):
                with contextlib.suppress(UnusualPayloadError):
                    return reader.read(keys, None if map_location is None else torch.device(map_location))
            file.require_all()  # torch.load reads all of it
            reader.check_heads()
        file.seek(0)
        return select(_torch_load(file, map_location=map_location, trust_pickle=trust_pickle), keys)

    def inspect(self, source: PayloadSource) -> Payload:
        """Return the outline that every read begins with. For unusual payloads, ask ``torch.load``."""
        file = source.open()
        reader = TorchReader(file)
        with contextlib.suppress(UnusualPayloadError):
            return reader.outline()
        reader.check_heads()
        with contextlib.suppress(CorruptCheckpointError):  # the meta device holds no quantized or nested tensors
            file.seek(0)
            return _torch_load(file, map_location="meta", trust_pickle=False)
        file.seek(0)
        return _torch_load(file, map_location="cpu", trust_pickle=False)

    def tensor_ranges(self, source: PayloadSource, name: str = "") -> dict[str, list[tuple[int, int]]]:
        """Map tensor names to bytes of the file; see :func:`ckpt_lib.formats.torch.reading.tensor_ranges`."""
        return tensor_ranges(source.open(name))


def _torch_load(source: BinaryIO, *, map_location: Any, trust_pickle: bool) -> Payload:
    try:
        loaded = _load(source, map_location=map_location, weights_only=not trust_pickle)
    except pickle.UnpicklingError as error:
        raise needs_trust(f"the payload holds more than tensors and plain values: {_refusal(error)}") from error
    except (CheckpointError, MemoryError, torch.OutOfMemoryError, Warning):  # of those that the caller makes errors
        raise
    except Exception as error:
        if _is_lack_of_memory(error):  # not damage: resume() must not skip this checkpoint for it
            raise MemoryError(first_line(error)) from error
        raise CorruptCheckpointError(f"the payload is not a torch file: {first_line(error)}") from error
    if not isinstance(loaded, dict):
        raise CorruptCheckpointError("the payload is not a dict", got=type(loaded).__name__)
    return loaded


def _load(source: BinaryIO, **options: Any) -> Any:
    """Call ``torch.load`` without a default device, to which it would move sparse tensors."""
    with torch._C.DisableTorchFunction():  # a default device is a torch function mode
        return torch.load(source, **options)


def check_readable(value: Any, place: str) -> None:
    """Ask torch whether this object can be read back, by saving and loading it in memory."""
    if isinstance(value, torch.Tensor) and value.is_meta:  # torch would save its shape without data
        raise UnsupportedStateError(
            f"{place} has no data: it is on the meta device",
            expected="tensors with their data",
            hint="Bring offloaded weights back into memory before saving.",
        )
    buffer = io.BytesIO()
    try:
        if isinstance(value, torch.Tensor):
            check_memory(value, place)
        stored = _without_storage(value)
        torch.save(stored, buffer)
        buffer.seek(0)
        difference = first_difference(_load(buffer, weights_only=True), stored)
    except (UnsupportedStateError, Warning):
        raise
    except Exception as error:
        raise UnsupportedStateError(
            f"{place} cannot be stored so that torch.load(weights_only=True) reads it back",
            expected="tensors, numbers, text, None, and dicts, lists, tuples and sets of them",
            got=f"{type(value).__module__}.{type(value).__qualname__}",
            hint=_hint_for(value),
        ) from error
    if difference:
        raise UnsupportedStateError(
            f"{place} would come back as another value",
            got=f"{type(value).__module__}.{type(value).__qualname__}",
            hint=_hint_for(value),
        )


def _hint_for(value: Any) -> str:
    if isinstance(value, torch.Tensor) and type(value) not in (torch.Tensor, torch.nn.Parameter):
        return "Store the tensors that it consists of, or value.as_subclass(torch.Tensor)."
    if isinstance(value, torch.UntypedStorage | torch.TypedStorage):
        return "Store a tensor that has this storage."
    return "Turn it into plain values, or leave it out."


def _without_storage(value: Any) -> Any:
    """Return an empty slice of a tensor, which is read back if and only if the tensor is."""
    if not isinstance(value, torch.Tensor):
        return value
    if value.layout is not torch.strided or value.is_nested or (value.is_quantized and is_per_channel(value)):
        return value  # torch cannot slice it
    nothing: torch.Tensor = value.detach().reshape(-1)[:0].clone()
    nothing.__dict__.update(value.__dict__)
    return nothing


def _is_lack_of_memory(error: Exception) -> bool:
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)  # torch has no error class for it


def _refusal(error: pickle.UnpicklingError) -> str:
    """Return what torch refuses, without its advice on how to load the file anyway."""
    _, found, reason = str(error).partition("WeightsUnpickler error: ")
    return ascii(reason.partition(". Please use")[0].strip().split("\n", 1)[0])[1:-1][:200] if found else "not a pickle"
