"""The layers: imports run one way, the core knows no Prefect, and torch loads only where it is used."""

from __future__ import annotations

import ast
import graphlib
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# From the ground up. A module may import those of lower rooms, and its own room's.
LAYERS: list[set[str]] = [
    {"errors"},
    {"core"},
    {"config", "events"},
    {"stream"},
    {"compression"},
    {"store"},
    {"state"},
    {"formats"},
    {"foreign"},
    {"testing", "policies", "launch", "converting"},
    {"index"},
    {"experiment"},
    {"maintenance"},
    {"advice", "inspecting", "saving"},
    {"analysis"},
    {"loading", "live"},
    {"finder", "reports"},
    {"restorer"},
    {"manager"},
    {"web"},
    {"mcp", "page"},
    {"cli"},
    {"tasks"},
    {"flows"},
    {"deployments"},
]
RANKS = {name: rank for rank, names in enumerate(LAYERS) for name in names}
TORCH_HOMES = {"formats", "foreign", "converting", "stream", "state", "analysis.compare", "inspecting", "testing"}
PANDAS_HOMES = {"analysis"}


@dataclass(frozen=True)
class Import:
    """One import statement: who, of what, where, and whether it runs when the module loads."""

    module: str
    target: str
    line: int
    at_load: bool

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.target}"


