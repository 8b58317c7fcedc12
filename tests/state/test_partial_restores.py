"""Renamed layers, restores of what matches, and restores of a part into a part."""

from __future__ import annotations

import copy
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim.swa_utils import AveragedModel

from ckpt_lib import CheckpointManager, TrainingState
from ckpt_lib.errors import CheckpointError, ConfigError, CorruptCheckpointError, StateMismatchError
from ckpt_lib.state.renames import renamed
from tests.helpers import MakeManager, flip_bit, payload_path
from tests.state.builds import is_equal

KeyMap = Any


def net(seed: int, *names: str) -> nn.Sequential:
    """Layers by name, each of its own width."""
    torch.manual_seed(seed)
    return nn.Sequential(OrderedDict((name, nn.Linear(2, number + 1)) for number, name in enumerate(names)))


def nested(seed: int, outer: str = "encoder") -> nn.Sequential:
    """Two layers below ``outer``, and a head."""
    torch.manual_seed(seed)
    return nn.Sequential(OrderedDict({outer: net(seed, "first", "last"), "head": nn.Linear(2, 5)}))


def with_momentum(model: nn.Module, *, is_reversed: bool = False) -> torch.optim.Optimizer:
    """An optimizer after one step, without names of its own."""
    optimizer = torch.optim.SGD(list(model.parameters())[:: -1 if is_reversed else 1], momentum=0.9)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return optimizer


@pytest.fixture
def manager(make_manager: MakeManager) -> CheckpointManager:
    return make_manager(backup_checkpoints=False)


def values(model: Any) -> list[Any]:
    return list(model.state_dict().values())


# --- key_map ---


@pytest.mark.parametrize(
    "key_map",
    [
        {"encoder": "backbone"},
        {"encoder.first": "backbone.first", "encoder.last": "backbone.last"},
        {"": "", "encoder": "backbone"},
        lambda name: name.replace("encoder", "backbone"),
    ],
)
@pytest.mark.parametrize("saved", ["plain", "parallel"])
@pytest.mark.parametrize("loaded", ["plain", "parallel"])
def test_renamed_layers_are_restored_with_their_momentum(
    manager: CheckpointManager, key_map: KeyMap, saved: str, loaded: str
) -> None:
    """Names, prefixes and functions; by the names without a wrapper's level; the optimizer's state follows."""
    wraps: dict[str, Any] = {"plain": lambda model: model, "parallel": nn.DataParallel}
    model, target = wraps[saved](nested(1)), wraps[loaded](nested(2, "backbone"))
    optimizer, own = with_momentum(model), with_momentum(target, is_reversed=True)
    manager.save_checkpoint(model=model, optimizer=optimizer, epoch=1)
    manager.load_checkpoint(model=target, optimizer=own, key_map=key_map)
    assert is_equal(values(target), values(model))
    for one, other in zip(model.parameters(), target.parameters(), strict=True):
        assert is_equal(own.state[other], optimizer.state[one])


@pytest.mark.parametrize("key_map", [{"module.encoder": "backbone"}, {"module.encoder": "module.backbone"}])
def test_wrappers_may_be_named(manager: CheckpointManager, key_map: KeyMap) -> None:
    """The levels of wrappers may also be written, on either side."""
    model = nn.DataParallel(nested(1))
    manager.save_checkpoint(model=model, epoch=1)
    targets = [nn.DataParallel(nested(2, "backbone"))]
    targets += [nested(3, "backbone")] if "module.backbone" not in key_map.values() else []  # type: ignore[list-item]
    for target in targets:
        manager.load_checkpoint(model=target, key_map=key_map)
        assert is_equal(values(target), values(model))


def test_prefixes_are_added_and_dropped(manager: CheckpointManager) -> None:
    """The empty name stands for the whole: as an entry it adds a prefix, as a result it drops one."""
    saved = manager.save_checkpoint(model=net(1, "first", "last"), epoch=1)
    assert saved is not None
    target = nn.ModuleDict({"encoder": net(2, "first", "last")})
    manager.load_checkpoint(saved, model=target, key_map={"": "encoder"})
    assert is_equal(values(target), values(net(1, "first", "last")))
    manager.save_checkpoint(model=target, epoch=2)
    bare = net(3, "first", "last")
    manager.load_checkpoint(model=bare, key_map={"encoder": ""})
    assert is_equal(values(bare), values(target))


