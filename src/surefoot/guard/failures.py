"""Keeps refused steps as bundles: the first eight of a run, and the latest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from surefoot.faults import plain
from surefoot.guard.bundle import FORMAT, HEAD, TENSORS, VERSION, WEIGHTS, weights_of
from surefoot.guard.kept import MicroBatch, RandomState
from surefoot.guard.kept_values import Packer, can_be_kept
from surefoot.records import StepRecord

__all__ = ["FailureStore", "kept_failures"]

_MOST_INPUT_BYTES, _MOST_WEIGHT_BYTES = 2**30, 2**32
_FIRST = 8


class FailureStore:
    """A folder of bundles: the first eight, and the latest.

    Args:
        folder: made when the first one is written.
    """

    def __init__(self, folder: Path | str) -> None:
        self._folder = Path(folder)

    def write(
        self,
        record: StepRecord,
        window: Sequence[MicroBatch],
        model: nn.Module,
        buffers: Mapping[str, Tensor],
    ) -> Path:
        """Keep a refused step.

        Args:
            record: of it.
            window: its micro-batches.
            model: the one inside of any wrapper.
            buffers: by name, as they were before the forward pass.

        Raises:
            OSError: the disk refused; nothing is left behind.
        """
        rank = f"-rank{record.rank}" if record.rank else ""
        target = self._folder / f"step-{record.step:08d}{rank}"
        partial_ = self._folder / f".{target.name}.partial"
        shutil.rmtree(partial_, ignore_errors=True)
        partial_.mkdir(parents=True)
        try:
            _write(partial_, record, window, model, buffers)
            if target.exists():
                shutil.rmtree(target)
            partial_.rename(target)
        except BaseException:
            shutil.rmtree(partial_, ignore_errors=True)
            raise
        self._prune(rank, target)
        return target

    def _prune(self, rank: str, newest: Path) -> None:
        mine = [p for p in kept_failures(self._folder) if p.name == p.name[:13] + rank]
        for old in mine[_FIRST:]:
            if old != newest:
                shutil.rmtree(old, ignore_errors=True)


def kept_failures(folder: Path | str) -> list[Path]:
    """The bundles in a folder, by step."""
    return sorted(p for p in Path(folder).glob("step-????????*") if (p / HEAD).is_file())


def _write(
    folder: Path,
    record: StepRecord,
    window: Sequence[MicroBatch],
    model: nn.Module,
    buffers: Mapping[str, Tensor],
) -> None:
    packer = Packer(model, most_bytes=_MOST_INPUT_BYTES)
    micro_batches = [_packed(packer, micro, model, i) for i, micro in enumerate(window)]
    weights = weights_of(model)
    weights |= {name: tensor for name, tensor in buffers.items() if name in weights}
    size = sum(tensor.nbytes for tensor in weights.values())
    odd = [name for name, tensor in weights.items() if not can_be_kept(tensor)]
    if size > _MOST_WEIGHT_BYTES or odd:
        why = f"{odd[0]} is no ordinary tensor" if odd else f"{size / 2**30:.1f} GB"
        packer.left_out.append(f"weights ({why})")
    else:
        _save(folder / WEIGHTS, weights)
    _save(folder / TENSORS, packer.tensors)
    head = {
        "format": FORMAT,
        "version": VERSION,
        "torch": str(torch.__version__),
        "model": type(model).__name__,
        "left_out": packer.left_out,
        "micro_batches": micro_batches,
        "record": record.to_dict(),
    }
    text = json.dumps(head, allow_nan=False, indent=1)
    (folder / HEAD).write_text(text + "\n", encoding="utf-8")


def _packed(packer: Packer, micro: MicroBatch, model: nn.Module, place: int) -> dict[str, Any]:
    names = {id(module): name for name, module in model.named_modules()}
    recompute, again, calls = micro.recompute, None, micro.calls
    title, lacking = f"micro-batch {place}", len(packer.left_out)
    if isinstance(recompute, partial):
        again = {
            "args": packer.pack(recompute.args, f"{title}, recompute"),
            "kwargs": packer.pack(recompute.keywords, f"{title}, recompute"),
        }
        calls = calls if len(packer.left_out) > lacking else []
    return {
        "sample_ids": list(micro.sample_ids),
        "loss": plain(float("nan") if micro.total is None else float(micro.total)),
        "autocast": None if micro.autocast is None else str(micro.autocast),
        "random": _packed_random(packer, micro.start),
        "recompute": again,
        "calls": [
            {
                "module": names.get(id(call.module), ""),
                "args": packer.pack(call.args, f"{title}, call {i}"),
                "kwargs": packer.pack(call.kwargs, f"{title}, call {i}"),
                "autocast": None if call.autocast is None else str(call.autocast),
                "random": _packed_random(packer, call.random),
            }
            for i, call in enumerate(calls)
        ],
    }


def _packed_random(packer: Packer, random: RandomState | None) -> dict[str, Any] | None:
    if random is None:
        return None
    cuda = {str(i): packer.pack(state, "random")["tensor"] for i, state in random.cuda.items()}
    return {"cpu": packer.pack(random.cpu, "random")["tensor"], "cuda": cuda}


def _save(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """safetensors refuses tensors that share memory: each is a copy of its own."""
    own = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}
    try:
        save_file(own, path)
    except SafetensorError as problem:
        raise OSError(str(problem)) from problem
