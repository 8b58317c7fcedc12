"""The documentation is true: its Python runs, what it names exists, and what exists is in it."""

from __future__ import annotations

import inspect
import re
import shlex
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from prefect import Flow, Task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.objects import ConcurrencyLimitConfig
from prefect.flows import load_flow_from_entrypoint
from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, temporary_settings
from pydantic import BaseModel, TypeAdapter
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

import ckpt_lib
import ckpt_lib.errors
import ckpt_lib.policies.retention
import ckpt_lib.policies.saving
import prefect_checkpoints.flows
import prefect_checkpoints.tasks
from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.cli.app import app
from ckpt_lib.core.manifest import FileEntry, Manifest
from ckpt_lib.errors import CheckpointError
from ckpt_lib.policies.retention import RetentionPolicy

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")
_SPAN = re.compile(r"`([^`\n]+)`")


@cache
def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(path: Path, *languages: str) -> list[str]:
    """The contents of a page's fenced blocks in one of ``languages``."""
    return [body for language, body in _FENCE.findall(path.read_text(encoding="utf-8")) if language in languages]


def pages_with(*languages: str) -> list[Any]:
    found = [path for path in PAGES if path.exists() and blocks(path, *languages)]
    return [pytest.param(path, id=str(path.relative_to(ROOT))) for path in found]


# --- what runs ---


@pytest.mark.parametrize("path", pages_with("python"))
def test_python_blocks_run(
    path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A page's Python blocks run in order, in an empty folder, and print what the page says they print."""
    monkeypatch.chdir(tmp_path)
    for name in ("CKPT_MAX_CHECKPOINTS", "CKPT_BACKUP_CHECKPOINTS"):  # set by a page; undone afterwards
        monkeypatch.setenv(name, "1")
        monkeypatch.delenv(name)
    if any("prefect" in block for block in blocks(path, "python")):
        request.getfixturevalue("prefect_api")
    with temporary_settings({PREFECT_LOCAL_STORAGE_PATH: tmp_path / "results"}):
        document = Sybil(parsers=[PythonCodeBlockParser()]).parse(path)
        for example in document.examples():
            example.evaluate()


@pytest.mark.parametrize("path", pages_with("yaml"))
def test_yaml_blocks_are_what_their_readers_expect(path: Path) -> None:
    """YAML on a page loads; retention policies, flows, their parameters, schedules and limits in it are accepted."""
    for block in blocks(path, "yaml"):
        loaded = yaml.safe_load(block)
        if "retention" in loaded:
            TypeAdapter(RetentionPolicy).validate_python(loaded["retention"])
        for deployment in loaded.get("deployments", []):
            flow: Flow[..., Any] = load_flow_from_entrypoint(deployment["entrypoint"])
            defaults = {name: item.default for name, item in inspect.signature(flow.fn).parameters.items()}
            flow.validate_parameters(defaults | deployment.get("parameters", {}))
            for schedule in deployment.get("schedules", []):
                DeploymentScheduleCreate(schedule=schedule)
            if limit := deployment.get("concurrency_limit"):
                ConcurrencyLimitConfig(**limit)


# --- what is named exists ---


def _command_lines(path: Path) -> Iterator[list[str]]:
    """The words of every ``ckpt`` and ``make`` command of a page, in blocks and in the text."""
    text = path.read_text(encoding="utf-8")
    lines = [line for block in blocks(path, "bash") for line in block.splitlines()]
    lines += [line for block in blocks(path, "console") for line in block.splitlines() if line.startswith("$ ")]
    lines += [span for span in _SPAN.findall(_FENCE.sub("", text)) if span.startswith(("ckpt ", "make "))]
    for line in lines:
        words = shlex.split(line.removeprefix("$ "), comments=True)
        if words and Path(words[0]).name in ("ckpt", "make"):
            yield [Path(words[0]).name, *words[1:]]


@pytest.mark.parametrize("path", [pytest.param(path, id=str(path.relative_to(ROOT))) for path in PAGES])
def test_commands_exist(path: Path) -> None:
    """Every ``ckpt`` command that a page names exists with the options it uses, and every ``make`` target."""
    commands: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    targets = set(re.findall(r"^([a-z-]+):", page("Makefile"), re.MULTILINE))
    for program, *words in _command_lines(path):
        if program == "make":
            assert set(words) <= targets, words
        elif words and not words[0].startswith(("-", "[")):
            assert words[0] in commands, words
            known = {option for item in commands[words[0]].params for option in item.opts} | {"--help", "-h"}
            assert {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)} <= known, words


