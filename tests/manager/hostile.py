"""Hostile texts, and ids that no checkpoint has."""

from __future__ import annotations

HOSTILE_TEXTS = {
    "empty": "",
    "dot": ".",
    "dot-dot": "..",
    "parent": "../escape",
    "absolute": "/etc/passwd",
    "windows path": "..\\escape",
    "drive": "C:escape",
    "nul": "a\0b",
    "newline": "a\nb",
    "trailing newline": "ab\n",
    "bidi": "abc\u202edef",
    "zero width": "a\u200bb",
    "surrogate": "a\udce9b",
    "blank": " ",
    "padded": " a",
    "long": "x" * 300,
}

MISSING_ID = "checkpoint_epoch_0009_step_000000_20231201_143022"
