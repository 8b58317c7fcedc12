"""What a shell completes: ids, tags and experiments of the store that the command line names.

A completion must be quick and must never fail: what cannot be told is completed by nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from ckpt_lib.manager import CheckpointManager

Complete = Callable[[Any, str], list[str]]
_MOST = 200
"""A shell asks before it shows more, and a store may hold thousands."""


def complete_ids(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the words, tags and ids that begin with ``incomplete``, the newest ids first."""
    return _begun(lambda manager: ["latest", "best", *_tags(manager), *reversed(_ids(ctx, manager))], ctx, incomplete)


def complete_deleted_ids(ctx: typer.Context, incomplete: str) -> list[str]:
    return _begun(lambda manager: [item.checkpoint_id for item in manager.list_deleted()], ctx, incomplete)


def complete_tags(ctx: typer.Context, incomplete: str) -> list[str]:
    return _begun(_tags, ctx, incomplete)


def complete_experiments(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the names of experiments that begin with ``incomplete``."""
    with suppress(Exception):
        from ckpt_lib.cli.session import read_config
        from ckpt_lib.experiment.listing import list_experiments
        from ckpt_lib.store import open_store

        url = read_config(ctx.params.get("store"), ctx.params.get("config")).checkpoint_dir
        return [name for name in list_experiments(open_store(url)) if name.startswith(incomplete)]
    return []


def _begun(words: Callable[[CheckpointManager], Sequence[str]], ctx: typer.Context, incomplete: str) -> list[str]:
    with suppress(Exception):
        from ckpt_lib.cli.session import open_manager

        manager = open_manager(ctx.params.get("store"), ctx.params.get("experiment"), ctx.params.get("config"))
        given = ctx.params.get("checkpoint_ids") or ()
        found = dict.fromkeys(words(manager))
        return [word for word in found if word.startswith(incomplete) and word not in given][:_MOST]
    return []


def _ids(ctx: typer.Context, manager: CheckpointManager) -> list[str]:
    return manager.backup_ids() if ctx.params.get("backups") else manager.checkpoint_ids()


def _tags(manager: CheckpointManager) -> list[str]:
    return sorted({tag for item in manager.list_checkpoints() for tag in item.tags if tag.isprintable()})
