"""``ckpt init``: create a store."""

from __future__ import annotations

from ckpt_lib.cli import options
from ckpt_lib.cli.output import print_facts, print_json
from ckpt_lib.cli.session import read_config


def init(*, store: options.Store = None, config: options.Config = None, as_json: options.AsJson = False) -> None:
    """Create a store and show its identity.

    Scheduled flows refuse a folder that is not a store, such as the mount point of a missing disk. An existing store is
    left unchanged.

    Example: ckpt init --store checkpoints
    """
    from ckpt_lib.store import location, open_store
    from ckpt_lib.store.identity import init_store

    url = read_config(store, config).checkpoint_dir
    identity = init_store(url)
    facts = {"store": location(open_store(url)), "uid": identity.uid, "created": identity.created.isoformat()}
    if as_json:
        print_json(facts)
    else:
        print_facts(facts)
