"""What is wrong with a request, in the words of the library: what, where, what was expected, and what may be meant.

The description of the API tells the names that a request may have: those of its parameters, and those of the fields of
its body.
"""

from __future__ import annotations

import re
from asyncio import to_thread
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError

from ckpt_lib.core.wording import count_of, did_you_mean, listed, shown
from ckpt_lib.web.settings import PREFIX

_MOST_FAULTS = 10
_MOST_NAMES = 40
_DESCRIBED = f"`GET {PREFIX}/openapi.json` describes what the operation takes."
_PLACES = {"header": "headers", "cookie": "cookies"}
_COUNTED = {"string_too_long": "character", "string_too_short": "character", "too_long": "item", "too_short": "item"}
_EXPECTED = {
    "bool": "true or false",
    "dict": "an object",
    "float": "a number",
    "int": "a whole number",
    "list": "a list",
    "model": "an object",
    "string": "a text",
}
"""By what the kind of an error of Pydantic begins with, where it is about a type."""
_OF_A_TYPE = re.compile(r"([a-z]+)(?:_attributes)?_(?:type|parsing|from_float)")
_BOUNDS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
_QUOTED = re.compile(r"'((?:[^'\\]|\\.)*)'")


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong, at ``path`` in a place such as the body."""

    place: str
    path: tuple[str | int, ...]
    detail: str
    expected: str | None = None
    got: str | None = None
    hint: str = ""

    def __str__(self) -> str:
        more = (("expected", self.expected), ("got", self.got))
        told = ", ".join(f"{name} {value}" for name, value in more if value is not None)
        return f"{self.detail}: {told}" if told else self.detail


class Described:
    """The description of one operation."""

    def __init__(self, app: FastAPI, request: Request) -> None:
        description = app.openapi()
        name = getattr(request.scope.get("route"), "name", None)
        operations = (item for methods in description["paths"].values() for item in methods.values())
        self._operation: dict[str, Any] = next((item for item in operations if item["operationId"] == name), {})
        self._schemas = description["components"]["schemas"]

    def parameters(self, place: str) -> list[str]:
        """Return the names of the parameters in a place: the query, the path or the headers."""
        return [item["name"] for item in self._operation.get("parameters", ()) if item["in"] == place]

    def in_body(self, location: Sequence[str | int]) -> tuple[tuple[str | int, ...], list[str]]:
        """Return the path to what Pydantic calls ``location``, without its names of types, and the fields there."""
        content = self._operation.get("requestBody", {}).get("content", {})
        found: list[Any] = [item["schema"] for item in content.values()]
        path: list[str | int] = []
        for step in location:
            found, is_field = self._step(list(self._choices(found)), step)
            if is_field:
                path.append(step)
        fields = (name for schema in self._choices(found) for name in schema.get("properties", ()))
        return tuple(path), list(dict.fromkeys(fields))

    def kinds_of_body(self) -> list[str]:
        """Return the values of the field that tells the bodies of an operation apart, if there is one."""
        content = self._operation.get("requestBody", {}).get("content", {})
        schemas = (item["schema"] for item in content.values())
        return [kind for schema in schemas for kind in schema.get("discriminator", {}).get("mapping", ())]

    def _choices(self, schemas: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
        """Yield what each schema may stand for; one whose field tells them apart comes before those."""
        for schema in schemas:
            if "$ref" in schema:
                yield from self._choices([self._schemas[schema["$ref"].rpartition("/")[2]]])
                continue
            yield schema
            yield from self._choices(schema.get("anyOf", schema.get("oneOf", ())))

    def _step(self, choices: list[Mapping[str, Any]], step: str | int) -> tuple[list[Any], bool]:
        """Return the schemas behind a step, and whether it is one into a field or an item: else it names a type."""
        for schema in choices:
            if step in schema.get("discriminator", {}).get("mapping", {}):
                return [{"$ref": schema["discriminator"]["mapping"][step]}], False
        if isinstance(step, int):
            return [schema["items"] for schema in choices if "items" in schema], True
        if found := [schema["properties"][step] for schema in choices if step in schema.get("properties", ())]:
            return found, True
        others = [schema.get("additionalProperties") for schema in choices]
        found = [schema for schema in others if isinstance(schema, Mapping)]
        return (found, True) if found else (choices, False)


async def refuse_unknown_parameters(request: Request) -> None:
    """Raise ``RequestValidationError`` for a parameter of the query that the operation does not have."""
    if not request.query_params:
        return
    app: FastAPI = request.app
    if app.openapi_schema is None:  # it is made once, in half a second
        await to_thread(app.openapi)
    known = Described(app, request).parameters("query")
    unknown = [name for name in request.query_params if name not in known]
    if unknown:
        given = ((name, request.query_params[name]) for name in unknown)
        kind = "extra_forbidden"
        raise RequestValidationError(
            [{"type": kind, "loc": ("query", name), "msg": kind, "input": value} for name, value in given]
        )


def told_of(errors: Iterable[Mapping[str, Any]], described: Described) -> dict[str, str]:
    """Return ``detail``, ``expected``, ``got`` and ``hint`` of what Pydantic finds wrong with a request."""
    faults = _merged([_fault(item, described) for item in errors])
    hint = " ".join(dict.fromkeys(fault.hint for fault in faults if fault.hint)) or _DESCRIBED
    if len(faults) > 1:
        told = [str(fault) for fault in faults[:_MOST_FAULTS]]
        more = [f"and {len(faults) - _MOST_FAULTS} more"] if len(faults) > _MOST_FAULTS else []
        return {"detail": "; ".join([*told, *more]), "hint": hint}
    (fault,) = faults
    facts = {"detail": fault.detail, "expected": fault.expected, "got": fault.got, "hint": hint}
    return {name: value for name, value in facts.items() if value is not None}


def expected_by(item: Mapping[str, Any]) -> str:
    """Return what Pydantic expected, as the library says it."""
    kind, context = item["type"], item.get("ctx", {})
    if named := context.get("expected_tags", context.get("expected")):
        return str(named)
    if kind in _COUNTED:
        bound = ("at most", "max_length") if kind.endswith("_long") else ("at least", "min_length")
        return f"{bound[0]} {count_of(context[bound[1]], _COUNTED[kind])}"
    if bounds := [f"{words} {context[name]}" for name, words in _BOUNDS.items() if name in context]:
        return " and ".join(bounds)
    of_a_type = _OF_A_TYPE.match(kind)
    if of_a_type and of_a_type[1] in _EXPECTED:
        return _EXPECTED[of_a_type[1]] + (" of fewer digits" if kind == "int_parsing_size" else "")
    text = str(item["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    text = text.replace("String should match pattern", "a text of the pattern")
    return text[:1].lower() + text[1:]


def meant_by(item: Mapping[str, Any]) -> str:
    """Return the question whether another one of the values that Pydantic expected was meant; else nothing."""
    context = item.get("ctx", {})
    value = context.get("tag", item["input"])
    known = _QUOTED.findall(str(context.get("expected_tags", context.get("expected", ""))))
    return did_you_mean(value, known) if isinstance(value, str) else ""


def _fault(item: Mapping[str, Any], described: Described) -> Fault:
    place, *location = item["loc"]
    kind, context = item["type"], item.get("ctx", {})
    if kind == "json_invalid":
        at = f" at character {location[0]}" if location else ""
        return Fault(place, (), "the body is not JSON", expected="a JSON object", got=f"{context['error']}{at}")
    if kind == "extra_forbidden":
        return _unknown(place, location, described)
    if kind.startswith("union_tag"):
        location.append(context["discriminator"].strip("'"))
    path = described.in_body(location)[0] if place == "body" else _as_spelled(place, location)
    name = f"{shown(_spelled(path))} in the {_PLACES.get(place, place)}" if path else f"the {place}"
    if kind in ("missing", "union_tag_not_found"):
        kinds = described.kinds_of_body() if kind == "union_tag_not_found" else []
        expected = ", ".join(kinds) if path else "a JSON object"
        return Fault(place, path, f"{name} is missing", expected or None)
    expected = expected_by(item)
    if not path:
        expected += " as JSON, with `Content-Type: application/json`"
    return Fault(
        place, path, f"{name} cannot be used", expected, shown(context.get("tag", item["input"])), meant_by(item)
    )


def _unknown(place: str, location: Sequence[str | int], described: Described) -> Fault:
    *before, name = location
    path, fields = described.in_body(before) if place == "body" else ((), described.parameters(place))
    what = "field" if place == "body" else "parameter"
    where = f"{_spelled(path)} in the {place}" if path else f"the {place}"
    hint = did_you_mean(str(name), fields)
    expected = listed(fields, most=_MOST_NAMES) or f"no {what}"
    return Fault(place, (*path, name), f"there is no {what} {shown(name)} in {where}", expected=expected, hint=hint)


def _merged(faults: Sequence[Fault]) -> list[Fault]:
    """Return one fault for each place in a request: of several types that a value might have had, none fits.

    What is wrong with a part of it says more than that it is not of another type.
    """
    found: dict[tuple[str, tuple[str | int, ...]], Fault] = {}
    for fault in faults:
        if any(_is_inside(other, fault) for other in faults):
            continue
        key = fault.place, fault.path
        found[key] = _either(found[key], fault) if key in found else fault
    return list(found.values())


def _is_inside(fault: Fault, other: Fault) -> bool:
    depth = len(other.path)
    return fault.place == other.place and len(fault.path) > depth and fault.path[:depth] == other.path


def _either(first: Fault, second: Fault) -> Fault:
    choices = [item.expected for item in (first, second) if item.expected is not None]
    if set(choices) == {"a number", "a whole number"}:
        choices = ["a number"]
    return replace(first, expected=" or ".join(dict.fromkeys(choices)), hint=first.hint or second.hint)


def _as_spelled(place: str, location: Sequence[str | int]) -> tuple[str | int, ...]:
    """Return the path to a parameter; headers as they are usually written."""
    return tuple(str(step).title() if place == "header" else step for step in location)


def _spelled(path: Sequence[str | int]) -> str:
    """Return a path as text, such as ``metrics.loss`` or ``names[0]``."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".")
