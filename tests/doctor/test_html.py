"""The report as a page: complete, self-contained, escaped, and drawn from thinned numbers."""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from cases import PAIRS
from hypothesis import given
from hypothesis import strategies as st
from logs import ROLES, falling, log, noisy, said

from surefoot import cli
from surefoot.doctor import examine
from surefoot.doctor.case import Case
from surefoot.doctor.html import report, write_report
from surefoot.doctor.html.palette import COLORS
from surefoot.doctor.html.panels import panels_of
from surefoot.doctor.html.thin import thin
from surefoot.errors import ConfigError
from surefoot.journal.series import Column, LoggedRun, Message, Role

NAN = float("nan")
EVIL = "<script>alert(1)</script>"
VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """Ids, tags and text of a page; every element must be closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        given = dict(attrs)
        self.ids += [given["id"] or ""] if "id" in given else []
        self.links += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href", "data")]
        self.links += re.findall(r"url\(([^)]*)\)", " ".join(v or "" for _, v in attrs))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def full_run(size: int = 400) -> LoggedRun:
    """A run with a column of every kind that is drawn, and that goes wrong."""
    loss = np.append(falling(size - 10), [3.0, 5.0, 9.0, *[NAN] * 7])
    columns = {
        "loss": loss,
        "val_loss": noisy(loss, 0.02),
        "box": loss * 0.6,
        "cls": loss * 0.4,
        "grad_norm": np.append(noisy(np.ones(size - 10), 0.2), [30, 90, 400, *[NAN] * 7]),
        "loss_scale": np.where(np.arange(size) < 9, 65536.0, 8192.0),
        "lr": np.full(size, 1e-3),
        "lr_backbone": np.full(size, 1e-4),
        "host_memory": np.linspace(2, 6, size) * 2**30,
        "device_memory": np.full(size, 3.0 * 2**30),
        "mAP": np.linspace(0, 0.6, size),
    }
    told = [said("refused", 40, "step 39 was refused: the loss was NaN or Inf")]
    return log(*told, settings={"gradient_clip_norm": "2.0", "dtype": "fp16"}, **columns)


@pytest.fixture(scope="module")
def page() -> str:
    return report([examine(full_run())])


def test_verdict_findings_checks_and_every_plot_are_in_it(page: str) -> None:
    seen = Page(page)
    words = " ".join(seen.words)
    for figure in (
        "loss", "terms", "shares", "gradient", "scale", "rates", "memory-host", "memory-device",
        "metrics-0",
    ):  # fmt: skip
        assert f"run-0-{figure}" in seen.ids
    assert seen.tags.count("svg") == 9
    for words_of in (
        "critical", "What it is not", "What to do", "What to log next", "What was looked at",
        "What could not be looked at", "How 11 columns were read", "clip at 2", "MiB a step",
    ):  # fmt: skip
        assert words_of in words
    for finding in examine(full_run()).findings:
        assert finding.code in words
        assert str(finding.evidence[0]) in words
    assert seen.open == []


def test_the_verdict_comes_first_and_in_plain_words(page: str) -> None:
    first = examine(full_run()).findings[0]
    said_ = " ".join(Page(page).words)
    sentence = first.cause.sentence
    assert said_.index(sentence[1:]) < said_.index(first.title[1:]) < said_.index("Evidence")


def test_it_asks_nothing_of_any_network_and_runs_nothing(page: str) -> None:
    seen = Page(page)
    assert not {"script", "iframe", "object", "embed", "img"} & set(seen.tags)
    assert all(link.startswith(("#", "data:,")) for link in seen.links)
    assert "default-src 'none'" in page
    assert re.findall(r"@import|@font-face|https?:(?!//www\.w3\.org/2000/svg)", page) == []


def test_ids_are_of_one_element_each_and_references_lead_somewhere(page: str) -> None:
    seen = Page(page)
    assert len(set(seen.ids)) == len(seen.ids)
    assert {link[1:] for link in seen.links if link.startswith("#")} <= set(seen.ids)


def test_colours_are_the_pages_and_text_is_text(page: str) -> None:
    plots = "".join(re.findall(r"<svg.*?</svg>", page, re.S))
    assert re.findall(r"#[0-9a-f]{6}", plots) == []
    assert "font-family" not in plots
    assert ">grad_norm</text>" in plots
    assert "prefers-color-scheme:dark" in page
    assert "@media print" in page


def luminance(color: str) -> float:
    parts = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_every_colour_can_be_told_from_the_paper(scheme: int) -> None:
    """The contrast that WCAG 2.1 asks of words, which a series' name is, too."""
    for paper in ("paper", "card"):
        ground = luminance(COLORS[paper][scheme])
        for name, shades in COLORS.items():
            if name in ("paper", "card", "grid", "edge"):
                continue
            shade = luminance(shades[scheme])
            contrast = (max(shade, ground) + 0.05) / (min(shade, ground) + 0.05)
            assert contrast >= 4.5, (name, paper, contrast)


def evil_run() -> LoggedRun:
    steps, lines = np.arange(40.0), np.arange(40)
    names = {EVIL: Role.LOSS, f"{EVIL} $\\frac": Role.TERM, "a\x00b\ud800": Role.TERM}
    columns = [
        Column(name, role, np.append(falling(36), [NAN] * 4), steps, lines, read_as=EVIL)
        for name, role in names.items()
    ]
    told = Message("exception", 39, f"ValueError: {EVIL} & <img src=x onerror=alert(2)>", step=39)
    notes = (f"a note {EVIL}",)
    return LoggedRun(
        f"{EVIL}.log", EVIL, tuple(columns), (told,), {"lr": EVIL}, lines=40, notes=notes
    )


