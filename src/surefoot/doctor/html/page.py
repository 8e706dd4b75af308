"""The page: the verdict first, then every run with its findings, what was looked at, and plots."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from importlib.resources import files

import numpy as np

from surefoot.doctor.case import Case
from surefoot.doctor.examine import CLEAN_BILL, Examination
from surefoot.doctor.finding import Evidence, Finding, RootCause
from surefoot.doctor.html.checks import checks_of
from surefoot.doctor.html.draw import draw
from surefoot.doctor.html.marks import marks_on
from surefoot.doctor.html.palette import css_variables
from surefoot.doctor.html.panels import Panel, panels_of
from surefoot.doctor.html.text import capital, safe

__all__ = ["report"]

MOST_DRAWN = 12
"""Runs that get plots, the sick ones first; of more, every one still gets its findings."""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""Nothing is fetched and no script runs, whatever a log holds."""


def report(examinations: Sequence[Examination], unread: Sequence[str] = ()) -> str:
    """The report as one HTML document that needs nothing else and asks no network for anything.

    Everything that comes from a log is escaped.

    Args:
        examinations: of one run or several.
        unread: sentences on logs that could not be read.

    Raises:
        ImportError: matplotlib is not there.

    >>> from surefoot.doctor import examine
    >>> from surefoot.journal.series import LoggedRun
    >>> page = report([examine(LoggedRun("<b>.log", "text", ()))])
    >>> "<b>.log" in page, "&lt;b&gt;.log" in page
    (False, True)
    """
    order = sorted(range(len(examinations)), key=lambda i: (examinations[i].verdict != "sick", i))
    drawn = set(order[:MOST_DRAWN])
    body = [_head(examinations), *(_alarm(problem) for problem in unread), "<main>"]
    if len(examinations) > 1:
        body.append(_contents(examinations))
    body += [_run(e, i, drawn=i in drawn) for i, e in enumerate(examinations)]
    return _document(_titled(examinations), "\n".join([*body, "</main>", _FOOTER]))


_FOOTER = (
    "<footer>Written by surefoot doctor. <code>surefoot rules CODE</code> tells more about a "
    "finding: what it means, what it is not, and what to do.</footer>"
)


