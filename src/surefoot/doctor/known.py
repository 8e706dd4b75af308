"""Values that a loss takes when nothing has been learnt, or when something holds it there."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Landmark", "clamp_near", "untrained_near"]


@dataclass(frozen=True)
class Landmark:
    """A value and what it means."""

    value: float
    formula: str
    meaning: str

    def __str__(self) -> str:
        return f"{self.formula} = {self.value:.5g}, {self.meaning}"


_CLASSES = (2, 3, 4, 5, 8, 10, 16, 20, 80, 100, 1000)
_VOCABULARIES = {
    21_128: "a Chinese BERT vocabulary",
    30_522: "the BERT vocabulary",
    32_000: "the Llama vocabulary",
    50_257: "the GPT-2 vocabulary",
    50_304: "the padded GPT-2 vocabulary",
    128_256: "the Llama 3 vocabulary",
    151_936: "the Qwen vocabulary",
}
_UNTRAINED = (
    *(
        Landmark(math.log(n), f"ln {n}", f"the cross-entropy of guessing among {n} classes")
        for n in _CLASSES
    ),
    *(
        Landmark(math.log(n), f"ln {n:,}", f"guessing evenly over {name}")
        for n, name in _VOCABULARIES.items()
    ),
    Landmark(4 * math.log(16), "4 ln 16", "four sides of 16 bins each, none of them trained"),
    Landmark(4 * math.log(17), "4 ln 17", "four sides of 17 bins each, none of them trained"),
)
_CLAMPED = (
    Landmark(87.33654475, "-ln of the smallest float32", "a probability of exactly 0, clamped"),
    Landmark(103.27892, "-ln of the smallest subnormal float32", "a probability of exactly 0"),
    Landmark(100.0, "100", "where PyTorch's binary cross-entropy holds a logarithm of 0"),
    Landmark(math.exp(100), "e^100", "a perplexity cut off for display"),
    *(
        Landmark(n * math.log(10), f"-ln 1e-{n}", f"a probability clamped to 1e-{n}")
        for n in (5, 6, 7, 8, 9, 10, 12, 15, 16, 20)
    ),
)


def untrained_near(value: float, tolerance: float = 0.015) -> Landmark | None:
    """What an untrained model would have as a loss near ``value``; ``tolerance`` is relative.

    >>> print(untrained_near(2.31))
    ln 10 = 2.3026, the cross-entropy of guessing among 10 classes
    """
    return _nearest(_UNTRAINED, value, tolerance)


def clamp_near(value: float, tolerance: float = 5e-4) -> Landmark | None:
    """The constant that a clamp makes of a logarithm of 0, if ``value`` is one.

    >>> print(clamp_near(87.3365))
    -ln of the smallest float32 = 87.337, a probability of exactly 0, clamped
    """
    return _nearest(_CLAMPED, value, tolerance)


def _nearest(marks: tuple[Landmark, ...], value: float, tolerance: float) -> Landmark | None:
    near = min(marks, key=lambda mark: abs(mark.value - value))
    return near if abs(near.value - value) <= tolerance * near.value else None
