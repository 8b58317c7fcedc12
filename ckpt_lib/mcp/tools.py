"""Which tools there are: each is named here, with the scope that it needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from ckpt_lib.mcp.editing import DeletingTools, WritingTools
from ckpt_lib.mcp.reading import ReadingTools
from ckpt_lib.web.managers import Managers
from ckpt_lib.web.tokens import SCOPES, Scope


class Tool(NamedTuple):
    """A tool, which has the name, the parameters and the description of its function."""

    function: Callable[..., Any]
    scope: Scope = "read"
    reads_payloads: bool = False
    """Whether it may take long, so that few may be at work at a time."""


def tools_of(managers: Managers, scope: Scope) -> list[Tool]:
    """Return the tools of a store that need no wider scope."""
    reading, writing, deleting = ReadingTools(managers), WritingTools(managers), DeletingTools(managers)
    every = (
        Tool(reading.list_experiments),
        Tool(reading.find_checkpoints),
        Tool(reading.get_checkpoint),
        Tool(reading.best_checkpoint, reads_payloads=True),
        Tool(reading.validate_checkpoint, reads_payloads=True),
        Tool(reading.compare_checkpoints),
        Tool(reading.summarize_experiment),
        Tool(reading.preview_cleanup, reads_payloads=True),
        Tool(reading.advise, reads_payloads=True),
        Tool(writing.edit_checkpoint, "write"),
        Tool(writing.backup_checkpoint, "write", reads_payloads=True),
        Tool(writing.repair_checkpoint, "write", reads_payloads=True),
        Tool(writing.restore_checkpoint, "write", reads_payloads=True),
        Tool(writing.undelete_checkpoint, "write"),
        Tool(deleting.delete_checkpoint, "delete"),
    )
    return [tool for tool in every if SCOPES.index(tool.scope) <= SCOPES.index(scope)]
