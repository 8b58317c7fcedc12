"""Functions that evaluate: found by name, called with what they declare, and their answers checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from ckpt_lib.errors import CheckpointError, ConfigError, EvaluationError, InvalidMetricError
from prefect_checkpoints.flows._evaluator import Evaluator
from tests.orchestration import evaluators

MODULE = evaluators.__name__
PAYLOAD: Mapping[str, Any] = {"checkpoint_id": "checkpoint_epoch_0001_step_000100_20231201_143022", "epoch": 1}


@pytest.mark.parametrize("name", ["accuracy", "Holder.accuracy"])
def test_a_function_is_called_with_payload_and_arguments(name: str) -> None:
    """Of a module, or of a class in it."""
    found = Evaluator.named(f"{MODULE}:{name}", {"value": 0.5})
    assert found.measure(dict(PAYLOAD)) == {"accuracy": 0.5}


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("no-function", {}, "package.module:function"),
        (MODULE, {}, "package.module:function"),
        (f"{MODULE}:", {}, "package.module:function"),
        ("..x:f", {}, "package.module:function"),
        ("no.such.module:f", {}, "No module named 'no'.*Install it"),
        ("tests.orchestration.broken_module:f", {}, "cannot be imported: ZeroDivisionError"),
        (f"{MODULE}:acuracy", {}, "has no 'acuracy'.*Did you mean 'accuracy'"),
        (f"{MODULE}:NOT_A_FUNCTION", {}, "not a function"),
        (f"{MODULE}:accuracy", {"valu": 1}, "unexpected keyword argument 'valu'"),
        (f"{MODULE}:fails", {}, "missing a required argument: 'how'"),
        (f"{MODULE}:fails", {"payload": 1, "how": "x"}, "multiple values for argument 'payload'"),
    ],
)
def test_what_cannot_be_called_is_told_before_anything_is_loaded(
    name: str, arguments: dict[str, Any], says: str
) -> None:
    """The error says what is wrong with the name, the module or the arguments."""
    with pytest.raises(ConfigError, match=says):
        Evaluator.named(name, arguments)


@pytest.mark.parametrize(
    ("how", "error", "says"),
    [
        ("raises", EvaluationError, "fails raised RuntimeError: CUDA out of memory"),
        ("returns a list", EvaluationError, "expected a mapping"),
        ("returns nothing", EvaluationError, "returned no metrics"),
        ("returns text", EvaluationError, "returned no metrics"),
        ("returns a bad value", InvalidMetricError, "fails returned what cannot be stored: metric 'a'"),
    ],
)
def test_an_answer_that_is_none_is_told(how: str, error: type[CheckpointError], says: str) -> None:
    """With the function and the checkpoint."""
    with pytest.raises(error, match=says) as caught:
        Evaluator.named(f"{MODULE}:fails", {"how": how}).measure(dict(PAYLOAD))
    assert caught.value.checkpoint_id == PAYLOAD["checkpoint_id"]
