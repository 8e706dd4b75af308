"""The judge of the chaos suite: it has to say no as readily as yes."""

from __future__ import annotations

import json
import re

import pytest
from benchmarks.chaos.catalogue import catalogue
from benchmarks.chaos.columns import COLUMNS
from benchmarks.chaos.disk import damage
from benchmarks.chaos.evidence import entries_of, new_lines, said_by_records, said_by_text
from benchmarks.chaos.fault import NANS, Plan, Struck, tensor
from benchmarks.chaos.inject import Clock, Injector
from benchmarks.chaos.judge import judge
from benchmarks.chaos.launch import Life, Outcome
from benchmarks.chaos.report import Table
from benchmarks.chaos.task import Digits, held_out

FAULTS = catalogue(Plan())
STRUCK = Struck(samples=frozenset({"17", "18"}), files=("last.pt", "00002-step-200"))


def step(number, **values):
    usual = {
        "kind": "step",
        "step": number,
        "rank": 0,
        "cause": "none",
        "events": [],
        "culprits": [],
    }
    return {**usual, "verdict": "applied", "learning_rates": [1e-3], "sample_ids": [], **values}


def outcome(accuracy=0.97, *, codes=((0,),), log="", journal=(), **result):
    lives = [Life(tuple(c), log) for c in codes]
    measured = {"accuracy": accuracy, "bad_weights": [], "bad_buffers": [], "hash": "a"}
    found = [] if any(lives[-1].codes) else [{**measured, "weights_hash": "a", **result}]
    return Outcome(lives=lives, results=found, journal=[json.dumps(e) for e in journal])


def test_every_fault_has_a_key_of_its_own_and_the_eighteen_are_eighteen():
    keys = [f.key for f in FAULTS.values()]
    assert len(set(keys)) == len(keys)
    assert [f.key for f in FAULTS.values() if f.counts and int(f.key) <= 18] == [
        str(n) for n in range(1, 19)
    ]


@pytest.mark.parametrize("key", FAULTS)
def test_no_fault_is_satisfied_by_a_record_of_a_healthy_step(key):
    healthy = [step(n, events=["clipped"]) for n in range(400)]
    assert said_by_records(healthy, FAULTS[key].expect, STRUCK) == ("silent", "")


def test_the_right_cause_at_the_right_step_on_the_right_sample_is_what_counts():
    right = step(200, verdict="refused", cause="nonfinite_loss", sample_ids=["17"])
    expect = FAULTS["1"].expect
    assert said_by_records([right], expect, STRUCK)[0] == "where"
    assert said_by_records([{**right, "sample_ids": ["16", "17"]}], expect, STRUCK)[0] == "what"
    assert said_by_records([{**right, "step": 203}], expect, STRUCK)[0] == "wrong"
    assert said_by_records([{**right, "cause": "overflow"}], expect, STRUCK)[0] == "wrong"


def test_to_name_every_tensor_is_to_name_none():
    names = ["conv.weight", "conv.bias", "fc1.weight", "fc1.bias"]
    place = tensor("fc1.weight")
    entries = [step(3, culprits=[[name, "nan"] for name in some]) for some in (names, names[2:])]
    assert [place(entry, STRUCK) for entry in entries] == [False, True]


def test_a_torn_last_line_of_a_journal_is_left_out():
    assert entries_of(['{"kind": "memory"}', '{"kind": "st'], "no entry\n") == [{"kind": "memory"}]


def test_lines_of_the_clean_run_and_bare_metrics_say_nothing():
    clean = "epoch 3 took 1.5 s\nsaved /a/b.pt\n"
    log = "epoch 4 took 2.5 s\nsaved /c/d.pt\nstep 220 loss nan\nNaN in step 200, layer fc1\n"
    assert new_lines(log, clean) == ["NaN in step 200, layer fc1"]
    assert said_by_text(log, clean, NANS, range(200, 201))[0] == "where"
    assert said_by_text("step 220 loss nan\n", "", NANS, range(200, 201))[0] == "metric"
    assert said_by_text("loss_type=nan_loss\n", "", NANS, range(200, 201))[0] == "what"
    assert said_by_text("fine, no finance here\n", "", NANS, range(200, 201))[0] == "silent"


