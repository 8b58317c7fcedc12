"""Names by which pickles attack: of functions that run commands, open files or load code, which no checkpoint needs."""

from __future__ import annotations

from collections.abc import Iterable

from ckpt_lib.core.wording import listed, shown

_BUILTINS = frozenset({"builtins", "__builtin__"})
_MODULES = frozenset(
    {
        *("os", "posix", "nt", "subprocess", "pty", "sys", "shutil", "socket", "runpy", "importlib", "ctypes"),
        *("webbrowser", "commands", "code", "codeop", "marshal", "pickle", "multiprocessing", "threading", "asyncio"),
        "urllib",
    }
)
"""The modules of which no checkpoint needs anything."""
_OF_BUILTINS = frozenset(
    {
        *("eval", "exec", "execfile", "compile", "open", "input", "__import__", "apply"),
        *("getattr", "setattr", "globals"),
    }
)
_START = "Its pickle names "


def runs_commands(name: str) -> bool:
    """Tell whether a name in a pickle, such as ``posix.system``, is one by which pickles attack."""
    module, _, attribute = name.rpartition(".")
    return attribute in _OF_BUILTINS if module in _BUILTINS else module.partition(".")[0] in _MODULES


def finding_of(names: Iterable[str]) -> str:
    """Return the finding that a pickle has such names."""
    named = listed([shown(name) for name in names])
    return f"{_START}{named}, which no checkpoint needs: do not load it with trust_pickle. Nothing was called here."


def is_of_names(finding: str) -> bool:
    """Tell whether a finding is one of :func:`finding_of`."""
    return finding.startswith(_START)
