"""The public names: few, as listed, all there, and cheap to import."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import ckpt_lib

EXPECTED = [
    "CheckpointComparison",
    "CheckpointConfig",
    "CheckpointError",
    "CheckpointManager",
    "CheckpointMetadata",
    "Condition",
    "ExperimentOverview",
    "ExperimentSummary",
    "ResumableLoader",
    "RetentionPlan",
    "TrainingState",
    "advise",
    "convert_checkpoint",
    "describe_experiments",
    "find_checkpoints",
    "init_store",
    "inspect_checkpoint",
    "list_experiments",
    "open_store",
    "to_dataframe",
]


def run(script: str) -> str:
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_public_names_are_these() -> None:
    """A new one is a decision, taken here as well; and they stay few enough to remember."""
    assert sorted(ckpt_lib.__all__) == EXPECTED
    assert len(ckpt_lib.__all__) <= 20


@pytest.mark.parametrize("name", EXPECTED)
def test_each_name_is_there_and_documented(name: str) -> None:
    """By attribute, by import and by completion; with a docstring, at home in this package."""
    item = getattr(ckpt_lib, name)
    assert inspect.getdoc(item)
    assert item.__module__.startswith("ckpt_lib.")
    assert item.__name__ == name
    assert name in dir(ckpt_lib)


def test_a_star_import_brings_them_and_nothing_else() -> None:
    """``__all__`` works with lazy names."""
    found = run("from ckpt_lib import *\nprint(sorted(n for n in globals() if not n.startswith('__')))")
    assert found == f"{EXPECTED}\n"


def test_a_misspelt_name_is_an_attribute_error() -> None:
    """As for any module, so that ``hasattr`` and tools work."""
    assert not hasattr(ckpt_lib, "CheckpointManger")
    with pytest.raises(ImportError, match="Manger"):
        exec("from ckpt_lib import CheckpointManger")


def test_the_module_shows_its_names_before_they_are_loaded() -> None:
    """Completion in a fresh session."""
    assert run("import ckpt_lib; print(set(ckpt_lib.__all__) <= set(dir(ckpt_lib)))") == "True\n"


@pytest.mark.parametrize(
    ("script", "forbidden"),
    [
        ("import ckpt_lib", ["torch", "pandas", "numpy", "prefect", "pydantic", "fsspec", "ckpt_lib.manager"]),
        ("from ckpt_lib import CheckpointError", ["torch", "pandas", "prefect", "pydantic"]),
        ("from ckpt_lib import CheckpointManager", ["torch", "pandas", "prefect", "matplotlib"]),
        ("from ckpt_lib import *", ["torch", "pandas", "prefect", "matplotlib"]),
        (
            "from ckpt_lib import list_experiments, open_store; import tempfile\n"
            "list_experiments(open_store(tempfile.mkdtemp() + '/none'), missing_ok=True)",
            ["torch", "pandas", "prefect"],
        ),
    ],
)
def test_importing_loads_nothing_heavy(script: str, forbidden: list[str]) -> None:
    """A command that lists checkpoints must not wait for torch."""
    found = run(f"{script}\nimport sys; print([n for n in {forbidden!r} if n in sys.modules])")
    assert found == "[]\n"


def test_a_manager_that_only_reads_loads_no_torch() -> None:
    """Listing through a manager is light as well: torch loads when something is saved or loaded."""
    script = (
        "import sys, tempfile; from ckpt_lib import CheckpointConfig, CheckpointManager\n"
        "CheckpointManager(CheckpointConfig(checkpoint_dir=tempfile.mkdtemp()), 'e').list_checkpoints()\n"
        "print('torch' in sys.modules)"
    )
    assert run(script) == "False\n"
