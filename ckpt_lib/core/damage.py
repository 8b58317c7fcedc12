"""``Damage``: what is wrong with a stored file, and where."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Damage(BaseModel):
    """One finding about a stored file: what is wrong with which bytes, ``start`` inclusive to ``stop`` exclusive.

    ``tensors`` names the tensors with bytes in that range, if that was requested and is known.
    """

    model_config = ConfigDict(frozen=True)

    file: str
    kind: Literal[
        "missing", "truncated", "extended", "altered", "manifest", "unreadable", "unloadable", "unknown format"
    ]
    start: int = Field(default=0, ge=0)
    stop: int = Field(default=0, ge=0)
    message: str
    tensors: tuple[str, ...] = ()


def missing_file(name: str) -> Damage:
    """Return the damage of a file that does not exist."""
    return Damage(file=name, kind="missing", message=f"{name} is missing")
