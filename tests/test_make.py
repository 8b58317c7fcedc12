"""The two commands that run tests run each test once, and continuous integration runs both."""

from __future__ import annotations

import re
import shlex

from tests.collecting import collect
from tests.torture.runner import ROOT


def pytest_arguments(target: str) -> list[str]:
    """What a target of the Makefile passes to pytest."""
    recipe = re.search(rf"^{target}:.*\n\t@\$\(BIN\)/python -m pytest(.*)$", (ROOT / "Makefile").read_text(), re.M)
    assert recipe
    return shlex.split(recipe[1])


def selection(target: str) -> list[str]:
    """Those of its arguments that say which tests to run: all but how they are spread over processes."""
    arguments = pytest_arguments(target)
    while arguments and arguments[0] in ("-n", "--dist"):
        del arguments[:2]
    return arguments


def test_each_test_is_run_by_one_command() -> None:
    """`make test` and `make test-servers` share no test, and nothing is left out by both."""
    every = collect(str(ROOT / "tests"))
    quick, servers = (collect(str(ROOT / "tests"), *selection(target)) for target in ("test", "test-servers"))
    assert every.deselected == set()
    assert quick.selected | servers.selected == every.selected
    assert quick.selected & servers.selected == set()
    assert every.with_servers <= servers.selected


def test_continuous_integration_runs_both() -> None:
    """`.ci/run` runs every test and every check."""
    commands = re.findall(r"^make (.*)$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert {"test", "test-servers", "check"} <= set(commands)
