"""Tests that need a Prefect server: a real one, started once for each test process."""