def _anchors(path: Path) -> set[str]:
    """The names under which a page's headings can be linked to, as code hosts make them."""
    text = _FENCE.sub("", path.read_text(encoding="utf-8"))
    headings = (heading.strip().lower() for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE))
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", [pytest.param(path, id=str(path.relative_to(ROOT))) for path in PAGES])
def test_links_lead_somewhere(path: Path) -> None:
    """Every relative link and image of a page exists, with the heading it points to."""
    text = _FENCE.sub("", path.read_text(encoding="utf-8"))
    for link in (first or second for first, second in _LINK.findall(text)):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), link
        assert not anchor or anchor in _anchors(target), link


@pytest.mark.parametrize("path", [pytest.param(path, id=str(path.relative_to(ROOT))) for path in PAGES])
def test_pages_name_nothing_private(path: Path) -> None:
    """No page mentions the place that it was written in, nor links to anything outside of the repository's folder."""
    text = path.read_text(encoding="utf-8")
    assert str(ROOT) not in text
    links = [first or second for first, second in _LINK.findall(text)]
    outside = [
        link for link in links if link.startswith(".") and not (path.parent / link).resolve().is_relative_to(ROOT)
    ]
    assert outside == []


def test_the_index_lists_every_page() -> None:
    """``docs/README.md`` links to each page of the documentation."""
    linked = {(DOCS / first).resolve() for first, _ in _LINK.findall(page("docs/README.md"))}
    assert [path for path in DOCS.rglob("*.md") if path.name != "README.md" and path not in linked] == []


# --- what exists is described ---


class _Spelled:
    """A default value as a page spells it."""

    def __init__(self, value: Any) -> None:
        self.text = f"{type(value).__name__}()" if isinstance(value, BaseModel) else repr(value)

    def __repr__(self) -> str:
        return self.text


def call_of(function: Callable[..., Any], name: str) -> str:
    """How ``function`` is called: its name, parameters and defaults."""
    parameters = [
        item.replace(
            annotation=inspect.Parameter.empty,
            default=item.default if item.default is inspect.Parameter.empty else _Spelled(item.default),
        )
        for item in inspect.signature(function).parameters.values()
        if item.name not in ("self", "cls")
    ]
    return f"{name}{inspect.Signature(parameters)}"


def assert_has_calls(name: str, calls: list[str]) -> None:
    """The page shows each of ``calls`` in a block of text; how it breaks the lines does not matter."""
    shown = "\n".join(blocks(ROOT / name, "text"))
    found = {re.sub(r"\s", "", call) for call in re.split(r"\n(?=\w)", shown)}
    assert [call for call in calls if re.sub(r"\s", "", call) not in found] == []


def public_methods(owner: type) -> dict[str, Callable[..., Any]]:
    members = {name: item for kind in reversed(owner.__mro__[:-1]) for name, item in vars(kind).items()}
    return {
        name: getattr(owner, name)
        for name, item in members.items()
        if not name.startswith("_") and isinstance(item, Callable | classmethod)  # type: ignore[arg-type]
    }


def option_row(name: str) -> str:
    """The row of an option in the configuration page's table."""
    field = CheckpointConfig.model_fields[name]
    kind = re.sub(r"typing\.", "", str(field.annotation)) if not isinstance(field.annotation, type) else ""
    kind = re.sub(r"Union\[(\w+), (.*)\]", r"\1 | \2", kind)  # as Python 3.14 spells it
    kind = (kind or field.annotation.__name__).replace("|", "or")  # type: ignore[union-attr]
    return f"| `{name}` | `{kind}` | `{field.default!r}` | {field.description} |"


def test_configuration_page_has_every_option() -> None:
    """The table of options is what ``CheckpointConfig`` declares, no more and no less."""
    table = page("docs/reference/configuration.md").partition("\n## ")[0]
    rows = re.findall(r"^\| `.*\|$", table, re.MULTILINE)
    assert rows == [option_row(name) for name in CheckpointConfig.model_fields]


def test_format_page_has_every_field() -> None:
    """Each field of a manifest and of a file entry is in the tables of the format."""
    text = page("docs/FORMAT.md")
    rows = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", text, re.MULTILINE))))
    assert {*Manifest.model_fields, *FileEntry.model_fields, "manifest_sha256"} <= rows


