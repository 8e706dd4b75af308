"""What a number in a line is called: the words before it, up to where something else begins."""

from __future__ import annotations

import re
from dataclasses import dataclass

from surefoot.journal.foreign.words import FILLERS, KNOWN, LOSSES, TRAIN, VALIDATION, bag, tokens

__all__ = ["Name", "name_before"]

_OPENERS = " \t\"'`[({<~≈\x01"
_MARKS = ":="
_BREAK = re.compile(r"[,;|{}\[\]\t\"'`:=│┃║←→⇒➜✓✔✗❌⚠\x01]|[ ]{2,}|[ ][-–—*•][ ]|[ ]->[ ]")
_CELL = re.compile(r"[|│┃]\s*([A-Za-z][^|│┃:=]*?)\s*[|│┃]$")
_NORM = re.compile(r"(?:\|{1,2}|‖)(?:g|grad|∇\w*)(?:\|{1,2}|‖)(?:_2)?\s*[=:]?$")
_LEAD = re.compile(r"^[^A-Za-z_√Δ‖|]+")
_QUALIFIERS = (
    TRAIN
    | VALIDATION
    | LOSSES
    | bag(
        "total avg average mean learning peak max min grad gradient global best running current "
        "raw "
        "lm base step"
    )
)
MAX_NAME = 80


@dataclass(frozen=True)
class Name:
    """The name of a number, and how it stood before it."""

    text: str = ""
    label: str = ""
    """Words before the name that belong to it, such as ``val`` in ``val: loss 0.3``."""
    sure: bool = False
    """Whether a colon or an equals sign stood between."""
    opened: bool = False
    """Whether a bracket stood between: a list, or a counter such as ``Epoch [3]``."""


def name_before(left: str) -> Name:
    """The name in the text between the number before and this one.

    >>> name_before(" | lm loss: ").text, name_before("{'grad_norm': ").text
    ('lm loss', 'grad_norm')
    >>> name_before("Epoch["), name_before(" at step ").text
    (Name(text='Epoch', label='', sure=False, opened=True), 'step')
    >>> name_before(" anchors of size ").text
    ''
    """
    core = left.rstrip(_OPENERS)
    opened = any(c in left[len(core) :] for c in "[({")
    named = core.rstrip(": =\t→>" if core.endswith("->") else ": =\t→")
    if (cell := _CELL.search(core)) is not None:
        return Name(cell[1].strip()[-MAX_NAME:], "", True, opened)
    if (norm := _NORM.search(core)) is not None:
        return Name(norm[0].rstrip("=: "), "", True, opened)
    sure = any(c in core[len(named) :] for c in ":=→>")
    if sure and named and named[-1] in "\"'`":
        begin = named.rfind(named[-1], 0, len(named) - 1)
        return Name(named[begin + 1 : -1].strip()[:MAX_NAME], named[: max(begin, 0)], sure, opened)
    text, label = _last_clause(named)
    if not sure and not (label[-1:] in ("\t", "|") and re.fullmatch(r"[A-Za-z]\w{1,23}", text)):
        text = _known_tail(text)
    return Name(text[-MAX_NAME:], label, sure, opened)


def _last_clause(named: str) -> tuple[str, str]:
    """The words behind the last break, and what stands before them."""
    begin = 0
    for found in _BREAK.finditer(named):
        begin = found.end()
    begin = max(begin, _unmatched(named))
    text = _LEAD.sub("", named[begin:]).strip().rstrip("-–.#@$\\/").strip()
    words = text.split()
    while words and words[-1].lower() in FILLERS:
        words.pop()
    return " ".join(words[-6:]), named[:begin]


def _unmatched(named: str) -> int:
    """The place behind the last bracket that is opened and not closed, or closed and not opened."""
    depth, place = 0, 0
    for i, c in enumerate(named):
        if c == "(":
            depth, place = depth + 1, i + 1 if depth == 0 else place
        elif c == ")":
            if depth == 0:
                place = i + 1
            depth = max(depth - 1, 0)
    if depth:
        return place
    return place if place and named[place - 1] == ")" else 0


def _known_tail(text: str) -> str:
    """The words at the end that name a quantity; nothing where the last is none."""
    words, kept = text.split(), list[str]()
    for word in reversed(words):
        said = set(tokens(word))
        known = said & KNOWN if not kept else said & (KNOWN | _QUALIFIERS)
        if not known:
            break
        kept.append(word)
    return " ".join(reversed(kept))
