"""Formats that nobody foresaw: names, units, tables and roles learned from the text."""

from __future__ import annotations

import io

import numpy as np
import pytest

from surefoot.journal.foreign import read_log
from surefoot.journal.series import Role


def read(text):
    (run,) = read_log(io.StringIO(text))
    return run


def values(run, role):
    return {c.name: c.values.tolist() for c in run.of(role)}


@pytest.mark.parametrize(
    "line",
    [
        "step {i} loss {v} lr 1e-3",
        "step={i} loss={v} lr=1e-3",
        "step: {i} | loss: {v} | lr: 1e-3",
        "[{i}/90] loss: {v}, lr: 1e-3",
        "Iteration {i} of 90 - Loss {v} - LR 0.001",
        "2026-01-02 03:04:05,678 INFO [train.py:123] step {i}: loss = {v}; lr = 0.001",
        "I0814 12:34:56.789012 4711 run.cc:88] iter {i} loss={v} lr=0.001",
        "[rank0]: 10:11:12 it {i}\tloss {v}\tlr 1.0e-03",
        "(pid=4711) Step {i}/90, Loss: {v}, lr: 0.001, eta 1:02:03",
        '{{"step": {i}, "loss": {v}, "lr": 0.001}}',
        '{{"step": "{i}", "loss": "{v}", "lr": "0.001"}}',
        "{{'loss': {v}, 'lr': 0.001, 'step': {i}}}",
        "🚀 Step {i} ✓ loss: {v} ← best so far | lr: 0.001",
        "train {i:>6}/90 |████| loss={v}, lr=1e-03",
    ],
)
def test_one_line_is_enough_to_learn_a_format(line):
    run = read("".join(line.format(i=i, v=f"{3 - i / 30:.3f}") + "\n" for i in range(10, 90, 10)))
    (loss,), (rate,) = run.of(Role.LOSS), run.of(Role.LEARNING_RATE)
    assert loss.values.tolist() == [float(f"{3 - i / 30:.3f}") for i in range(10, 90, 10)]
    assert loss.steps.tolist() == list(range(10, 90, 10))
    assert loss.lines.tolist() == list(range(1, 9))
    assert set(rate.values) == {0.001}
    assert {c.role for c in run.columns} == {Role.LOSS, Role.LEARNING_RATE}


def test_what_is_no_measurement_is_not_read_as_one():
    run = read(
        "2026-01-02 03:04:05 host-12 [pid 4711] train.py:77 v1.2.3 10.0.0.7:29500 seed: 3 rank: 2 "
        "epoch 1 loss 0.5 eta 0:11:29 ckpt/model_12.pt deadbeef01 port: 8080 gpu: 1\n" * 2
    )
    assert [(c.name, c.values.tolist()) for c in run.columns] == [("loss", [0.5, 0.5])]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("nan", np.nan),
        ("-inf", -np.inf),
        ("Infinity", np.inf),
        ("1.#INF", np.inf),
        ("1.2e-05", 1.2e-5),
        ("1,234", 1234.0),
        ("0,123", 0.123),
        ("12.3k", 12300.0),
        ("4.97M", 4.97e6),
        ("+3.", 3.0),
        (".5", 0.5),
    ],
)
def test_numbers_as_they_are_spelled(text, value):
    run = read(f"step 1 loss: {text}\nstep 2 loss: {text}\n")
    assert np.array_equal(run.of(Role.LOSS)[0].values, [value, value], equal_nan=True)


@pytest.mark.parametrize(
    ("text", "role", "value"),
    [
        ("mem: 3.5GB", Role.DEVICE_MEMORY, 3.5 * 2**30),
        ("gpu_mem 3500MiB", Role.DEVICE_MEMORY, 3500 * 2**20),
        ("max_memory: 2.5G", Role.DEVICE_MEMORY, 2.5 * 2**30),
        ("memory: 7500", Role.DEVICE_MEMORY, 7500 * 2**20),
        ("ram: 12 GB", Role.HOST_MEMORY, 12 * 2**30),
        ("rss_mb: 512", Role.HOST_MEMORY, 512 * 2**20),
        ("step_time: 250ms", Role.STEP_TIME, 0.25),
        ("iter_time (ms): 250", Role.STEP_TIME, 0.25),
        ("speed: 120.5 samples/sec", Role.THROUGHPUT, 120.5),
        ("2.00s/it", Role.THROUGHPUT, 0.5),
        ("grad_norm: 3.5", Role.GRADIENT_NORM, 3.5),
        ("|g|=3.5", Role.GRADIENT_NORM, 3.5),
        ("loss_scale: 65536.0", Role.LOSS_SCALE, 65536),
        ("Scale 65536", Role.LOSS_SCALE, 65536),
        ("clip_norm: 1.0", Role.CLIP_THRESHOLD, 1),
        ("skipped: 3", Role.SKIPPED, 3),
        ("val_acc: 45.5%", Role.METRIC, 45.5),
        ("mAP@0.5: 0.31", Role.METRIC, 0.31),
        ("Accuracy: 9660/10000", Role.METRIC, 0.966),
        ("psnr 31.5", Role.METRIC, 31.5),
    ],
)
def test_names_and_units_tell_the_role(text, role, value):
    run = read(f"step 1 | loss 0.5 | {text}\nstep 2 | loss 0.4 | {text}\n")
    found = run.of(role)
    assert [c.values[0] for c in found] == pytest.approx([value]), [
        (c.name, c.role) for c in run.columns
    ]


