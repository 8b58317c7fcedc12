"""Statistics of a stored tensor, from blocks of its elements: memory is bounded, whatever its size."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from ckpt_lib.foreign import Region, StoredTensor
from ckpt_lib.inspecting.results import TensorStatistics
from ckpt_lib.stream import Progress

_BLOCK_ELEMENTS = 2**20
"""How many elements are widened to float64 at a time."""
_SQUARES_OVERFLOW, _SQUARES_VANISH = 1e150, 1e-150


def statistics_of(tensor: StoredTensor, progress: Progress | None = None) -> TensorStatistics | None:
    """Read a tensor once, from start to end. ``None`` for a type that has no numbers, such as a quantized one.

    Raises :class:`~ckpt_lib.errors.CorruptCheckpointError` for bytes that are not there, and the errors of the store.
    """
    running = _Running()
    for block in _blocks_of(tensor):
        try:
            running.add(block)
        except (RuntimeError, TypeError):  # what torch has no arithmetic for
            return None
        if progress:
            progress(block.numel() * block.dtype.itemsize)
    return running.result()


def _blocks_of(tensor: StoredTensor) -> Iterator[torch.Tensor]:
    """Yield all elements, in any order and shape. Each block is valid until the next is asked for."""
    if regions := tensor.regions():
        for region in regions:
            yield from _blocks_in(region, tensor.dtype)
    elif math.prod(tensor.shape):
        yield from _pieces_of(tensor.read().detach())


def _blocks_in(region: Region, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    step = _BLOCK_ELEMENTS * dtype.itemsize
    for start in range(region.start, region.stop, step):
        stop = min(start + step, region.stop)
        elements = torch.frombuffer(region.file.view(start, stop), dtype=torch.uint8)
        if elements.data_ptr() % dtype.itemsize:
            elements = elements.clone()
        yield elements.view(dtype)
        del elements
        region.file.forget(start, stop)


def _pieces_of(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Split a tensor of any stride, without a copy."""
    if tensor.numel() <= _BLOCK_ELEMENTS:
        yield tensor
        return
    longest = max(range(tensor.dim()), key=tensor.size)
    for half in tensor.tensor_split(2, longest):
        yield from _pieces_of(half)


class _Running:
    """The statistics of what was added so far."""

    def __init__(self) -> None:
        self._finite = self._nan = self._infinite = self._zeros = 0
        self._norm = self._mean = 0.0
        self._extremes: list[int | float] | None = None
        self._is_ordered = True

    def add(self, block: torch.Tensor) -> None:
        """Add elements. Raises ``RuntimeError`` or ``TypeError`` for those of a type without arithmetic."""
        if not block.numel():
            return
        if block.is_complex():
            self._is_ordered = False
            self._add_numbers(block.abs().to(torch.float64))
        elif block.is_floating_point():
            wide = block.to(torch.float32) if block.dtype.itemsize == 1 else block
            self._add_numbers(wide.to(torch.float64))
        else:
            found = block.contiguous().numpy()  # whose whole numbers of any type can be compared
            self._add_finite(torch.from_numpy(found.astype("float64")), int(found.min()), int(found.max()))

    def _add_numbers(self, numbers: torch.Tensor) -> None:
        extremes = [float(number) for number in numbers.aminmax()]
        if not all(map(math.isfinite, extremes)):
            is_finite, nan = numbers.isfinite(), int(numbers.isnan().sum())
            self._nan += nan
            numbers = numbers[is_finite]
            self._infinite += is_finite.numel() - numbers.numel() - nan
            if not numbers.numel():
                return
            extremes = [float(number) for number in numbers.aminmax()]
        self._add_finite(numbers, *extremes)

    def _add_finite(self, numbers: torch.Tensor, lowest: float, highest: float) -> None:
        known = self._extremes or [lowest, highest]
        self._extremes = [min(known[0], lowest), max(known[1], highest)]
        scale = _scale_of(max(abs(lowest), abs(highest)))
        scaled = numbers if scale == 1 else numbers / scale
        self._norm = math.hypot(self._norm, scale * float(torch.linalg.vector_norm(scaled)))
        count = numbers.numel()
        self._finite += count
        self._mean += (scale * float(scaled.mean()) - self._mean) * (count / self._finite)
        self._zeros += count - int(numbers.count_nonzero())

    def result(self) -> TensorStatistics:
        ordered = self._extremes if self._is_ordered else None
        return TensorStatistics(
            norm=self._norm if self._finite else None,
            mean=self._mean if ordered else None,
            min=ordered[0] if ordered else None,
            max=ordered[1] if ordered else None,
            nan_count=self._nan,
            infinite_count=self._infinite,
            zero_count=self._zeros,
        )


def _scale_of(largest: float) -> float:
    """Return by what to divide numbers whose squares a float64 cannot hold; 1 for any other."""
    return largest if largest > _SQUARES_OVERFLOW or 0 < largest < _SQUARES_VANISH else 1.0
