"""What the kinds that are folders have in common."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from ckpt_lib.foreign.base import Facts, ForeignCheckpoint
from ckpt_lib.foreign.mapping import to_payload
from ckpt_lib.foreign.sources import FoundFiles


def folder_checkpoint(
    kind: str,
    title: str,
    files: FoundFiles,
    contents: Mapping[str, Any],
    key_map: Mapping[str, str],
    *,
    facts: Facts | None = None,
    left_out: Collection[str] = (),
    findings: Iterable[str] = (),
) -> ForeignCheckpoint:
    """Return a folder's checkpoint with its entries under our keys: by ``key_map``, and the others by their names.

    ``facts`` are those that the folder itself tells; without them, they are looked for in the entries. ``left_out``
    says what of the folder is not among the entries.
    """
    mapped = to_payload(contents, {name: key for name, key in key_map.items() if name in contents})
    return ForeignCheckpoint(
        kind=kind,
        title=title,
        files=files,
        contents=contents,
        payload=mapped.payload,
        facts=mapped.facts if facts is None else facts,
        obstacle=mapped.obstacle,
        left_out=(*mapped.left_out, *left_out),
        unread=tuple(left_out),
        findings=tuple(findings),
    )


def present(**parts: Any) -> dict[str, Any]:
    """Return the parts that are there."""
    return {name: part for name, part in parts.items() if part is not None}


def numbered_names(files: FoundFiles, pattern: re.Pattern[str]) -> list[str]:
    """Return the files that a pattern fits, in the order of the numbers that are its group; one may have none."""
    found = [(match, name) for name in files.names if (match := pattern.fullmatch(name))]
    return [name for _, name in sorted(found, key=lambda item: int(item[0][1] or 0))]