@pytest.mark.parametrize(
    ("left", "survived", "how"),
    [
        (outcome(0.96), True, "0.960"),
        (outcome(0.94), False, "0.940"),
        (outcome(bad_weights=["fc1.weight"]), False, "NaN weights"),
        (outcome(bad_buffers=["norm.running_var"]), False, "weights finite, NaN buffers"),
        (outcome(codes=[(1,)], log="ValueError: no\n"), False, "crash, ValueError"),
        (outcome(codes=[(None,)]), False, "ran too long"),
    ],
)
def test_survival_is_finite_weights_and_buffers_and_the_usual_accuracy(left, survived, how):
    verdict = judge(COLUMNS["plain"], FAULTS["1"], left, outcome(0.97))
    assert (verdict.survived, verdict.how) == (survived, how)


def test_a_death_that_is_the_fault_itself_is_survived_by_the_restart_and_a_crash_is_not():
    clean = outcome()
    killed = judge(COLUMNS["plain"], FAULTS["12"], outcome(codes=[(-9,), (0,)]), clean)
    crashed = judge(COLUMNS["plain"], FAULTS["14"], outcome(codes=[(1,), (0,)]), clean)
    assert str(killed) == "yes 0.970, bit-equal (silent)"
    assert str(crashed) == "no: crash, restart works (silent)"


def test_ranks_that_end_with_other_weights_did_not_survive():
    apart = outcome()
    apart.results.append({**apart.results[0], "weights_hash": "b"})
    apart.lives = [Life((0, 0), "")]
    verdict = judge(COLUMNS["plain"], FAULTS["15"], apart, outcome())
    assert not verdict.survived
    assert verdict.how == "0.970, ranks differ"


def test_an_alarm_that_the_clean_run_gave_as_well_is_no_answer_to_the_fault():
    alarm = step(200, verdict="refused", cause="nonfinite_loss", sample_ids=["17"])
    left, clean = outcome(journal=[alarm], log="@struck 17\n"), outcome(journal=[alarm])
    verdict = judge(COLUMNS["surefoot"], FAULTS["1"], left, clean)
    assert verdict.said == "silent"
    assert judge(COLUMNS["surefoot"], FAULTS["1"], left, outcome()).said == "where"


def test_totals_take_17b_in_the_place_of_17_where_there_is_no_fp16():
    plain, clean = COLUMNS["plain"], outcome()
    good = judge(plain, FAULTS["17b"], clean, clean)
    table = Table("t", [FAULTS["17"], FAULTS["17b"]], [plain])
    table.cells = {("17", "plain"): "no fp16", ("17b", "plain"): good}
    assert table.totals()["survived"] == ["1 of 1"]
    table.cells["17", "plain"] = good
    assert table.totals()["survived"] == ["1 of 1"]
    assert re.search(r"\| 17 \| .*\| yes 0.970 \(silent\) \|", table.markdown())


def test_the_clock_counts_batches_and_not_forward_passes():
    class Noting(Injector):
        def __init__(self):
            self.steps = []

        def step(self, number, stage):
            self.steps.append(number)

    noting = Noting()
    clock = Clock([noting], batch_size=2, accumulate=2, stage=object())
    batches = [object() for _ in range(5)]
    for batch in batches:
        clock.forward(None, batch)
        clock.forward(None, batch)  # somebody looks again
    assert noting.steps == [0, 1, 2]


def test_a_fault_in_the_data_strikes_one_batch_and_tells_which_samples():
    told = []
    clock = Clock(FAULTS["30"].strike(), batch_size=64, on_struck=told.append)
    data = Digits(clock)
    bad = [i for i in range(201 * 64) if data[i % len(data)][0].isnan().any()]
    assert bad == [200 * 64 + 9]
    assert told == [(200 * 64 + 9) % len(data)]


def test_the_task_is_the_same_everywhere():
    images, labels = held_out()
    assert images.shape == (4000, 1, 16, 16)
    assert labels.bincount().min() > 300
    assert float(images.double().mean()) == pytest.approx(0.16647, abs=1e-5)


@pytest.mark.parametrize("how", ["cut", "bit"])
def test_damage_is_done(tmp_path, how):
    file = tmp_path / "state.pt"
    file.write_bytes(bytes(100))
    said = damage(file, how)
    assert file.read_bytes() == (bytes(50) if how == "cut" else bytes(50) + b"\x40" + bytes(49))
    assert "state.pt" in said
