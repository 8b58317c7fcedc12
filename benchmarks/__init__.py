"""Measurements, each against a named peer in the same run. RESULTS.md holds the last ones."""
