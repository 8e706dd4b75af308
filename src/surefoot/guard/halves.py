"""A batch that does not fit into the device's memory is computed in halves.

Forward and backward of a micro-batch run whole, as they always do. Where memory runs out, what the
attempt has left is undone: the graph, the part of the gradient that was already added, what
BatchNorm has counted, the random numbers drawn. Then the batch is cut in two, again and again
where need be, and the pieces' gradients add up to that of the mean over the whole batch.

What halves cannot do: BatchNorm takes the statistics of each piece (and counts one batch for each),
and dropout draws other masks, so that the gradient is that of an accumulation over the pieces. A
loss that compares samples with one another (contrastive) sees those of its piece only.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from surefoot.errors import UsageError
from surefoot.guard.accumulation import as_terms
from surefoot.guard.buffers import BufferKeeper
from surefoot.guard.kept import RandomState
from surefoot.guard.out_of_memory import Halved, TooLarge, is_out_of_memory
from surefoot.guard.splits import Piece, Split, halve, summed, weighed
from surefoot.guard.terms import terms_of
from surefoot.shapes import LossTerms

__all__ = ["Compute", "Halves", "Micro"]

Compute: TypeAlias = Callable[[Any], Tensor | LossTerms]

_AGAIN_AFTER = 100
"""Micro-batches in pieces, after which one is tried whole again: what held the memory may be gone.
A try that fails costs about one micro-batch."""


@dataclass
class Micro:
    """A micro-batch of the open window, and how it is run."""

    compute: Compute
    backward: Callable[[Tensor], None]
    precision: Callable[[], AbstractContextManager[Any]]
    pieces: list[Piece]
    random: RandomState


class _Spoilt(RuntimeError):
    """Memory ran out within a backward pass: a part of a gradient was added to the others."""


class Halves:
    """Computes micro-batches, in pieces where they do not fit.

    Where all fits it costs a copy of the small buffers and of the random state at each micro-batch,
    and no memory but the batches of the open window, which are held on to. Once a size did not fit,
    batches as large are cut at once; every 100th of them is tried whole.

    Ranks that train together are left as they are, and the error comes through: one of them alone
    cannot run a forward pass again that the others take part in.

    Args:
        model: everything that is trained or moved.
        split: cuts a batch; :func:`surefoot.guard.splits.halve` where it is not given.
        on_halved: told of each micro-batch that was cut.

    >>> model = nn.Linear(3, 1)
    >>> def compute(batch: Tensor) -> Tensor:
    ...     if len(batch) > 2:
    ...         raise torch.OutOfMemoryError("out of memory")
    ...     return model(batch).mean()
    >>> halves = Halves(model, on_halved=print)
    >>> loss = halves.backward(compute, torch.ones(4, 3))  # in place of loss.backward()
    out of memory: the batch was computed in 2 pieces (2 + 2 samples)
    >>> model.bias.grad
    tensor([1.])
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        split: Split = halve,
        on_halved: Callable[[Halved], object] | None = None,
    ) -> None:
        self._split, self._on_halved = split, on_halved
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._cuda = sorted({p.device.index or 0 for p in model.parameters() if p.is_cuda})
        # Before the window, and before the pass that is under way; without hooks, told by hand.
        self._before_window, self._before = BufferKeeper(model), BufferKeeper(model)
        self._before_window.remove()
        self._before.remove()
        self._window: list[Micro] = []
        self._marks: list[tuple[int, int]] = []
        self._limit, self._since = math.inf, 0
        self._problem = ""
        self.pieces = 1
        """How many the last micro-batch was computed in."""

    # -- in a loop -------------------------------------------------------------------------------

    def backward(self, compute: Compute, batch: Any) -> LossTerms:
        """Forward and backward of one micro-batch, in a loop without a guard.

        A window begins where gradients are gone, or were changed since the last call, as by
        ``optimizer.zero_grad()``.

        Args:
            compute: mean loss of a batch, or of a piece of it: a scalar or named terms.
            batch: what it is given.

        Returns:
            The loss over the whole batch, without graph.

        Raises:
            TooLarge: not even the smallest piece fits.
        """
        if not self._marks or self._marks != self._stamps():
            self.forget()
        micro = self.begin(compute, batch, Tensor.backward, nullcontext)
        terms = self.forward(micro)
        if terms is not None and self.try_backward(micro, terms, terms.total):
            self.keep(micro)
        else:
            terms = self.in_pieces(micro, spoilt=terms is not None)
        self._marks = self._stamps()
        return terms.detach()

    def forget(self) -> None:
        """The gradients of the micro-batches so far are used, or gone: a window begins."""
        self._window.clear()

    def begin(
        self,
        compute: Compute,
        batch: Any,
        backward: Callable[[Tensor], None],
        precision: Callable[[], AbstractContextManager[Any]],
    ) -> Micro:
        """The window's next micro-batch; everything is kept that it may have to go back to."""
        (self._before if self._window else self._before_window).capture()
        pieces = [Piece(batch, math.nan)]
        if self._limit < math.inf:
            self._since += 1
            if self._since % _AGAIN_AFTER:
                pieces = self._small_enough(pieces[0])
            else:
                self._limit = math.inf
        self._problem, self.pieces = "", 1
        return Micro(compute, backward, precision, pieces, RandomState.now(self._cuda))

    def keep(self, micro: Micro) -> None:
        """Its gradient is part of the window's."""
        self._window.append(micro)

    def _small_enough(self, piece: Piece) -> list[Piece]:
        """What of a piece is smaller than what did not fit."""
        parts = [part.within(piece.weight) for part in self._split(piece.batch)]
        if len(parts) < 2 or sum(part.size for part in parts) < self._limit:
            return [piece]
        return [small for part in parts for small in self._small_enough(part)]

    def _stamps(self) -> list[tuple[int, int]]:
        gradients = [p.grad for p in self._parameters]
        return [(id(g), g._version) for g in gradients if g is not None]

    # -- passes ----------------------------------------------------------------------------------

    def forward(
        self, micro: Micro, precision: Callable[[], AbstractContextManager[Any]] | None = None
    ) -> LossTerms | None:
        """The terms of it whole, with graph; None where it does not fit."""
        if len(micro.pieces) > 1:
            return None
        return self._forward(micro, micro.pieces[0], precision or micro.precision)

    def _forward(
        self, micro: Micro, piece: Piece, precision: Callable[[], AbstractContextManager[Any]]
    ) -> LossTerms | None:
        """The terms; None where memory ran out, and then nothing is left of the pass."""
        try:
            with precision():
                return weighed(_terms_of(micro.compute(piece.batch)), piece.weight)
        except RuntimeError as error:
            self._told(error)
        # Only here: the error, while it is handled, holds the frames and they the activations.
        self._make_room()
        return None

    def try_backward(self, micro: Micro, terms: LossTerms, total: Tensor) -> bool:
        """Whether it went through; where not the graph is gone, and the gradients are spoilt."""
        try:
            if total.requires_grad or len(micro.pieces) == 1:
                micro.backward(total)
            return True
        except RuntimeError as error:
            self._told(error)
        for tensor in (*terms.values.values(), total):
            if tensor.grad_fn is not None:
                tensor.detach_()  # in place: the caller's frames hold these
        self._make_room()
        return False

    def _told(self, error: RuntimeError) -> None:
        if not is_out_of_memory(error):
            raise error
        self._problem = str(error).partition("\n")[0]

    def _make_room(self) -> None:
        gc.collect()
        if self._cuda:
            torch.cuda.empty_cache()

    def in_pieces(self, micro: Micro, *, spoilt: bool) -> LossTerms:
        """The loss over the micro-batch, without graph, once its gradient is added.

        Where the gradients are spoilt the whole window is run again from its start.
        """
        tried = bool(self._problem)
        if tried:
            self._cut(micro, 0)
        while True:
            try:
                if spoilt:
                    for parameter in self._parameters:
                        parameter.grad = None
                    self._before_window.restore()
                    for before in self._window:
                        before.random.rewind()
                        self._run(before)
                elif tried:
                    (self._before if self._window else self._before_window).restore()
                micro.random.rewind()
                terms = self._run(micro)
                break
            except _Spoilt:
                spoilt = True
        self.keep(micro)
        sizes = tuple(piece.size for piece in micro.pieces)
        self.pieces = len(sizes)
        if self._on_halved is not None and self.pieces > 1:
            self._on_halved(Halved(sizes=sizes, problem=self._problem, tried=tried))
        return terms

    def _run(self, micro: Micro) -> LossTerms:
        done: list[LossTerms] = []
        while len(done) < len(micro.pieces):
            piece, random = micro.pieces[len(done)], RandomState.now(self._cuda)
            self._before.capture()
            terms = self._forward(micro, piece, micro.precision)
            if terms is None:
                self._cut(micro, len(done))
                self._before.restore()
                random.rewind()
            elif self.try_backward(micro, terms, terms.total):
                done.append(terms.detach())
            else:
                self._cut(micro, len(done))
                raise _Spoilt
        return summed(done)

    def _cut(self, micro: Micro, at: int) -> None:
        piece = micro.pieces[at]
        try:
            parts = [part.within(piece.weight) for part in self._split(piece.batch)]
        except UsageError as unclear:
            unclear.add_note(f"It was to be cut because memory ran out: {self._problem}")
            raise
        if len(parts) < 2:
            raise TooLarge(self._too_large(micro, piece))
        self._limit = min(self._limit, sum(part.size for part in parts))
        micro.pieces[at : at + 1] = parts

    def _too_large(self, micro: Micro, piece: Piece) -> str:
        whole = sum(part.size for part in micro.pieces)
        if math.isnan(piece.size):
            tried = "the batch cannot be cut"
        else:
            tried = f"of a batch of {whole:g} samples not even a piece of {piece.size:g} fits"
        return (
            f"out of memory: {tried}, and what is smallest has to fit. The device said: "
            f"{self._problem} Take smaller samples (fewer pixels), a smaller model or half "
            "precision, or end what else uses the device."
        )


def _terms_of(loss: Tensor | LossTerms) -> LossTerms:
    """Whether a gradient can come from it is for others to ask: of one piece none may."""
    single = isinstance(loss, LossTerms) or loss.numel() == 1
    return terms_of(loss) if single else as_terms(loss)
