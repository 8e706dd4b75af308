"""The report's colours: one name each, one value for light and one for dark paper.

A plot is drawn in the light values; in the page each becomes a variable that the reader's colour
scheme decides.
"""

from __future__ import annotations

__all__ = ["COLORS", "SERIES", "css_variables", "light", "variable"]

COLORS: dict[str, tuple[str, str]] = {
    "paper": ("#ffffff", "#14181d"),
    "card": ("#f6f8fa", "#1b2027"),
    "ink": ("#1c2126", "#e6eaef"),
    "muted": ("#5b6570", "#9aa5b1"),
    "grid": ("#e2e6ea", "#2c333b"),
    "edge": ("#c8cfd6", "#434c56"),
    "critical": ("#c0281f", "#ff8078"),
    "warning": ("#8f5f00", "#e5b340"),
    "note": ("#48627d", "#94b4d4"),
    "healthy": ("#1b7d3a", "#57cf78"),
    "series-1": ("#1f64b4", "#73abff"),
    "series-2": ("#b25008", "#f59b52"),
    "series-3": ("#0c7f73", "#43c4b5"),
    "series-4": ("#8b40b3", "#c690f2"),
    "series-5": ("#ad2f68", "#f084b4"),
    "series-6": ("#647213", "#b8c550"),
    "series-7": ("#7b5433", "#cda070"),
    "series-8": ("#4d6073", "#a2b6ca"),
}
SERIES = tuple(name for name in COLORS if name.startswith("series-"))


def light(name: str) -> str:
    """The value that a plot is drawn in."""
    return COLORS[name][0]


def variable(value: str) -> str:
    """What stands in the page for a value that a plot was drawn in; others stay as they are.

    >>> variable("#1C2126"), variable("none")
    ('var(--ink)', 'none')
    """
    named = next((n for n, (shade, _) in COLORS.items() if shade == value.lower()), None)
    return value if named is None else f"var(--{named})"


def css_variables() -> str:
    """The style sheet's definitions, for both schemes; on real paper the light ones."""
    bright = "".join(f"--{name}:{shades[0]};" for name, shades in COLORS.items())
    dark = "".join(f"--{name}:{shades[1]};" for name, shades in COLORS.items())
    return (
        f":root{{color-scheme:light dark;{bright}}}\n"
        f"@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}\n"
    )