def test_everything_from_the_log_is_escaped() -> None:
    text = report([examine(evil_run())], unread=[f"could not read {EVIL}"])
    seen = Page(text)
    assert "script" not in seen.tags
    assert "img" not in seen.tags
    assert any(EVIL in words for words in seen.words)
    assert "\x00" not in text
    text.encode("utf-8")


def test_several_runs_have_a_list_and_the_sick_are_counted() -> None:
    runs = [examine(full_run()), examine(log(loss=falling(60))), examine(log(anchors=[1.0]))]
    seen = Page(report(runs))
    words = " ".join(seen.words)
    assert "1 of 3 runs are sick" in words
    assert [i for i in seen.ids if i.startswith("run-") and i.count("-") == 1] == [
        "run-0", "run-1", "run-2",
    ]  # fmt: skip
    assert "nothing to judge" in words


def test_a_value_that_stands_alone_is_said_and_not_drawn() -> None:
    text = report([examine(log(loss=[2.5], lr=[1e-3]))])
    assert "logged once: loss 2.5" in " ".join(Page(text).words)
    assert "<svg" not in text


def test_a_log_without_steps_is_drawn_over_its_lines() -> None:
    run = log(loss=falling(5), every=0)
    (panel,), _ = panels_of(Case(run))
    assert panel.per == "line of the log"
    assert np.ptp(panel.lines[0].x) > 0


def test_shares_are_those_of_the_weighted_terms_and_make_a_whole() -> None:
    panels, _ = panels_of(Case(full_run()))
    shares = next(panel for panel in panels if panel.slug == "shares")
    total = np.sum([line.y for line in shares.lines], axis=0)
    assert np.allclose(total[np.isfinite(total)], 100.0)
    assert np.isnan(total[-7:]).all()
    terms = next(panel for panel in panels if panel.slug == "terms")
    assert {t.label: t.color for t in terms.lines} == {s.label: s.color for s in shares.lines}


@given(st.lists(st.floats(width=32), min_size=1, max_size=3000), st.integers(1, 40))
def test_thinning_keeps_the_extremes_and_both_ends(values: list[float], bins: int) -> None:
    column = np.array(values)
    kept = thin(column, bins)
    assert np.all(np.diff(kept) > 0)
    assert kept.size <= max(8 * bins + 8, 4 * bins)
    assert {0, column.size - 1} <= set(kept.tolist())
    finite = column[np.isfinite(column)]
    if finite.size:
        shown = column[kept]
        shown = shown[np.isfinite(shown)]
        assert (shown.min(), shown.max()) == (finite.min(), finite.max())


def test_a_long_run_makes_a_page_of_bounded_size() -> None:
    short, long = (len(report([examine(full_run(size))])) for size in (3_000, 60_000))
    assert long < 1.5 * short < 1_500_000


@pytest.mark.parametrize("code", PAIRS)
def test_every_kind_of_finding_has_a_page(code: str) -> None:
    assert f">{code}<" in report([examine(PAIRS[code].fires, _rules(code))])


def _rules(code: str) -> list[object]:
    from surefoot.doctor import RULES

    return [rule for rule in RULES if rule.code == code]


@pytest.mark.parametrize(
    "columns",
    [
        {},
        {"loss": [NAN] * 5, "grad_norm": [float("inf")] * 5, "lr": [0.0] * 5},
        {"loss": [-1e308, 1e308, 0.0], "loss_scale": [0.0, 0.0, 2.0], "mAP": [1e300, -1e300, 0.0]},
        {"loss": [1e-300, 1e300, 1.0], "grad_norm": [5e-324, 1.0, 2.0], "host_memory": [0.0] * 3},
        {"box": [1.0, NAN, 2.0], "cls": [0.0, 0.0, 0.0]},
    ],
)
def test_no_numbers_make_it_fail(columns: dict[str, list[float]]) -> None:
    assert Page(report([examine(log(**columns))])).open == []


@pytest.mark.parametrize("seed", range(4))
def test_nor_do_columns_of_anything(seed: int) -> None:
    generator = np.random.default_rng(seed)
    columns = {
        name: 10.0 ** generator.uniform(-310, 300, 9) * generator.choice([-1, 1, NAN], 9)
        for name in ROLES
    }
    assert Page(report([examine(log(**columns))])).open == []


def test_the_command_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "a.log"
    source.write_text("".join(f"step {i}: loss {2 - i / 99:.3f}\n" for i in range(60)), "utf-8")
    path = tmp_path / "new" / "report.html"
    assert cli.main(["doctor", str(source), "--html", str(path)]) == 0
    assert f"Report: {path}" in capsys.readouterr().out
    assert "Nothing is wrong with what this log shows" in path.read_text("utf-8")
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    assert cli.main(["doctor", str(source), "--json", "--html", str(path)]) == 0
    assert f"Report: {path}" in capsys.readouterr().err


def test_without_matplotlib_the_command_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert cli.main(["doctor", str(tmp_path / "a.log"), "--html", str(tmp_path / "r.html")]) == 2
    assert "pip install 'surefoot[report]'" in capsys.readouterr().err


def test_a_report_that_cannot_be_written_says_where(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    with pytest.raises(ConfigError, match=r"could not be written to .*report\.html"):
        write_report(tmp_path / "file" / "report.html", [examine(log(loss=falling(9)))])
