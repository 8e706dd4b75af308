"""What in a line has digits and is no measurement: times, dates, paths, hashes, progress bars."""

from __future__ import annotations

import re

__all__ = ["MASK", "blanked", "masks", "payload_of"]

_CLOCK = r"\d{1,3}:\d\d(?::\d\d)?(?:[.,]\d+)?(?![\d:])"
_DATE = (
    r"\d{4}[-/.]\d\d?[-/.]\d\d?(?!\d)|\d\d?[-/.]\d\d?[-/.]\d{4}(?!\d)"
    r"|\d\d/\d\d(?=[ ]\d\d:\d\d:\d\d)"
)
_ZONE = r"(?:Z|[ ]?[+-]\d\d:?\d\d)?(?!\w)"
_MONTH = r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]*[ ]+\d{1,2}(?:[ ]+\d{4})?"
_SOURCE = (
    r"(?<![\w./\\-])[\w./\\-]+?\.(?:py|cpp|cc|cu|cuh|c|h|hpp|rs|go|jl|js|lua|ipynb):\d+(?::\w+)?"
)
_FILE = (
    r"(?<![\w./\\+=-])[\w./\\+=-]+?\.(?:pth?|ckpt|bin|safetensors|np[yz]|ya?ml|json|csv|txt|log|pkl"
    r"|h5|onnx|jpe?g|png)\b"
)
_PATH = r"(?:https?://|(?<![\w)])[~.]?/(?=[\w.+-]+/))[^\s,;'\"\])]+"
_HEX = r"0x[0-9a-fA-F]+|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_HASH = r"(?<![\w.+-])(?=[\de]*+[a-df])(?=[a-f]*+\d)[a-f\d]{7,64}+(?![\w.])"
_VERSION = r"(?<![\w.])v?\d+\.\d+\.\d+(?:\.\d+)?(?:[-+.]?[a-z]+\d*)?(?::\d+)?(?![\w.])"
_PROCESS = (
    r"\(?\b(?:pid|PID|ppid|tid)[=: ]\s?\d+(?:,[ ][^)]*)?\)?|cuda:\d+|\bGPU[ ]?\d+\b(?!\.\d)"
    r"|\(\w+:\d+\)"
)
_GLOG = r"^[IWEF]\d{4}[ ]"
_LEFT = r"<\?|<[ ]?\d+:\d\d(?::\d\d)?"

MASK = re.compile(
    r"(?P<bar>(?<!\s)\s*+(?<!\d)\d++(?:\.\d++)?+%\s?\|[^|]*\||\[[=>.\-# ]{5,}\]"
    r"|[━╸╺─▏▎▍▌▋▊▉█░▒▓]{3,}(?:[ ]?[━╸╺─]+)*)"
    rf"|(?P<token>{_PATH}|{_HEX}|{_HASH}|{_FILE})"
    rf"|(?P<shape>{_GLOG}|{_SOURCE}"
    rf"|(?:(?<!\d)\d++[ ]days?,[ ])?(?:{_DATE})(?:[T ,]+{_CLOCK})?{_ZONE}"
    rf"|{_MONTH}(?=[ ,]+\d\d:\d\d)|(?:(?<!\d)\d++[ ]days?,[ ])?(?<![\w.]){_CLOCK}|{_LEFT}"
    rf"|{_VERSION}"
    rf"|{_PROCESS})"
)
"""One stretch of a line whose digits are not to be read; the group says how it may vary."""

_LEVEL = r"(?:TRACE|DEBUG|INFO|WARN|WARNING|ERROR|CRITICAL|FATAL|SUCCESS|Info|Warning|Error)"
_PREFIX = re.compile(
    r"(?:\[(?:rank|default)\d+\]:[ ]?|\d{1,3}:[ ](?=\[|\d{4}))?"
    rf"(?:[\[(]?(?:{_GLOG}[^\]]*|(?:(?<!\d)\d++[ ]days?,[ ])?(?:{_DATE})?[T ,]*{_CLOCK}{_ZONE}"
    rf"|{_DATE})"
    r"(?:[ ][\w.]+\]:?|[\])])?(?:[ ]?[-|:,]+)?[ ]?)?"
    rf"(?:[ ]?[\[(<|]?(?:[\w.]+[ ][-|][ ])?{_LEVEL}[ ]*[\])>|]?(?:[ ]?[-|:]|(?=[ ]))[ ]?)?"
    r"(?:\[[\w.]+\.py:\d+(?::\w+)?\][ ]?)?(?:copypaste: )?"
)


def masks(text: str) -> list[tuple[int, int, str]]:
    """The stretches that :data:`MASK` finds: start, end, and which group.

    >>> masks("[2024-05-01 10:00:01] train.py:12 loss: 0.5")
    [(1, 20, 'shape'), (22, 33, 'shape')]
    """
    return [(*found.span(), found.lastgroup or "shape") for found in MASK.finditer(text)]


def blanked(text: str, spans: list[tuple[int, int, str]]) -> str:
    """The line with those stretches as blanks that no name and no number contains.

    >>> blanked("at 10:00:01 x", [(3, 11, "shape")]) == "at " + chr(1) * 8 + " x"
    True
    """
    parts, end = list[str](), 0
    for start, stop, _ in spans:
        parts += (text[end:start], "\x01" * (stop - start))
        end = stop
    return "".join((*parts, text[end:]))


def payload_of(text: str) -> int:
    """Where what was logged begins, behind time, level and the like.

    >>> line = "2024-05-01 10:00:01,123 - INFO -   Mean: 0.5"
    >>> line[payload_of(line):]
    '  Mean: 0.5'
    """
    found = _PREFIX.match(text)
    return found.end() if found else 0
