"""Text from a log on its way into a page."""

from __future__ import annotations

import re
from html import escape

__all__ = ["capital", "clean_text", "safe"]

_FORBIDDEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def clean_text(text: str) -> str:
    r"""Text without the characters that neither XML nor a page may hold.

    >>> clean_text("loss\x00\ud800 <b>") == "loss\ufffd\ufffd <b>"
    True
    """
    return _FORBIDDEN.sub("\ufffd", text)


def safe(value: object) -> str:
    """Anything as text that stands in a page for itself.

    >>> safe("<script>")
    '&lt;script&gt;'
    """
    return escape(clean_text(str(value)))


def capital(text: str) -> str:
    """The first letter large, unless the text begins with the name of a column.

    >>> capital("the loss rose"), capital("loss_box rose")
    ('The loss rose', 'loss_box rose')
    """
    first = text.split(" ", 1)[0]
    return text[:1].upper() + text[1:] if first.isalpha() and first.islower() else text
