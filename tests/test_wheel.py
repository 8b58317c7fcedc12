"""The built wheel, installed beside a project that has its own ``tasks`` and ``flows``."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent

USER_FILES = {
    "tasks/__init__.py": "OWNER = 'the user'\n",
    "flows/__init__.py": "OWNER = 'the user'\n",
    "pipeline.py": """
import flows
import tasks
from ckpt_lib import CheckpointConfig
from prefect_checkpoints.flows import validate_store
from prefect_checkpoints.tasks import save_checkpoint

config = CheckpointConfig(max_checkpoints=3)
owners: list[str] = [tasks.OWNER, flows.OWNER]
print(owners, save_checkpoint.name, validate_store.name)
""",
    "wrong.py": """
from ckpt_lib import CheckpointConfig, CheckpointManager
from prefect_checkpoints.tasks import validate_checkpoint

reveal_type(CheckpointManager(CheckpointConfig(), "run").validate_checkpoint("latest").is_valid)
reveal_type(validate_checkpoint.fn)
CheckpointConfig(max_checkpoints="many")
""",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from the working tree, which stays as it is."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (source / name).write_bytes((PROJECT / name).read_bytes())
    for package in ("ckpt_lib", "src", "tasks", "flows"):
        for path in sorted((PROJECT / package).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                target = source / path.relative_to(PROJECT)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(folder), str(source)],
        check=True,
        capture_output=True,
        timeout=300,
    )
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment with the wheel, which finds the dependencies where they are installed."""
    environment = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    scripts = environment / ("Scripts" if os.name == "nt" else "bin")
    interpreter = scripts / ("python.exe" if os.name == "nt" else "python")
    site_packages = subprocess.run(
        [str(interpreter), "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    zipfile.ZipFile(wheel).extractall(site_packages)  # all that installing a wheel of pure Python is
    # A .pth line adds the folder, but not what the .pth files in it name: our editable install stays out of sight.
    (Path(site_packages) / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return interpreter


@pytest.fixture(scope="module")
def mypy_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What mypy found out about torch and Prefect serves all tests of this module, since all ask as strictly."""
    return tmp_path_factory.mktemp("mypy")


@pytest.fixture
def user_project(tmp_path: Path) -> Path:
    for name, content in USER_FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    return tmp_path


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run in a user's folder, without anything that would lead back to this project."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def test_the_wheel_holds_no_top_level_tasks_or_flows(wheel: Path) -> None:
    """Installed are `ckpt_lib` and `prefect_checkpoints`, typed, whole, and nothing else."""
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert {name.split("/")[0] for name in names} == {"ckpt_lib", "prefect_checkpoints"}
    expected = {
        prefix + path.relative_to(PROJECT / package).as_posix()
        for package, prefix in (
            ("ckpt_lib", "ckpt_lib/"),
            ("src/prefect_checkpoints", "prefect_checkpoints/"),
            ("tasks", "prefect_checkpoints/tasks/"),
            ("flows", "prefect_checkpoints/flows/"),
        )
        for path in (PROJECT / package).rglob("*")
        if path.name == "py.typed" or path.suffix == ".py"
    }
    assert names == expected


def test_a_project_with_its_own_tasks_and_flows_uses_ours(python: Path, user_project: Path) -> None:
    """Both `tasks` mean what their owner means, in the same program."""
    done = run([str(python), "pipeline.py"], user_project)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['the user', 'the user'] save_checkpoint validate_store"


def test_the_command_is_installed(python: Path, user_project: Path) -> None:
    """`ckpt` is announced by the wheel, and runs."""
    script = (
        "import sys; from importlib.metadata import distribution; sys.argv = ['ckpt', '--help'];"
        "distribution('prefect-checkpoints').entry_points['ckpt'].load()()"
    )
    done = run([str(python), "-c", script], user_project)
    assert done.returncode == 0, done.stderr
    assert "validate" in done.stdout


@pytest.mark.parametrize("installed", ["wheel", "editable"])
def test_the_packages_know_the_version(installed: str, python: Path, user_project: Path) -> None:
    """Both say the version of `pyproject.toml`, and importing the one with tasks does not yet load Prefect."""
    script = (
        "import sys, ckpt_lib, prefect_checkpoints as ours; print(ckpt_lib.__version__, ours.__version__);"
        "assert 'prefect' not in sys.modules"
    )
    done = run([str(python) if installed == "wheel" else sys.executable, "-c", script], user_project)
    assert done.returncode == 0, done.stderr
    version = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert done.stdout.split() == [version, version]


@pytest.mark.parametrize("installed", ["wheel", "editable"])
def test_type_checkers_see_through(installed: str, python: Path, user_project: Path, mypy_cache: Path) -> None:
    """mypy checks a user's calls against our types, from the wheel and from the editable install alike."""
    interpreter = str(python) if installed == "wheel" else sys.executable
    options = ["--strict", "--python-executable", interpreter, "--cache-dir", str(mypy_cache)]
    found = run([sys.executable, "-m", "mypy", *options, "pipeline.py", "wrong.py"], user_project).stdout
    assert "pipeline.py" not in found, found
    assert 'Revealed type is "bool"' in found
    assert "ValidationReport" in found
    assert 'incompatible type "str"; expected "int"' in found


def test_imported_from_the_repository_they_are_the_same_objects() -> None:
    """In this repository `tasks` and `prefect_checkpoints.tasks` hold the same tasks."""
    script = (
        "import tasks, flows, prefect_checkpoints.tasks as t, prefect_checkpoints.flows as f;"
        "assert all(getattr(tasks, n) is getattr(t, n) for n in t.__all__);"
        "assert all(getattr(flows, n) is getattr(f, n) for n in f.__all__)"
    )
    done = run([sys.executable, "-c", script], PROJECT)
    assert done.returncode == 0, done.stderr
