"""Values: names, manifests, metadata, damage, the facts of a save."""
