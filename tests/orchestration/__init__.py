"""Tests of tasks, flows and deployments, on real Prefect servers."""