def test_layers_may_change_places(manager: CheckpointManager) -> None:
    """Two names that are exchanged are exchanged in the optimizer's state as well."""
    model, target = net(1, "a", "b"), net(2, "b", "a")
    optimizer, own = with_momentum(model), with_momentum(target)
    manager.save_checkpoint(model=model, optimizer=optimizer, epoch=1)
    manager.load_checkpoint(model=target, optimizer=own, key_map={"a": "b", "b": "a"})
    assert is_equal(values(target), values(model))
    for one, other in zip(model.parameters(), target.parameters(), strict=True):
        assert is_equal(own.state[other], optimizer.state[one])


@pytest.mark.parametrize(
    ("key_map", "message"),
    [
        ({"encodr": "backbone"}, "'encodr', which stands for nothing .* Did you mean 'encoder'"),
        ({"enc": "backbone"}, "'enc', which stands for nothing"),
        ({"encoder.first": "encoder.last"}, "two stored tensors the name 'encoder.last"),
        (lambda _name: "head.weight", "two stored tensors"),
        ({"head.weight": ""}, "leaves nothing of the name 'head.weight'"),
        (lambda _name: None, "returned no name"),
        (lambda name: name.nothing, "key_map failed for 'encoder"),
        ({}, "key_map is empty"),
        ({"encoder.": "backbone."}, "without a dot"),
        ({"encoder": 1}, "maps names"),
        (["encoder"], "a mapping of names or a function"),
    ],
)
def test_a_map_that_cannot_work_is_refused(manager: CheckpointManager, key_map: KeyMap, message: str) -> None:
    """Entries for nothing, two tensors of one name and what is no map raise one error, and nothing changes."""
    manager.save_checkpoint(model=nested(1), epoch=1)
    target = nested(2)
    before = copy.deepcopy(values(target))
    with pytest.raises(ConfigError, match=message):
        manager.load_checkpoint(model=target, key_map=key_map)
    assert is_equal(values(target), before)


PARTS = st.sampled_from(["a", "b", "ab"])
DOTTED = st.lists(PARTS, min_size=1, max_size=3).map(".".join)


@settings(max_examples=200, deadline=None)
@given(names=st.sets(DOTTED, min_size=1), key_map=st.dictionaries(st.just("") | DOTTED, DOTTED, min_size=1))
def test_the_longest_entry_wins_and_ends_at_a_dot(names: set[str], key_map: dict[str, str]) -> None:
    """As a search through all entries finds; what they do not reach keeps its name."""
    found, unused = renamed(key_map, names)
    reached = set()
    for name in names:
        fitting = [entry for entry in key_map if not entry or f"{name}.".startswith(f"{entry}.")]
        if not fitting:
            assert found[name] == name
            continue
        entry = max(fitting, key=len)
        reached.add(entry)
        rest = name.split(".")[len(entry.split(".")) if entry else 0 :]
        assert found[name] == ".".join([key_map[entry], *rest])
    assert unused == set(key_map) - reached


# --- strict=False ---


def test_what_matches_is_restored_and_the_rest_reported(manager: CheckpointManager) -> None:
    """Missing names as the model has them, unexpected ones as they are stored; buffers of BatchNorm count as well."""
    model = nn.DataParallel(
        nn.Sequential(OrderedDict(same=nn.Linear(2, 2), norm=nn.BatchNorm1d(2), old=nn.Linear(2, 1)))
    )
    manager.save_checkpoint(model=model, epoch=1)
    target = nn.Sequential(OrderedDict(same=nn.Linear(2, 2), norm=nn.BatchNorm1d(2), new=nn.Linear(2, 1)))
    before = copy.deepcopy(values(target.new))
    payload = manager.load_checkpoint(model=target, strict=False)
    assert payload["missing"] == ["new.weight", "new.bias"]
    assert payload["unexpected"] == ["module.old.weight", "module.old.bias"]
    assert is_equal(values(target.same), values(model.module.same))
    assert is_equal(values(target.norm), values(model.module.norm))
    assert is_equal(values(target.new), before)
    payload = manager.load_checkpoint(model=target, strict=False, key_map={"old": "new"})
    assert (payload["missing"], payload["unexpected"]) == ([], [])
    assert is_equal(values(target), values(model))


