"""Wrapped models: what DistributedDataParallel, DataParallel and torch.compile add to names makes no difference."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributed, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim.swa_utils import AveragedModel

from ckpt_lib import TrainingState
from ckpt_lib.errors import StateMismatchError
from ckpt_lib.state.naming import named_for
from tests.helpers import MakeManager
from tests.state.builds import is_equal

Wrap = Callable[[nn.Module], nn.Module]


def plain(model: nn.Module) -> nn.Module:
    return model


def compiled(model: nn.Module) -> Any:
    wrapped: Any = torch.compile(model, backend="eager")
    return wrapped


def parallel(model: nn.Module) -> nn.Module:
    return nn.DataParallel(model)


def distributed_parallel(model: nn.Module) -> nn.Module:
    return nn.parallel.DistributedDataParallel(model)


def with_compiled_part(model: nn.Module) -> nn.Module:
    model.encoder = compiled(model.get_submodule("encoder"))
    return model


def with_checkpointed_part(model: nn.Module) -> nn.Module:
    model.encoder = checkpoint_wrapper(model.get_submodule("encoder"))
    return model


WRAPS: dict[str, Wrap] = {
    "plain": plain,
    "compiled": compiled,
    "parallel": parallel,
    "distributed": distributed_parallel,
    "compiled part": with_compiled_part,
    "checkpointed part": with_checkpointed_part,
    "distributed, compiled": lambda model: distributed_parallel(compiled(model)),
    "compiled, distributed": lambda model: compiled(distributed_parallel(model)),
    "distributed with a compiled part": lambda model: distributed_parallel(with_compiled_part(model)),
}


@pytest.fixture(autouse=True, scope="module")
def _process_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A training of one process, which DistributedDataParallel asks for."""
    meeting: Path = tmp_path_factory.mktemp("ranks") / "store"
    store = distributed.FileStore(str(meeting), 1)  # type: ignore[attr-defined]
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


class Net(nn.Module):
    """An encoder with statistics, and a head; ``module`` gives the encoder a layer of that name."""

    def __init__(self, *, module: bool = False) -> None:
        super().__init__()
        inner = nn.Sequential(OrderedDict(linear=nn.Linear(4, 4), norm=nn.BatchNorm1d(4)))
        self.encoder = nn.Sequential(OrderedDict(module=inner)) if module else inner
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> Any:
        return self.head(self.encoder(x))


