"""Over real logs of other people's runs: each yields what a person sees in it.

The table says, by file, what columns there are and how many points each has; a slash tells runs
of one file apart, a bar what messages there are.
"""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest

from surefoot.journal.foreign import read_log
from surefoot.journal.series import Role

SEEN = {
    "015": "loss 100",
    "016": "loss 200",
    "017": "metric 1; skipped 37; learning_rate 37 37; throughput 36 36; device_memory 36 36; "
    "loss_scale 5 | overflow 6",
    "018": "term 70 70 70; metric 70; loss_scale 8 | overflow 10",
    "019": "loss 10; learning_rate 10; gradient_norm 10; loss_scale 12; validation_loss 1 | "
    "overflow 2",
    "020": "learning_rate 7; step_time 7 7 3 3; device_memory 7 3; loss 7; metric 1",
    "021": "validation_loss 2; loss 298; learning_rate 298; gradient_norm 298",
    "022": "validation_loss 1; loss 149",
    "023": "validation_loss 2; step_time 199; loss 198",
    "027": "throughput 74; metric 74 73 1 1",
    "030": "step_time 30; learning_rate 30; loss 30; metric 30 30; validation_loss 30",
    "033": "metric 68 68",
    "039": "loss 40; term 40 40 40; step_time 40 / loss 80; term 80 80 80; step_time 80",
    "040": "term 300 300",
    "041": "term 200 200",
    "042": "loss 1; metric 8 2; term 2 2 2 2 2 | error 4",
    "043": "gradient_norm 1 1 1 1; term 1 1 1 | nan_gradient 2",
    "044": "term 1 1 1 1 1 1",
    "045": "host_memory 3; gradient_norm 1 1; loss 2; term 1 | worker_killed 1",
    "046": " | nan_warning 1",
    "050": "validation_loss 1; loss 2; term 2; learning_rate 1",
    "053": "loss 5; gradient_norm 5; learning_rate 5",
    "054": "learning_rate 1; loss 1; term 1 1",
    "058": "loss 200",
    "060": "learning_rate 64; loss 64",
    "061": "throughput 9; loss 9; learning_rate 9; loss_scale 1 | overflow 1",
    "062": "metric 16; loss 16",
    "064": "loss_scale 10; loss 5; metric 5; learning_rate 5; gradient_norm 5 | overflow 5",
    "065": "loss 2; learning_rate 2; gradient_norm 2; loss_scale 4; validation_loss 1 | "
    "overflow 2, scale_at_minimum 1",
    "066": "loss 1; learning_rate 1; gradient_norm 1; loss_scale 13; validation_loss 1 | "
    "overflow 12",
    "067": "gradient_norm 4; skipped 4; learning_rate 3; loss_scale 3",
    "075": "loss 3; metric 2 2 2 2; learning_rate 2",
    "077": "loss 10",
    "079": "loss 8; gradient_norm 8",
    "080": "metric 9 9; loss 9; learning_rate 9",
    "081": "metric 6 6",
    "082": "loss 9; learning_rate 8",
    "083": "metric 12 12; loss 12",
    "084": "loss_scale 4; step_time 3 | overflow 4",
    "085": "loss 2; learning_rate 2; loss_scale 5 | overflow 5",
    "086": "loss_scale 6 | overflow 6",
    "087": "loss 4; term 4 4; loss_scale 2 | overflow 2",
    "089": "loss 1 | scaler_misuse 1",
    "090": "loss 7; metric 7 7; validation_loss 7",
    "094": "loss 11; gradient_norm 11; learning_rate 11",
    "097": "loss 9; gradient_norm 9",
    "098": "validation_loss 1; loss 5; learning_rate 5; device_memory 4",
    "099": "clip_threshold 1; gradient_norm 1 1 1",
}


def expected(entry):
    """For each run its points by role, and its messages by kind."""
    runs = []
    for run in entry.split(" / "):
        columns, _, said = run.partition("|")
        points = {
            p.split()[0]: [int(n) for n in p.split()[1:]] for p in columns.split(";") if p.strip()
        }
        kinds = {k.split()[0]: int(k.split()[1]) for k in said.split(",") if k.strip()}
        runs.append((points, kinds))
    return runs


def log(shared, name):
    path = shared / "logs" / f"{name}.log"
    if not path.is_file():
        pytest.skip(f"no {path}")
    return path


@pytest.mark.parametrize("name", SEEN)
def test_a_real_log_yields_what_a_person_sees_in_it(shared, name):
    runs, seen = read_log(log(shared, name)), expected(SEEN[name])
    assert len(runs) == len(seen)
    for run, (points, kinds) in zip(runs, seen, strict=True):
        found = defaultdict(list)
        for column in run.columns:
            found[column.role.value].append(len(column.values))
        for role, counts in points.items():
            assert not Counter(counts) - Counter(found[role]), (role, dict(found))
        for role in ("loss", "validation_loss", "term", "loss_scale", "gradient_norm"):
            assert len(found[role]) == len(points.get(role, ())), (role, dict(found))
        assert Counter(m.kind for m in run.messages) == kinds


def test_every_log_that_is_there_is_in_the_table(shared):
    there = {path.stem for path in (shared / "logs").glob("*.log")}
    if not there:
        pytest.skip("no logs in the shared folder")
    assert there <= set(SEEN)


def test_steps_run_on_and_lines_point_into_the_file(shared):
    paths = sorted((shared / "logs").glob("*.log"))
    if not paths:
        pytest.skip("no logs in the shared folder")
    for path in paths:
        lines = path.read_bytes().count(b"\n") + 1
        for run in read_log(path):
            for column in run.columns:
                assert len(column.values) == len(column.steps) == len(column.lines) > 0
                assert np.isfinite(column.steps).all()
                assert column.lines.min() >= 1
                assert column.lines.max() <= lines
                assert column.read_as


def test_the_scale_that_a_batch_logs_show_is_not_a_loss(shared):
    for name in ("017", "064", "067", "084", "086"):
        for run in read_log(log(shared, name)):
            for loss in run.of(Role.LOSS):
                assert "scale" not in loss.name


def test_a_print_that_is_always_zero_is_not_taken_for_the_total(shared):
    (run,) = read_log(log(shared, "042"))
    (loss,) = run.of(Role.LOSS)
    assert loss.values.tolist() == [6.439357]
    assert {c.section for c in run.columns} >= {"Predictions", "Targets", "IoU Distribution"}
