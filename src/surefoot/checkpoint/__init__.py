"""Checkpoints that are whole or not there at all, and the way to go on from them exactly."""

from surefoot.checkpoint.background import BackgroundSaver
from surefoot.checkpoint.checkpoint import Checkpoint, Listed, Rejected
from surefoot.checkpoint.legacy import LegacyFile, verify_legacy
from surefoot.checkpoint.manifest import FORMAT_VERSION
from surefoot.checkpoint.order import SampleOrder
from surefoot.checkpoint.outcome import SaveOutcome
from surefoot.checkpoint.run_state import capture_rng, restore_rng
from surefoot.checkpoint.seeded import SeededSamples, sample_seed
from surefoot.checkpoint.signals import (
    RESUMABLE,
    Interrupted,
    Interruption,
    leave_signals_to_parent,
)
from surefoot.checkpoint.state import check_finite_state, check_state
from surefoot.checkpoint.store import CheckpointStore

__all__ = [
    "FORMAT_VERSION",
    "RESUMABLE",
    "BackgroundSaver",
    "Checkpoint",
    "CheckpointStore",
    "Interrupted",
    "Interruption",
    "LegacyFile",
    "Listed",
    "Rejected",
    "SampleOrder",
    "SaveOutcome",
    "SeededSamples",
    "capture_rng",
    "check_finite_state",
    "check_state",
    "leave_signals_to_parent",
    "restore_rng",
    "sample_seed",
    "verify_legacy",
]
