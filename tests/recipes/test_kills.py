"""A training that is killed at random moments, in a save too, ends as if nothing had been."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from benchmarks.kill import BEGIN, END, RECIPES, Tally, difference, torment, write_between_marks

from surefoot.checkpoint import CheckpointStore

SEED = 90
"""Draws a kill within a save, a SIGTERM, and a kill after a step."""


def test_a_training_killed_three_times_ends_bit_for_bit_as_the_one_that_was_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tally = torment(RECIPES["refdet, tiny"], tmp_path, kills=3, seed=SEED, lives=3)
    assert not tally.differ
    assert tally.courses == 1
    assert dict(tally.kills) == {"save": 1, "SIGTERM": 1, "step": 1}
    assert tally.row("refdet").endswith("| 1 of 1 |")
    assert "3 lives ended; differs: nothing" in capsys.readouterr().out


def test_a_difference_of_one_bit_is_found_and_named(tmp_path: Path) -> None:
    weight = torch.ones(2)
    runs = [tmp_path / name for name in ("a", "b", "c")]
    for run, value, best in zip(runs, (1.0, 1.0, 1.0000001), (0.5, 0.25, 0.5), strict=True):
        state = {"epoch": 1, "best": best, "noise": value}
        CheckpointStore(run / "checkpoints").save(
            1, state, weights={"model": {"w": weight * value}}
        )
    assert difference(runs[0], runs[0]) == ""
    assert difference(runs[0], runs[1]) == "state['best']"
    assert difference(runs[0], runs[2]) == "model['w']"
    shutil.rmtree(runs[1] / "checkpoints")
    assert difference(runs[0], runs[1]) == "there is no checkpoint to compare"
    assert "NO: model['w']" in Tally(courses=2, differ=["model['w']"]).row("refdet")


def test_the_result_takes_the_place_between_the_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", "utf-8")
    write_between_marks(page, "new")
    assert page.read_text("utf-8") == f"before\n{BEGIN}\nnew\n{END}\nafter\n"
    page.write_text("nothing", "utf-8")
    with pytest.raises(SystemExit, match="there is no <!-- kill: begin -->"):
        write_between_marks(page, "new")
