"""A forward pass, and its backward pass, under hooks on every module: where is the first bad value?

Every tensor that goes into a module or comes out of it is looked at where it lies; all of it is
read once, when the pass is over. Hooks are plain forward hooks and hooks on tensors: full backward
hooks wrap a module's inputs and outputs, and so break the models that work in place.
"""

from __future__ import annotations

import inspect
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from surefoot.guard.kept import bare
from surefoot.guard.ranges import Look, floating, look_at, read_looks

__all__ = ["Sight", "Trace", "Tracer", "Visit"]

_MOST_TENSORS = 64
_USUAL = {"input", "inputs", "x", "args", "kwargs"}


@dataclass(slots=True)
class Sight:
    """A tensor that was looked at: which one it is of its module's, and what was found."""

    label: str
    found: Tensor
    bad_rows: Tensor | None = None
    """Which of the batch's rows hold a bad value; None where rows and samples do not match."""
    same: bool = False
    """The tensor is the one that was looked at just before."""
    look: Look = field(init=False)

    @property
    def of_parameter(self) -> bool:
        """Whether it is the gradient of a parameter: its label is a name, not ``input ...``."""
        return not self.label.startswith(("input ", "input[", "output"))


@dataclass(slots=True)
class Visit:
    """One call of one module."""

    module: nn.Module
    name: str
    parent: Visit | None
    number: int
    inputs: list[Sight] = field(default_factory=list)
    outputs: list[Sight] = field(default_factory=list)
    left: list[Sight] = field(default_factory=list)
    """Gradients that left through its inputs and parameters."""
    arrived: list[Sight] = field(default_factory=list)
    """Gradients that arrived at its outputs."""

    @property
    def kind(self) -> str:
        """Name of the module's class."""
        return type(self.module).__name__

    @property
    def depth(self) -> int:
        """Calls it lies inside of."""
        return 0 if self.parent is None else self.parent.depth + 1


@dataclass(slots=True)
class Trace:
    """What was seen, in the order in which it was."""

    visits: list[Visit]
    forward: list[tuple[Visit, Sight, bool]]
    """Each tensor with its visit, and whether it went in (else it came out)."""
    backward: list[tuple[Visit, Sight, bool]]
    """Each gradient with its visit, and whether it left the module (else it arrived)."""


class Tracer:
    """Watches the modules of a model while something runs.

    Args:
        model: whose modules.
        rows: how many samples the batch has; 0 where that is not known.
    """

    def __init__(self, model: nn.Module, rows: int = 0) -> None:
        self._model, self._rows = bare(model), rows
        self._visits: list[Visit] = []
        self._open: list[Visit] = []
        self._forward: list[tuple[Visit, Sight, bool]] = []
        self._backward: list[tuple[Visit, Sight, bool]] = []
        self._handles: list[RemovableHandle] = []
        self._last: Tensor | None = None
        self._seen: Sight | None = None

    @contextmanager
    def watching(self) -> Generator[None]:
        """Forward passes in here are looked at, and gradients where they are taken in here too."""
        for name, module in self._model.named_modules():
            name = name.replace("_orig_mod.", "").removesuffix("_orig_mod")
            enter, leave = partial(self._enter, name), self._leave
            self._handles += [
                module.register_forward_pre_hook(enter, with_kwargs=True),
                module.register_forward_hook(leave),
            ]
        try:
            yield
        finally:
            for handle in self._handles:
                handle.remove()
            self._handles, self._last = [], None

    def watch_parameters(self) -> None:
        """Call it between the forward and the backward pass: parameters' gradients are seen too."""
        by_module: dict[int, Visit] = {id(visit.module): visit for visit in self._visits}
        for name, module in self._model.named_modules():
            visit = by_module.get(id(module)) or Visit(module, name, None, len(self._visits))
            for label, parameter in module.named_parameters(recurse=False):
                self._listen(visit, visit.left, label, parameter, leaves=True)

    def read(self) -> Trace:
        """Everything that was seen; each device is waited for once."""
        events = [*self._forward, *self._backward]
        for (_, sight, _), look in zip(
            events, read_looks([s.found for _, s, _ in events]), strict=True
        ):
            sight.look = look
        return Trace(self._visits, self._forward, self._backward)

    # -- the hooks --------------------------------------------------------------------------------

    def _enter(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        parent = self._open[-1] if self._open else None
        visit = Visit(module, name, parent, len(self._visits))
        self._visits.append(visit)
        self._open.append(visit)
        given = [
            *((label, arg) for label, arg in zip(_names(module, args), args, strict=True)),
            *((f"input {key}", arg) for key, arg in kwargs.items()),
        ]
        for label, tensor in _tensors(given):
            self._see(visit, visit.inputs, label, tensor, goes_in=True)
            self._listen(visit, visit.left, label, tensor, leaves=True)

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        while self._open and self._open[-1].module is not module:
            self._open.pop()  # a module that raised, and whose exception was caught
        visit = self._open.pop()
        for label, tensor in _tensors([("output", output)]):
            self._see(visit, visit.outputs, label, tensor, goes_in=False)
            self._listen(visit, visit.arrived, label, tensor, leaves=False)

    def _see(
        self, visit: Visit, into: list[Sight], label: str, tensor: Tensor, *, goes_in: bool
    ) -> None:
        numbers = floating(tensor)
        if numbers is not None:
            sight = Sight(label, look_at(numbers), self._rows_of(numbers))
            into.append(sight)
            self._forward.append((visit, sight, goes_in))

    def _rows_of(self, tensor: Tensor) -> Tensor | None:
        if not self._rows or tensor.ndim == 0 or tensor.shape[0] != self._rows:
            return None
        return ~torch.isfinite(tensor).reshape(self._rows, -1).all(1)

    def _listen(
        self, visit: Visit, into: list[Sight], label: str, tensor: Tensor, *, leaves: bool
    ) -> None:
        if not (tensor.requires_grad and torch.is_grad_enabled()):
            return

        def seen(gradient: Tensor) -> None:
            numbers = floating(gradient)
            if numbers is None:
                return
            same = gradient is self._last
            found = self._seen.found if same and self._seen else look_at(numbers)
            sight = Sight(label, found, same=same)
            self._last, self._seen = gradient, sight
            into.append(sight)
            self._backward.append((visit, sight, leaves))

        self._handles.append(tensor.register_hook(seen))


def _names(module: nn.Module, args: Sequence[Any]) -> list[str]:
    """What the forward method calls its arguments, where it has names of its own for them."""
    try:
        known = list(inspect.signature(module.forward).parameters)
    except (TypeError, ValueError):
        known = []
    return [
        f"input {known[i]}" if i < len(known) and known[i] not in _USUAL else f"input[{i}]"
        for i in range(len(args))
    ]


def _tensors(values: Sequence[tuple[str, Any]]) -> list[tuple[str, Tensor]]:
    found = [pair for label, value in values for pair in _labelled(label, value, 0)]
    return found[:_MOST_TENSORS]


def _labelled(label: str, value: Any, depth: int) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield label, value
    elif depth > 5:
        return
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _labelled(f"{label}.{key}", part, depth + 1)
    elif isinstance(value, list | tuple):
        for i, part in enumerate(value):
            yield from _labelled(f"{label}[{i}]", part, depth + 1)
    elif is_dataclass(value) and not isinstance(value, type):
        for f in fields(value):
            yield from _labelled(f"{label}.{f.name}", getattr(value, f.name), depth + 1)
