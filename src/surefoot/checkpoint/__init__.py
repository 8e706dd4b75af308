"""Checkpoints that are whole or not there at all, and the random states a run goes on from."""

from surefoot.checkpoint.checkpoint import Checkpoint, Rejected
from surefoot.checkpoint.manifest import FORMAT_VERSION
from surefoot.checkpoint.run_state import capture_rng, restore_rng
from surefoot.checkpoint.state import check_state
from surefoot.checkpoint.store import CheckpointStore

__all__ = [
    "FORMAT_VERSION",
    "Checkpoint",
    "CheckpointStore",
    "Rejected",
    "capture_rng",
    "check_state",
    "restore_rng",
]