@pytest.mark.parametrize("norm", [False, True])
def test_another_shape_and_another_model_are_refused_all_the_same(manager: CheckpointManager, norm: bool) -> None:
    """As in PyTorch, another shape is an error without ``strict`` too; so is a restore of nothing at all."""
    manager.save_checkpoint(model=net(1, "first", "last"), epoch=1)
    wider = nn.Sequential(OrderedDict(first=nn.Linear(2, 1), last=nn.Linear(2, 7)))
    other = nn.Sequential(OrderedDict(third=nn.Linear(2, 1)))
    for target, message in ((wider, "last.weight|size mismatch"), (other, "nothing in the checkpoint")):
        if norm:
            target.append(nn.BatchNorm1d(2))
        before = copy.deepcopy(values(target))
        with pytest.raises(StateMismatchError, match=message):
            manager.load_checkpoint(model=target, strict=False)
        assert is_equal(values(target), before)


def test_momentum_of_weights_that_were_not_restored_is_refused(manager: CheckpointManager) -> None:
    """Without ``strict``, an optimizer is restored only if all of its parameters were."""
    model = net(1, "a", "b")
    optimizer = with_momentum(model)
    manager.save_checkpoint(model=model, optimizer=optimizer, epoch=1)
    target = net(2, "a", "c")
    own = with_momentum(target)
    before = copy.deepcopy([values(target), own.state_dict()])
    with pytest.raises(StateMismatchError, match=re.escape("not in the checkpoint: c.weight, c.bias")):
        manager.load_checkpoint(model=target, optimizer=own, strict=False)
    assert is_equal([values(target), own.state_dict()], before)
    fitting: Any = net(3, "a", "b", "new")
    partly = torch.optim.SGD([*fitting.a.parameters(), *fitting.b.parameters()], momentum=0.9)
    assert manager.load_checkpoint(model=fitting, optimizer=partly, strict=False)["missing"] == [
        "new.weight",
        "new.bias",
    ]
    assert is_equal(partly.state_dict()["state"], optimizer.state_dict()["state"])


# --- only ---


