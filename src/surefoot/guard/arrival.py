"""Values on their way from the device to the host, and the record that waits for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from surefoot.records import StepRecord

__all__ = ["Arrival", "LazyRecord"]


class Arrival:
    """A 1-d tensor that travels to the host without stopping the device."""

    def __init__(self, values: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if values.device.type != "cuda":
            self._host = values
            return
        self._host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        self._host.copy_(values, non_blocking=True)
        self._event = torch.cuda.Event()
        self._event.record()

    def read(self) -> list[float]:
        """The values; waits for this copy alone, not for whatever was queued after it."""
        if self._event is not None:
            self._event.synchronize()
        return self._host.tolist()


class LazyRecord(StepRecord):
    """A :class:`StepRecord` whose values are read when one of them is first asked for."""

    def __init__(self, fetch: Callable[[], StepRecord]) -> None:
        object.__setattr__(self, "_fetch", fetch)

    @property
    def pending(self) -> bool:
        """Whether its values have not been read yet."""
        return "_fetch" in self.__dict__

    def resolve(self) -> None:
        """Read the values now, once."""
        fetch: Callable[[], StepRecord] | None = self.__dict__.pop("_fetch", None)
        if fetch is not None:
            self.__dict__.update(fetch().__dict__)

    def __getattr__(self, name: str) -> Any:
        # Only reached while the dataclass fields are not there yet.
        if name not in StepRecord.__dataclass_fields__ or "_fetch" not in self.__dict__:
            raise AttributeError(name)
        self.resolve()
        return self.__dict__[name]
