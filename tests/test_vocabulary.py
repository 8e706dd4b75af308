"""Errors, records and shapes: the words on every arrow."""

from __future__ import annotations

import inspect
import json
import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from surefoot import errors
from surefoot.errors import SurefootError, UsageError
from surefoot.records import RECORD_VERSION, Cause, Culprit, Event, StepRecord, TermRecord, Verdict
from surefoot.shapes import Episode, LossTerms
from surefoot.testing import FaultScript, State, bad_gradient

anything = st.floats(width=64)
names = st.text(max_size=12)
records = st.builds(
    StepRecord,
    step=st.integers(0, 2**40),
    verdict=st.sampled_from(Verdict),
    cause=st.sampled_from(Cause),
    loss=anything,
    terms=st.lists(st.builds(TermRecord, names, anything, anything), max_size=3).map(tuple),
    grad_norm=anything,
    clip_coefficient=anything,
    loss_scale=anything,
    learning_rates=st.lists(anything, max_size=3).map(tuple),
    micro_batches=st.integers(1, 64),
    applied_steps=st.integers(0, 2**40),
    refused_steps=st.integers(0, 2**40),
    culprits=st.lists(st.builds(Culprit, names, anything), max_size=3).map(tuple),
    sample_ids=st.lists(names, max_size=3).map(tuple),
    rank=st.integers(0, 511),
    events=st.lists(st.sampled_from(Event), max_size=3).map(tuple),
)


@given(records)
def test_a_record_survives_strict_json(record):
    text = json.dumps(record.to_dict(), allow_nan=False)
    assert StepRecord.from_dict(json.loads(text)) == record


def test_a_record_of_a_newer_version_is_read_as_far_as_it_is_known():
    values = StepRecord(step=4, verdict=Verdict.APPLIED).to_dict()
    newer = StepRecord.from_dict({**values, "version": RECORD_VERSION + 1, "phase_of_moon": 0.5})
    assert (newer.step, newer.version) == (4, RECORD_VERSION + 1)


def test_a_record_says_in_one_line_what_happened_and_where():
    record = StepRecord(
        step=7,
        verdict=Verdict.REFUSED,
        cause=Cause.NONFINITE_GRADIENT,
        culprits=tuple(
            Culprit(n, v) for n, v in zip("abcd", [math.nan, math.inf, 1.0, 2.0], strict=True)
        ),
    )
    assert str(record) == (
        "step 7: the step was refused; everything is as it was before it: a gradient was NaN or "
        "Inf in a (NaN), b (Inf), c (finite) and 1 more"
    )


@pytest.mark.parametrize("words", [Verdict, Cause, Event])
def test_every_outcome_has_a_sentence_of_its_own(words):
    sentences = [member.sentence for member in words]
    assert len(set(sentences)) == len(sentences)
    assert all(len(s) > 10 for s in sentences)


def test_the_tree_in_the_docstring_is_the_tree():
    drawn = set(re.findall(r"[├└]── (\w+)", inspect.getdoc(errors) or ""))
    real = {n for n in errors.__all__ if n != "SurefootError"}
    assert drawn == real
    assert all(issubclass(getattr(errors, n), SurefootError) for n in real)


def test_terms_that_cannot_be_a_loss_are_refused():
    value = torch.tensor(1.0)
    with pytest.raises(UsageError, match=r"weights name \['b'\], which are no terms"):
        LossTerms({"a": value}, {"b": 1.0})
    with pytest.raises(UsageError, match="no terms; a loss needs at least one"):
        LossTerms({}, {})
    with pytest.raises(UsageError, match=r"term 'a' has shape \(2,\); every term is a scalar"):
        LossTerms({"a": torch.ones(2)}, {})
    with pytest.raises(UsageError, match=r"every weight is 0 \(a\)"):
        _ = LossTerms({"a": value}, {"a": 0.0}).total


def test_an_episode_moves_whole():
    empty = torch.zeros(0)
    episode = Episode(
        images=torch.zeros(1, 3, 4, 4),
        sample_ids=("a",),
        supports=torch.zeros(1, 1, 3, 4, 4),
        boxes=empty.view(0, 4),
        box_image=empty.long(),
        box_object=empty.long(),
        ignore=empty.bool(),
    )
    moved = episode.to("meta")
    assert {t.device.type for t in (moved.images, moved.supports, moved.boxes)} == {"meta"}
    assert moved.sample_ids == ("a",)


def test_state_sees_every_bit_and_what_is_missing():
    model = torch.nn.Linear(1, 1)
    with torch.no_grad():
        model.bias.fill_(0.0)
    before = State.of(model)
    with torch.no_grad():
        model.bias.fill_(-0.0)  # equal, but not the same bits
    assert State.of(model).differences(before) == ["model.bias"]
    del model.bias
    model.register_parameter("bias", None)
    assert State.of(model).differences(before) == ["model.bias"]


def test_a_fault_strikes_while_open_and_not_after():
    weight = torch.nn.Parameter(torch.ones(3))
    with bad_gradient(weight, math.inf, index=1):
        weight.sum().backward()
    assert weight.grad.tolist() == [1.0, math.inf, 1.0]
    weight.grad = None
    weight.sum().backward()
    assert weight.grad.tolist() == [1.0, 1.0, 1.0]
    assert FaultScript.parse("gx").at(1) == "x"