def test_a_scale_is_one_by_its_values_too():
    run = read("".join(f"scale {s} anchors loss 0.{s}\n" for s in (1, 2, 3, 5)))
    assert not run.of(Role.LOSS_SCALE)


def test_metrics_know_which_way_is_better():
    run = read("step 1 loss 0.5 val_acc 0.5 val_ppl 31 fid 3.5 reward -2\n" * 2)
    better = {c.name: c.better for c in run.of(Role.METRIC)}
    assert better == {"val_acc": "higher", "val_ppl": "lower", "fid": "lower", "reward": "higher"}


def test_terms_are_told_from_their_sum_by_name_and_by_value():
    run = read(
        "".join(
            f"epoch {e} avg_loss_x: {0.1 * e + 2:.3f} cls_loss_x: {0.1 * e:.3f} box_loss_x: 1.5 "
            f"reg_loss_x: 0.5\n"
            for e in range(1, 6)
        )
    )
    assert list(values(run, Role.LOSS)) == ["avg_loss_x"]
    assert "the sum of the other losses" in run.of(Role.LOSS)[0].read_as
    assert set(values(run, Role.TERM)) == {"cls_loss_x", "box_loss_x", "reg_loss_x"}


def test_terms_that_are_not_named_as_losses_are_found_by_their_sum():
    run = read(
        "".join(f"it {i} loss={i + 1.5} (cls={i}, reg=1.5) dist={7 * i % 5}\n" for i in range(9))
    )
    assert set(values(run, Role.TERM)) == {"cls", "reg"}
    assert [c.name for c in run.of(Role.OTHER)] == ["dist"]


def test_losses_without_a_total_are_terms_and_a_lone_one_is_the_loss():
    run = read("step 1 d_loss 1.3 g_loss 0.7\nstep 2 d_loss 1.4 g_loss 0.6\n")
    assert set(values(run, Role.TERM)) == {"d_loss", "g_loss"}
    assert all("no total" in c.read_as for c in run.of(Role.TERM))
    assert list(values(read("it 1 seg_loss 0.4\nit 2 seg_loss 0.3\n"), Role.LOSS)) == ["seg_loss"]


def test_a_name_that_comes_twice_on_a_line_belongs_to_the_side_before_it():
    run = read(
        "".join(
            f"Epoch {e} | train: loss 0.{e} acc 0.5 | val: loss 0.{e}5 acc 0.4\n" for e in (1, 2)
        )
    )
    assert values(run, Role.LOSS) == {"loss": [0.1, 0.2]}
    assert values(run, Role.VALIDATION_LOSS) == {"loss": [0.15, 0.25]}
    assert [c.group for c in run.of(Role.METRIC)] == ["", "validation"]


def test_blocks_of_lines_take_the_step_from_the_line_above():
    run = read(
        "".join(
            f"-----\nEpoch: {e}/3\nTime Taken: 30.{e}s - LR: 1e-0{e}\n"
            f"Train Loss: {4 - e} - Train Perplexity: 50.1\nValid Loss: {5 - e}\n"
            for e in (1, 2, 3)
        )
    )
    assert run.of(Role.LOSS)[0].steps.tolist() == [1, 2, 3]
    assert run.of(Role.VALIDATION_LOSS)[0].values.tolist() == [4, 3, 2]
    assert run.of(Role.LEARNING_RATE)[0].per == "epoch"


