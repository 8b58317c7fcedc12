"""By which rules retention is asked for: a number of checkpoints, a policy, or the configured ones."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from ckpt_lib.core.wording import shown
from ckpt_lib.errors import ConfigError
from ckpt_lib.maintenance.cleaners import at_most
from ckpt_lib.manager import CheckpointManager
from ckpt_lib.policies.retention import RetentionPolicy
from ckpt_lib.web.request_errors import expected_by, meant_by

MAX_CHECKPOINTS = "How many stay in all; pinned ones come in addition."
MaxCheckpoints = Annotated[int | None, Field(ge=0, lt=2**63, description=MAX_CHECKPOINTS)]
_ADAPTER: TypeAdapter[RetentionPolicy] = TypeAdapter(RetentionPolicy)


def check_rules(max_checkpoints: int | None, policy: dict[str, Any] | str | None) -> RetentionPolicy | None:
    """Return the policy that is given, as an object or as text of JSON.

    Raises :class:`~ckpt_lib.errors.ConfigError` for what is none, or together with a number.
    """
    if policy is None:
        return None
    if max_checkpoints is not None:
        raise ConfigError("max_checkpoints and policy cannot be combined", expected="one of them")
    try:
        return _ADAPTER.validate_json(policy) if isinstance(policy, str) else _ADAPTER.validate_python(policy)
    except ValidationError as error:
        found = error.errors(include_url=False)
        raise ConfigError(
            f"this is no retention policy: {'; '.join(map(_told, found))}",
            expected='such as {"kind": "newest", "count": 5}',
            hint=" ".join(dict.fromkeys(filter(None, map(meant_by, found)))) or None,
        ) from error


def _told(item: ErrorDetails) -> str:
    """Return in words what is wrong in a policy."""
    kind, context = item["type"], item.get("ctx", {})
    if kind == "value_error":  # of a policy itself, in the words of the library
        return item["msg"].removeprefix("Value error, ").rstrip(".")
    if kind == "json_invalid":
        return f"it is not JSON: {context['error']}"
    if kind == "union_tag_not_found":
        return "it has no kind"
    name = "kind" if "tag" in context else str([*item["loc"], "policy"][0])
    return f"{name} cannot be {shown(context.get('tag', item['input']))}, expected {expected_by(item)}"


def rules_of(
    manager: CheckpointManager, max_checkpoints: int | None, policy: dict[str, Any] | str | None
) -> RetentionPolicy | None:
    """Return the policy to clean up by; ``None`` for the configured one. Raises as :func:`check_rules`."""
    given = check_rules(max_checkpoints, policy)
    return given if max_checkpoints is None else at_most(max_checkpoints, manager.monitor)
