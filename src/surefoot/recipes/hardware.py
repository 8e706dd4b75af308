"""Where a run computes, and in which precision."""

from __future__ import annotations

import random
import re
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import torch

from surefoot.errors import ConfigError
from surefoot.guard.precision import has_bf16

__all__ = [
    "Amp",
    "AmpChoice",
    "choose_amp",
    "choose_device",
    "device_memory_mb",
    "seed_everything",
]

Amp: TypeAlias = Literal["bf16", "fp16"] | None
"""Half precision of the forward pass; None = float32."""

# fp16 convolutions return NaN on Turing without tensor cores (TU116, TU117), and a Kepler card has
# no fp16 of its own. The fault comes and goes with the kernel that a shape selects, so that a check
# on one batch does not find it: ultralytics#17977 (passes at batches below 7), pytorch#77955.
_FP16_BROKEN = re.compile(
    r"GTX 16\d\d|\bT(400|500|550|600|1000|1200|2000)\b|\bMX[45]50\b|\bK40m\b", re.IGNORECASE
)


class AmpChoice(NamedTuple):
    """A precision, and why it is that one."""

    amp: Amp
    reason: str
    """A sentence without capital and full stop."""


def choose_device(name: str) -> torch.device:
    """The device of ``--device``; ``auto`` is a GPU where there is one.

    Raises:
        ConfigError: no such device here.

    >>> choose_device("cpu")
    device(type='cpu')
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as unknown:
        raise ConfigError(
            f"--device {name}: is no device; auto, cpu, cuda, or cuda:0, cuda:1..."
        ) from unknown
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ConfigError(
            f"--device {name}: {count} CUDA devices are visible here; see nvidia-smi."
        )
    return device


def choose_amp(precision: str, device: torch.device) -> AmpChoice:
    """The half precision of ``--precision``; ``auto`` takes what the hardware is good at.

    >>> choose_amp("fp32", torch.device("cpu"))
    AmpChoice(amp=None, reason='as asked')
    """
    native, name = has_bf16(device), _name(device)
    broken = device.type == "cuda" and _FP16_BROKEN.search(name) is not None
    if precision == "fp32":
        return AmpChoice(None, "as asked")
    if precision == "bf16":
        emulated = f", but {name} only emulates it, and float32 is faster there"
        return AmpChoice("bf16", "as asked" + ("" if native else emulated))
    if precision == "fp16":
        nan = f", but convolutions in fp16 give NaN on {name}; --precision fp32 is safe"
        return AmpChoice("fp16", "as asked" + (nan if broken else ""))
    if native:
        return AmpChoice("bf16", f"{name} computes in bf16")
    if broken:
        return AmpChoice(None, f"{name} has no bf16, and its convolutions in fp16 give NaN")
    if device.type == "cuda":
        return AmpChoice("fp16", f"{name} has fp16 and no bf16")
    return AmpChoice(None, f"{name} has no bf16 of its own")


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return "this CPU" if device.type == "cpu" else device.type


def device_memory_mb(device: torch.device) -> float | None:
    """Peak memory of tensors on the device since the last call, in MB; None on a CPU."""
    if device.type != "cuda":
        return None
    peak = torch.cuda.max_memory_allocated(device) / 2**20
    torch.cuda.reset_peak_memory_stats(device)
    return peak


def seed_everything(seed: int) -> None:
    """Start the random sequences of Python, NumPy and torch at ``seed``."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
