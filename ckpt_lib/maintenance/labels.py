"""Changes of a manifest: tags, description, pins, and the metric that decides which checkpoint is the best."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress

from pydantic import ValidationError

from ckpt_lib.config import config_error
from ckpt_lib.core.manifest import Manifest
from ckpt_lib.core.metadata import CheckpointMetadata
from ckpt_lib.core.monitor import Mode, Monitor
from ckpt_lib.core.names import check_description, check_tags, is_checkpoint_id
from ckpt_lib.errors import CheckpointNotFoundError
from ckpt_lib.experiment import edits
from ckpt_lib.experiment.locations import Locations
from ckpt_lib.experiment.query import Catalogue
from ckpt_lib.index.selection import check_metric_is_known
from ckpt_lib.maintenance.quarantine import is_quarantined

Change = Callable[[Manifest], Manifest]


def unpin(catalogue: Catalogue, name: str) -> CheckpointMetadata:
    """Unpin a checkpoint; one in quarantine as well, by its id: a pin keeps it from being deleted from there."""
    is_set_aside = is_checkpoint_id(name) and is_quarantined(catalogue.experiment, name)
    checkpoint_id = name if is_set_aside else catalogue.resolve(name).checkpoint_id
    return catalogue.describe(
        edits.edit(catalogue.experiment, checkpoint_id, lambda manifest: manifest.changed(pinned=False))
    )


def edit(catalogue: Catalogue, name: str, change: Change) -> CheckpointMetadata:
    """Change one manifest and describe the checkpoint as it is then."""
    manifest = edits.edit(catalogue.experiment, catalogue.resolve(name).checkpoint_id, change)
    return catalogue.describe(manifest)  # not read again: another process may have deleted it by now


def relabeling(
    add_tags: Collection[str], remove_tags: Collection[str], description: str | None, pinned: bool | None = None
) -> Change:
    """Return the change of tags, description and pin.

    Raises :class:`~ckpt_lib.errors.ConfigError` for what cannot be one.
    """
    added, removed = check_tags(add_tags), set(check_tags(remove_tags))
    text = None if description is None else check_description(description)

    def change(manifest: Manifest) -> Manifest:
        tags = tuple(tag for tag in dict.fromkeys((*manifest.tags, *added)) if tag not in removed)
        return manifest.changed(
            tags=tags,
            description=manifest.description if text is None else text,
            pinned=manifest.pinned if pinned is None else pinned,
        )

    return change


def set_monitor(locations: Locations, metric: str, mode: Mode) -> Monitor:
    """Rewrite the manifests, the newest first, so that they record this monitor."""
    manifests = locations.home.index.manifests()
    if not manifests:
        raise CheckpointNotFoundError(
            "nothing has been saved yet",
            hint="Change monitor_metric of the configuration, which the first save records.",
        )
    check_metric_is_known(metric, manifests)
    try:
        monitor = Monitor(metric=metric, mode=mode)
    except ValidationError as error:
        raise config_error(error) from None
    locations.monitor_record.settle()
    for manifest in reversed(manifests):
        if manifest.monitor != monitor:
            with suppress(CheckpointNotFoundError):  # deleted since it was listed
                edits.edit(locations.home, manifest.checkpoint_id, lambda found: found.changed(monitor=monitor))
    return monitor
