"""What keeps stored checkpoints sound: validation, scrub, repair, cleanup, copies."""
