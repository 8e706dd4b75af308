"""What it takes to run the forward passes of a step again: references, no copies."""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from surefoot.shapes import LossTerms

__all__ = [
    "Call",
    "ForwardKeeper",
    "MicroBatch",
    "RandomState",
    "Recompute",
    "bare",
    "leaves",
    "precision_of",
]

Recompute = Callable[[], Tensor | LossTerms]

_MOST_BYTES = 2**28
"""Of the inputs that one window holds; beyond it the oldest micro-batches are let go."""
_MOST_CALLS = 256
"""Of one micro-batch: a model may be called for ever without a step of the optimizer."""
_MOST_PARTS = 32
_LEAVES = (Tensor, bool, int, float, complex, str, bytes, type(None))


class RandomState(NamedTuple):
    """Where torch's random sequences stood: on the CPU, and on each CUDA device by its number."""

    cpu: Tensor
    cuda: dict[int, Tensor]

    @classmethod
    def now(cls, devices: Sequence[int]) -> RandomState:
        """Read them; a generator's state lies on the host, so no device is waited for."""
        capturing = bool(devices) and torch.cuda.is_current_stream_capturing()
        cuda = {} if capturing else {i: torch.cuda.get_rng_state(i) for i in devices}
        return cls(torch.get_rng_state(), cuda)

    def rewind(self) -> None:
        """Go back there."""
        torch.set_rng_state(self.cpu)
        for device, state in self.cuda.items():
            torch.cuda.set_rng_state(state, device)


@dataclass(frozen=True)
class Call:
    """One call of the model, and what it was called under."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    random: RandomState
    autocast: torch.dtype | None
    versions: tuple[int, ...]
    """How often each tensor of the input had been changed in place."""
    bytes: int = 0
    """Of the input's tensors."""

    @property
    def overwritten(self) -> bool:
        """Whether an input was changed in place since."""
        return self.versions != _versions(list(leaves((self.args, self.kwargs))))

    def again(self) -> object:
        """Call it once more, with the random numbers of then."""
        self.random.rewind()
        with precision_of(self.module, self.autocast):
            return self.module(*self.args, **self.kwargs)


@dataclass
class MicroBatch:
    """What one micro-batch left: its calls, and perhaps a way to compute its loss again."""

    calls: list[Call] = field(default_factory=list)
    random: RandomState | None = None
    """Before its first forward pass, where the guard saw it begin."""
    autocast: torch.dtype | None = None
    recompute: Recompute | None = None
    total: Tensor | None = None
    """Its loss, 0-d, without graph."""
    sample_ids: tuple[str, ...] = ()
    bytes: int = 0

    @property
    def start(self) -> RandomState | None:
        """The random state that computing it again begins with."""
        return self.random or (self.calls[0].random if self.calls else None)

    @property
    def precision(self) -> torch.dtype | None:
        """Of its forward passes under autocast; None: none."""
        return (
            self.autocast
            if self.recompute is not None or not self.calls
            else self.calls[0].autocast
        )

    def let_go(self) -> None:
        """Forget the inputs; the ids stay."""
        self.calls, self.recompute, self.random = [], None, None


