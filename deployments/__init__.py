"""Serving the flows on one machine with its own Prefect server. ``prefect.yaml`` deploys them elsewhere."""
