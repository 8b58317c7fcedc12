"""Parts of a payload by name: what a name stands for, and what stands for nothing."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_lib.errors import ConfigError
from ckpt_lib.formats.selection import check_keys, select

TREE: dict[str, Any] = {
    "model_state_dict": OrderedDict({"encoder.0.weight": 1, "encoder.0.bias": 2, "encoders": 3, "head": 4}),
    "optimizer_state_dict": {"state": {0: {"step": 5, "exp_avg": 6}, 1: {"step": 7}}, "param_groups": [8]},
    "epoch": 9,
}


@pytest.mark.parametrize(
    ("keys", "kept"),
    [
        (["epoch"], {"epoch": 9}),
        (["model_state_dict.encoder"], {"model_state_dict": {"encoder.0.weight": 1, "encoder.0.bias": 2}}),
        (["model_state_dict.encoder.0.bias"], {"model_state_dict": {"encoder.0.bias": 2}}),
        (["optimizer_state_dict.state.0.step"], {"optimizer_state_dict": {"state": {0: {"step": 5}}}}),
        (["optimizer_state_dict.param_groups", "epoch"], {"optimizer_state_dict": {"param_groups": [8]}, "epoch": 9}),
        (["model_state_dict", "model_state_dict.head"], {"model_state_dict": TREE["model_state_dict"]}),
    ],
)
def test_a_name_stands_for_all_that_is_below_it(keys: list[str], kept: dict[str, Any]) -> None:
    """Dots stand between dicts and within keys; what is not named is left out, and the rest keeps its order."""
    found = select(TREE, keys)
    assert found == kept
    assert list(found) == [key for key in TREE if key in kept]
    if "model_state_dict" in kept:
        assert type(found["model_state_dict"]) is OrderedDict


@pytest.mark.parametrize(
    ("key", "like"),
    [
        ("modelstate_dict", "model_state_dict"),
        ("model_state_dict.encodr.0.bias", "model_state_dict.encoder.0.bias"),
        ("optimizer_state_dict.param_groups.0", "optimizer_state_dict.param_groups"),
        ("epoch.x", "epoch"),
    ],
)
def test_a_name_that_stands_for_nothing_is_told_its_like(key: str, like: str) -> None:
    """Before a tensor is read; lists are taken as a whole."""
    with pytest.raises(ConfigError) as refused:
        select(TREE, ["model_state_dict.head", key])
    assert repr(key) in refused.value.message
    assert refused.value.hint is not None
    assert repr(like) in refused.value.hint


@pytest.mark.parametrize("keys", ["epoch", [], [1], 5, [b"epoch"]], ids=repr)
def test_keys_are_a_collection_of_names(keys: Any) -> None:
    """A bare text would be taken apart into letters, and nothing means nothing."""
    with pytest.raises(ConfigError):
        check_keys(keys)


@given(keys=st.sets(st.sampled_from(["a", "a.b", "a.b.c", "a.d", "e", "e.f"]), min_size=1))
def test_selecting_is_keeping_the_leaves_that_are_named(keys: set[str]) -> None:
    """Selection equals its definition, leaf by leaf."""
    leaves = {"a.b.c": 1, "a.b.x": 2, "a.d": 3, "e.f": 4, "g": 5}
    tree = {"a": {"b": {"c": 1, "x": 2}, "d": 3}, "e": {"f": 4}, "g": 5}
    wanted = {name: value for name, value in leaves.items() if any(f"{name}.".startswith(f"{key}.") for key in keys)}

    def flat(mapping: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
        for key, value in mapping.items():
            yield from flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]

    assert dict(flat(select(tree, keys))) == wanted
