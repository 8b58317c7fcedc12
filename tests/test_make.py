"""The commands that run tests run each test once, and continuous integration runs all."""

from __future__ import annotations

import re
import shlex
import tomllib

from tests.torture.runner import ROOT


def selection(target: str) -> list[str]:
    """What a target of the Makefile passes to pytest, but for how tests are spread over processes."""
    command = r"\t@(?:\w+=\S+ )*\$\((?:BIN|PEERS)\)/python -m pytest"
    recipe = re.search(rf"^{target}:.*\n{command}(.*)$", (ROOT / "Makefile").read_text(), re.M)
    assert recipe
    arguments = shlex.split(recipe[1])
    while arguments and arguments[0] in ("-n", "--dist"):
        del arguments[:2]
    return arguments


def test_each_test_is_run_by_one_command() -> None:
    """Four commands select by a marker each, and `make test` all other tests; nothing else is left out."""
    assert selection("test-servers") == ["-m", "servers"]
    assert selection("test-peers") == ["-m", "peers", "tests/peers"]
    assert selection("test-clients") == ["-m", "clients", "tests/web"]
    assert selection("test-browser") == ["-m", "browser", "tests/browser"]
    assert selection("test") == ["-m", "not servers and not peers and not clients and not browser"]
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    assert options["testpaths"] == ["tests"]
    assert not [option for option in options["addopts"] if option.startswith(("-m", "-k", "--ignore", "--deselect"))]


def test_continuous_integration_runs_all() -> None:
    """`.ci/run` runs every test and every check."""
    commands = re.findall(r"^make (.*)$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert {"test", "test-servers", "test-peers", "test-clients", "test-browser", "check"} <= set(commands)
