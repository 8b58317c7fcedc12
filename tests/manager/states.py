"""Arbitrary states: nested containers of plain values, and of tensors of any type and layout that may share memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import nn

from ckpt_lib.formats.torch.writing import _STORAGE_TYPES
from ckpt_lib.testing.format_contract import DTYPES

ALL_DTYPES = [*DTYPES, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu, torch.complex32]
Place = tuple[tuple[int, ...], tuple[int, ...], int]
"""Shape, strides and offset, in elements."""


def places(count: int) -> dict[str, Place]:
    """Views of ``count`` elements, as far as there are enough of them."""
    found: dict[str, Place] = {
        "whole": ((count,), (1,), 0),
        "empty": ((0,), (1,), 0),
        "empty at the end": ((2, 0, 3), (3, 3, 1), count),
    }
    if count >= 1:
        found["0-dim"] = ((), (), count - 1)
        found["expanded"] = ((3, 2), (0, 0), count // 2)
    if count >= 8:
        found["sliced"] = ((count - 5,), (1,), 3)
        found["stepped"] = ((count // 3,), (3,), 1)
        found["transposed"] = ((2, count // 2), (1, 2), 0)
        found["column"] = ((count // 4,), (4,), 3)
        found["windows"] = ((count - 3, 3), (1, 1), 1)
        found["rows expanded"] = ((2, 4), (0, 1), 2)
    if count >= 12:
        found["channels last"] = ((1, 2, 3, 2), (12, 1, 4, 2), count - 12)
    return found


KINDS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "plain": lambda tensor: tensor,
    "parameter": nn.Parameter,
    "frozen parameter": lambda tensor: nn.Parameter(tensor, requires_grad=False),
    "leaf": lambda tensor: tensor.clone().requires_grad_(),  # torch has no way to rebuild one among other types
    "conjugate": lambda tensor: tensor.conj(),
    "negated": lambda tensor: tensor.conj().imag,
    "as real": torch.view_as_real,
}


@st.composite
def storages(draw: st.DrawFn) -> tuple[torch.Tensor, bool]:
    """The bytes of one storage, and whether all of them are 0 or 1, as those of a ``bool`` have to be."""
    size, seed, is_bool = draw(st.sampled_from([0, 16, 16, 64, 208])), draw(st.integers(0, 999)), draw(st.booleans())
    data = torch.from_numpy(np.random.default_rng(seed).integers(0, 2 if is_bool else 256, size, dtype=np.uint8))
    return data.clone(), is_bool


@st.composite
def tensors(draw: st.DrawFn, pool: list[tuple[torch.Tensor, bool]]) -> torch.Tensor:
    """A view of one of the storages as any type, or what else a tensor may be."""
    data, is_bool = draw(st.sampled_from(pool))
    dtype = draw(st.sampled_from([dtype for dtype in ALL_DTYPES if is_bool or dtype is not torch.bool]))
    found = places(len(data) // dtype.itemsize)
    shape, strides, offset = found[draw(st.sampled_from(sorted(found)))]
    storage = data.untyped_storage()
    tensor = torch.empty(0, dtype=dtype).set_(storage, offset, shape, strides)
    kinds = ["plain", "plain", "frozen parameter"]
    if dtype.is_floating_point or dtype.is_complex:
        kinds += ["parameter"] + ["leaf"] * (dtype in _STORAGE_TYPES)
    if dtype in {torch.complex64, torch.complex128}:
        kinds += ["conjugate", "negated", "as real", "as real"]
    return KINDS[draw(st.sampled_from(kinds))](tensor)


texts = st.text(st.characters(), max_size=6)  # halves of surrogate pairs as well
plain_keys = st.one_of(texts, st.integers(-9, 9), st.booleans(), st.none(), st.tuples(st.integers(), texts))
members = st.one_of(texts, st.integers(), st.booleans(), st.none(), st.floats(allow_nan=False))
plain_values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**1999), 2**1999),
    st.floats(),
    texts,
    st.sets(members, max_size=4),
    st.binary(min_size=1, max_size=5),  # torch does not read back an empty one, so that it is refused
    st.complex_numbers(allow_nan=False),
    st.sampled_from([torch.bfloat16, torch.Size([2, 0]), torch.device("cpu"), bytearray(b"\0\xff")]),
)


@st.composite
def states(draw: st.DrawFn) -> dict[str, Any]:
    """Nested containers of plain values and of tensors that may share storages, or be met twice."""
    pool = draw(st.lists(storages(), min_size=1, max_size=4))
    some = draw(st.lists(tensors(pool), min_size=1, max_size=6))
    leaves = st.one_of(plain_values, st.sampled_from(some), st.sampled_from(some))

    def around(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        lists, dicts = st.lists(inner, max_size=4), st.dictionaries(plain_keys, inner, max_size=3)
        return st.one_of(lists, lists.map(tuple), dicts, dicts.map(OrderedDict))

    return {"tensors": some, "drawn": draw(st.recursive(leaves, around, max_leaves=10))}