def _document(title: str, body: str) -> str:
    style = css_variables() + (files("surefoot.doctor.html") / "page.css").read_text("utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{safe(title)}</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _titled(examinations: Sequence[Examination]) -> str:
    if len(examinations) == 1:
        return f"{examinations[0].verdict}: {examinations[0].run.source}"
    return f"{len(examinations)} runs examined"


# -- the verdict -----------------------------------------------------------------------------------


def _head(examinations: Sequence[Examination]) -> str:
    inner = _verdict(examinations[0]) if len(examinations) == 1 else _verdicts(examinations)
    return f'<header>\n<p class="brand">surefoot doctor</p>\n{inner}\n</header>'


def _verdict(examination: Examination) -> str:
    run = examination.run
    about = f"{run.source} ({run.format}, {run.lines:,} lines)"
    if not examination.judged:
        words = ("note", "nothing to judge", "There is nothing in this log to judge")
        lead = (
            "No loss, metric, gradient norm, loss scale, learning rate or memory was found in it."
        )
    else:
        first = examination.findings[0]
        if examination.healthy:
            words = ("healthy", "healthy", capital(first.title))
            lead = capital("; ".join(str(fact) for fact in first.evidence)) + "."
        else:
            words = (first.severity.value, first.severity.value, capital(first.cause.sentence))
            lead = f"{capital(first.title)}. {capital(_where(first))}."
    kind, badge, title = words
    return (
        f'<span class="badge {kind}">{badge}</span>\n<h1 id="verdict">{safe(title)}</h1>\n'
        f'<p>{safe(lead)}</p>\n<p class="small">{safe(about)}</p>'
    )


def _verdicts(examinations: Sequence[Examination]) -> str:
    sick = sum(e.verdict == "sick" for e in examinations)
    kind = "critical" if sick else "healthy"
    words = f"{sick} of {len(examinations)} runs are sick" if sick else "No run is sick"
    return f'<span class="badge {kind}">{"sick" if sick else "healthy"}</span>\n' + (
        f'<h1 id="verdict">{words}</h1>'
    )


def _contents(examinations: Sequence[Examination]) -> str:
    rows = [
        [f'<a href="#run-{i}">{safe(e.run.source)}</a>', safe(e.verdict), _first_word(e)]
        for i, e in enumerate(examinations)
    ]
    return _table(("Log", "Verdict", "Most likely cause"), rows)


def _first_word(examination: Examination) -> str:
    first = next((f for f in examination.findings if f.sick), None)
    return "" if first is None else f"<code>{first.cause.value}</code> ({safe(first.code)})"


def _alarm(problem: str) -> str:
    return f'<main><p class="finding warning">Could not be read: {safe(problem)}</p></main>'


# -- a run -----------------------------------------------------------------------------------------


def _run(examination: Examination, index: int, *, drawn: bool) -> str:
    run = examination.run
    parts = [f'<section id="run-{index}">', f"<h2>Run: {safe(run.source)}</h2>"]
    if run.notes:
        parts.append(_list("ul", run.notes[:8], "small"))
    parts += [_finding(finding) for finding in examination.findings]
    if examination.explained:
        parts.append("<h3>What these explain</h3>")
        parts.append(
            _list("ul", [f"{f.code}: {f.title} (by {by})" for f, by in examination.explained])
        )
    parts.append(_plots(examination, index) if drawn else _UNDRAWN)
    return "\n".join([*parts, checks_of(examination), "</section>"])


_UNDRAWN = f'<p class="small">No plots: a report draws {MOST_DRAWN} runs at most.</p>'


def _finding(finding: Finding) -> str:
    clean = finding.code == CLEAN_BILL
    kind = "healthy" if clean else finding.severity.value
    cause = f"<code>{finding.cause.value}</code>"
    if finding.sick or finding.cause is not RootCause.UNKNOWN:
        cause += f": {safe(finding.cause.sentence)}"
    parts = [
        f'<article class="finding {kind}">',
        f'<h3><span class="code">{safe(finding.code)}</span> {safe(capital(finding.title))}</h3>',
        f'<p class="small">{finding.severity.value}, {cause}; {safe(_where(finding))}</p>',
    ]
    if finding.evidence:
        rows = [_fact(fact) for fact in finding.evidence]
        parts.append(_table(("Evidence", "Value", "In words"), rows))
    for title, items, tag in (
        ("What it is not", finding.not_this, "ul"),
        ("What to do", finding.remedy, "ol"),
        ("What to log next", finding.log_next, "ul"),
    ):
        if items:
            parts += [f"<h4>{title}</h4>", _list(tag, items)]
    return "\n".join([*parts, "</article>"])


def _fact(fact: Evidence) -> list[str]:
    value = f"{fact.value:.6g}" if isinstance(fact.value, float | int) else fact.value
    short = value if len(value) <= 60 else f"{value[:59]}…"
    return [safe(fact.name.replace("_", " ")), f"<code>{safe(short)}</code>", safe(fact.text)]


def _where(finding: Finding) -> str:
    place = [f"step {finding.step:,g}"] if not math.isnan(finding.step) else []
    place += [f"line {finding.first_line:,} of the log"] if finding.first_line is not None else []
    sure = f"{finding.confidence:.0%} sure"
    return f"{sure}, from {' ('.join(place)}{')' if len(place) > 1 else ''} on" if place else sure


def _plots(examination: Examination, index: int) -> str:
    case = Case(examination.run)
    panels, lone = panels_of(case)
    main = case.loss or next(iter(case.columns), None)
    per = main.per if main is not None else "step"
    shown = [f for f in examination.findings if f.code != CLEAN_BILL]
    figures = [_figure(p, shown, per, f"run-{index}-{p.slug}") for p in panels]
    once = [
        f"{line.label} {line.y[np.isfinite(line.y)][0]:.6g}"
        for panel in lone
        for line in panel.lines
        if np.isfinite(line.y).any()
    ]
    if once:
        figures.append(f'<p class="small">Not drawn, logged once: {safe(", ".join(once))}.</p>')
    return "\n".join(figures)


def _figure(panel: Panel, findings: Sequence[Finding], per: str, place: str) -> str:
    drawing = draw(panel, marks_on(panel, findings, per), f"{place}-")
    unit = f' <span class="small">{panel.unit}</span>' if panel.unit else ""
    log = ' <span class="small">logarithmic</span>' if panel.log else ""
    note = f'<p class="small">{safe(panel.note)}</p>' if panel.note else ""
    caption = f"<figcaption>{safe(panel.title)}{unit}{log}</figcaption>"
    frame = f'<div class="frame">{drawing}</div>'
    return f'<figure id="{place}">{caption}{frame}{note}</figure>'


# -- pieces ----------------------------------------------------------------------------------------


def _table(heads: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are HTML already."""
    head = "".join(f"<th>{safe(one)}</th>" for one in heads)
    body = "\n".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    table = f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>"
    return f'<div class="wide">{table}</div>'


def _list(tag: str, items: Iterable[object], kind: str = "") -> str:
    styled = f' class="{kind}"' if kind else ""
    return f"<{tag}{styled}>{''.join(f'<li>{safe(one)}</li>' for one in items)}</{tag}>"
