"""What the OpenAPI description says: results, formats and refusals by name, so that clients need not guess."""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from ckpt_lib import CheckpointConfig
from ckpt_lib.converting.names import TargetFormat, TargetType
from ckpt_lib.converting.options import _DTYPES
from ckpt_lib.web import ServerSettings, create_app

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def description(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """That of a server of a store that nobody asks anything."""
    folder = tmp_path_factory.mktemp("described")
    config = CheckpointConfig(checkpoint_dir=str(folder / "store"))
    return create_app(ServerSettings(config=config, jobs_folder=Path(folder / "jobs"))).openapi()


def operations(description: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each operation, with its name."""
    for methods in description["paths"].values():
        for operation in methods.values():
            yield operation["operationId"], operation


def test_each_operation_of_jobs_has_its_result(description: dict[str, Any]) -> None:
    """``kind`` of a result is the operation of the job, and its model is known."""
    schemas = description["components"]["schemas"]
    (result, _) = schemas["Outcome"]["properties"]["result"]["anyOf"]
    body = description["paths"]["/api/v1/experiments/{experiment}/jobs"]["post"]["requestBody"]
    work = body["content"]["application/json"]["schema"]
    assert result["discriminator"]["propertyName"] == "kind"
    assert result["discriminator"]["mapping"].keys() == work["discriminator"]["mapping"].keys()
    for name, place in result["discriminator"]["mapping"].items():
        model = schemas[place.rpartition("/")[2]]
        assert model["properties"]["kind"]["const"] == name
        assert all(field.keys() & {"type", "anyOf", "$ref", "enum"} for field in model["properties"].values())


def test_the_reference_is_up_to_date(description: dict[str, Any]) -> None:
    """docs/reference/rest.md documents every operation and model: its second half is generated from the description."""
    page = ROOT / "docs" / "reference" / "rest.md"
    writer = runpy.run_path(str(ROOT / "docs" / "write_rest_reference.py"))
    text = page.read_text(encoding="utf-8")
    assert writer["page"](text, description) == text, "run python docs/write_rest_reference.py"


def test_the_reference_is_written_behind_its_mark(description: dict[str, Any]) -> None:
    """Whatever the generated part was, it is replaced, and what a person wrote before it stays."""
    writer = runpy.run_path(str(ROOT / "docs" / "write_rest_reference.py"))
    written = writer["page"](f"By hand.\n{writer['MARKER']}old\n", description)
    assert written.startswith(f"By hand.\n{writer['MARKER']}## Refusals")
    assert "old" not in written.splitlines()
    with pytest.raises(ValueError, match="has no line"):
        writer["page"]("By hand.\n", description)


def test_each_operation_and_parameter_is_described(description: dict[str, Any]) -> None:
    """In words, for those who read the reference; and so is each refusal."""
    for name, operation in operations(description):
        assert operation["description"], name
        for parameter in operation.get("parameters", ()):
            assert parameter.get("description"), f"{name}: {parameter['name']}"
        assert all(answer["description"] for answer in operation["responses"].values()), name


def test_formats_and_types_are_listed(description: dict[str, Any]) -> None:
    """Those that a conversion knows, and no others."""
    export = description["components"]["schemas"]["Export"]["properties"]
    assert export["format"]["anyOf"][0]["enum"] == list(get_args(TargetFormat))
    assert export["dtype"]["anyOf"][0]["enum"] == list(get_args(TargetType))
    assert set(get_args(TargetType)) == _DTYPES.keys()
