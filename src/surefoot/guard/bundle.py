"""What it takes to run a refused step again, as a folder.

    step-00000123/
      bundle.json          what was called with what, under which precision, and the record
      tensors.safetensors  inputs and random states
      weights.safetensors  weights and buffers as they were before the forward pass

The folder appears whole or not at all. Loading it runs no code that lies in it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from surefoot.errors import CheckpointError
from surefoot.guard.kept import Call, MicroBatch, RandomState
from surefoot.guard.kept_values import LeftOut, unpack
from surefoot.records import StepRecord

__all__ = ["FORMAT", "HEAD", "TENSORS", "VERSION", "WEIGHTS", "Bundle", "weights_of"]

FORMAT = "surefoot-bundle"
"""What the head of a bundle says it is."""
VERSION = 1
"""Of the layout; a reader of today reads every older one."""
HEAD, TENSORS, WEIGHTS = "bundle.json", "tensors.safetensors", "weights.safetensors"
_MOST_HEAD_BYTES = 2**24
_DTYPES = {str(dtype): dtype for dtype in (torch.float16, torch.bfloat16)}
_DAMAGE = (AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError)


@dataclass(frozen=True)
class Bundle:
    """A refused step that was kept."""

    path: Path
    record: StepRecord
    micro_batches: tuple[Mapping[str, Any], ...]
    """As they lie in the file."""
    left_out: tuple[str, ...]
    """What could not be kept, each with its place and its kind."""
    tensors: Mapping[str, Tensor] = field(repr=False)

    @classmethod
    def load(cls, path: Path | str) -> Bundle:
        """Read a bundle; weights are read when they are asked for.

        Raises:
            CheckpointError: there is none, it is damaged, or of a newer version.
        """
        path = Path(path)
        try:
            head = _head(path)
            return cls(
                path=path,
                record=StepRecord.from_dict(head["record"]),
                micro_batches=tuple(head["micro_batches"]),
                left_out=tuple(map(str, head["left_out"])),
                tensors=_read(path / TENSORS),
            )
        except _DAMAGE as damage:
            raise _damaged(path, damage) from damage

    @property
    def places(self) -> list[int]:
        """The micro-batches that something was kept of, from 0; of one that was located, it alone.

        Raises:
            CheckpointError: there is none.
        """
        try:
            able = [i for i, m in enumerate(self.micro_batches) if m["recompute"] or m["calls"]]
        except _DAMAGE as damage:
            raise _damaged(self.path, damage) from damage
        fault = self.record.fault
        if fault is not None and fault.located and fault.micro_batch in able:
            return [fault.micro_batch]
        if not able:
            raise CheckpointError(
                f"{self.path}: no input was kept, for the model itself was not called. Give "
                "guard.step(loss, recompute=functools.partial(compute, batch)).",
                path=self.path,
            )
        return able

    def load_weights(self, model: nn.Module) -> None:
        """Put the kept weights and buffers into the model.

        Raises:
            CheckpointError: none were kept, they are damaged, or those of another model.
        """
        if not (self.path / WEIGHTS).exists():
            left = next((what for what in self.left_out if what.startswith("weights")), "weights")
            raise CheckpointError(
                f"{self.path}: the {left} were not kept; load a checkpoint from just before step "
                f"{self.record.step} into the model and replay with weights=False.",
                path=self.path,
            )
        try:
            kept = _read(self.path / WEIGHTS)
        except _DAMAGE as damage:
            raise _damaged(self.path, damage) from damage
        here = weights_of(model)
        missing, unknown = sorted(here.keys() - kept.keys()), sorted(kept.keys() - here.keys())
        other = [n for n in here.keys() & kept.keys() if here[n].shape != kept[n].shape]
        if missing or unknown or other:
            raise CheckpointError(
                f"{self.path}: is of another model: {len(missing)} of this model's tensors are not "
                f"in it{_named(missing)}, {len(unknown)} of its own are not in this model"
                f"{_named(unknown)}, {len(other)} have another shape{_named(other)}.",
                path=self.path,
            )
        with torch.no_grad():
            for name, tensor in here.items():
                tensor.copy_(kept[name])

    def micro_batch(self, place: int, model: nn.Module, compute: Any | None) -> MicroBatch:
        """One micro-batch, ready to be run by :func:`surefoot.guard.rerun.run_again`.

        Args:
            place: which one, from 0.
            model: to run it in; its tensors go to the model's device.
            compute: makes the loss of what ``recompute`` was a partial of, or else of the model's
                input; None: the forward passes alone are run.

        Raises:
            CheckpointError: it is damaged, or lacks what the call needs.
        """
        try:
            return self._micro_batch(self.micro_batches[place], model, compute)
        except _DAMAGE as damage:
            raise _damaged(self.path, damage) from damage

    def _micro_batch(
        self, kept: Mapping[str, Any], model: nn.Module, compute: Any | None
    ) -> MicroBatch:
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        moved = {name: t.to(device) for name, t in self.tensors.items()}
        given = partial(self._unpacked, tensors=moved, model=model)
        micro = MicroBatch(
            random=self._random(kept["random"]),
            autocast=_DTYPES.get(kept["autocast"]),
            total=torch.tensor(float(kept["loss"])),
            sample_ids=tuple(map(str, kept["sample_ids"])),
        )
        for call in kept["calls"]:
            random = self._random(call["random"])
            if random is None:
                raise ValueError("a call without random state")
            module = model.get_submodule(call["module"])
            args, kwargs = given(call["args"]), given(call["kwargs"])
            micro.calls.append(
                Call(module, args, kwargs, random, _DTYPES.get(call["autocast"]), ())
            )
        if compute is None:
            if not micro.calls:
                raise CheckpointError(
                    f"{self.path}: was kept with recompute=functools.partial(compute, ...); give "
                    "that function to replay as compute.",
                    path=self.path,
                )
        else:
            source = kept["recompute"] or (kept["calls"][0] if len(kept["calls"]) == 1 else None)
            if source is None:
                raise CheckpointError(
                    f"{self.path}: the model was called {len(kept['calls'])} times in this step, "
                    "and recompute= was no functools.partial; replay it without compute.",
                    path=self.path,
                )
            micro.recompute = partial(compute, *given(source["args"]), **given(source["kwargs"]))
        return micro

    def _unpacked(self, node: Any, tensors: Mapping[str, Tensor], model: nn.Module) -> Any:
        values = unpack(node, tensors, model)
        lacking = [
            v for v in (values.values() if isinstance(values, dict) else values) if _lacks(v)
        ]
        if lacking:
            raise CheckpointError(
                f"{self.path}: the step cannot be run again, for a part of its input was left out: "
                f"{', '.join(self.left_out)}. Give guard.step(recompute=functools.partial(...)) "
                "tensors, numbers, strings and lists or dicts of them.",
                path=self.path,
            )
        return values

    def _random(self, node: Any) -> RandomState | None:
        if node is None:
            return None
        available = torch.cuda.device_count() if torch.cuda.is_available() else 0
        cuda = {int(i): self.tensors[name] for i, name in node["cuda"].items()}
        cpu = self.tensors[node["cpu"]]
        try:
            torch.Generator().set_state(cpu)
        except RuntimeError as no_state:
            raise ValueError(f"no random state ({no_state})") from no_state
        return RandomState(cpu, {i: state for i, state in cuda.items() if i < available})


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, those that no checkpoint holds as well."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _read(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as problem:
        raise OSError(f"{path.name}: {problem}") from problem


def _head(path: Path) -> dict[str, Any]:
    file = path / HEAD
    if not file.is_file():
        raise CheckpointError(
            f"{path}: holds no kept step; give one of the folders step-... of a run's failures.",
            path=path,
        )
    if os.path.getsize(file) > _MOST_HEAD_BYTES:
        raise ValueError(f"{HEAD} is larger than {_MOST_HEAD_BYTES} bytes")
    head = json.loads(file.read_text(encoding="utf-8"))
    if head["format"] != FORMAT:
        raise ValueError(f"{HEAD} is of the format {head['format']!r}")
    if head["version"] > VERSION:
        raise CheckpointError(
            f"{path}: was kept by a newer surefoot (version {head['version']}; this one reads up "
            f"to {VERSION}). Update surefoot.",
            path=path,
        )
    return head


def _lacks(value: Any) -> bool:
    if isinstance(value, LeftOut):
        return True
    if isinstance(value, dict):
        return any(map(_lacks, value.values()))
    if is_dataclass(value):
        return any(map(_lacks, vars(value).values()))
    return isinstance(value, list | tuple) and any(map(_lacks, value))


def _damaged(path: Path, damage: BaseException) -> CheckpointError:
    return CheckpointError(
        f"{path}: the kept step is damaged ({damage!r}); copy the folder again, or replay another.",
        path=path,
    )


def _named(names: Sequence[str]) -> str:
    return f" ({', '.join(names[:2])}{', ...' if len(names) > 2 else ''})" if names else ""