def test_errors_page_has_the_tree() -> None:
    """The tree on the page is the tree in the code's docstring, which tests compare with the classes."""
    documented = (ckpt_lib.errors.__doc__ or "").partition("::\n\n")[2].partition("\n\nEach")[0]
    assert documented
    assert inspect.cleandoc(documented) in page("docs/reference/errors.md")


def test_errors_page_explains_each_error() -> None:
    """Each error has a row that begins with the first sentence of its docstring."""
    text = page("docs/reference/errors.md")
    rows = [f"| `{error.__name__}` | {_meaning(error)} |" for error in _errors()]
    assert [row for row in rows if row not in text] == []


def _meaning(error: type[CheckpointError]) -> str:
    return inspect.cleandoc(error.__doc__ or "").splitlines()[0].replace("``", "`")


def _errors() -> list[type[CheckpointError]]:
    found = [item for item in vars(ckpt_lib.errors).values() if isinstance(item, type)]
    return [item for item in found if issubclass(item, CheckpointError)]


def test_python_page_has_every_public_name() -> None:
    """Each name of ``ckpt_lib``, each public method of the manager and each policy is on the page, as it is called."""
    text = page("docs/reference/python.md")
    assert [name for name in ckpt_lib.__all__ if f"`{name}" not in text and f"{name}(" not in text] == []
    assert_has_calls("docs/reference/python.md", [call_of(CheckpointManager.__init__, "CheckpointManager")])
    methods = public_methods(CheckpointManager)
    assert_has_calls("docs/reference/python.md", [call_of(method, name) for name, method in methods.items()])
    policies = [
        name
        for name, item in vars(ckpt_lib.policies.saving).items()
        if isinstance(item, type) and item.__module__ == "ckpt_lib.policies.saving" and not name.startswith("_")
    ]
    policies += [
        name
        for name in ckpt_lib.policies.retention.__all__
        if name not in ("Status", "RetentionPolicy")  # types
    ]
    assert [name for name in policies if f"`{name}" not in text] == []


def _sections(name: str) -> dict[str, str]:
    """Heading to text of a page's third-level sections."""
    parts = re.split(r"^### (.*)$", page(name), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_tasks_page_has_every_task() -> None:
    """Each task has a section with its call, and one that remembers results says so."""
    tasks: dict[str, Task[..., Any]] = {
        name: getattr(prefect_checkpoints.tasks, name) for name in prefect_checkpoints.tasks.__all__
    }
    sections = _sections("docs/reference/tasks.md")
    assert set(sections) == {f"`{name}`" for name in tasks}
    assert_has_calls(
        "docs/reference/tasks.md", [call_of(getattr(task, "fn", task), name) for name, task in tasks.items()]
    )
    remembering = {name for name, task in tasks.items() if isinstance(task, Task) and task.cache_policy is not NO_CACHE}
    assert remembering == {name for name in tasks if "Remembered" in sections[f"`{name}`"]}


def test_flows_page_has_every_flow_and_parameter() -> None:
    """Each flow has a section with its call and a row for each parameter."""
    exported = {name: getattr(prefect_checkpoints.flows, name) for name in prefect_checkpoints.flows.__all__}
    flows = {name: item for name, item in exported.items() if isinstance(item, Flow)}
    sections = _sections("docs/reference/flows.md")
    assert set(sections) == {f"`{name}`" for name in exported}
    assert_has_calls("docs/reference/flows.md", [call_of(flow.fn, name) for name, flow in flows.items()])
    for name, item in exported.items():
        parameters = inspect.signature(item.fn).parameters if name in flows else item.model_fields
        assert set(re.findall(r"^\| `(\w+)` \|", sections[f"`{name}`"], re.MULTILINE)) == set(parameters)


def test_flows_page_has_every_deployment() -> None:
    """Each deployment of ``prefect.yaml`` is in the table, with its schedule."""
    text = page("docs/reference/flows.md")
    for item in yaml.safe_load(page("prefect.yaml"))["deployments"]:
        flow = re.split("[:.]", item["entrypoint"])[-1]
        crons = " ".join(f"`{schedule['cron']}` {schedule['timezone']}" for schedule in item.get("schedules", []))
        assert f"| `{flow}/{item['name']}` | {crons or 'on demand'} |" in text
