"""``surefoot rules``: what a rule of the doctor looks for, and what to do when it fires."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

from surefoot.doctor import RULES
from surefoot.errors import UsageError

__all__ = ["page_of", "run"]


def run(arguments: Sequence[str]) -> int:
    """Print the pages of the codes, or the list of all rules; returns the exit status."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: surefoot rules CODE...\n")
        print("\n".join(f"  {rule.code}  {rule.title}" for rule in RULES))
        return 0
    print("\n\n".join(page_of(code) for code in arguments))
    return 0


def page_of(code: str) -> str:
    """The page of a rule, as Markdown.

    Raises:
        UsageError: no rule has that code.
    """
    page = files("surefoot.doctor") / "pages" / f"{code.upper()}.md"
    if not code.isalnum() or not page.is_file():
        raise UsageError(
            f"surefoot rules {code}: no rule has that code. There are {RULES[0].code} to "
            f"{RULES[-1].code}; surefoot rules lists them."
        )
    return page.read_text("utf-8").rstrip()
