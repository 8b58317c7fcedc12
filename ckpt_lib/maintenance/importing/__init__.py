"""Imports: checkpoints of this library and of other programs become the newest of an experiment."""
