"""Numbers as logs spell them: ``1.2e-05``, ``nan``, ``4.97M``, ``1,234``, ``0,123``, ``3.96GB``."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

__all__ = ["FRACTION", "NO_UNIT", "NUMBER", "Unit", "to_float", "unit_of"]

_NOT_FINITE = r"(?:[nN]a[nN]|NAN|[iI]nf(?:inity)?|INF)"
_DIGITS = r"(?:\d++(?:\.\d*+)?+|\.\d++)(?:[eE][-+]?\d++)?+"
_WINDOWS = r"1\.#(?:INF|IND|QNAN|SNAN|NAN)\d*"
_GROUPED = r"[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?(?!,?\d)"
_COMMA = r"\d{1,3},\d+(?![\d.]|,\s?\d)"
_TIMES = r"(?:ms|[mM]sec|us|µs|ns|seconds|second|secs|sec|s|minutes|min|hours|hrs|h)"
_COUNTED = (
    r"(?:it|iter|iters|samples?|sa|tok|tokens?|words?|img|imgs|images?|steps?|batch(?:es)?|epochs?)"
)
_FLOPS = r"[kMGT]?[fF][lL][oO][pP][sS]?(?:/s)?"
_RATES = rf"(?:{_COUNTED}/(?:secs?|seconds?|s)|/s(?:ec)?|{_TIMES}/{_COUNTED}|{_FLOPS})"
_BYTES = r"(?:[KkMGT]i?B|[Bb]ytes)"
_GLUED = rf"(?:{_RATES}|{_BYTES}|{_TIMES}|[kKMGTB%x])"
_SPACED = rf"[ ](?:{_RATES}|{_BYTES}|ms|sec|secs|seconds|s|min|%)"

NUMBER = re.compile(
    rf"(?<![\w.@#$])(?<![A-Za-z_]-)"
    rf"(?P<number>[-+]?(?:{_NOT_FINITE}|{_WINDOWS}|(?P<comma>(?<![,\[(])(?:{_GROUPED}|{_COMMA}))|{_DIGITS}))"
    rf"(?:(?P<unit>{_GLUED}|{_SPACED})(?![\w/])|(?!\w))"
)
"""A number in a line, with its unit; digits that are part of a word are none."""

FRACTION = re.compile(r"\s*(?:/|\bof\b)\s*(\d+)(?![\w.])(?!/\d)")
"""What stands behind the count in ``12/30`` and ``12 of 30``."""

_SCALES = {"k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12}
_BINARY = {"k": 2.0**10, "K": 2.0**10, "M": 2.0**20, "G": 2.0**30, "T": 2.0**40}
_SECONDS = {"ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Unit:
    """What a number is counted in, and what it is to be multiplied by."""

    kind: str = ""
    """``bytes``, ``seconds``, ``per second``, ``%``, ``x``, or nothing."""
    factor: float = 1.0
    inverse: bool = False
    """Whether the factor belongs to 1 / value: ``s/it`` tells how many a second."""
    name: str = ""
    """What was counted, for a rate without a name of its own: ``it/s``."""


NO_UNIT = Unit()
"""What a bare number is counted in."""


def unit_of(text: str, *, memory: bool = False) -> Unit:
    """The unit behind a number.

    Args:
        text: as it stands in the line, such as ``GB``, ``it/s``, ``ms``, ``k``.
        memory: whether the number is an amount of memory, where ``M`` is 2**20 bytes.

    >>> unit_of("GB").factor == 2**30, unit_of("ms"), unit_of("s/it").inverse
    (True, Unit(kind='seconds', factor=0.001, inverse=False, name=''), True)
    """
    text = text.strip()
    if not text:
        return NO_UNIT
    if text == "%" or text == "x":
        return Unit(text)
    if "/" in text or "flop" in text.lower():
        return _rate(text)
    if (text[-1] in "B" and len(text) > 1) or text.lower() == "bytes":
        return Unit("bytes", _BINARY.get(text[0], 1.0))
    if text in _SCALES:
        return Unit("bytes", _BINARY.get(text, 1.0)) if memory else Unit("", _SCALES[text])
    return Unit("seconds", _SECONDS.get(text[:2], _SECONDS.get(text[:1], 1.0)))


def _rate(text: str) -> Unit:
    above, _, below = text.partition("/")
    if "flop" in text.lower():
        return Unit("per second", _SCALES.get(text[0], 1.0), name="flops")
    if below.startswith("s") and not below.startswith(("st", "sa")):
        return Unit("per second", name=text if above else "")
    seconds = _SECONDS.get(above[:2], _SECONDS.get(above[:1], 1.0))
    return Unit("per second", 1.0 / seconds, inverse=True, name=f"{below}/s")


def to_float(text: str | bytes) -> float:
    """A number as a log spells it; what is none becomes NaN.

    >>> [to_float(t) for t in ("1e-5", "1,234", "0,5", "-1.#INF", "-nan", "1,234.5")]
    [1e-05, 1234.0, 0.5, -inf, nan, 1234.5]
    """
    try:
        return float(text)
    except ValueError:
        pass
    said = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    said = said.strip().strip("\"'").replace("_", "x")
    if "#" in said:
        return (-math.inf if said.startswith("-") else math.inf) if "INF" in said else math.nan
    said = said.replace(",", "" if re.fullmatch(rf"[-+]?{_GROUPED}", said) else ".")
    try:
        return float(said)
    except ValueError:
        return math.nan
