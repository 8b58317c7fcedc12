"""Write the reference of the REST API from its OpenAPI description.

    python docs/write_rest_reference.py

What stands in docs/reference/rest.md before the generated part is written by hand, and stays.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ckpt_lib import CheckpointConfig
from ckpt_lib.web import ServerSettings, create_app

PAGE = Path(__file__).parent / "reference" / "rest.md"
MARKER = "<!-- generated from here on: python docs/write_rest_reference.py -->\n"
PREFIX = "/api/v1"
GROUPS = {"read": "Scope `read`", "write": "Scope `write`", "delete": "Scope `delete`"}


def main() -> None:
    """Write the generated part of the page anew."""
    with tempfile.TemporaryDirectory() as folder:
        config = CheckpointConfig(checkpoint_dir=f"{folder}/store")
        app = create_app(ServerSettings(config=config, jobs_folder=Path(folder, "jobs")))
        PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), app.openapi()), encoding="utf-8")


def page(text: str, description: dict[str, Any]) -> str:
    """Return the page whose generated part tells of a description; ``text`` is what it was before."""
    by_hand, marker, _ = text.partition(MARKER)
    if not marker:
        raise ValueError(f"{PAGE} has no line {MARKER.strip()}, behind which the generated part begins")
    return "\n".join((by_hand + marker.rstrip("\n"), *reference(description))) + "\n"


def reference(description: dict[str, Any]) -> Iterator[str]:
    """Yield the lines: the refusals of all operations, the operations by the scope that they need, and the models."""
    found = [(path, method, item) for path, methods in description["paths"].items() for method, item in methods.items()]
    shared = _refusals_of_all([item for *_, item in found])
    yield "## Refusals of every operation"
    yield ""
    yield from _table(("status", "when"), [(f"{code}", told) for code, told in shared.items()])
    for tag, title in GROUPS.items():
        yield f"## {title}"
        yield ""
        for path, method, item in found:
            if item["tags"][0] == tag:
                yield from _operation(path.removeprefix(PREFIX), method, item, shared)
    yield "## Models"
    yield ""
    for name, schema in sorted(description["components"]["schemas"].items()):
        if name not in ("HTTPValidationError", "ValidationError"):
            yield from _model(name, schema)


def _refusals_of_all(operations: list[dict[str, Any]]) -> dict[str, str]:
    """Return the refusals that most operations document in the same words, by status."""
    told = [{code: item["description"] for code, item in found["responses"].items()} for found in operations]
    codes = sorted({code for item in told for code in item if code >= "400"})
    texts = {code: [item[code] for item in told if code in item] for code in codes}
    return {code: max(set(found), key=found.count) for code, found in texts.items() if len(found) == len(operations)}


def _operation(path: str, method: str, item: dict[str, Any], shared: dict[str, str]) -> Iterator[str]:
    yield f"### `{item['operationId']}`"
    yield ""
    yield f"`{method.upper()} {path}`"
    yield ""
    yield _one_line(item["description"])
    yield ""
    parameters = [
        (
            f"`{parameter['name']}`",
            parameter["in"] + ("" if parameter.get("required") else ", optional"),
            _type(parameter["schema"]),
            _one_line(parameter.get("description", parameter["schema"].get("description", ""))),
        )
        for parameter in item.get("parameters", ())
    ]
    if parameters:
        yield from _table(("parameter", "in", "type", "meaning"), parameters)
    if body := item.get("requestBody"):
        ((media_type, content),) = body["content"].items()
        yield f"Body: {_type(content['schema'])}, as `{media_type}`."
        yield ""
    yield from _table(("status", "answer"), list(_answers(item, shared)))


def _answers(item: dict[str, Any], shared: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Yield each status, but those that mean what they mean everywhere."""
    for code, answer in sorted(item["responses"].items()):
        if shared.get(code) == answer["description"]:
            continue
        content = next(iter(answer.get("content", {}).items()), None)
        if code >= "400" or content is None:
            yield code, answer["description"]
        elif content[0] == "application/json":
            yield code, _type(content[1]["schema"])
        else:
            yield code, f"`{content[0]}`"


def _model(name: str, schema: dict[str, Any]) -> Iterator[str]:
    yield f"### {_heading(name)}"
    yield ""
    if "description" in schema:
        yield _one_line(schema["description"])
        yield ""
    if "properties" not in schema:
        yield f"It is {_type(schema)}."
        yield ""
        return
    required = schema.get("required", ())
    rows = [
        (
            f"`{field}`",
            _type(found) + ("" if field in required else ", optional"),
            _one_line(found.get("description", "")),
        )
        for field, found in schema["properties"].items()
    ]
    yield from _table(("field", "type", "meaning"), rows)


def _heading(name: str) -> str:
    return name.replace("_", " ").strip()


def _anchor(name: str) -> str:
    return _heading(name).lower().replace(" ", "-")


def _type(schema: dict[str, Any]) -> str:
    """Return a schema in a few words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{_heading(name)}](#{_anchor(name)})"
    if choices := schema.get("anyOf", schema.get("oneOf")):
        return " or ".join(dict.fromkeys(_type(item) for item in choices))
    if values := schema.get("enum", [schema["const"]] if "const" in schema else None):
        return ", ".join(f"`{value}`" for value in values)
    inner = schema.get("items", schema.get("additionalProperties"))
    name = {"array": "list"}.get(schema.get("type", ""), schema.get("format") or schema.get("type") or "anything")
    return f"{name} of {_type(inner)}" if isinstance(inner, dict) and inner else str(name)


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    if not rows:
        return
    yield f"| {' | '.join(header)} |"
    yield "|" + "---|" * len(header)
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
    yield ""


def _one_line(text: str) -> str:
    """Return a description without line breaks, and with the code of docstrings as Markdown has it."""
    return " ".join(text.split()).replace("``", "`")


if __name__ == "__main__":
    main()
