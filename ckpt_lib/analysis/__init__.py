"""Comparisons, statistics and plots of checkpoints."""
