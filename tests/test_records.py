"""What a record carries beyond its verdict: statistics, the fault, and the words for them."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surefoot.records import (
    RECORD_VERSION,
    Cause,
    Culprit,
    Event,
    ForwardFault,
    Origin,
    Range,
    StepRecord,
    TermRecord,
    Verdict,
)

VERSION_1 = """{"step": 7, "verdict": "refused", "cause": "nonfinite_gradient", "loss": 2.5,
"terms": [["bbox", 1.0, 2.0], ["cls", 0.5, 1.0]], "grad_norm": "nan", "clip_coefficient": 1.0,
"loss_scale": 1.0, "learning_rates": [0.001], "micro_batches": 1, "applied_steps": 7,
"refused_steps": 1, "culprits": [["a.weight", "nan"], ["a.bias", "inf"]], "sample_ids": ["x", "y"],
"rank": 0, "events": ["buffers_restored"], "version": 1}"""

anything = st.floats(width=64)
names = st.text(max_size=12)
ranges = st.builds(Range, *[anything] * 4)
faults = st.builds(
    ForwardFault,
    origin=st.sampled_from(Origin),
    module=names,
    kind=names,
    value=st.sampled_from(["", "NaN", "Inf", "-Inf"]),
    position=names,
    before=names,
    input_finite=st.booleans(),
    given=ranges,
    made=ranges,
    state=st.lists(names, max_size=2).map(tuple),
    micro_batch=st.integers(0, 9),
    samples=st.lists(names, max_size=3).map(tuple),
    detail=names,
)
records = st.builds(
    StepRecord,
    step=st.integers(0, 2**40),
    verdict=st.sampled_from(Verdict),
    terms=st.lists(st.builds(TermRecord, names, *[anything] * 4), max_size=3).map(tuple),
    culprits=st.lists(st.builds(Culprit, names, *[anything] * 5), max_size=3).map(tuple),
    fault=st.none() | faults,
    bundle=names,
)

NECK = ForwardFault(
    origin=Origin.MODULE,
    module="neck.dist",
    kind="Root",
    value="NaN",
    position="output",
    given=Range(-0.5, 4.0, 0.25, 1.0),
    made=Range(0.0, 2.0, 0.5, 0.969),
    micro_batch=1,
    samples=("clip 3/frame 9",),
)
REFUSED = StepRecord(
    step=12,
    verdict=Verdict.REFUSED,
    cause=Cause.NONFINITE_LOSS,
    loss=math.nan,
    terms=(
        TermRecord("bbox", math.nan, 2.0, math.inf),
        TermRecord("cls", 0.5, 1.0, 0.25, -0.5),
    ),
    micro_batches=4,
    sample_ids=("clip 3/frame 9", "clip 3/frame 10"),
    fault=NECK,
    bundle="runs/a/failures/step-00000012",
)


@given(records)
def test_a_record_survives_strict_json_with_all_it_found(record: StepRecord):
    text = json.dumps(record.to_dict(), allow_nan=False)
    again = StepRecord.from_dict(json.loads(text))
    assert json.dumps(again.to_dict(), allow_nan=False) == text
    assert [c.norm for c in again.culprits] == pytest.approx(
        [c.norm for c in record.culprits], nan_ok=True, rel=0
    )
    assert (again.fault is None) == (record.fault is None)
    if record.fault is not None and again.fault is not None:
        assert (again.fault.origin, again.fault.samples, again.fault.state) == (
            record.fault.origin,
            record.fault.samples,
            record.fault.state,
        )


def test_a_record_of_version_1_is_still_read():
    record = StepRecord.from_dict(json.loads(VERSION_1))
    assert (record.version, record.step, record.loss) == (1, 7, 2.5)
    assert [(t.name, t.raw, t.weight) for t in record.terms] == [("bbox", 1, 2), ("cls", 0.5, 1)]
    assert [(c.name, c.kind, c.range.known) for c in record.culprits] == [
        ("a.weight", "NaN", False),
        ("a.bias", "Inf", False),
    ]
    assert (record.fault, record.bundle, record.events) == (None, "", (Event.BUFFERS_RESTORED,))
    assert RECORD_VERSION == 2


def test_what_was_not_looked_at_takes_no_room():
    record = StepRecord(
        step=0,
        verdict=Verdict.APPLIED,
        terms=(TermRecord("a", 1.0, 2.0), TermRecord("b", 1.0, 2.0, 3.0, 0.5)),
        culprits=(Culprit("p", math.nan), Culprit("q", math.inf, 0.0, 1.0, 0.5, 0.25)),
        fault=ForwardFault(origin=Origin.LOSS),
    )
    values = record.to_dict()
    assert values["terms"] == [["a", 1.0, 2.0], ["b", 1.0, 2.0, 3.0, 0.5]]
    assert values["culprits"] == [["p", "nan"], ["q", "inf", 0.0, 1.0, 0.5, 0.25]]
    assert values["fault"] == {"origin": "loss"}


def test_one_line_says_module_terms_and_samples():
    assert str(REFUSED) == (
        "step 12: the step was refused; everything is as it was before it: the loss was NaN or "
        "Inf; NaN came up in neck.dist (Root), whose input was finite; in the term bbox; on clip "
        "3/frame 9"
    )


def test_a_loss_without_named_terms_is_not_called_a_bad_term():
    record = StepRecord(
        step=0,
        verdict=Verdict.REFUSED,
        cause=Cause.NONFINITE_LOSS,
        terms=(TermRecord("loss", math.nan, 1.0),),
    )
    assert str(record).endswith("before it: the loss was NaN or Inf")


def test_the_story_tells_everything_it_knows():
    assert REFUSED.explain() == (
        "Step 12: the step was refused; everything is as it was before it.\n"
        "Cause       the loss was NaN or Inf\n"
        "Where       NaN came up in neck.dist (Root), whose input was finite\n"
        "  input     -0.5 to 4, mean 0.25\n"
        "  output    0 to 2, mean 0.5, 96.9 % finite\n"
        "            micro-batch 2 of 4\n"
        "Terms       bbox  nan x 2, its gradient is not finite\n"
        "            cls   0.5 x 1, gradient 0.25, -0.50 along the total\n"
        "Samples     clip 3/frame 9\n"
        "Kept        runs/a/failures/step-00000012\n"
        "Next        look at what neck.dist (Root) divides by, takes the logarithm or root of or "
        "raises e to,\n"
        "            and make that safe; where it only overflows, run it in float32"
    )


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (
            ForwardFault(origin=Origin.INPUT, value="NaN", position="input[0]"),
            "the model's own input was not finite: NaN in input[0]",
        ),
        (
            ForwardFault(origin=Origin.MODULE, kind="Net", value="Inf", before="head"),
            "Inf came up in the own code of the model (Net), before it calls head; its input was "
            "finite",
        ),
        (
            ForwardFault(
                origin=Origin.MODULE, module="bn", kind="BatchNorm2d", value="NaN", state=("a", "b")
            ),
            "NaN came up in bn (BatchNorm2d), whose a and b were not finite to begin with",
        ),
        (
            ForwardFault(
                origin=Origin.BACKWARD, module="d", kind="Dist", value="NaN", position="input[0]"
            ),
            "NaN came up in the backward pass of d (Dist), in the gradient of input[0]; the "
            "gradient that arrived there was finite",
        ),
        (
            ForwardFault(origin=Origin.FAILED, detail="RuntimeError: no memory"),
            "the forward pass could not be run again: RuntimeError: no memory",
        ),
    ],
)
def test_a_fault_says_where(fault: ForwardFault, said: str):
    assert str(fault) == said


@pytest.mark.parametrize("origin", Origin)
def test_every_origin_leads_to_advice(origin: Origin):
    record = StepRecord(
        step=0,
        verdict=Verdict.REFUSED,
        cause=Cause.NONFINITE_GRADIENT,
        fault=ForwardFault(origin=origin),
    )
    advice = record.explain().partition("Next")[2]
    assert len(advice.split()) > 5


@pytest.mark.parametrize(
    ("share", "said"),
    [(1.0, ""), (0.99999, ", over 99.9 % finite"), (0.5, ", 50 % finite"), (1e-9, ", under 0.1 %")],
)
def test_a_share_is_never_rounded_to_all_or_none(share: float, said: str):
    text = str(Range(0.0, 1.0, 0.5, share))
    assert text.startswith("0 to 1, mean 0.5" + said)
    assert text.endswith("mean 0.5") == (share == 1.0)