def test_a_part_is_restored_into_a_part(manager: CheckpointManager) -> None:
    """What is stored below the name comes to the submodule; damage of what is not read does not matter."""
    model = nn.ModuleDict({"encoder": nn.Linear(2**11, 2**11), "other": nn.Linear(2**11, 2**11)})
    saved = manager.save_checkpoint(model=model, epoch=1)
    assert saved is not None
    path = payload_path(manager, saved)
    flip_bit(path, path.stat().st_size * 3 // 4)
    target = nn.ModuleDict({"encoder": nn.Linear(2**11, 2**11), "head": nn.Linear(1, 1)})
    payload = manager.load_checkpoint(saved, target["encoder"], only="model_state_dict.encoder")
    assert is_equal(values(target["encoder"]), values(model["encoder"]))
    assert list(payload["model_state_dict"]) == ["encoder.weight", "encoder.bias"]
    with pytest.raises(CorruptCheckpointError):
        manager.load_checkpoint(saved, nn.Linear(2**11, 2**11), only="model_state_dict.other")


def test_a_part_of_a_wrapped_model_and_of_other_state(manager: CheckpointManager) -> None:
    """The wrapper of the whole model need not be named; a part may be anywhere in the payload."""
    compiled: Any = torch.compile(nested(1), backend="eager")
    model = nn.DataParallel(compiled)
    manager.save_checkpoint(model=model, epoch=1, extra_state={"ema": {"weights": nested(5).state_dict()}})
    target: Any = torch.compile(nested(2), backend="eager")
    manager.load_checkpoint(model=target.encoder, only="model_state_dict.encoder")
    assert is_equal(values(target.encoder), values(nested(1).encoder))
    manager.load_checkpoint(model=target, only="extra_state.ema.weights")
    assert is_equal(values(target), values(nested(5)))
    manager.load_checkpoint(model=target.head, only="extra_state.ema.weights.head")
    renamed_part = net(3, "first", "end")
    manager.load_checkpoint(model=renamed_part, only="model_state_dict.encoder", key_map={"last": "end"})
    assert is_equal(values(renamed_part), values(nested(1).encoder))


def test_weights_beside_the_model_are_found(manager: CheckpointManager) -> None:
    """Each error on the way names what to ask for next, and the last answer loads."""
    averaged = AveragedModel(nn.DataParallel(nested(3)))
    manager.save_checkpoint(TrainingState(model=nested(1), others={"ema": averaged}), epoch=1)
    target = nested(2)
    for only, hint in (
        ("ema", "Did you mean 'others.ema'"),
        ("ema.module", "Did you mean 'others.ema.module'"),
        ("others", 'only="others.ema.module.module"'),
        ("others.ema", 'only="others.ema.module.module"'),
    ):
        with pytest.raises(CheckpointError, match=hint):
            manager.load_checkpoint(model=target, only=only)
    assert is_equal(values(target), values(nested(2)))
    manager.load_checkpoint(model=target, only="others.ema.module.module")
    assert is_equal(values(target), values(nested(3)))


@pytest.mark.parametrize(
    ("only", "options", "message"),
    [
        ("model_state_dict.encodr", {}, "holds no 'model_state_dict.encodr'.*Did you mean"),
        ("model_state_dict.head.weight", {}, "no part with names below it"),
        ("epoch", {}, "no part with names below it"),
        ("model_state_dict.", {}, "only must be the name of a part"),
        (["model_state_dict"], {}, "only must be the name of a part"),
        ("model_state_dict.head", {"keys": ["epoch"]}, "only and keys were both given"),
        ("model_state_dict.head", {"optimizer": True}, "a part of the state into a model, and into nothing else"),
        ("model_state_dict.head", {"model": None}, "expected model="),
    ],
)
def test_a_part_that_cannot_be_is_refused(
    manager: CheckpointManager, only: Any, options: dict[str, Any], message: str
) -> None:
    """Names of nothing or of one tensor, an optimizer, and two ways to say what to read raise one typed error."""
    model = nested(1)
    manager.save_checkpoint(model=model, optimizer=with_momentum(model), epoch=1)
    target = nn.Linear(2, 5)
    arguments = {"model": target, **options}
    if "optimizer" in options:
        arguments["optimizer"] = torch.optim.SGD(target.parameters())
    before = copy.deepcopy(values(target))
    with pytest.raises(ConfigError, match=message):
        manager.load_checkpoint(only=only, **arguments)
    assert is_equal(values(target), before)


@pytest.mark.parametrize("options", [{"key_map": {"a": "b"}}, {"strict": False}, {"strict": "no"}])
def test_names_need_a_model(manager: CheckpointManager, options: dict[str, Any]) -> None:
    """Without a model there is nothing to rename for, and nothing that could lack a name."""
    manager.save_checkpoint(model=nested(1), epoch=1)
    with pytest.raises(ConfigError):
        manager.load_checkpoint(**options)


# --- what an error says ---


@pytest.mark.parametrize(
    ("saved", "target", "message"),
    [
        (net(1, "a"), net(1, "b"), "not stored: b.bias, b.weight; not in the model: a.bias, a.weight; checkpoint"),
        (
            net(1, "a"),
            net(1, "b"),
            "key_map= renames layers, strict=False restores what matches, only= restores a part",
        ),
        (nn.DataParallel(net(1, "a")), net(1, "b"), "not in the model: module.a.bias, module.a.weight"),
        (nested(1), net(1, "first", "last"), 'see only="model_state_dict.encoder"'),
        (net(1, "first", "last"), nested(1), "those of a part of the model: pass model.encoder"),
        (nn.BatchNorm1d(2), nn.Sequential(nn.BatchNorm1d(2)), "pass model.0"),
    ],
)
def test_the_error_names_the_differences_and_the_fix(
    manager: CheckpointManager, saved: nn.Module, target: nn.Module, message: str
) -> None:
    """The first differing names, as stored and as in the model, and what to call where that can be told."""
    manager.save_checkpoint(model=saved, epoch=1)
    for load in (manager.load_checkpoint, manager.resume):
        with pytest.raises(CheckpointError) as refused:
            load(model=target)
        assert message in str(refused.value)
        assert str(refused.value).endswith("Nothing was changed.")


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("names", [("b",), ("a", "more")], ids=["renamed", "added"])
def test_the_model_is_named_before_its_optimizer(
    manager: CheckpointManager, names: tuple[str, ...], norm: bool
) -> None:
    """A renamed or added layer is why the optimizer does not fit either: the error is that of the model."""
    model, target = net(1, "a"), net(1, *names)
    if norm:  # which decides itself what it takes
        model.append(nn.BatchNorm1d(2))
        target.append(nn.BatchNorm1d(2))
    manager.save_checkpoint(model=model, optimizer=with_momentum(model), epoch=1)
    with pytest.raises(StateMismatchError, match=r"does not fit the model: not stored.*key_map= renames layers"):
        manager.load_checkpoint(model=target, optimizer=torch.optim.SGD(target.parameters(), momentum=0.9))


def test_averaged_weights_in_other_state_are_found(manager: CheckpointManager) -> None:
    """Names that another part of the payload has are pointed to."""
    manager.save_checkpoint(model=net(1, "a"), epoch=1, extra_state={"ema": nested(1).state_dict()})
    with pytest.raises(StateMismatchError, match=r'see only="extra_state\.ema"'):
        manager.load_checkpoint(model=nested(2))


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("wrap", [lambda model: model, nn.DataParallel], ids=["plain", "wrapped"])
def test_the_hint_about_another_shape_works(
    manager: CheckpointManager, norm: bool, wrap: Callable[[nn.Module], nn.Module]
) -> None:
    """Another number of classes: no hint at weights of the same wrong shape, and the one that is given restores."""

    def build(classes: int) -> Any:
        layers = [("body", nested(1)), *([("norm", nn.BatchNorm1d(5))] if norm else [])]
        return nn.Sequential(OrderedDict([*layers, ("scale", nn.ParameterDict({"a": torch.ones(classes)}))]))

    saved, target = build(3), build(10)
    manager.save_checkpoint(model=wrap(saved), epoch=1, extra_state={"ema": saved.state_dict()})
    for strict in (True, False):
        with pytest.raises(StateMismatchError, match="Nothing was changed") as refused:
            manager.load_checkpoint(model=target, strict=strict)
        assert 'pass strict=False and key_map={"scale": "dropped.scale"}' in str(refused.value)
        assert "only=" not in str(refused.value)
    payload = manager.load_checkpoint(model=target, strict=False, key_map={"scale": "dropped.scale"})
    assert payload["missing"] == ["scale.a"]
    assert is_equal(values(target.body), values(saved.body))


def test_the_hint_leaves_out_no_more_than_it_must(manager: CheckpointManager) -> None:
    """A tensor beside other layers is named by itself."""
    saved, target = nested(1), nested(1)
    for model, count in ((saved, 3), (target, 10)):
        model.register_parameter("places", nn.Parameter(torch.ones(count)))
    manager.save_checkpoint(model=nn.ModuleDict({"vit": saved}), epoch=1)
    with pytest.raises(StateMismatchError, match=r'key_map={"vit\.places": "dropped\.vit\.places"}'):
        manager.load_checkpoint(model=nn.ModuleDict({"vit": target}), strict=False)
