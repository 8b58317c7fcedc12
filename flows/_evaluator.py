"""The function that evaluates a checkpoint: found by its name, called with the payload, its answer checked."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

from ckpt_lib.core.metadata import Metric, check_metrics
from ckpt_lib.core.wording import briefly, did_you_mean
from ckpt_lib.errors import ConfigError, EvaluationError, InvalidMetricError
from ckpt_lib.formats import Payload

_EXAMPLE = "package.module:function"


@dataclass(frozen=True)
class Evaluator:
    """A function, and the keyword arguments to call it with."""

    name: str
    function: Callable[..., Any]
    arguments: Mapping[str, Any]

    @classmethod
    def named(cls, name: str, arguments: Mapping[str, Any]) -> Evaluator:
        """Import ``package.module:function``.

        Raises :class:`~ckpt_lib.errors.ConfigError` for what cannot be imported, or called with these arguments.
        """
        function = _imported(name)
        try:
            inspect.signature(function).bind({}, **arguments)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"{name} cannot be called with a payload and these arguments: {error}",
                expected=f"{name}(payload{''.join(f', {argument}=...' for argument in arguments)})",
                hint="`arguments` may hold only keyword arguments that the function declares.",
            ) from error
        return cls(name, function, arguments)

    def measure(self, payload: Payload) -> dict[str, Metric]:
        """Return the metrics of a payload.

        Raises :class:`~ckpt_lib.errors.EvaluationError` if the function raises or returns no mapping, and
        :class:`~ckpt_lib.errors.InvalidMetricError` for a value that is no metric.
        """
        checkpoint_id = payload["checkpoint_id"]
        try:
            found = self.function(payload, **self.arguments)
        except Exception as error:  # whatever it is: the function is the user's
            raise EvaluationError(
                f"{self.name} raised {type(error).__name__}: {error}",
                checkpoint_id=checkpoint_id,
                hint="Nothing was recorded: correct the function or its arguments, and run this again.",
            ) from error
        if not isinstance(found, Mapping) or not found:
            raise EvaluationError(
                f"{self.name} returned no metrics",
                checkpoint_id=checkpoint_id,
                expected="a mapping, such as {'accuracy': 0.91}",
                got=briefly(found),
            )
        try:
            return check_metrics(found)
        except InvalidMetricError as error:
            error.message = f"{self.name} returned what cannot be stored: {error.message}"
            error.checkpoint_id = checkpoint_id
            raise


def _imported(name: str) -> Callable[..., Any]:
    module_name, _, path = name.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), *path.split("."))):
        raise ConfigError("the function's name cannot be read", expected=_EXAMPLE, got=briefly(name))
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the module's own code runs
        raise ConfigError(
            f"the module {module_name!r} cannot be imported: {type(error).__name__}: {error}",
            expected=_EXAMPLE,
            hint="Install it where the flow runs, or run the flow in the folder that holds it.",
        ) from error
    try:
        function = reduce(getattr, path.split("."), module)
    except AttributeError as error:
        hint = did_you_mean(path, [item for item in vars(module) if not item.startswith("_")])
        raise ConfigError(
            f"the module {module_name!r} has no {path!r}", expected=_EXAMPLE, hint=hint or None
        ) from error
    if not callable(function):
        raise ConfigError(f"{name} is not a function", expected=_EXAMPLE, got=type(function).__name__)
    return function
