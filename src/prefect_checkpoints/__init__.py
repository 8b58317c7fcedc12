"""Checkpoint lifecycle management for PyTorch, run as Prefect flows: the ``tasks`` and the ``flows`` to import."""

from ckpt_lib import __version__

__all__ = ["__version__"]
