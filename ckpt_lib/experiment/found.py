"""``Found``: what the key of a record holds."""

from __future__ import annotations

from typing import NamedTuple

from ckpt_lib.core.manifest import Claim, Manifest
from ckpt_lib.store.base import ABSENT, Condition


class Found(NamedTuple):
    """The record of a key, and its version."""

    record: Manifest | Claim | None
    version: Condition
    modified_seconds: float = 0.0

    @property
    def manifest(self) -> Manifest:
        """The record, where the caller knows that it is a checkpoint's."""
        assert isinstance(self.record, Manifest), f"the record is not a manifest: {self.record!r}"
        return self.record

    @property
    def claim(self) -> Claim:
        """The record, where the caller knows that it is a claim."""
        assert isinstance(self.record, Claim), f"the record is not a claim: {self.record!r}"
        return self.record


NOTHING = Found(None, ABSENT)
