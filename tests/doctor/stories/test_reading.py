"""How lines of the stories are read: headings, settings, ranks, words that name no table."""

from __future__ import annotations

import io

import pytest
from consoles import Lines, refdet_losses, refdet_start

from surefoot.journal.foreign import read_log
from surefoot.journal.series import Column, LoggedRun, Role


def read(lines: Lines) -> LoggedRun:
    (run,) = read_log(io.BytesIO(("\n".join(lines) + "\n").encode("utf-8")))
    return run


def named(run: LoggedRun, name: str) -> Column:
    return next(column for column in run.columns if column.name == name)


def test_a_name_with_its_value_in_words_is_no_head_of_a_table() -> None:
    lines = refdet_start()
    for i in range(5):
        lines += refdet_losses(i, 3.0 - 0.1 * i, bbox=2.0 - 0.1 * i, cls=1.0)
    run = read(lines)
    assert named(run, "bbox_loss").role is Role.TERM
    assert named(run, "Total Loss").role is Role.LOSS
    assert not run.of(Role.LEARNING_RATE)


def test_a_score_below_a_heading_of_losses_is_a_score() -> None:
    lines = Lines()
    for i in range(5):
        lines += ["Loss Components:", f"  total: {3 - 0.1 * i:.4f}", f"  Mean IoU: {0.1 * i:.4f}"]
    assert named(read(lines), "Mean IoU").role is Role.METRIC


@pytest.mark.parametrize(
    "form", ["[rank{}] epoch {} loss {:.6f}", "Rank {} | epoch {} | loss {:.6f}"]
)
@pytest.mark.parametrize("apart", [0.0, 0.01])
def test_losses_of_ranks_are_compared_step_by_step(form: str, apart: float) -> None:
    lines = [form.format(r, e, 3 - 0.05 * e + r * apart) for e in range(1, 13) for r in (0, 1)]
    column = next(c for c in read(lines).columns if c.group == "other rank")
    assert column.role is Role.OTHER
    assert column.values == pytest.approx([apart] * 12)


def test_lines_of_one_rank_have_none_to_be_compared_with() -> None:
    run = read([f"[rank0] epoch {e} loss {3 - 0.05 * e:.6f}" for e in range(12)])
    assert not [c for c in run.columns if c.group == "other rank"]


def test_a_stage_with_numbers_behind_it_is_a_line_of_numbers() -> None:
    run = read([f"Stage 2 epoch {e} loss {3 - 0.1 * e:.4f}" for e in range(8)])
    assert len(named(run, "loss").values) == 8
    assert not [m for m in run.messages if m.kind == "phase"]


def test_settings_that_the_rules_ask_for() -> None:
    lines = [
        "python train.py --lr 2e-5 --ema-decay 0.9999 --min-lr 1e-6 --dfl_weight 0.15",
        "Initial learning rate: 2.000000e-06",
        *(f"step {i}: loss {3 - 0.1 * i:.3f}" for i in range(5)),
    ]
    asked = {"lr", "ema_decay", "min_lr", "dfl_weight", "initial_lr"}
    told = {name: float(value) for name, value in read(lines).settings.items() if name in asked}
    assert told == {
        "lr": 2e-5,
        "ema_decay": 0.9999,
        "min_lr": 1e-6,
        "dfl_weight": 0.15,
        "initial_lr": 2e-6,
    }


@pytest.mark.parametrize("said", ["Scheduler: LambdaLR", "Mixed precision: amp=True"])
def test_a_setting_in_words_leaves_the_bars_below_it_alone(said: str) -> None:
    bars = [f"Epoch 1: {i}%|  | {i}/100 [00:1{i}<04:11, loss={3 - 0.1 * i:.4f}]" for i in range(9)]
    run = read([said, *bars])
    assert named(run, "loss").role is Role.LOSS
    assert not [c for c in run.columns if c.role is Role.METRIC]
