"""The micro-batches between two optimizer steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from surefoot.errors import UsageError
from surefoot.shapes import LossTerms

__all__ = ["Accumulation", "as_terms"]


def as_terms(loss: Tensor | LossTerms, *, may_be_constant: bool = False) -> LossTerms:
    """Named terms of whatever ``guard.step`` was given.

    Args:
        loss: a scalar, or terms.
        may_be_constant: whether a loss without gradient is let through.

    Raises:
        UsageError: the loss is not a scalar, or no gradient can come from it.
    """
    if isinstance(loss, LossTerms):
        terms = loss
    else:
        if loss.numel() != 1:
            raise UsageError(
                f"guard.step: the loss has shape {tuple(loss.shape)}; a scalar was expected. "
                "Reduce it with .mean() or .sum() first."
            )
        terms = LossTerms({"loss": loss.reshape(())}, {})
    if not may_be_constant and not any(value.requires_grad for value in terms.values.values()):
        raise UsageError(
            "guard.step: the loss carries no gradient: it is a constant, was detached, or was "
            "computed under torch.no_grad(). Training on it would change nothing."
        )
    return terms


@dataclass
class Accumulation:
    """Sums over the micro-batches seen since the last optimizer step."""

    micro_batches: int = 0
    names: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    raw: Tensor | None = None
    """Sum of the raw terms, one entry each."""
    total: Tensor | None = None
    """Sum of the totals, 0-d."""
    sample_ids: list[str] = field(default_factory=list)
    touched: bool = False
    """Something outside the guard changed the gradients between two micro-batches."""
    poisoned: bool = False
    """The host saw a loss that was not finite; no backward runs for the rest of the window."""

    def add(self, terms: LossTerms, total: Tensor, sample_ids: Sequence[str]) -> None:
        """Count one micro-batch in.

        Raises:
            UsageError: the terms are not those of the window's first micro-batch.
        """
        raw = torch.stack([value.detach().float() for value in terms.values.values()])
        total = total.detach().float()
        if self.raw is None or self.total is None:
            self.names = terms.names
            self.weights = tuple(terms.weight(name) for name in terms.names)
            self.raw, self.total = raw, total
        elif terms.names != self.names:
            raise UsageError(
                f"guard.step: the loss terms {list(terms.names)} differ from {list(self.names)} of "
                "the window's first micro-batch; give a term that does not apply the value 0."
            )
        else:
            self.raw, self.total = self.raw + raw, self.total + total
        self.micro_batches += 1
        if not self.poisoned:
            self.sample_ids.extend(sample_ids)

    def poison(self, sample_ids: Sequence[str]) -> None:
        """A loss was not finite; of the samples only that micro-batch's stand in the record."""
        if not self.poisoned:
            self.sample_ids = list(sample_ids)
        self.poisoned = True

    def means(self) -> tuple[Tensor, Tensor]:
        """Means over the micro-batches: the raw terms, and the total; of a loss that nobody told,
        no terms and NaN.
        """
        if self.raw is None or self.total is None:
            return torch.empty(0), torch.full((), torch.nan)
        if self.micro_batches == 1:
            return self.raw, self.total
        return self.raw / self.micro_batches, self.total / self.micro_batches
