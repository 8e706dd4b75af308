"""Test tools for training code: faults on cue, and proof that a step left no trace."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["FaultScript", "State", "bad_gradient"]


@dataclass(frozen=True)
class State:
    """A bitwise copy of everything that training moves.

    >>> model = nn.Linear(2, 1)
    >>> before = State.of(model)
    >>> _ = nn.init.zeros_(model.bias)
    >>> State.of(model).differences(before)
    ['model.bias']
    """

    tensors: dict[str, Tensor]

    @classmethod
    def of(cls, model: nn.Module, *parts: Any) -> State:
        """Copy a model and whatever else has a ``state_dict`` (optimizer, schedule, average)."""
        found: dict[str, Tensor] = {}
        _walk("model", model.state_dict(), found)
        for part in parts:
            _walk(type(part).__name__, part.state_dict(), found)
        return cls(found)

    def differences(self, other: State) -> list[str]:
        """Names of what is not equal to the bit, or stands in one of the two only."""
        both = self.tensors.keys() & other.tensors.keys()
        changed = {n for n in both if not _same_bits(self.tensors[n], other.tensors[n])}
        return sorted(changed | (self.tensors.keys() ^ other.tensors.keys()))


@dataclass(frozen=True)
class FaultScript:
    """Which steps are bad, written as a word: ``g`` good, anything else a fault.

    >>> script = FaultScript.parse("g n n g")
    >>> [script.at(step) for step in range(5)]
    [None, 'n', 'n', None, None]
    """

    faults: tuple[str | None, ...]

    @classmethod
    def parse(cls, text: str) -> FaultScript:
        """Read a script; blanks do not count."""
        return cls(tuple(None if c == "g" else c for c in text if not c.isspace()))

    def at(self, step: int) -> str | None:
        """The fault of a step; None for a good step and beyond the script's end."""
        return self.faults[step] if step < len(self.faults) else None


@contextmanager
def bad_gradient(parameter: Tensor, value: float, *, index: int = 0) -> Generator[None]:
    """While open, backward leaves ``value`` in one element of this parameter's gradient."""

    def spoil(gradient: Tensor) -> Tensor:
        spoiled = gradient.clone()
        spoiled.view(-1)[index] = value
        return spoiled

    handle = parameter.register_hook(spoil)
    try:
        yield
    finally:
        handle.remove()


def _same_bits(a: Tensor, b: Tensor) -> bool:
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return False
    plain: Callable[[Tensor], bytes] = lambda t: (  # noqa: E731
        t.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    )
    return plain(a) == plain(b)


def _walk(name: str, value: Any, found: dict[str, Tensor]) -> None:
    if isinstance(value, Tensor):
        found[name] = value.detach().clone()
    elif isinstance(value, dict):
        for key, entry in value.items():
            _walk(f"{name}.{key}", entry, found)
    elif isinstance(value, list | tuple):
        for i, entry in enumerate(value):
            _walk(f"{name}.{i}", entry, found)
    elif isinstance(value, bool | int | float):
        found[name] = torch.tensor(value, dtype=torch.float64)
