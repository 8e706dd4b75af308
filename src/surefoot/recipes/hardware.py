"""Where a run computes, and in which precision."""

from __future__ import annotations

import random
from typing import Literal, TypeAlias

import numpy as np
import torch

from surefoot.errors import ConfigError

__all__ = ["Amp", "choose_amp", "choose_device", "device_memory_mb", "seed_everything"]

Amp: TypeAlias = Literal["bf16", "fp16"] | None
"""Half precision of the forward pass; None = float32."""

# fp16 convolutions return NaN on these (Turing without tensor cores): ultralytics#17977.
_FP16_BROKEN = ("GTX 16", "T400", "T500", "T600", "T1000", "T1200", "T2000")


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


def choose_amp(precision: str, device: torch.device) -> Amp:
    """The half precision of ``--precision``; ``auto`` takes what the hardware is good at.

    >>> choose_amp("fp32", torch.device("cpu")), choose_amp("bf16", torch.device("cpu"))
    (None, 'bf16')
    """
    if precision == "fp32":
        return None
    if precision == "bf16" or precision == "fp16":
        return precision
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16"
        name = torch.cuda.get_device_name(device)
        return None if any(broken in name for broken in _FP16_BROKEN) else "fp16"
    return "bf16" if device.type == "cpu" and _cpu_has_bf16() else None


def _cpu_has_bf16() -> bool:
    """AVX512-BF16 or AMX: elsewhere bf16 on a CPU is emulated and slower than float32."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


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
