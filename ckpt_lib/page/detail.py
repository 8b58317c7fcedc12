"""One checkpoint: its facts, metrics, tensors, files, and what has been done to it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from markupsafe import Markup

from ckpt_lib.core.manifest import Manifest
from ckpt_lib.core.metadata import CheckpointMetadata
from ckpt_lib.core.wording import briefly, count_of, size_text, visible
from ckpt_lib.errors import CheckpointError, CheckpointNotFoundError
from ckpt_lib.experiment.locations import Locations
from ckpt_lib.inspecting.results import Inspection
from ckpt_lib.inspecting.stored import inspect_stored
from ckpt_lib.manager import CheckpointManager
from ckpt_lib.page.jobs import files_html
from ckpt_lib.page.markup import (
    NOTHING,
    Column,
    button,
    code,
    facts,
    joined,
    marks,
    moment,
    number,
    section,
    table,
    tags,
    warning,
)
from ckpt_lib.web.job import Job
from ckpt_lib.web.results import Exported, Validated

_MOST_TENSORS = 200
_MOST_ANCESTORS = 20


def detail_html(
    manager: CheckpointManager, checkpoint_id: str, jobs: list[Job], *, monitored: str, may_write: bool
) -> Markup:
    """Show all there is to know without reading a tensor; the ``monitored`` metric first.

    Raises :class:`~ckpt_lib.errors.CheckpointNotFoundError`.
    """
    checkpoint = manager.get_checkpoint(checkpoint_id)
    home = Locations(manager.config, manager.experiment_name).home
    manifest = home.get(checkpoint_id)
    path = home.location(manifest.payload_name)
    inspection = inspect_stored(home, manifest)
    head = Markup('<header class="ck-head"><h2 class="ck-id">{}</h2><p>{} {}</p>{}</header>').format(
        checkpoint_id, marks(checkpoint), tags(checkpoint.tags), _description(checkpoint)
    )
    return joined(
        [
            head,
            _damage(checkpoint, inspection, jobs, may_write=may_write),
            _remarks(checkpoint),
            _facts(manager, checkpoint, manifest, path),
            section("Metrics", _metrics(checkpoint, monitored)),
            section("Tensors", tensors_html(inspection)),
            section("Files", _files(manifest)),
            section("History", _history(manager, checkpoint, manifest, jobs)),
            section("Lineage", _lineage(manager, checkpoint)),
            section("Configuration of the run", _configuration(checkpoint.config)),
            section("Load it", _how_to_load(manager, checkpoint)),
        ]
    )


def _description(checkpoint: CheckpointMetadata) -> Markup:
    return Markup("<p>{}</p>").format(checkpoint.description) if checkpoint.description else NOTHING


def _damage(checkpoint: CheckpointMetadata, inspection: Inspection, jobs: list[Job], *, may_write: bool) -> Markup:
    """Show the damage that is known, and the button that sets the checkpoint aside."""
    if not checkpoint.is_complete:
        text = "A file is missing or has another size. Repair brings it back from the backup, if there is one."
    else:
        text = inspection.problem or _found_by_validation(checkpoint.checkpoint_id, jobs)
    if not text:
        return NOTHING
    aside = button(
        "quarantine",
        checkpoint.checkpoint_id,
        "Set aside",
        title="No list shows it, no run loads it and no cleanup counts it, until a repair succeeds",
    )
    return warning(Markup("{} {}").format(text, aside if may_write else NOTHING))


def _found_by_validation(checkpoint_id: str, jobs: list[Job]) -> str:
    """Return the damage that the last job on a checkpoint has found, if that was a validation."""
    for job in jobs:  # the newest first
        outcome = next((item for item in job.result or () if item.checkpoint_id == checkpoint_id), None)
        if outcome is None or job.work.operation == "export":
            continue
        is_damaged = isinstance(outcome.result, Validated) and not outcome.result.is_valid
        return "A validation has found damage. Repair brings it back from the backup." if is_damaged else ""
    return ""


def _remarks(checkpoint: CheckpointMetadata) -> Markup:
    texts = []
    if checkpoint.unhealthy:
        texts.append(f"Its numbers are not sound: {checkpoint.unhealthy}. It is never the best, and no run resumes it.")
    if checkpoint.is_thinned:
        texts.append("Only the weights are left: no run can go on from it.")
    return joined([warning(text) for text in texts])


def _facts(manager: CheckpointManager, checkpoint: CheckpointMetadata, manifest: Manifest, path: str) -> Markup:
    backup = manager.backup_status(checkpoint.checkpoint_id)
    plain = checkpoint.uncompressed_size
    size = size_text(checkpoint.file_size)
    if plain != checkpoint.file_size:
        size += f", {checkpoint.file_size / plain:.0%} of {size_text(plain)}"
    states = {"local only": "none", "unknown": "not known: its place does not answer"}
    return facts(
        {
            "Saved": moment(checkpoint.timestamp),
            "Epoch": f"{checkpoint.epoch:,}" + ("" if checkpoint.epoch_finished else ", not finished"),
            "Step": f"{checkpoint.step:,}",
            "Size": size,
            "Backup": states.get(backup.state, backup.state),
            "Model": visible(checkpoint.model_name),
            "Run": checkpoint.run_id,
            "Format": manifest.format,
            "Path": Markup('<code class="ck-break">{}</code>').format(path),
            "SHA-256": Markup('<code class="ck-break">{}</code>').format(checkpoint.checksum),
        }
    )


def _metrics(checkpoint: CheckpointMetadata, monitored: str) -> Markup:
    if not checkpoint.metrics:
        return NOTHING
    sources = {item.name: item.source for item in checkpoint.added_metrics}
    columns = (Column("Metric", is_head=True), Column("Value", numeric=True), Column("Measured by"))
    names = sorted(checkpoint.metrics, key=lambda name: name != monitored)
    rows = [(visible(name), number(checkpoint.metrics[name]), sources.get(name) or "the save") for name in names]
    return table(columns, rows, caption="Metrics", kind="ck-small")


def tensors_html(inspection: Inspection) -> Markup:
    """Show the tensors of a checkpoint, folded up."""
    if not inspection.tensors:
        return NOTHING
    columns = (Column("Tensor", is_head=True), Column("Shape"), Column("Type"), Column("Size", numeric=True))
    rows = [
        (visible(item.name), " x ".join(map(str, item.shape)) or "scalar", item.dtype, size_text(item.size_bytes))
        for item in inspection.tensors[:_MOST_TENSORS]
    ]
    count = len(inspection.tensors)
    states = ", ".join(f"{item.name} {size_text(item.size_bytes)}" for item in inspection.states)
    told = f"{count_of(count, 'tensor')}, {size_text(inspection.tensor_bytes)}" + (f": {states}" if states else "")
    more = warning(f"The first {_MOST_TENSORS:,} are shown; `ckpt inspect` lists all.") if count > _MOST_TENSORS else ""
    return Markup("<details><summary>{}</summary>{}{}</details>").format(
        told, table(columns, rows, caption="Tensors", kind="ck-small"), more
    )


def _files(manifest: Manifest) -> Markup:
    columns = (Column("File", is_head=True), Column("Size", numeric=True), Column("SHA-256"))
    rows = [
        (
            Markup('<code class="ck-break">{}</code>').format(file.name),
            size_text(file.size_bytes),
            Markup('<code class="ck-break">{}</code>').format(file.sha256),
        )
        for file in manifest.files
    ]
    return table(columns, rows, caption="Files", kind="ck-small")


def _history(manager: CheckpointManager, checkpoint: CheckpointMetadata, manifest: Manifest, jobs: list[Job]) -> Markup:
    backup = manager.backup_status(checkpoint.checkpoint_id)
    events: list[tuple[datetime, str | Markup]] = [(checkpoint.timestamp, "Saved")]
    for item in checkpoint.added_metrics:
        by = f" by {item.source}" if item.source else " by the save"
        events.append((item.at, f"{visible(item.name)} = {number(item.value)}{by}"))
    if manifest.thinned:
        events.append((manifest.thinned.at, "Thinned: only the weights are left"))
    if backup.verified_at:
        events.append((backup.verified_at, "Backup read back and found intact"))
    events += _jobs_of(checkpoint.checkpoint_id, jobs)
    items = [
        Markup("<li>{} {}</li>").format(moment(at), text) for at, text in sorted(events, key=lambda event: event[0])
    ]
    return Markup('<ol class="ck-history">{}</ol>').format(joined(items))


def _jobs_of(checkpoint_id: str, jobs: list[Job]) -> Iterator[tuple[datetime, str | Markup]]:
    words = {"validate": "Validated", "backup": "Backed up", "repair": "Repaired", "restore": "Restored"}
    words |= {"export": "Exported", "import": "Imported", "quarantine": "Set aside", "thin": "Thinned"}
    for job in jobs:
        outcome = next((item for item in job.result or () if item.checkpoint_id == checkpoint_id), None)
        if outcome is None or job.ended_at is None:
            continue
        told = words.get(job.work.operation, job.work.operation)
        if outcome.problem is not None:
            yield job.ended_at, f"{told}: {outcome.problem.detail}"
        elif isinstance(outcome.result, Validated):
            yield job.ended_at, f"{told}: {'intact' if outcome.result.is_valid else 'damaged'}"
        elif isinstance(outcome.result, Exported):
            yield job.ended_at, Markup("{}: {}").format(told, files_html(outcome.result))
        else:
            yield job.ended_at, f"{told} by {job.who}"


def _lineage(manager: CheckpointManager, checkpoint: CheckpointMetadata) -> Markup:
    """Show what it was trained on from, the nearest first."""
    items: list[Markup] = []
    parent_id = checkpoint.parent_id
    while parent_id and len(items) < _MOST_ANCESTORS:
        try:
            parent = manager.get_checkpoint(parent_id)
        except (CheckpointNotFoundError, CheckpointError):
            items.append(Markup('<li class="ck-id">{} <span class="ck-soft">deleted</span></li>').format(parent_id))
            break
        link = button("open", parent_id, parent_id, kind="ck-link ck-id")
        items.append(Markup('<li>{} <span class="ck-soft">epoch {}</span></li>').format(link, parent.epoch))
        parent_id = parent.parent_id
    return Markup('<p>Trained on from</p><ol class="ck-lineage">{}</ol>').format(joined(items)) if items else NOTHING


def _configuration(config: dict[str, Any]) -> Markup:
    if not config:
        return NOTHING
    rows = {
        visible(str(name)): Markup('<code class="ck-break">{}</code>').format(briefly(value))
        for name, value in config.items()
    }
    return Markup("<details><summary>{}</summary>{}</details>").format(count_of(len(rows), "option"), facts(rows))


def _how_to_load(manager: CheckpointManager, checkpoint: CheckpointMetadata) -> Markup:
    name, store = manager.experiment_name, manager.config.checkpoint_dir
    text = (
        f"manager = CheckpointManager(CheckpointConfig(checkpoint_dir={store!r}), {name!r})\n"
        f"manager.load_checkpoint({checkpoint.checkpoint_id!r}, model=model, optimizer=optimizer)"
    )
    command = shlex.join(["ckpt", "show", f"{name}/{checkpoint.checkpoint_id}", "--store", store])
    return Markup("<details><summary>In Python, and on the command line</summary>{}{}</details>").format(
        code(text), code(command)
    )
