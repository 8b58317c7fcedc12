"""Manifests as they lie in a folder."""

from __future__ import annotations

from pathlib import Path

from ckpt_lib.core.manifest import Manifest, parse_record


def manifest_in(path: Path) -> Manifest:
    """Read a manifest file."""
    record = parse_record(path.read_bytes(), path=str(path))
    assert isinstance(record, Manifest)
    return record