class Only(nn.Module):
    """A module of somebody's own that holds another one as ``module``, and nothing else."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def build(seed: int, wrap: Wrap = plain, *, module: bool = False, named: bool = False) -> tuple[Any, Any]:
    """A wrapped model after a step, and its optimizer with momentum."""
    torch.manual_seed(seed)
    model = wrap(Net(module=module))
    parameters: Any = list(model.named_parameters() if named else model.parameters())
    optimizer = torch.optim.Adam(parameters)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return model, optimizer


def values(model: nn.Module) -> list[Any]:
    return list(model.state_dict().values())


@pytest.mark.parametrize("loaded", WRAPS)
@pytest.mark.parametrize("saved", WRAPS)
def test_each_wrapped_model_loads_into_each_other(make_manager: MakeManager, saved: str, loaded: str) -> None:
    """Weights, statistics and momentum come back bit by bit; what is stored is what ``state_dict()`` returned."""
    model, optimizer = build(1, WRAPS[saved])
    target, own = build(2, WRAPS[loaded])
    manager = make_manager(backup_checkpoints=False)
    manager.save_checkpoint(model=model, optimizer=optimizer, epoch=1)
    for load in (manager.load_checkpoint, manager.resume):
        payload = load(model=target, optimizer=own)
        assert payload is not None
        assert is_equal(dict(payload["model_state_dict"]), dict(model.state_dict()))
        assert is_equal(values(target), values(model))
        assert is_equal(own.state_dict()["state"], optimizer.state_dict()["state"])
        assert (payload["replaced"], payload["changed_values"]) == ({}, [])


@pytest.mark.parametrize("named", [False, True])
def test_an_optimizer_in_another_order_is_matched_by_name(make_manager: MakeManager, named: bool) -> None:
    """Momentum finds its parameter across wraps, whether the names are the optimizer's or the model's."""
    model, _ = build(1, WRAPS["distributed, compiled"])
    target, _ = build(2, with_compiled_part)

    def optimizer_of(model: nn.Module, *, is_reversed: bool) -> torch.optim.Optimizer:
        found = list(model.named_parameters())[:: -1 if is_reversed else 1]
        return torch.optim.Adam(found if named else [parameter for _, parameter in found])

    optimizer, own = optimizer_of(model, is_reversed=False), optimizer_of(target, is_reversed=True)
    optimizer.step()
    manager = make_manager(backup_checkpoints=False)
    manager.save_checkpoint(model=model, optimizer=optimizer, epoch=1)
    manager.load_checkpoint(model=target, optimizer=own)
    for one, other in zip(model.parameters(), target.parameters(), strict=True):
        assert is_equal(own.state[other], optimizer.state[one])
    if named:
        assert own.param_groups[0]["param_names"] == [name for name, _ in target.named_parameters()][::-1]


def test_an_optimizer_of_names_before_the_wrap_is_matched(make_manager: MakeManager) -> None:
    """An optimizer that was built before its model was wrapped knows shorter names; they stand for the same ones."""
    inner = Net()
    optimizer = torch.optim.SGD(inner.named_parameters(), momentum=0.9)
    model = distributed_parallel(inner)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    target, _ = build(2)
    own = torch.optim.SGD(list(target.named_parameters())[::-1], momentum=0.9)
    manager = make_manager(backup_checkpoints=False)
    manager.save_checkpoint(model=model, optimizer=optimizer, epoch=1)
    manager.load_checkpoint(model=target, optimizer=own)
    for one, other in zip(model.parameters(), target.parameters(), strict=True):
        assert is_equal(own.state[other], optimizer.state[one])


@pytest.mark.parametrize("loaded", ["plain", "distributed", "compiled, distributed"])
@pytest.mark.parametrize("saved", ["plain", "distributed", "compiled"])
def test_a_layer_called_module_keeps_its_name(make_manager: MakeManager, saved: str, loaded: str) -> None:
    """A name of the model's own is no wrapper's, wherever wrappers stand besides."""
    model, optimizer = build(1, WRAPS[saved], module=True)
    target, own = build(2, WRAPS[loaded], module=True)
    manager = make_manager(backup_checkpoints=False)
    manager.save_checkpoint(model=model, optimizer=optimizer, epoch=1)
    manager.load_checkpoint(model=target, optimizer=own)
    assert is_equal(values(target), values(model))
    assert any("encoder.module.linear" in name for name in target.state_dict())


def test_averaged_weights_are_not_the_model(make_manager: MakeManager) -> None:
    """``AveragedModel`` has a count beside ``module``: it is no wrapper, and a plain model refuses its state."""
    averaged = AveragedModel(Net())
    manager = make_manager(backup_checkpoints=False)
    manager.save_checkpoint(model=averaged, epoch=1)
    target = Net()
    before = copy.deepcopy(target.state_dict())
    with pytest.raises(StateMismatchError, match=r'see only="model_state_dict\.module"'):
        manager.load_checkpoint(model=target)
    assert is_equal(dict(target.state_dict()), dict(before))
    manager.load_checkpoint(model=target, only="model_state_dict.module")
    assert is_equal(values(target), values(averaged.module))
    wrapped = distributed_parallel(AveragedModel(Net()))
    manager.load_checkpoint(model=wrapped)
    assert is_equal(values(wrapped), values(averaged))


@pytest.mark.parametrize("loaded", WRAPS)
@pytest.mark.parametrize("saved", ["plain", "distributed, compiled"])
def test_modules_beside_the_model_load_across_wraps(make_manager: MakeManager, saved: str, loaded: str) -> None:
    """Also averaged weights of a wrapped model, whose levels are in the middle of the names."""

    def others(seed: int, wrap: Wrap) -> dict[str, nn.Module]:
        torch.manual_seed(seed)
        return {"teacher": wrap(Net()), "ema": AveragedModel(wrap(Net()))}

    manager, before, after = make_manager(), others(1, WRAPS[saved]), others(2, WRAPS[loaded])
    model = nn.Linear(1, 1)
    manager.save_checkpoint(TrainingState(model=model, others=before), epoch=1)
    assert manager.resume(TrainingState(model=model, others=after)) is not None
    for name in before:
        assert is_equal(values(after[name]), values(before[name]))
    plain_model = Net()
    manager.load_checkpoint(model=plain_model, only="others.ema.module")
    assert is_equal(values(plain_model), values(before["ema"])[1:])


def test_a_wrapper_is_not_invented(make_manager: MakeManager) -> None:
    """A model with a submodule ``module`` takes no state without that level, for it has no wrapper."""
    manager = make_manager(backup_checkpoints=False)
    manager.save_checkpoint(model=nn.Linear(2, 2), epoch=1)
    with pytest.raises(StateMismatchError, match=r"pass model\.module"):
        manager.load_checkpoint(model=Only(nn.Linear(2, 2)))


@pytest.mark.parametrize("wrap", ["plain", "distributed", "compiled part"])
def test_old_states_are_migrated_across_wraps(wrap: str) -> None:
    """The versions of modules, by which PyTorch migrates old states, are found under the modules' new names."""
    source = WRAPS["distributed, compiled"](Net())
    stored: Any = source.state_dict()
    del stored["module._orig_mod.encoder.norm.num_batches_tracked"]  # as before version 2 of BatchNorm
    stored._metadata["module._orig_mod.encoder.norm"] = {"version": 1}
    target = WRAPS[wrap](Net())
    named = named_for(target, target.state_dict(), stored)
    target.load_state_dict(named.state)
    versions: Any = getattr(target.state_dict(), "_metadata", None)
    expected = {name: dict(value) for name, value in versions.items()}
    found = {name: dict(value) for name, value in named.state._metadata.items()}  # type: ignore[attr-defined]
    norm = next(name for name in expected if name.endswith("norm"))
    expected[norm] = {"version": 1}
    assert {name: found[name] for name in found} == {name: expected[name] for name in found}
    assert norm in found


