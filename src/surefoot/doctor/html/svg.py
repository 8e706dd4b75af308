"""A plot as matplotlib writes it, made fit to stand inside a page beside others of its kind."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping

from surefoot.doctor.html.palette import variable
from surefoot.doctor.html.text import clean_text

__all__ = ["inline"]

_SVG, _LINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"
_LONG = re.compile(r"-?\d+\.\d{3,}")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_SHOWN = 26
"""Characters of a name that fit beside a plot."""


def inline(drawn: str, *, prefix: str, names: Mapping[str, str], title: str) -> str:
    """The ``<svg>`` element alone.

    Fonts are left to the page, colours become its variables, every id gets a prefix, coordinates
    two decimals. Names from a log never go through matplotlib: it draws a placeholder for each,
    which is replaced here, as text.

    Args:
        drawn: what matplotlib wrote.
        prefix: of every id; unique in the page.
        names: the text for each placeholder.
        title: what the plot shows, for those who cannot see it.
    """
    root = ET.fromstring(drawn)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{_SVG}metadata", f"{_SVG}style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        _own_ids(element, prefix)
        _page_style(element)
        if "d" in element.attrib:
            element.set("d", " ".join(_LONG.sub(_rounded, element.attrib["d"]).split()))
        if element.tag == "text":
            _name(element, names)
    for gone in ("width", "height", "version"):
        root.attrib.pop(gone, None)
    root.set("class", "plot")
    root.set("role", "img")
    root.set("aria-label", clean_text(title))
    return ET.tostring(root, encoding="unicode")


def _own_ids(element: ET.Element, prefix: str) -> None:
    if "id" in element.attrib:
        element.set("id", prefix + element.attrib["id"])
    if _LINK in element.attrib:
        element.set("href", f"#{prefix}{element.attrib.pop(_LINK).removeprefix('#')}")
    if "clip-path" in element.attrib:
        own = _REFERENCE.sub(rf"url(#{prefix}\1)", element.attrib["clip-path"])
        element.set("clip-path", own)


def _page_style(element: ET.Element) -> None:
    style = element.attrib.pop("style", "")
    kept: list[str] = []
    for declaration in style.split(";"):
        name, _, value = (part.strip() for part in declaration.partition(":"))
        if name == "font":  # size and family in one
            size = re.search(r"[\d.]+px", value)
            kept += [f"font-size:{size[0]}"] if size else []
        elif name and name != "font-family":
            kept.append(f"{name}:{variable(value)}")
    if kept:
        element.set("style", ";".join(kept))


def _name(element: ET.Element, names: Mapping[str, str]) -> None:
    whole = names.get((element.text or "").strip())
    if whole is None:
        return
    whole = clean_text(whole)
    element.text = whole if len(whole) <= _SHOWN else f"{whole[: _SHOWN - 1]}…"
    if element.text != whole:
        ET.SubElement(element, "title").text = whole


def _rounded(found: re.Match[str]) -> str:
    return f"{float(found[0]):.2f}".rstrip("0").rstrip(".")
