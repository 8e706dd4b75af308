"""The injectors: what goes wrong, where, and from which step to which."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.chaos.inject import Injector, Stage
from benchmarks.chaos.task import CLASSES

__all__ = [
    "BadInput",
    "BadLoss",
    "BadSample",
    "BufferValue",
    "Forget",
    "Freeze",
    "Gradient",
    "Kill",
    "KillWorker",
    "Leak",
    "MomentValue",
    "RandomLabels",
    "Rate",
    "SampleRaises",
    "WeightValue",
    "WrongLabel",
]

_NAN = float("nan")


@dataclass
class BadInput(Injector):
    """Images of whole batches, or of one sample in each, are replaced or multiplied."""

    batches: Collection[int]
    value: float = _NAN
    times: float | None = None
    place: int | None = None
    rank: int | None = None

    def sample(self, batch: int, place: int, image: Tensor, label: int) -> tuple[Tensor, int]:
        """The image is not what it was."""
        here = self.rank in (None, int(os.environ.get("RANK", "0"))) and self.place in (None, place)
        if not here or batch not in self.batches:
            return image, label
        if self.times is not None:
            return image * self.times, label
        return torch.full_like(image, self.value), label


@dataclass
class BadSample(Injector):
    """One sample of the set is NaN whenever it is read, as a broken file is."""

    index: int
    _now: int = -1

    def read(self, index: int) -> None:
        """Remember which one."""
        self._now = index

    def sample(self, batch: int, place: int, image: Tensor, label: int) -> tuple[Tensor, int]:
        """The image, unless it is the broken one."""
        return (torch.full_like(image, _NAN) if self._now == self.index else image), label


@dataclass
class RandomLabels(Injector):
    """Labels drawn at random."""

    batches: Collection[int]
    _generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(1))

    def sample(self, batch: int, place: int, image: Tensor, label: int) -> tuple[Tensor, int]:
        """A label that has nothing to do with the image."""
        if batch in self.batches:
            label = int(torch.randint(CLASSES, (), generator=self._generator))
        return image, label


@dataclass
class WrongLabel(Injector):
    """One sample of one batch has a label that is no class."""

    batch: int
    place: int = 5
    label: int = CLASSES

    def sample(self, batch: int, place: int, image: Tensor, label: int) -> tuple[Tensor, int]:
        """The label, or the impossible one."""
        return image, self.label if (batch, place) == (self.batch, self.place) else label


@dataclass
class SampleRaises(Injector):
    """Reading one sample of one batch raises, once."""

    batch: int
    place: int = 5
    _done: bool = False

    def sample(self, batch: int, place: int, image: Tensor, label: int) -> tuple[Tensor, int]:
        """The sample, or the error of a broken file."""
        if (batch, place) == (self.batch, self.place) and not self._done:
            self._done = True
            raise OSError("image file is truncated (17 bytes not processed)")
        return image, label


@dataclass
class Gradient(Injector):
    """Backward leaves a value in one element of a parameter's gradient, or scales all of it."""

    steps: Collection[int]
    value: float = _NAN
    times: float | None = None
    parameter: str | None = "fc1.weight"
    _now: int = -1
    _hooked: bool = False

    def step(self, number: int, stage: Stage) -> None:
        """Hooks sit on the parameters from the first step on."""
        self._now = number
        if self._hooked:
            return
        self._hooked = True
        for name, parameter in stage.model.named_parameters():
            if self.parameter in (None, name):
                parameter.register_hook(self._spoil)

    def _spoil(self, gradient: Tensor) -> Tensor:
        if self._now not in self.steps:
            return gradient
        if self.times is not None:
            return gradient * self.times
        spoiled = gradient.clone()
        spoiled.view(-1)[7] = self.value
        return spoiled