def sources() -> dict[str, Path]:
    """Dotted name to file of every module of the project's packages."""
    found = {}
    for package in ("ckpt_lib", "src/prefect_checkpoints", "tasks", "flows", "deployments"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to((ROOT / package).parent).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(module: str, path: Path) -> Iterator[Import]:
    """What a module imports, but for what only type checkers see."""
    yield from _walk(module, path.name == "__init__.py", ast.parse(path.read_text(encoding="utf-8")), True)


def _walk(module: str, is_package: bool, node: ast.AST, at_load: bool) -> Iterator[Import]:
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        for branch in node.orelse:
            yield from _walk(module, is_package, branch, at_load)
        return
    if isinstance(node, ast.Import):
        for name in node.names:
            yield Import(module, name.name, node.lineno, at_load)
    if isinstance(node, ast.ImportFrom):
        base = _base(module, is_package, node)
        for name in node.names:
            yield Import(module, f"{base}.{name.name}", node.lineno, at_load)
    inner = at_load and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    for child in ast.iter_child_nodes(node):
        yield from _walk(module, is_package, child, inner)


def _base(module: str, is_package: bool, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    parts = parts[: len(parts) - node.level + is_package]
    return ".".join([*parts, *([node.module] if node.module else [])])


def layer_of(dotted: str) -> str | None:
    """The name in ``LAYERS`` that a module or an imported name belongs to; ``None`` for foreign ones."""
    parts = dotted.removeprefix("prefect_checkpoints.").split(".")
    if parts[0] == "ckpt_lib":
        return parts[1] if len(parts) > 1 else None
    return parts[0] if parts[0] in {"tasks", "flows", "deployments"} else None


def all_imports() -> list[Import]:
    return [found for module, path in sources().items() for found in imports(module, path)]


def backward(found: Import) -> bool:
    source, target = layer_of(found.module), layer_of(found.target)
    if source == target or source not in RANKS or target not in RANKS:
        return False
    return RANKS[target] >= RANKS[source]


def test_every_module_has_a_place() -> None:
    """A new module is put into a layer here, and by that into the design."""
    unplaced = {module for module in sources() if (layer := layer_of(module)) is not None and layer not in RANKS}
    assert unplaced == set()


def test_the_page_draws_the_same_rooms() -> None:
    """docs/ARCHITECTURE.md shows the rooms of the core in this order, and says of every module what it is for."""
    page = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    drawn = [set(re.findall(r"`(\w+)(?:\.py|/)` ", row)) for row in re.findall(r"^\| \d+ \| (.*)", page, re.MULTILINE)]
    assert drawn == [names for names in LAYERS if names.isdisjoint({"tasks", "flows", "deployments"})]
    described = dict(re.findall(r"^\| `([\w/]+)/` \| (.*)", page, re.MULTILINE))
    for folder, row in described.items():
        there = {path.stem for path in (ROOT / "ckpt_lib" / folder).glob("*.py")} - {"__init__"}
        assert set(re.findall(r"`(\w+)\.py` ", row)) == there, folder
    packages = {path.parent for path in (ROOT / "ckpt_lib").glob("*/**/__init__.py")}
    assert set(described) | {"testing"} == {str(path.relative_to(ROOT / "ckpt_lib")) for path in packages}


def test_no_arrow_runs_backwards() -> None:
    """Lower layers import nothing of higher ones, not even inside functions."""
    assert [str(found) for found in all_imports() if backward(found)] == []


def test_no_circle() -> None:
    """No two modules import each other when they load, by whatever way."""
    modules, edges = sources(), [found for found in all_imports() if found.at_load]
    targets = {name: {_module_of(edge.target, modules) for edge in edges if edge.module == name} for name in modules}
    for name in modules:
        targets[name] -= {None, name}
    sorter = graphlib.TopologicalSorter({name: {str(target) for target in found} for name, found in targets.items()})
    sorter.prepare()  # raises CycleError, which names the circle


def _module_of(target: str, modules: Mapping[str, Path]) -> str | None:
    """The module that an imported name is in, or is."""
    while target and target not in modules:
        target = target.rpartition(".")[0]
    return target or None


def test_the_core_knows_no_prefect_and_two_rooms_the_web() -> None:
    """``ckpt_lib`` works in any program; Prefect is one way to run it, and a server is another."""
    forbidden = {"prefect", "prefect_checkpoints", "tasks", "flows", "deployments"}
    homes = {
        "web": {"fastapi", "starlette", "uvicorn"},
        "page": {"gradio", "plotly", "markupsafe"},
        "mcp": {"mcp"},
    }
    core = [found for found in all_imports() if found.module.partition(".")[0] == "ckpt_lib"]
    assert len(core) > 100
    assert [str(found) for found in core if found.target.partition(".")[0] in forbidden] == []
    for home, libraries in homes.items():
        assert {layer_of(item.module) for item in core if item.target.partition(".")[0] in libraries} == {home}
    texts = {module: path.read_text(encoding="utf-8") for module, path in sources().items() if "ckpt_lib" in module}
    assert [module for module, text in texts.items() if 'import_module("prefect' in text] == []


@pytest.mark.parametrize(
    ("heavy", "homes"),
    [("torch", TORCH_HOMES), ("pandas", PANDAS_HOMES), ("matplotlib", {"analysis.plots"})],
)
def test_heavy_libraries_load_only_where_they_are_used(heavy: str, homes: set[str]) -> None:
    """``ckpt list`` answers without waiting for them."""
    loaded = [
        str(found)
        for found in all_imports()
        if found.at_load and found.target.partition(".")[0] == heavy and found.module.startswith("ckpt_lib")
        if not any(f"{found.module}.".startswith(f"ckpt_lib.{home}.") for home in homes)
    ]
    assert loaded == []


def test_one_function_leads_from_a_manifest_to_its_format() -> None:
    """format_of knows what was imported in place; the name alone would read that in another way."""
    direct = [
        f"{module}:{call.lineno} {ast.unparse(call)}"
        for module, path in sources().items()
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call)
        and ast.unparse(call.func).endswith("format_named")
        and any(isinstance(arg, ast.Attribute) and not ast.unparse(arg.value).endswith("config") for arg in call.args)
    ]
    assert [found.partition(":")[0] for found in direct] == ["ckpt_lib.experiment.stored_payload"], direct


def test_the_checks_see_what_they_look_for() -> None:
    """The detector itself: backward arrows in every spelling are found, forward ones and type-only ones pass."""
    code = (
        "import ckpt_lib.manager\n"
        "from ckpt_lib import manager, errors\n"
        "from ..manager import CheckpointManager\n"
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from ckpt_lib.cli import app\n"
        "def late():\n    from prefect_checkpoints.flows import x\n    import torch\n"
        "from ckpt_lib.store import local\n"
    )
    found = list(_walk("ckpt_lib.store.local", False, ast.parse(code), True))
    assert [item.line for item in found if backward(item)] == [1, 2, 3, 8]
    assert [(item.target, item.at_load) for item in found if item.target == "torch"] == [("torch", False)]
    assert len(all_imports()) > 200


def test_the_keys_of_a_payload_are_spelled_once() -> None:
    """Two modules that spell one key differently would lose a state. ``testing`` and ``flows`` do as users do."""
    spelled = {
        module
        for module, path in sources().items()
        if not re.match(r"ckpt_lib\.testing|flows", module)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if re.fullmatch(r"(model|optimizer|scheduler)_state_dict|(rng|data)_state", node.value)
    }
    assert spelled == {"ckpt_lib.core.payload_keys"}


def test_every_package_is_shipped() -> None:
    """A folder of modules that pyproject does not list would be missing from the wheel."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    present = {module for module, path in sources().items() if path.name == "__init__.py" and "deploy" not in module}
    shipped = {name.removeprefix("prefect_checkpoints.") for name in settings["packages"]}
    assert shipped == present
    with_code = {module.rpartition(".")[0] for module in sources() if "." in module and "deploy" not in module}
    assert with_code <= shipped


def test_every_test_says_what_it_proves() -> None:
    """A docstring; the name says what is tried, not why it matters."""
    tests = [
        (path.name, node)
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]
    assert len(tests) > 1000
    assert [f"{name}: {node.name}" for name, node in tests if not ast.get_docstring(node)] == []
