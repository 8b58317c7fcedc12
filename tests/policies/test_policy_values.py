"""Policies as values: wrong ones are refused by name, whether made in code, sent as JSON or written in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from ckpt_lib.errors import ConfigError
from ckpt_lib.policies.retention import (
    KeepAllOf,
    KeepAnyOf,
    KeepAtMost,
    KeepBest,
    KeepEvery,
    KeepNewerThan,
    KeepNewest,
    KeepNot,
    KeepPeriods,
    KeepPinned,
    KeepWithin,
    RetentionPolicy,
    policy_from_yaml,
)
from ckpt_lib.policies.rules import MAX_POLICY_LEVELS, MAX_POLICY_PARTS
from tests.policies.plans import ADAPTER


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "newest", "count": -1},
        {"kind": "best", "mode": "average"},
        {"kind": "tagged", "tags": []},
        {"kind": "any_of", "policies": []},
        {"kind": "all_of", "policies": []},
        {"kind": "any_of", "policies": [{"kind": "newest", "count": -1}]},
        {"kind": "any_of", "policies": 5},
        {"kind": "within", "budget_bytes": -1},
        {"kind": "within"},
        {"kind": "every"},
        {"kind": "every", "epochs": 0},
        {"kind": "every", "epochs": 1, "steps": 1},
        {"kind": "newer_than"},
        {"kind": "newer_than", "days": 1, "hours": 1},
        {"kind": "newer_than", "days": 0},
        {"kind": "periods"},
        {"kind": "periods", "daily": 0},
        {"kind": "periods", "daily": -1, "weekly": 1},
        {"kind": "not"},
        {"kind": "not", "policy": {"kind": "newest"}},
        {"kind": "unknown"},
        {"kind": "newest", "cuont": 3},
        {"count": 3},
    ],
)
def test_a_wrong_policy_is_refused(wrong: dict[str, Any]) -> None:
    """A typo must not become a policy that keeps something else."""
    with pytest.raises(ValidationError):
        ADAPTER.validate_python(wrong)
    kinds = {kind.model_fields["kind"].default: kind for kind in get_args(get_args(RetentionPolicy)[0])}
    if wrong.get("kind") in kinds:
        with pytest.raises(ConfigError):
            kinds[wrong["kind"]](**wrong)


def test_policies_are_frozen() -> None:
    """Values, not objects with a life of their own."""
    policy = KeepNewest(count=3)
    with pytest.raises(ValidationError):
        policy.count = 0
    assert hash(policy) == hash(KeepNewest(count=3))


@pytest.mark.parametrize("options", [{"count": -1}, {"mode": "lowest"}, {"number": 3}])
def test_a_wrong_option_of_a_policy_is_our_error(options: dict[str, Any]) -> None:
    """As everywhere else: one typed error that names the option."""
    with pytest.raises(ConfigError, match=next(iter(options))):
        KeepAtMost(**options)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (KeepNewest, ["count"]),
        (KeepBest, ["count"]),
        (KeepAtMost, ["count"]),
        (KeepWithin, ["budget_bytes"]),
        (KeepEvery, ["epochs", "steps", "hours"]),
        (KeepPeriods, ["hourly", "daily", "weekly", "monthly", "yearly"]),
        (KeepNewerThan, ["seconds", "hours", "days"]),
    ],
)
def test_a_number_that_cannot_be_written_is_refused(kind: Any, options: list[str]) -> None:
    """A policy says what it does in words and in reports, so its numbers are ones that can be shown."""
    for option in options:
        for number in (2**63, 10**5000):
            with pytest.raises(ConfigError, match=option):
                kind(**{option: number})
        assert str(2**63 - 1) in str(kind(**{option: 2**63 - 1})).replace(",", "")


def nested(levels: int) -> dict[str, Any]:
    found: dict[str, Any] = {"kind": "pinned"}
    for _ in range(levels - 1):
        found = {"kind": "not", "policy": found}
    return found


def test_nesting_is_bounded() -> None:
    """Deep, wide and endless policies are refused before they are looked at."""
    deepest = ADAPTER.validate_python(nested(MAX_POLICY_LEVELS))
    assert isinstance(deepest, KeepNot)
    widest = KeepAnyOf(policies=(KeepPinned(),) * MAX_POLICY_PARTS)
    wrong: Any
    for wrong in (deepest, nested(MAX_POLICY_LEVELS), nested(5000)):
        with pytest.raises(ConfigError, match="levels deep"):
            KeepNot(policy=wrong)
    with pytest.raises(ConfigError, match="at most"):
        KeepAnyOf(policies=(*widest.policies, KeepPinned()))
    with pytest.raises(ConfigError, match="at most"):
        KeepNot(policy=widest)


def test_a_policy_from_a_file(tmp_path: Path) -> None:
    """Every kind can be written down; what a file says is what stays."""
    file = tmp_path / "policy.yaml"
    file.write_text(
        "kind: all_of\npolicies:\n  - {kind: every, epochs: 10}\n  - kind: not\n    policy: {kind: pinned}\n"
    )
    assert policy_from_yaml(file) == KeepAllOf(policies=(KeepEvery(epochs=10), KeepNot(policy=KeepPinned())))


LAUGHS = "\n".join(f"x{n}: &x{n} {{kind: any_of, policies: [{', '.join([f'*x{n - 1}'] * 9)}]}}" for n in range(1, 12))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, "cannot be read"),
        ("\0", "cannot be read"),
        ("[" * 1000, "cannot be read"),
        ("", "no retention policy"),
        ("- kind: newest", "no retention policy"),
        ("count: 3", "kind"),
        ("kind: latest", "latest"),
        ("kind: newest\ncount: -3", "count=-3: Input should be greater"),
        ("kind: every", "exactly one of epochs, steps, hours"),
        ("&a {kind: not, policy: *a}", "aliases"),
        (f"x0: &x0 {{kind: pinned}}\n{LAUGHS}\nkind: any_of\npolicies: [*x11]", "aliases"),
        ("{kind: not, policy: " * 60 + "{kind: pinned}" + "}" * 60, "levels deep"),
    ],
)
def test_a_wrong_policy_file_is_our_error(text: str | None, problem: str, tmp_path: Path) -> None:
    """One clear error that names the file, at once."""
    file = tmp_path / "policy.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match=problem) as caught:
        policy_from_yaml(file)
    assert caught.value.path == str(file)
    assert len(str(caught.value)) < 2000
