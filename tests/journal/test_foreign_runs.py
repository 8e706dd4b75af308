"""Which step a value belongs to, and where a run ends and another begins."""

from __future__ import annotations

import io

import numpy as np
import pytest

from surefoot.journal.foreign import read_log
from surefoot.journal.series import Role


def runs(text):
    return read_log(io.StringIO(text))


def steps(run):
    return run.of(Role.LOSS)[0].steps.tolist()


def lines(*numbers, form="step {} loss 0.5"):
    return "".join(form.format(n) + "\n" for n in numbers)


def test_a_count_that_begins_again_is_a_second_run():
    first, second = runs(lines(10, 20, 30) + lines(10, 20, 30, 40))
    assert steps(first) == [10, 20, 30]
    assert steps(second) == [10, 20, 30, 40]
    assert second.of(Role.LOSS)[0].lines[0] == 4


def test_a_count_that_goes_back_a_little_is_a_resumed_run():
    (run,) = runs(lines(10, 20, 30, 40, 50) + lines(30, 40, 50, 60))
    assert steps(run) == [10, 20, 30, 40, 50, 30, 40, 50, 60]
    assert [(m.kind, m.line) for m in run.messages] == [("resumed", 6)]


def test_a_line_that_says_so_makes_a_resumed_run_of_one_that_begins_again():
    (run,) = runs(lines(0, 1, 2) + "Resuming from checkpoint at step 0\n" + lines(0, 1, 2))
    assert [m.kind for m in run.messages] == ["resumed"]


def test_a_program_that_begins_again_makes_a_second_run_of_one_that_goes_back():
    first, second = runs(
        lines(10, 20, 30, 40, 50) + "Namespace(lr=0.1, batch_size=8)\n" + lines(20, 30, 40)
    )
    assert steps(first) == [10, 20, 30, 40, 50]
    assert steps(second) == [20, 30, 40]
    assert second.settings == {"lr": "0.1", "batch_size": "8"}


def test_messages_stay_with_their_run():
    first, second = runs(lines(1, 2) + "ValueError: no\n" + lines(1, 2) + "KeyError: 'x'\n")
    assert [m.text for m in first.messages] == ["ValueError: no"]
    assert [(m.text, m.step) for m in second.messages] == [("KeyError: 'x'", 2.0)]


def test_a_jitter_between_processes_is_neither():
    order = [10, 20, 15, 25, 20, 30, 25, 35, 30, 40, 35, 45]
    (run,) = runs(lines(*order))
    assert run.messages == ()
    assert steps(run) == order


@pytest.mark.parametrize("form", ["Epoch {e} [{b}/100] loss 0.5", "[{e}][{b}/100] loss 0.5"])
def test_batches_are_counted_on_across_epochs(form):
    text = "".join(form.format(e=e, b=b) + "\n" for e in (1, 2, 3) for b in (50, 100))
    (run,) = runs(text)
    assert steps(run) == [50, 100, 150, 200, 250, 300]
    assert any("counted anew in each epoch; 100 of them" in note for note in run.notes)


def test_batches_without_a_total_are_counted_on_too():
    (run,) = runs(
        "".join(f"epoch {e} batch {b} loss 0.5\n" for e in (0, 1) for b in (0, 10, 20, 30))
    )
    assert steps(run) == [0, 10, 20, 30, 40, 50, 60, 70]


def test_bars_that_begin_again_at_their_end_are_epochs():
    bar = "{p}%|██  | {b}/40 [00:01<00:01, 9.0it/s, loss=0.5]\n"
    (run,) = runs(
        "".join(bar.format(p=b * 5 // 2, b=b) for _ in range(3) for b in (10, 20, 30, 40))
    )
    assert steps(run) == list(range(10, 121, 10))


def test_steps_that_run_on_across_epochs_are_left_alone():
    (run,) = runs(
        "".join(f"epoch {e} step {100 * e + b} loss 0.5\n" for e in (1, 2) for b in (10, 20))
    )
    assert steps(run) == [110, 120, 210, 220]
    assert [c.values.tolist() for c in run.columns if c.name == "epoch"] == [[1, 1, 2, 2]]


def test_the_batches_of_a_validation_are_no_steps():
    train = "Epoch 1 [{}/300] loss 0.5\n"
    valid = "Test: [ {}/30]  loss 0.7\n"
    (run,) = runs(
        "".join(train.format(b) + valid.format(0) + valid.format(20) for b in (100, 200, 300))
    )
    assert steps(run) == [100, 200, 300]
    assert run.of(Role.VALIDATION_LOSS)[0].steps.tolist() == [100, 100, 200, 200, 300, 300]


def test_values_above_the_first_step_have_the_first_step():
    (run,) = runs("warming up: val_loss 3.0\n" + lines(5, 6, 7))
    assert run.of(Role.VALIDATION_LOSS)[0].steps.tolist() == [5]


def test_without_any_count_values_are_numbered():
    (run,) = runs("loss: 0.5\nloss: 0.4\nloss: 0.3\n")
    assert steps(run) == [0, 1, 2]
    assert "no step or epoch was found; values are counted in their order" in run.notes


def test_a_bar_that_writes_over_itself_is_one_line_with_many_steps():
    text = "".join(
        f"\r{b}%|█  | {b}/100 [00:01<00:09, 9.0it/s, loss=0.{b}]" for b in (10, 20, 20, 30)
    )
    (run,) = runs("first line\n" + text + "\nlast line\n")
    (loss,) = run.of(Role.LOSS)
    assert loss.steps.tolist() == [10, 20, 30]
    assert set(loss.lines) == {2}
    assert run.lines == 3


def test_a_count_that_jumps_about_counts_nothing():
    rng = np.random.default_rng(0)
    text = "".join(f"step {n} loss 0.5\n" for n in rng.integers(5, 10**6, 40_000).tolist())
    (run,) = runs("step 1 loss 0.5\n" + text)
    assert steps(run) == list(range(40_001))
    assert any("back and forth" in note for note in run.notes)