def test_a_model_with_hooks_gets_old_names_under_its_wrapper(make_manager: MakeManager) -> None:
    """Names that only a model's own hook knows are handed to it below the wrapper, where the hook looks for them."""

    class Renaming(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.new = nn.Linear(2, 2)
            self.other = nn.Linear(2, 2)
            self.register_load_state_dict_pre_hook(self._rename)  # type: ignore[no-untyped-call]

        @staticmethod
        def _rename(_module: nn.Module, state: dict[str, Any], prefix: str, *_rest: Any) -> None:
            for name in [name for name in state if name.startswith(f"{prefix}old.")]:
                state[name.replace("old.", "new.")] = state.pop(name)

    manager = make_manager(backup_checkpoints=False)
    old = nn.ModuleDict({"old": nn.Linear(2, 2), "other": nn.Linear(2, 2)})
    manager.save_checkpoint(model=old, epoch=1)
    target = distributed_parallel(Renaming())
    manager.load_checkpoint(model=target)
    assert is_equal(values(target), values(old))


def test_tied_and_lazy_weights_across_wraps(make_manager: MakeManager) -> None:
    """Tied weights stay tied, and lazy ones take their shape, whatever the names in the checkpoint begin with."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)
            self.two.weight = self.one.weight

    manager = make_manager(backup_checkpoints=False)
    model, target = parallel(Tied()), Tied()
    manager.save_checkpoint(model=model, epoch=1)
    manager.load_checkpoint(model=target, require_exact=True)
    assert target.one.weight is target.two.weight
    assert is_equal(values(target), values(model))
    lazy, source = nn.Sequential(nn.LazyLinear(2)), parallel(nn.Sequential(nn.Linear(5, 2)))
    manager.save_checkpoint(model=source, epoch=2)
    manager.load_checkpoint(model=lazy)
    assert is_equal(values(lazy), values(source))


# --- any tree of modules ---

NAMES = st.sampled_from(["module", "_orig_mod", "a", "b", "_orig_mod_", "modulus"])


def trees(depth: int) -> st.SearchStrategy[Any]:
    """Trees of names; the leaves are numbers of features."""
    if depth == 0:
        return st.integers(1, 3)
    return st.one_of(st.integers(1, 3), st.dictionaries(NAMES, trees(depth - 1), min_size=1, max_size=3))


class Branch(nn.Module):
    """Modules by name: any name, even those that ``ModuleDict`` refuses."""

    def __init__(self, children: dict[str, nn.Module]) -> None:
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)


def module_of(tree: Any, wraps: Iterator[int]) -> nn.Module:
    """The modules of a tree, each wrapped as the next number says."""
    made: nn.Module
    if isinstance(tree, int):
        made = nn.Linear(tree, 1)
    else:
        made = Branch({name: module_of(below, wraps) for name, below in tree.items()})
    wrappers: dict[int, Wrap] = {1: parallel, 2: compiled, 3: lambda model: parallel(compiled(model))}
    return wrappers.get(next(wraps), plain)(made)


@settings(max_examples=100, deadline=None)
@given(tree=trees(3), saved=st.lists(st.integers(0, 9), min_size=40, max_size=40), loaded=st.randoms())
def test_any_wraps_of_any_model_are_the_same_model(tree: Any, saved: list[int], loaded: Any) -> None:
    """Whatever the layers are called and whatever is wrapped on either side, each value comes to its own place."""
    source = module_of(tree, iter(saved))
    target = module_of(tree, iter([loaded.randint(0, 9) for _ in saved]))
    named = named_for(target, target.state_dict(), source.state_dict())
    target.load_state_dict(named.state)
    bare = [name for name, _ in module_of(tree, iter([0] * 40)).named_parameters()]
    assert is_equal(values(target), values(source))
    assert len(bare) == len(named.names)
    assert all(torch.equal(named.state[name], source.state_dict()[old]) for old, name in named.names.items())


@settings(max_examples=100, deadline=None)
@given(tree=trees(3), other=trees(3), saved=st.lists(st.integers(0, 9), min_size=40, max_size=40))
def test_another_model_is_refused_or_the_same_but_for_wraps(tree: Any, other: Any, saved: list[int]) -> None:
    """A state loads where dropping whole levels named like a wrapper's gives the model's names, and nowhere else."""
    source, target = module_of(tree, iter(saved)), module_of(other, iter([0] * 40))
    stored = source.state_dict()
    named = named_for(target, target.state_dict(), stored)
    assert sorted(named.names) == sorted(stored)
    assert len(set(named.names.values())) == len(stored)
    if named.state.keys() == target.state_dict().keys():
        for old, name in named.names.items():
            left = iter(old.split("."))
            assert all(part in left for part in name.split("."))  # what is left of it, in its order
            dropped = [part for part in old.split(".") if part not in ("module", "_orig_mod")]
            assert dropped == [part for part in name.split(".") if part not in ("module", "_orig_mod")]


def test_names_of_a_forged_state_cost_no_more_than_themselves() -> None:
    """A name of a million levels, or of wrappers alone, is an unexpected name like any other."""
    forged: Any = OrderedDict(
        {"module." * 200_000 + "weight": torch.zeros(1), "module." * 90 + "weight": torch.ones(1)}
    )
    forged._metadata = OrderedDict({"module." * 200_000: {"version": 1}})
    target = nn.Linear(1, 1)
    named = named_for(target, target.state_dict(), forged)
    assert set(named.names) == set(forged)
