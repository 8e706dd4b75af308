"""The report in a real headless Chromium: nothing asked of a network, no error, all of it there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from test_html import evil_run, full_run

from surefoot.doctor import examine
from surefoot.doctor.html import write_report
from surefoot.journal.series import LoggedRun

BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no chromium and no google-chrome on the path to open the report in"
)
# The page itself runs no script, so that another one, which holds it in a frame, measures it.
PROBE = """<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,">
<iframe src="report.html" style="width:1100px;height:900px"></iframe><pre id="told"></pre><script>
addEventListener("load", () => {
  const inner = document.querySelector("iframe").contentWindow, page = inner.document;
  const box = (e) => { const r = e.getBoundingClientRect(); return [r.width, r.height]; };
  document.getElementById("told").textContent = JSON.stringify({
    dark: inner.matchMedia("(prefers-color-scheme: dark)").matches,
    ground: inner.getComputedStyle(page.body).backgroundColor,
    ink: inner.getComputedStyle(page.querySelector("#verdict")).color,
    verdict: page.querySelector("#verdict").textContent,
    title: box(page.querySelector("#verdict")),
    figures: [...page.querySelectorAll("svg.plot")].map((f) => [f.id, ...box(f)]),
    paths: [...page.querySelectorAll("svg path")].filter((p) => p.getTotalLength() > 0).length,
    labels: [...page.querySelectorAll("svg text")].map((t) => [
      t.firstChild ? t.firstChild.textContent : "", inner.getComputedStyle(t).fill, ...box(t),
    ]),
    overflow: page.documentElement.scrollWidth - inner.innerWidth,
    fetched: inner.performance.getEntriesByType("resource").map((e) => e.name),
  });
});
</script>"""


@pytest.fixture(params=["light", "dark"])
def opened(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Callable[..., tuple[dict[str, Any], str]]:
    """Opens reports of runs; gives what was measured, and what the browser complained of."""

    def measure(run: LoggedRun, more: str = "") -> tuple[dict[str, Any], str]:
        page = write_report(tmp_path / "report.html", [examine(run)])
        if more:
            page.write_text(more + page.read_text("utf-8"), "utf-8")
        (tmp_path / "probe.html").write_text(PROBE, "utf-8")
        scheme = 0 if request.param == "dark" else 1
        done = subprocess.run(
            [
                BROWSER or "", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
                "--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND",
                "--allow-file-access-from-files",
                "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}",
                f"--log-net-log={tmp_path / 'net.json'}",
                f"--blink-settings=preferredColorScheme={scheme}", "--window-size=1200,1000",
                "--virtual-time-budget=5000", "--dump-dom", (tmp_path / "probe.html").as_uri(),
            ],
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
        told = re.search(r'<pre id="told">(.*?)</pre>', done.stdout, re.S)
        assert told is not None, done.stderr
        assert told[1], done.stderr
        return json.loads(unescape(told[1])) | {"scheme": request.param}, done.stderr

    return measure


def asked_by_pages(tmp_path: Path) -> set[str]:
    """Addresses that a page wanted; what the browser asks on its own has no origin."""
    text = (tmp_path / "net.json").read_text("utf-8", "replace")
    requests = re.findall(r'"initiator":"([^"]*)".*?"url":"([a-z]+:[^"]*)"', text)
    return {url for by, url in requests if by != "not an origin" and not url.startswith("file:")}


def complaints(stderr: str) -> list[str]:
    return [line for line in stderr.splitlines() if "CONSOLE" in line]


def test_the_verdict_and_every_plot_are_there(
    opened: Callable[..., tuple[dict[str, Any], str]],
) -> None:
    told, stderr = opened(full_run())
    assert complaints(stderr) == []
    first = examine(full_run()).findings[0]
    assert told["verdict"].lower() == first.cause.sentence
    assert min(told["title"]) > 20
    assert len(told["figures"]) == 9
    assert all(width > 600 and height > 150 for _, width, height in told["figures"])
    assert told["paths"] > 9
    assert told["overflow"] <= 0


def test_it_follows_the_readers_colour_scheme(
    opened: Callable[..., tuple[dict[str, Any], str]],
) -> None:
    told, _ = opened(full_run())
    dark = told["scheme"] == "dark"
    assert told["dark"] is dark
    ground, ink = (sum(map(int, re.findall(r"\d+", told[k])[:3])) for k in ("ground", "ink"))
    assert (ground < 120 < 600 < ink) if dark else (ink < 120 < 600 < ground)
    names = {text: fill for text, fill, width, height in told["labels"] if width and height}
    assert {"box", "cls", "grad_norm", "loss scale", "lr", "clip at 2"} <= set(names)
    of_terms = {names["box"], names["cls"]}
    assert len(of_terms) == 2
    assert names["loss"] == told["ink"]


def test_nothing_is_fetched(
    opened: Callable[..., tuple[dict[str, Any], str]], tmp_path: Path
) -> None:
    told, _ = opened(full_run())
    assert told["fetched"] == []
    assert asked_by_pages(tmp_path) == set()


def test_a_page_that_did_fetch_would_be_caught(
    opened: Callable[..., tuple[dict[str, Any], str]], tmp_path: Path
) -> None:
    told, stderr = opened(full_run(), '<!doctype html><img src="http://example.invalid/x.png">')
    assert told["fetched"] == ["http://example.invalid/x.png"]
    assert asked_by_pages(tmp_path) == {"http://example.invalid/x.png"}
    assert complaints(stderr) != []


def test_what_a_log_holds_is_never_run(
    opened: Callable[..., tuple[dict[str, Any], str]],
) -> None:
    told, stderr = opened(evil_run())
    assert complaints(stderr) == []
    assert any(text.startswith("<script>alert(1)") for text, *_ in told["labels"])
