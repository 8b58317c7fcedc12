"""Hints of the library in the words of the API: for a command, the operation that does the same.

Errors name commands of ``ckpt``, and some name calls in Python, which are of no use to whoever has only the API. What
has no operation stays a command: only a person at the machine of the server can do it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import quote

from ckpt_lib.web.settings import PREFIX


class Operation(NamedTuple):
    """An operation of the API, with ``{experiment}`` and ``{name}`` in the place of what a hint is about."""

    method: str
    path: str
    body: Mapping[str, Any] | None = None
    needs_name: bool = False
    """Whether the command does something else where no checkpoint is named."""

    def about(self, experiment: str | None, name: str) -> str:
        """Return the request as a client sends it."""
        place = "{experiment}" if experiment is None else quote(experiment, safe="")
        path = self.path.replace("{experiment}", place).replace("{name}", quote(name, safe=""))
        if self.body is None:
            return f"`{self.method} {PREFIX}{path}`"
        body = json.dumps(self.body).replace("{name}", json.dumps(name)[1:-1])
        return f"`{self.method} {PREFIX}{path} {body}`"


_CHECKPOINTS = "/experiments/{experiment}/checkpoints"


def _job(operation: str, *, needs_name: bool = False, **more: Any) -> Operation:
    body = {"operation": operation, **more}
    return Operation("POST", "/experiments/{experiment}/jobs", body, needs_name)


def _job_on(operation: str, **more: Any) -> Operation:
    return _job(operation, needs_name=operation == "quarantine", names=["{name}"], **more)


OPERATIONS: dict[str, Operation] = {
    "experiments": Operation("GET", "/experiments"),
    "list": Operation("GET", _CHECKPOINTS),
    "show": Operation("GET", f"{_CHECKPOINTS}/{{name}}"),
    "compare": Operation("GET", "/experiments/{experiment}/comparison"),
    "summary": Operation("GET", "/experiments/{experiment}/summary"),
    "pin": Operation("PATCH", f"{_CHECKPOINTS}/{{name}}", {"pinned": True}),
    "pin --off": Operation("PATCH", f"{_CHECKPOINTS}/{{name}}", {"pinned": False}),
    "metrics --source": Operation(
        "POST", f"{_CHECKPOINTS}/{{name}}/metrics", {"metrics": {"loss": 0.1}, "source": "NAME"}
    ),
    "delete": Operation("DELETE", f"{_CHECKPOINTS}/{{name}}"),
    "undelete": Operation("POST", f"{_CHECKPOINTS}/{{name}}/undelete"),
    "trash": Operation("GET", "/experiments/{experiment}/trash"),
    "trash --empty": _job("empty_trash"),
    "cleanup": Operation("GET", "/experiments/{experiment}/retention"),
    "doctor --fix": _job("doctor"),
    "monitor --mode": _job("monitor", metric="{name}", mode="min"),
    "validate": _job_on("validate"),
    "backup": _job_on("backup"),
    "restore": _job_on("restore"),
    "repair": _job_on("repair"),
    "quarantine": _job_on("quarantine"),
    "thin": _job_on("thin"),
    "thin --undo": _job_on("thin", undo=True),
}
"""What does the same as a command with these options."""
_IN_PYTHON = {
    "(replace=True, `--replace`)": '(`"replace": true`)',
    " or set_monitor()": "",
    "; get_checkpoint tells the id": "; `ckpt show NAME` tells the id",
}
"""What hints say of Python, and of options that an operation spells differently."""
_COMMAND = re.compile(r"`ckpt ([a-z]+)((?: [^`]+)?)`")


def in_words_of_the_api(hint: str, experiment: str | None, checkpoint_id: str | None = None) -> str:
    """Return a hint with operations in the place of commands, about what the error is about as far as that is known."""
    for said, instead in _IN_PYTHON.items():
        hint = hint.replace(said, instead)
    return _COMMAND.sub(lambda found: _instead_of(found, experiment, checkpoint_id), hint)


def _instead_of(found: re.Match[str], experiment: str | None, checkpoint_id: str | None) -> str:
    words = found[2].split()
    options = sorted(word for word in words if word.startswith("--"))
    operation = OPERATIONS.get(" ".join((found[1], *options)))
    named = [word for word in words if not word.startswith("--")]
    if operation is None or (operation.needs_name and not named):
        return found[0]
    return operation.about(experiment, named[0] if named else checkpoint_id or "ID")
