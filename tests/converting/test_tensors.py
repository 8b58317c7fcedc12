"""Casts and shared memory, on the way from one file to another."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckpt_lib.converting.tensors import Sharing, stored_tensors, tensor_stream
from ckpt_lib.errors import ConfigError, CorruptCheckpointError
from ckpt_lib.foreign import StoredTensor
from ckpt_lib.formats import tensor_bytes
from ckpt_lib.testing.format_contract import BOUNDED

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def stored(tensor: torch.Tensor) -> StoredTensor:
    found: StoredTensor = stored_tensors(tensor)
    return found


def written(tensor: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """The tensor that the bytes of its stream make."""
    stream = tensor_stream("x", stored(tensor), dtype)
    data = b"".join(bytes(block) for block in stream.blocks())
    assert len(data) == stream.size_bytes
    flat = torch.frombuffer(bytearray(data), dtype=stream.dtype) if data else torch.empty(0, dtype=stream.dtype)
    return flat.view(stream.shape)


@given(
    shape=st.lists(st.integers(0, 7), max_size=4),
    source=st.sampled_from(FLOATS),
    target=st.sampled_from([None, *FLOATS]),
    transposed=st.booleans(),
)
@BOUNDED
def test_a_cast_in_pieces_is_the_cast_of_the_whole(
    shape: list[int], source: torch.dtype, target: torch.dtype | None, transposed: bool
) -> None:
    """Of any shape and stride, to the bit, however small the pieces are."""
    tensor = torch.randn(shape).to(source)
    tensor = tensor.permute(tuple(reversed(range(len(shape))))) if transposed else tensor
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensor_bytes, "BLOCK_SIZE_BYTES", 16)
        found = written(tensor, target)
    assert found.dtype == (target or source)
    assert torch.equal(found, tensor.to(target or source).contiguous())


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8, torch.complex64])
def test_what_is_no_real_number_is_not_cast(dtype: torch.dtype) -> None:
    """Counts, masks and complex numbers keep their type."""
    assert written(torch.ones(3).to(dtype), torch.bfloat16).dtype == dtype


@pytest.mark.parametrize(
    ("value", "dtype"), [(70000.0, torch.float16), (3.4e38, torch.bfloat16), (1e39, torch.float32)]
)
def test_a_number_that_would_become_infinite_is_refused(value: float, dtype: torch.dtype) -> None:
    """A cast that overflows is told with the tensor's name and the number."""
    with pytest.raises(ConfigError, match=r"'x' holds numbers .* would become inf"):
        written(torch.tensor([1.0, -value], dtype=torch.float64), dtype)


def test_infinities_and_nan_stay() -> None:
    """What was infinite before is no overflow."""
    odd = torch.tensor([float("inf"), -float("inf"), float("nan")])
    assert torch.equal(written(odd, torch.float16).isinf(), torch.tensor([True, True, False]))


def test_a_tensor_that_is_another_one_when_it_is_read_is_refused() -> None:
    """A file that was replaced meanwhile makes no tensor of wrong bytes."""
    lying = StoredTensor(torch.float32, (4,), "here", lambda: torch.zeros(3))
    with pytest.raises(CorruptCheckpointError, match="another tensor than"):
        list(tensor_stream("x", lying).blocks())


def test_only_the_same_elements_are_the_same_tensor() -> None:
    """Of views into one memory, those with other bounds, shapes or signs are tensors of their own."""
    memory = torch.arange(8.0)
    views = [memory, memory[:4], memory[4:], memory.view(2, 4), memory[:], torch.zeros(8)]
    found = [stored(view) for view in views]
    sharing = Sharing(found)
    assert [found.index(sharing.first_of(item)) for item in found] == [0, 1, 2, 3, 0, 5]
    assert [sharing.overlaps(item) for item in found] == [True, True, True, True, False, False]


def test_tensors_whose_memory_is_read_anew_are_not_confused() -> None:
    """A source may copy what it reads, and the memory of one copy may become that of the next."""
    data = torch.arange(1024.0)

    def half(start: int) -> torch.Tensor:
        return data.clone()[start : start + 512]

    halves = [StoredTensor(torch.float32, (512,), "same", partial(half, start)) for start in (0, 512)]
    sharing = Sharing(halves)
    assert sharing.first_of(halves[1]) is halves[1]
