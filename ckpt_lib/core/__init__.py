"""Values: names, manifests, metadata, the facts of a save."""