def test_headings_tell_numbers_of_one_name_apart():
    block = (
        "[10:00:0{i}] DEBUG - Gradient Norms:\n[10:00:0{i}] DEBUG -   Total Grad Norm: {i}.5\n"
        "[10:00:0{i}] DEBUG -   head.weight: {i}.25\n[10:00:0{i}] DEBUG - \n"
        "[10:00:0{i}] INFO - IoU Distribution:\n[10:00:0{i}] INFO -   Mean: 0.1\n"
        "[10:00:0{i}] INFO - Confidence:\n[10:00:0{i}] INFO -   Mean: 0.9\n"
    )
    run = read("".join(block.format(i=i) for i in range(1, 5)))
    norms = {c.name: (c.group, c.values.tolist()) for c in run.of(Role.GRADIENT_NORM)}
    assert norms["Total Grad Norm"] == ("", [1.5, 2.5, 3.5, 4.5])
    assert norms["head.weight"][0] == "head.weight"
    means = {c.section: set(c.values) for c in run.columns if c.name == "Mean"}
    assert means == {"IoU Distribution": {0.1}, "Confidence": {0.9}}


TABLES = {
    "blanks": "epoch     train_loss  valid_loss  accuracy  time    \n{rows}",
    "markdown": "| Epoch | Train Loss | Valid Loss | Accuracy |\n|---|---|---|---|\n{rows}",
    "boxes": "┃ epoch ┃ train_loss ┃ valid_loss ┃ accuracy ┃\n{rows}",
}
ROWS = {
    "blanks": "{e}         0.{l}       0.{l}5       0.70      00:1{e}     \n",
    "markdown": "| {e} | 0.{l} | 0.{l}5 | 0.70 |\n",
    "boxes": "│ {e}     │ 0.{l}        │ 0.{l}5       │ 0.70     │\n",
}


@pytest.mark.parametrize("kind", TABLES)
def test_tables_in_text(kind):
    rows = "".join(ROWS[kind].format(e=e, l=9 - e) for e in range(4))
    run = read(TABLES[kind].format(rows=rows))
    assert run.of(Role.LOSS)[0].values.tolist() == [0.9, 0.8, 0.7, 0.6]
    assert run.of(Role.LOSS)[0].steps.tolist() == [0, 1, 2, 3]
    assert run.of(Role.VALIDATION_LOSS)[0].values.tolist() == [0.95, 0.85, 0.75, 0.65]


def test_upright_tables_of_names_and_numbers():
    run = read(
        "".join(
            f"| time/              |      |\n|    total_timesteps | {2048 * i} |\n"
            f"| train/             |      |\n|    loss            | 5.{i}  |\n"
            for i in (1, 2, 3)
        )
    )
    assert values(run, Role.LOSS) == {"loss": [5.1, 5.2, 5.3]}
    assert run.of(Role.LOSS)[0].steps.tolist() == [2048, 4096, 6144]


def test_lists_are_told_apart_by_their_index():
    run = read("step 1 loss 0.5 lr=[1e-3, 1e-4]\nstep 2 loss 0.4 lr=[2e-3, 2e-4]\n")
    assert [(c.group, c.values.tolist()) for c in run.of(Role.LEARNING_RATE)] == [
        ("", [1e-3, 2e-3]),
        ("1", [1e-4, 2e-4]),
    ]


def test_two_formats_interleaved_and_chatter_between():
    run = read(
        "".join(
            f"step {i} | loss {9 - i}.5 | gnorm 0.{i}\nsaved everything, all {i} of it, to disk\n"
            f'{{"event": "memory", "note": "run a-{i}", "step": {i}, "rss_gb": {i}.5}}\n'
            for i in range(1, 9)
        )
    )
    assert len(run.of(Role.LOSS)[0].values) == len(run.of(Role.GRADIENT_NORM)[0].values) == 8
    memory = run.of(Role.HOST_MEMORY)[0]
    assert (memory.values / 2**30).tolist() == [i + 0.5 for i in range(1, 9)]
    assert memory.steps.tolist() == list(range(1, 9))


def test_a_number_that_came_before_the_training_is_a_setting_not_a_point():
    run = read("lr: 0.1\n" + "".join(f"step {i} loss 0.{i} lr: 0.0{i}\n" for i in range(1, 6)))
    assert run.of(Role.LEARNING_RATE)[0].values.tolist() == [0.01, 0.02, 0.03, 0.04, 0.05]
    assert run.settings["lr"] == "0.1"


def test_one_name_with_two_values_at_a_step_is_two_quantities():
    run = read(
        "".join(f"step {i} loss {i}.0\nsmoothed over the log: loss {i}.7\n" for i in range(1, 7))
    )
    assert {c.name for c in run.columns} == {"loss", "loss (2)"}
    same = read("".join(f"step {i} loss {i}.0\nfinal report: loss {i}.0\n" for i in range(1, 7)))
    assert [(c.name, len(c.values)) for c in same.columns] == [("loss", 6)]


def test_nothing_to_read_is_said():
    run = read("hello there\nnothing happens here, 3 times\n")
    assert run.columns == ()
    assert "nothing was found that looks like a measurement of a training" in run.notes
