"""One experiment's checkpoints: where they lie, and the protocol that commits, edits and deletes them."""
