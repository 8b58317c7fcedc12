"""Tests what every payload format must do: a format is done when its subclass of ``FormatContract`` passes."""

from __future__ import annotations

import contextlib
import io
import math
import re
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckpt_lib.core.manifest import is_payload_name
from ckpt_lib.errors import (
    CheckpointError,
    ConfigError,
    CorruptCheckpointError,
    StorageFullError,
    UnsupportedStateError,
)
from ckpt_lib.formats import Format
from ckpt_lib.testing.payloads import Files, MemorySink, MemorySource, assert_same, encode, round_trip

BOUNDED = settings(
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors],
)

DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex128),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.bool, torch.float8_e4m3fn, torch.float8_e5m2),
]


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """Any dtype, any bits, 0 to 3 dimensions, empty ones too; whole, a view, transposed, strided or expanded."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    count = math.prod(shape)
    size = torch.empty(0, dtype=dtype).element_size()
    raw = bytearray(draw(st.binary(min_size=(count + 3) * size, max_size=(count + 3) * size)))
    if dtype is torch.bool:
        raw = bytearray(byte & 1 for byte in raw)
    base = torch.frombuffer(raw, dtype=torch.uint8).clone().view(dtype)
    tensor = base[:count].reshape(shape)
    how = draw(st.sampled_from(["whole", "view", "transposed", "strided", "expanded", "parameter", "grad"]))
    if how == "view":
        tensor = base[3:].reshape(shape)
    elif how == "transposed" and tensor.dim() >= 2:
        tensor = tensor.transpose(0, -1)
    elif how == "strided" and tensor.dim() and tensor.shape[0]:
        tensor = tensor[::2]
    elif how == "expanded":
        tensor = tensor.unsqueeze(0).expand(2, *shape)
    elif how in {"parameter", "grad"} and dtype in {torch.float32, torch.bfloat16}:
        tensor = torch.nn.Parameter(tensor) if how == "parameter" else tensor.clone().requires_grad_()
    return tensor


leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**1999), 2**1999),
    st.floats(),
    st.text(max_size=8),
    tensors(),
)
keys = st.one_of(
    st.text(max_size=6), st.integers(), st.booleans(), st.none(), st.tuples(st.integers(), st.text(max_size=3))
)
states = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(keys, inner, max_size=3),
        st.dictionaries(keys, inner, max_size=3).map(OrderedDict),
    ),
    max_leaves=8,
)


def size_of(files: Files) -> int:
    return sum(len(data) for data in files.values())


def damaged(files: Files) -> Iterator[Files]:
    """Yield the files with one of them empty, cut off anywhere, something else altogether, or missing."""
    for name, whole in files.items():
        for data in (b"", b"\0", b"PK", b"not a payload" * 100, *(whole[: len(whole) * n // 12] for n in range(12))):
            yield {**files, name: data}
        yield {other: data for other, data in files.items() if other != name}


class FormatContract:
    """Subclass it, and give it a fixture ``payload_format``."""

    @pytest.fixture
    def payload_format(self) -> Format:
        raise NotImplementedError

    def test_it_has_a_name_and_a_suffix(self, payload_format: Format) -> None:
        """The name goes into manifests, the suffix behind an id."""
        assert payload_format.name.isidentifier()
        assert payload_format.suffix != ".json"
        assert re.fullmatch(r"\.[A-Za-z0-9][A-Za-z0-9.]{0,31}|/", payload_format.suffix)

    def test_its_files_have_names_that_a_save_takes(self, payload_format: Format) -> None:
        """None for a single file; plain paths below the folder for a format that writes one."""
        for name in encode(payload_format, {"model_state_dict": {"a": torch.ones(2)}, "epoch": 1}):
            assert bool(name) == (payload_format.suffix == "/")
            assert is_payload_name(f"x{payload_format.suffix}{name}", "x")

    @BOUNDED
    @given(state=states)
    def test_any_state_comes_back_bit_for_bit(self, payload_format: Format, state: Any) -> None:
        """Nested containers of every plain type, tensors of every dtype and layout, in the same order."""
        payload = {"model_state_dict": state, "epoch": 1}
        found = round_trip(payload_format, payload)
        assert_same(found, payload)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (5, 7)], ids=str)
    def test_each_dtype_comes_back(self, payload_format: Format, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
        """0-d and empty tensors keep their shape and dtype."""
        size = math.prod(shape) * torch.empty(0, dtype=dtype).element_size()
        raw = (torch.arange(size) % (2 if dtype is torch.bool else 256)).to(torch.uint8)
        tensor = raw.view(dtype).reshape(shape)
        assert_same(round_trip(payload_format, {"t": tensor}), {"t": tensor})

    def test_preparing_copies_no_tensor_and_changes_nothing(self, payload_format: Format) -> None:
        """A second copy of a model would not fit; and the caller's state is the caller's."""
        tensor, inner = torch.ones(3), [np.float64(1.0)]
        payload = {"a": tensor, "b": inner, "c": torch.nn.Parameter(torch.ones(2))}
        prepared = payload_format.prepare(payload)
        assert prepared["a"] is tensor
        assert prepared["c"] is payload["c"]
        assert type(inner[0]) is np.float64
        assert payload["b"] is inner

    def test_tied_tensors_stay_tied(self, payload_format: Format) -> None:
        """Writing through one name is seen through the other, as in the model that was saved."""
        shared = torch.arange(6.0)
        found = round_trip(payload_format, {"m": {"a": shared, "b": shared, "row": shared.view(2, 3)[1]}})["m"]
        found["a"][4] = 100
        assert found["b"][4] == 100
        assert found["row"][1] == 100

    def test_a_model_with_optimizer_and_scheduler_comes_back(self, payload_format: Format) -> None:
        """What people save: it fits into fresh ones and goes on to the same numbers."""

        def build() -> tuple[Any, Any, Any]:
            torch.manual_seed(0)
            model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))
            optimizer = torch.optim.AdamW(model.parameters())
            return model, optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)

        def step(parts: tuple[Any, Any, Any]) -> None:
            parts[1].zero_grad()
            parts[0](torch.ones(5, 3) * torch.arange(5.0).unsqueeze(1)).square().mean().backward()
            parts[1].step()
            parts[2].step()

        first, second = build(), build()
        step(first)
        stored = round_trip(payload_format, {str(n): part.state_dict() for n, part in enumerate(first)})
        for number, part in enumerate(second):
            part.load_state_dict(stored[str(number)])
        step(first)
        step(second)
        for one, other in zip(first, second, strict=True):
            assert_same(other.state_dict(), one.state_dict())

    def test_versions_of_modules_survive(self, payload_format: Format) -> None:
        """``state_dict()._metadata`` is what torch migrates old state by."""
        state = torch.nn.Sequential(torch.nn.BatchNorm1d(2)).state_dict()
        found = round_trip(payload_format, {"model_state_dict": state})["model_state_dict"]
        assert found._metadata == state._metadata  # type: ignore[attr-defined]
        assert found._metadata["0"]["version"] == 2

    @pytest.mark.parametrize(
        ("value", "plain"),
        [
            (np.float32(0.5), 0.5),
            (np.float64(math.inf), math.inf),
            (np.int64(-3), -3),
            (np.bool_(True), True),
            (np.str_("text"), "text"),
        ],
    )
    def test_a_numpy_scalar_becomes_a_plain_number(self, payload_format: Format, value: Any, plain: Any) -> None:
        """Metrics and counters often are NumPy's; readers need no NumPy to get them back. Keys as well."""
        assert_same(round_trip(payload_format, {"a": [value], "b": {value: 1}}), {"a": [plain], "b": {plain: 1}})

    @pytest.mark.parametrize(
        "value", [{1, "a"}, 1j, b"\0\xff", bytearray(b"x"), torch.float16, torch.device("cpu"), torch.Size([2, 3])]
    )
    def test_other_values_come_back_or_are_refused(self, payload_format: Format, value: Any) -> None:
        """Never a third thing: written, acknowledged, and unreadable or different."""
        try:
            prepared = payload_format.prepare({"x": [value]})
        except UnsupportedStateError as error:
            assert "x[0]" in error.message  # noqa: PT017
            return
        assert_same(round_trip(payload_format, prepared), {"x": [value]})

    @pytest.mark.parametrize(
        "value",
        [
            lambda: None,
            object(),
            print,
            torch.nn.Linear(1, 1),
            type("Local", (), {})(),
            iter([1]),
            np.array(["x"]),
            np.datetime64("2020-01-01"),
            np.array(object()),
            10**700,
            -(10**700),
            ValueError("an error"),
            frozenset({1}),
            range(3),
            torch.Generator(),
            io.BytesIO(),
            ...,
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_what_could_not_be_read_back_is_refused_by_place(self, payload_format: Format, value: Any) -> None:
        """Before anything is written, and the error says where in the state it sits."""
        for payload, place in (
            ({"extra_state": value}, "extra_state"),
            ({"extra_state": {"a": [1, (2, value)]}}, "extra_state['a'][1][1]"),
            ({"extra_state": OrderedDict(b=value)}, "extra_state['b']"),
        ):
            with pytest.raises(UnsupportedStateError) as refused:
                payload_format.prepare(payload)
            assert place in refused.value.message
            assert isinstance(value, np.generic | np.ndarray) or refused.value.got == (
                f"{type(value).__module__}.{type(value).__qualname__}"
            )

    def test_what_hangs_on_a_tensor_is_checked_too(self, payload_format: Format) -> None:
        """Attributes of tensors, parameters and ordered dicts are written with them, so they count as state."""
        carriers: list[Any] = [torch.ones(2), torch.nn.Parameter(torch.ones(2)), OrderedDict(a=1)]
        for carrier in carriers:
            carrier.note = lambda: None
            with pytest.raises(UnsupportedStateError, match="'a'"):
                payload_format.prepare({"x": {"a": carrier}})

    def test_state_that_contains_itself_is_refused(self, payload_format: Format) -> None:
        """Every kind of container, and none of them overflows the stack."""
        plain: dict[str, Any] = {}
        plain["self"] = plain
        ordered: OrderedDict[str, Any] = OrderedDict()
        ordered["self"] = ordered
        loop: list[Any] = []
        loop.append((loop,))
        for state in (plain, ordered, loop):
            with pytest.raises(UnsupportedStateError):
                payload_format.prepare({"x": state})

    @pytest.mark.parametrize("kind", [list, tuple, dict, OrderedDict])
    def test_deep_state_comes_back_or_is_refused(self, payload_format: Format, kind: Any) -> None:
        """At whatever depth: refused with our error, before or while writing, or read back."""
        outcomes = set()
        for levels in (1, 50, 200, 300, 400, *range(480, 500), 1000, 5000):
            state: Any = 1
            for _ in range(levels):
                state = kind([state]) if kind in (list, tuple) else kind(a=state)
            try:
                found: Any = round_trip(payload_format, {"x": state})["x"]
            except UnsupportedStateError:
                outcomes.add("refused")
                continue
            outcomes.add("read back")
            for _ in range(levels):
                found = next(iter(found.values())) if isinstance(found, dict) else found[0]
            assert found == 1
        assert outcomes == {"refused", "read back"}

    @pytest.mark.parametrize("part", [0, 0.01, 0.3, 0.6, 0.9, 0.999])
    def test_a_failing_store_comes_out_as_itself(self, payload_format: Format, part: float) -> None:
        """The serializer's own complaint about a position in a file would tell nobody that the disk is full."""
        payload = payload_format.prepare({"a": torch.zeros(5000), "b": torch.ones(5000)})
        sink = MemorySink(limit=int(size_of(encode(payload_format, payload)) * part))
        with pytest.raises(StorageFullError) as raised:
            payload_format.lay_out(payload).write(sink)
        assert raised.value is sink.error

    def test_it_is_written_from_start_to_end(self, payload_format: Format) -> None:
        """No seeking: digests are of the stream; and what is written twice is the same twice."""
        payload = {"a": torch.arange(1000.0), "b": [1, "x"]}
        assert encode(payload_format, payload) == encode(payload_format, payload)

    @BOUNDED
    @given(state=states)
    def test_the_predicted_size_is_enough_and_hardly_more(self, payload_format: Format, state: Any) -> None:
        """What free space is compared with before a save."""
        payload = payload_format.prepare({"extra_state": state})
        layout, sink = payload_format.lay_out(payload), MemorySink()
        layout.write(sink)
        assert sink.size_bytes <= layout.size_bytes <= 1.02 * sink.size_bytes + 4096 * len(sink.files)

    def test_other_bytes_are_a_damaged_payload(self, payload_format: Format) -> None:
        """Empty, cut off anywhere, or something else altogether: an error of ours, from an inspection as well."""
        whole = encode(payload_format, {"a": torch.arange(100.0), "b": "x"})
        for files in damaged(whole):
            for ask in (payload_format.read, payload_format.inspect):
                with pytest.raises(CheckpointError):
                    ask(MemorySource(files))

    @BOUNDED
    @given(data=st.data())
    def test_altered_bytes_never_surprise(self, payload_format: Format, data: st.DataObject) -> None:
        """Read without verification, a damaged payload is still either a dict or an error of ours."""
        files = encode(payload_format, {"a": torch.arange(8.0), "b": ["x", 1, None], "c": {"d": 2.5}})
        for _ in range(data.draw(st.integers(1, 8))):
            name = data.draw(st.sampled_from(sorted(files)))
            altered = bytearray(files[name])
            altered[data.draw(st.integers(0, len(altered) - 1))] = data.draw(st.integers(0, 255))
            files[name] = bytes(altered)
        with contextlib.suppress(CheckpointError):
            assert isinstance(payload_format.read(MemorySource(files)), dict)

    def test_parts_are_read_by_name(self, payload_format: Format) -> None:
        """A key, and what is below it in dicts; a name that stands for nothing is an error and no damage."""
        payload = {"model_state_dict": {"a.weight": torch.ones(2), "b": torch.zeros(3)}, "epoch": 1}
        files = encode(payload_format, payload)
        found = payload_format.read(MemorySource(files), keys=["model_state_dict.a", "epoch"])
        assert_same(found, {"model_state_dict": {"a.weight": torch.ones(2)}, "epoch": 1})
        with pytest.raises(ConfigError, match=r"model_state_dict\.c"):
            payload_format.read(MemorySource(files), keys=["model_state_dict.c"])

    @BOUNDED
    @given(state=states)
    def test_what_is_written_passes_an_inspection(self, payload_format: Format, state: Any) -> None:
        """It tells a valid checkpoint from another, and gives the plain values as they were saved."""
        payload = {"model_state_dict": {"a": torch.ones(2), "b": state}, "epoch": 3, "extra_state": {"c": ["x", 1.5]}}
        found = payload_format.inspect(MemorySource(encode(payload_format, payload)))
        assert list(found) == list(payload)
        assert list(found["model_state_dict"]) == ["a", "b"]
        assert (found["epoch"], found["extra_state"]) == (3, {"c": ["x", 1.5]})

    def test_an_inspection_reads_no_tensor(self, payload_format: Format) -> None:
        """It is made before a plan, and after each copy: it costs what the structure does."""
        source = MemorySource(encode(payload_format, {"model_state_dict": {"a": torch.zeros(2**20)}, "epoch": 1}))
        payload_format.inspect(source)
        assert source.viewed_bytes < 2**16

    def test_tensors_are_found_in_their_files(self, payload_format: Format) -> None:
        """Where a tensor is said to lie, its bytes do; what is said to lie nowhere is not said to be damaged."""
        tensor = torch.arange(1000.0)
        files = encode(payload_format, {"model_state_dict": {"a": tensor}, "epoch": 1})
        wanted = tensor.numpy().tobytes()
        for name, data in files.items():
            for found, ranges in payload_format.tensor_ranges(MemorySource(files), name).items():
                assert found == "model_state_dict.a"
                assert b"".join(data[start:stop] for start, stop in ranges) == wanted

    def test_a_device_that_is_not_there_is_not_damage(self, payload_format: Format) -> None:
        """``resume`` passes over what is corrupt: a mistyped device must not look like it."""
        files = encode(payload_format, {"a": torch.ones(1)})
        for device in ("nonsense", "cuda:99", torch.device("cuda", 99)):
            with pytest.raises(CheckpointError) as raised:
                payload_format.read(MemorySource(files), map_location=device)
            assert not isinstance(raised.value, CorruptCheckpointError)
        assert payload_format.read(MemorySource(files), map_location=torch.device("cpu"))["a"].device.type == "cpu"
        assert payload_format.read(MemorySource(files), map_location="meta")["a"].device.type == "meta"
