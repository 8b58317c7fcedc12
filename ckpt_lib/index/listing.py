"""What a listing of a folder showed, for the database: light to import, for small experiments do without that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ckpt_lib.core.manifest import Claim, Manifest
from ckpt_lib.index.overview import ExperimentOverview


class Known(NamedTuple):
    """A record as it was when its folder was listed."""

    version: str
    """That of its key in the store."""
    record: Manifest | Claim
    is_complete: bool
    """Whether its payload files were all there."""


class KnownFolder(NamedTuple):
    """A folder as it was when it was last listed."""

    version: str | None
    """That of the folder, where the store has one."""
    overview: ExperimentOverview


class Found(NamedTuple):
    """The records of one folder that a list has asked for, in its order."""

    overview: ExperimentOverview
    records: list[Known]


@dataclass(frozen=True)
class FolderKey:
    """A folder of records: ``store`` names the store wherever it is indexed, ``path`` the folder in it."""

    store: str
    path: str


@dataclass(frozen=True)
class Listing:
    """What a folder held when it was listed."""

    listed_seconds: float
    """When the listing began, in seconds since 1970."""
    folder_version: str | None
    """That of the folder just before, where the store has one."""
    records: Mapping[str, Known]
    """All that can be read, by id."""
    overview: ExperimentOverview