@dataclass
class Rate(Injector):
    """The learning rate is multiplied for some steps, as a broken schedule would."""

    factor: Callable[[int], float]
    """Of the step; 1.0 leaves it alone."""
    _usual: list[float] = field(default_factory=list)
    _set: list[float] = field(default_factory=list)

    def step(self, number: int, stage: Stage) -> None:
        """Take back what was set, unless somebody has changed it since; then set anew."""
        groups = stage.optimizer.param_groups
        for group, usual, lately in zip(groups, self._usual, self._set, strict=False):
            if group["lr"] == lately:
                group["lr"] = usual
        factor = self.factor(number)
        self._usual, self._set = [], []
        if factor != 1.0:
            self._usual = [group["lr"] for group in groups]
            self._set = [usual * factor for usual in self._usual]
            for group, rate in zip(groups, self._set, strict=True):
                group["lr"] = rate


@dataclass
class WeightValue(Injector):
    """One element of a weight is overwritten."""

    at: int
    value: float
    parameter: str = "fc1.weight"
    rank: int | None = None

    def step(self, number: int, stage: Stage) -> None:
        """As a flipped bit would, between two steps."""
        if number == self.at and self.rank in (None, stage.rank):
            stage.parameter(self.parameter).view(-1)[7] = self.value


@dataclass
class MomentValue(Injector):
    """What the optimizer keeps of one parameter is overwritten, in one element or in all."""

    at: int
    value: float
    key: str = "exp_avg"
    parameter: str = "fc1.weight"
    everywhere: bool = False

    def step(self, number: int, stage: Stage) -> None:
        """Between two steps."""
        if number == self.at:
            parameter = dict(stage.model.named_parameters())[self.parameter]
            moment: Tensor = stage.optimizer.state[parameter][self.key]
            moment.view(-1)[slice(None) if self.everywhere else slice(7, 8)] = self.value


@dataclass
class BufferValue(Injector):
    """One element of a buffer is overwritten."""

    at: int
    value: float = _NAN
    buffer: str = "norm.running_var"

    def step(self, number: int, stage: Stage) -> None:
        """Between two steps."""
        if number == self.at:
            dict(stage.model.named_buffers())[self.buffer].view(-1)[3] = self.value


@dataclass
class Freeze(Injector):
    """A layer stops asking for gradients and does not start again."""

    at: int
    layer: str = "fc1"

    def step(self, number: int, stage: Stage) -> None:
        """``requires_grad_(False)`` where nobody meant it."""
        if number == self.at:
            stage.model.get_submodule(self.layer).requires_grad_(False)


@dataclass
class Forget(Injector):
    """``zero_grad`` does nothing for some steps."""

    steps: Collection[int]

    def step(self, number: int, stage: Stage) -> None:
        """Gradients of old batches stay in the sum."""
        optimizer = stage.optimizer
        if number in self.steps:
            optimizer.__dict__["zero_grad"] = lambda *_, **__: None
        else:
            optimizer.__dict__.pop("zero_grad", None)


@dataclass
class BadLoss(Injector):
    """The loss is multiplied, or replaced by a constant that no gradient comes from."""

    steps: Collection[int]
    times: float | None = None

    def loss(self, number: int, loss: Tensor) -> Tensor:
        """What the loop gets instead of the loss."""
        if number not in self.steps:
            return loss
        if self.times is None:
            return torch.full_like(loss.detach(), 0.1).requires_grad_()
        return loss * self.times


@dataclass
class Leak(Injector):
    """Memory that is never given back."""

    numbers: int = 2**19
    """float32 values a step: 2 MB."""
    _kept: list[Tensor] = field(default_factory=list)

    def step(self, number: int, stage: Stage) -> None:
        """Somebody keeps a list."""
        self._kept.append(torch.ones(self.numbers))


@dataclass
class Kill(Injector):
    """The process is killed; nothing in it gets a chance to react."""

    at: int

    def step(self, number: int, stage: Stage) -> None:
        """SIGKILL."""
        if number == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


@dataclass
class KillWorker(Injector):
    """The worker that reads one sample is killed, once in the whole run."""

    index: int

    def read(self, index: int) -> None:
        """SIGKILL in the worker."""
        if index != self.index or torch.utils.data.get_worker_info() is None:
            return
        marker = Path(os.environ["CHAOS_FOLDER"]) / "worker-killed"
        if not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