class ForwardKeeper:
    """Keeps what the model was called with since the last optimizer step.

    A pre-hook on the model does it. A loop may never call the model itself, only its parts (an
    ``nn.ModuleDict`` of a network and a criterion): until the model itself is called for the first
    time its direct children are listened to as well.

    Args:
        model: the one in training; what wraps it for several processes is looked through.
        devices: where its parameters are.
    """

    def __init__(self, model: nn.Module, devices: set[torch.device]) -> None:
        self.model = bare(model)
        self._cuda = sorted({d.index or 0 for d in devices if d.type == "cuda"})
        self._type = next(iter(devices)).type if devices else "cpu"
        self._open = MicroBatch()
        self._window: list[MicroBatch] = []
        self._deaf = False
        self._handle = self.model.register_forward_pre_hook(self._on_model, with_kwargs=True)
        parts = list(self.model.children())
        listen = len(parts) <= _MOST_PARTS and not _compiled(self.model)
        self._parts = [
            part.register_forward_pre_hook(self._on_part, with_kwargs=True)
            for part in (parts if listen else ())
        ]

    def begin(self, autocast: torch.dtype | None) -> None:
        """A micro-batch's forward passes start here, in this precision."""
        if not self._open.calls:  # else it is the second of several
            self._open.random, self._open.autocast = RandomState.now(self._cuda), autocast

    def end(
        self, total: Tensor | None, sample_ids: Sequence[str], recompute: Recompute | None
    ) -> None:
        """The micro-batch's loss is known."""
        micro, self._open = self._open, MicroBatch()
        micro.total = None if total is None else total.detach()
        micro.sample_ids, micro.recompute = tuple(sample_ids), recompute
        if micro.random is None and micro.calls:
            micro.autocast = micro.calls[0].autocast
        self._window.append(micro)
        spent = 0
        for kept in reversed(self._window):
            spent += kept.bytes
            if spent > _MOST_BYTES and kept is not micro:
                kept.let_go()

    @property
    def micro_batches(self) -> int:
        """Those of the open window whose loss is known."""
        return len(self._window)

    def window_closed(self) -> list[MicroBatch]:
        """The window's micro-batches; a new window begins.

        Calls whose loss nobody told of, as in somebody else's loop, are a micro-batch each.
        """
        window, self._window = self._window, []
        rest, self._open = self._open, MicroBatch()
        window += [MicroBatch([call], call.random, call.autocast) for call in rest.calls]
        return window

    @contextmanager
    def deaf(self) -> Generator[None]:
        """What is called in here is not kept."""
        before, self._deaf = self._deaf, True
        try:
            yield
        finally:
            self._deaf = before

    def __getstate__(self) -> dict[str, Any]:
        """A copy of the model, or a pickle of it, keeps nothing."""
        return {"_deaf": True, "_parts": []}

    def remove(self) -> None:
        """Take the hooks off the model."""
        self._handle.remove()
        self._ignore_parts()

    def _ignore_parts(self) -> None:
        for handle in self._parts:
            handle.remove()
        self._parts = []

    def _on_model(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self._deaf or torch.compiler.is_compiling():
            return
        if self._parts:
            self._ignore_parts()
        if module.training:
            self._keep(module, args, kwargs)

    def _on_part(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self._deaf or torch.compiler.is_compiling() or not module.training:
            return
        # What is handed from part to part hangs on the graph, and so may what cannot be read.
        if all(known for _, known in _walk((args, kwargs))):
            self._keep(module, args, kwargs)

    def _keep(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        tensors = list(leaves((args, kwargs)))
        if any(tensor.grad_fn is not None for tensor in tensors):
            args, kwargs = _without_graph(args), _without_graph(kwargs)
        versions, random = _versions(tensors), RandomState.now(self._cuda)
        micro, size = self._open, sum(tensor.nbytes for tensor in tensors)
        micro.calls.append(Call(module, args, kwargs, random, self._autocast(), versions, size))
        micro.bytes += size
        while len(micro.calls) > 1 and (
            micro.bytes > _MOST_BYTES or len(micro.calls) > _MOST_CALLS
        ):
            micro.bytes -= micro.calls.pop(0).bytes

    def _autocast(self) -> torch.dtype | None:
        if not torch.is_autocast_enabled(self._type):
            return None
        return torch.get_autocast_dtype(self._type)


def bare(model: nn.Module) -> nn.Module:
    """The model inside ``DistributedDataParallel``."""
    while isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    return model


def leaves(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested lists, tuples, dicts and dataclasses."""
    for leaf, _ in _walk(value):
        if isinstance(leaf, Tensor):
            yield leaf


def _walk(value: Any) -> Iterator[tuple[Any, bool]]:
    """Everything that has no parts, and whether it is known to hold no tensors of its own."""
    if isinstance(value, _LEAVES):
        yield value, True
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _walk(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _walk(part)
    elif is_dataclass(value) and not isinstance(value, type):
        for f in fields(value):
            yield from _walk(getattr(value, f.name))
    else:
        yield value, False


def _without_graph(value: Any) -> Any:
    """The same, but a tensor that was computed with gradient leaves its graph behind."""
    if isinstance(value, Tensor):
        return value if value.grad_fn is None else value.detach()
    if all(leaf.grad_fn is None for leaf in leaves(value)):
        return value
    if isinstance(value, Mapping):
        return {key: _without_graph(part) for key, part in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(_without_graph, value))
    if isinstance(value, list | tuple):
        return type(value)(map(_without_graph, value))
    twin = copy.copy(value)
    for f in fields(value):
        object.__setattr__(twin, f.name, _without_graph(getattr(value, f.name)))
    return twin


def _versions(tensors: Sequence[Tensor]) -> tuple[int, ...]:
    return tuple(t._version for t in tensors if not t.is_inference())


def precision_of(model: nn.Module, dtype: torch.dtype | None) -> torch.autocast:
    """Autocast to ``dtype`` as it was for the model, or none where that is None."""
    kind = next((p.device.type for p in model.parameters()), "cpu")
    # A cast made without gradients must not be found in the cache by the loop around.
    return torch.autocast(
        kind, dtype=dtype or torch.bfloat16, enabled=dtype is not None, cache_enabled=False
    )


def _compiled(model: nn.Module) -> bool:
    """Whether hooks on its parts would be compiled in."""
    return any(
        hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
        for module in model.modules()
    )
