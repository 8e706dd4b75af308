"""Module buffers as they were before the forward pass, so that a refused step leaves no trace.

A forward pass in training mode has moved BatchNorm's running statistics before anybody can judge
the batch; one NaN there stays for ever (pytorch#88474). Small buffers are copied at every step.
A large one (an attention mask) is copied again only when its count of in-place changes has moved;
small ones are not left to that count, because BatchNorm's kernel does not raise it.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from itertools import compress
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["BufferKeeper"]

_SMALL = 2**16
_JUMP = 1e4
"""One batch that multiplies a running variance by so much is like no other: with torch's momentum
of 0.1 its own variance is 100,000 times the usual one."""
_WARMUP, _MOST = 20, 5
"""Batches before that is asked, and so many in a row may be left out; then it is the new level."""


class BufferKeeper:
    """Keeps a copy of all buffers from the start of a window, and can put it back.

    The copy is taken by a hook at the first forward pass of a window in training mode, so whatever
    was done to the buffers between two steps (loading, recalibration) is part of it. A loop that
    calls submodules only never fires that hook; then the end of the previous step is the moment.

    Args:
        model: whose buffers.
        repair: put a buffer that is not finite back before it is copied. In somebody else's loop a
            GradScaler may skip a step without a word; nothing else undoes its forward pass.
    """

    def __init__(self, model: nn.Module, *, repair: bool = False) -> None:
        self._repair = repair
        self._owners: list[tuple[nn.Module, str]] = []
        self._names: list[str] = []
        seen: set[int] = set()
        for path, module in model.named_modules():
            for name, buffer in module._buffers.items():
                if buffer is not None and id(buffer) not in seen:
                    seen.add(id(buffer))
                    self._owners.append((module, name))
                    self._names.append(f"{path}.{name}" if path else name)
        self._kept = [b.detach().clone() for b in self._current()]
        self._marks = self._stamp(self._current())
        self._mended: dict[str, Tensor] = {}
        self._broken: tuple[list[str], Tensor] = [], torch.zeros(0, dtype=torch.bool)
        self._variances = [i for i, n in enumerate(self._names) if n.endswith("running_var")]
        self._judged, self._left_out = 0, torch.zeros((), dtype=torch.int64)
        self.forward_seen = self._hook_seen = False
        self._deaf = False
        self._handle = model.register_forward_pre_hook(self._before_forward)

    def _current(self) -> list[Tensor]:
        return [module._buffers[name] for module, name in self._owners]  # type: ignore[misc]

    @staticmethod
    def _stamp(buffers: list[Tensor]) -> list[tuple[int, int]]:
        return [(id(b), b._version) for b in buffers]

    def _moved(self, buffers: list[Tensor]) -> list[int]:
        marks = enumerate(zip(self._stamp(buffers), self._marks, strict=True))
        return [i for i, (now, then) in marks if now != then or buffers[i].numel() <= _SMALL]

    def _before_forward(self, module: nn.Module, _: Any) -> None:
        if self._deaf:
            return
        if module.training and self._repair:
            self._mend()
        if module.training and not self.forward_seen:
            self.capture()
            self.forward_seen = self._hook_seen = True

    def _mend(self) -> None:
        buffers = self._current()
        with torch.no_grad():
            for i in self._moved(buffers):
                if buffers[i].is_floating_point() and _alike(self._kept[i], buffers[i]):
                    # What is not finite in the copy either is so by design, as an attention mask.
                    bad = torch.isfinite(self._kept[i]).all() & ~torch.isfinite(buffers[i]).all()
                    buffers[i].copy_(torch.where(bad, self._kept[i], buffers[i]))
                    name = self._names[i]
                    self._mended[name] = bad | self._mended.get(name, bad)

    @contextmanager
    def deaf(self) -> Generator[None]:
        """Forward passes in here are none of the training's."""
        before, self._deaf = self._deaf, True
        try:
            yield
        finally:
            self._deaf = before

    def mended(self) -> tuple[tuple[str, ...], Tensor]:
        """Names of the buffers that were looked at since this was last asked, and a 1-d bool that
        says on the device which of them had to be put back.
        """
        found, self._mended = self._mended, {}
        (names, broken), self._broken = self._broken, ([], torch.zeros(0, dtype=torch.bool))
        if not found:
            return tuple(names), broken
        return (*found, *names), torch.cat([torch.stack(list(found.values())), broken])

    def mended_here(self) -> tuple[str, ...]:
        """The same where reading is free: the names of those that were put back."""
        names, bad = self.mended()
        return tuple(compress(names, bad.tolist()))

    def capture(self) -> None:
        """Copy the buffers that may have moved since the last copy."""
        buffers = self._current()
        moved = self._moved(buffers)
        if not moved:
            return
        with torch.no_grad():
            alike = [i for i in moved if _alike(self._kept[i], buffers[i])]
            for i in set(moved).difference(alike):
                self._kept[i] = buffers[i].detach().clone()
            if alike:
                torch._foreach_copy_([self._kept[i] for i in alike], [buffers[i] for i in alike])
        self._marks = self._stamp(buffers)

    def restore(self, bad: Tensor | None = None) -> bool:
        """Put the copy back: everywhere, or where the 0-d bool ``bad`` says so on the device.

        Returns:
            Whether there was anything to put back.
        """
        buffers = self._current()
        moved = self._moved(buffers)
        if bad is None and self._hook_seen and not self.forward_seen:
            # No forward pass since the last step: the copy is older than what that step left.
            moved = [i for i in moved if not bool(torch.isfinite(buffers[i]).all())]
        with torch.no_grad():
            for i in moved:
                if not _alike(self._kept[i], buffers[i]):
                    module, name = self._owners[i]
                    module._buffers[name] = buffers[i] = self._kept[i].clone()
            kept, now = [self._kept[i] for i in moved], [buffers[i] for i in moved]
            if moved:
                torch._foreach_copy_(now, kept if bad is None else _choose(bad, kept, now))
        if bad is None:
            self._marks = self._stamp(buffers)
        return bool(moved)

    def outlying(self) -> Tensor | None:
        """Whether the last batch was so unlike all others that it has spoilt the running
        statistics, 0-d, on the device; None where nothing could tell.

        Statistics that are not finite are none of its doing: no batch that gave a finite loss has
        made them so. They count as mended where the copy is finite, and it is to be put back.
        """
        now = self._current()
        places = [i for i in self._variances if _alike(self._kept[i], now[i])]
        self._judged += 1
        if not places or self._judged <= _WARMUP:
            return None
        with torch.no_grad():
            new = torch.stack(torch._foreach_norm([now[i] for i in places]))
            old = torch.stack(torch._foreach_norm([self._kept[i] for i in places]))
            jumped = (torch.isfinite(new) & (new > _JUMP * old)).any()
            self._left_out = torch.where(jumped, self._left_out.to(jumped.device) + 1, 0)
            self._broken = [self._names[i] for i in places], torch.isfinite(old) & ~new.isfinite()
            return jumped & (self._left_out <= _MOST)

    @property
    def broken(self) -> Tensor:
        """Whether :meth:`outlying` met statistics that are not finite, 0-d, on the device."""
        return self._broken[1].any()

    def leave_out(self) -> bool:
        """Put the copy back if the last batch was outlying, or statistics are not finite; reads the
        answer, and gives whether it was the batch.
        """
        outlying = self.outlying()
        if outlying is None:
            return False
        if bool(outlying | self.broken):
            self.restore()
        return bool(outlying)

    @property
    def copy_is_the_state(self) -> bool:
        """Whether the copy, and not the buffers, is what the last decided step left: a forward pass
        may have moved them since.
        """
        return self.forward_seen or not self._hook_seen

    def named(self, *, before_forward: bool) -> dict[str, Tensor]:
        """The buffers by name: as they are, or the copy from before the last forward pass."""
        tensors = self._kept if before_forward else self._current()
        return dict(zip(self._names, tensors, strict=True))

    def window_closed(self) -> None:
        """The step is decided; the next forward pass starts a new window."""
        self.forward_seen = False
        if not self._hook_seen:
            self.capture()

    def remove(self) -> None:
        """Take the hook off the model."""
        self._handle.remove()


def _alike(a: Tensor, b: Tensor) -> bool:
    return (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)


def _choose(bad: Tensor, kept: list[Tensor], now: list[Tensor]) -> list[Tensor]:
    """``kept`` where bad, else ``now``; one selection per dtype and device, not one per buffer."""
    chosen: list[Tensor] = list(now)
    for key in {(b.dtype, b.device) for b in now}:
        places = [i for i, b in enumerate(now) if (b.dtype, b.device) == key]
        old = torch.cat([kept[i].reshape(-1) for i in places])
        new = torch.cat([now[i].reshape(-1) for i in places])
        pieces = torch.where(bad.to(key[1]), old, new).split([now[i].numel() for i in places])
        for i, piece in zip(places, pieces, strict=True):
            chosen[i] = piece.view(now[i].shape)
    return chosen
