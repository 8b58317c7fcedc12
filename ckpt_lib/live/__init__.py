"""Live runs of this machine: registered by :meth:`ckpt_lib.CheckpointManager.share`, asked by other processes."""

from ckpt_lib.live.client import LiveRun, live_runs

__all__ = ["LiveRun", "live_runs"]
