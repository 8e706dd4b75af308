"""A refused step is kept whole, and fails the same way when it is run again."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from guard.test_blame import Guarded, Length, Loop, Net, Shifted, images, two_terms
from surefoot import Guard, LossTerms, Policy, attach
from surefoot.errors import CheckpointError, ConfigError
from surefoot.guard import Replay, replay
from surefoot.guard.bundle import HEAD, TENSORS, WEIGHTS, Bundle
from surefoot.guard.failures import kept_failures
from surefoot.guard.kept_values import LeftOut, Packer, unpack
from surefoot.records import Origin, StepRecord
from surefoot.shapes import Episode
from surefoot.testing import State


class Wide(nn.Module):
    """Squares that fp16 cannot hold."""

    def forward(self, x: Tensor) -> Tensor:
        return (x.half() * 300).square().float() if torch.is_autocast_enabled("cpu") else x


def refused(folder: Path, model: nn.Module, *batches: Tensor, **settings: Any) -> StepRecord:
    tell, compute = settings.pop("tell", True), settings.pop("compute", two_terms)
    loop = Loop(model, compute=compute, accumulate=len(batches), **settings)
    loop.guard.keep_failures(folder)
    record = loop.step(*batches, tell=tell)
    assert record.refused
    return record


def middle_of(record: StepRecord, middle: nn.Module, compute: Any = two_terms) -> Replay:
    """Replay into a model with other weights, with other random numbers drawn before."""
    torch.manual_seed(77)
    return replay(record.bundle, Net(middle), compute)


@pytest.mark.parametrize("tell", [True, False])
@pytest.mark.parametrize("amp", [None, "bf16", "fp16"])
def test_a_step_fails_in_the_same_module_again_and_in_float32(tmp_path: Path, tell: bool, amp: Any):
    record = refused(tmp_path, Net(Shifted()), images(), amp=amp, tell=tell)
    assert Path(record.bundle) == tmp_path / "step-00000000"
    again = middle_of(record, Shifted(), two_terms if tell else None)
    assert [run.precision for run in again.runs] == ([amp] if amp else []) + ["fp32"]
    for run in again.runs:
        assert run.fault is not None
        assert (run.fault.origin, run.fault.module) == (Origin.MODULE, "middle")
    assert again.runs[0].fault == record.fault
    assert again.conclusion.startswith("It is an operation, for what it was given")
    lines = str(again).splitlines()
    (marked,) = {line.partition("  ")[2].split("  ")[0] for line in lines if line[2:3] == ">"}
    assert marked.strip() == "> middle (Shifted)"
    assert any("! head (Linear)" in line for line in lines)
    assert sum("term near" in line for line in lines) == (len(again.runs) if tell else 0)


def test_a_fault_of_the_precision_is_told_from_one_of_the_operation(tmp_path: Path):
    record = refused(tmp_path, Net(Wide()), images(), amp="fp16")
    again = middle_of(record, Wide())
    assert again.runs[0].fault is not None
    assert (again.runs[0].fault.module, again.runs[0].fault.value) == ("middle", "Inf")
    assert again.runs[1].fault is None
    assert again.conclusion == (
        "It is the precision: float32 gets through what fp16 does not. Run middle (Wide) in "
        "float32 (torch.autocast(..., enabled=False)), or train in bf16."
    )


def test_a_bad_backward_pass_shows_its_gradients_in_order(tmp_path: Path):
    record = refused(tmp_path, Net(Length()), images())
    (run,) = middle_of(record, Length()).runs
    assert run.fault == record.fault
    names = [name for name, _ in run.gradients]
    assert set(names) == {"norm.weight", "norm.bias", "first.weight", "first.bias"}
    assert max(map(names.index, ["norm.weight", "norm.bias"])) < names.index("first.weight")
    assert all(term.bad for term in run.terms)
    text = str(run.lines())
    text = "\n".join(run.lines())
    assert "> middle (Length)" in text
    assert "bad gradients, in the order of the backward pass:" in text


def test_bad_data_is_called_that(tmp_path: Path):
    record = refused(tmp_path, Net(), images(bad=2))
    again = middle_of(record, nn.Identity())
    assert again.conclusion == "It is the data: what the model was given was not finite."
    assert "> what went in, input[0]" in str(again)
    assert again.runs[0].fault is not None
    assert again.runs[0].fault.samples == ("0/2",)


def test_a_bad_weight_is_called_that(tmp_path: Path):
    model = Net()
    with torch.no_grad():
        model.head.bias[0] = math.inf
    record = refused(tmp_path, model, images())
    assert middle_of(record, nn.Identity()).conclusion.startswith("It is the state: a weight")


def test_dropout_draws_the_same_again_and_leaves_the_random_numbers_alone(tmp_path: Path):
    class Fragile(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.masked_fill((x != 0).all(1, keepdim=True), math.nan)

    seed = 0
    while True:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), Fragile())
        loop = Loop(model)
        loop.guard.keep_failures(tmp_path)
        record = loop.step(images())
        if record.refused:
            break
        seed += 1
    twin = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), Fragile())
    torch.manual_seed(1000)
    before = torch.get_rng_state()
    (run,) = replay(record.bundle, twin, two_terms).runs
    assert run.fault == record.fault
    assert torch.equal(before, torch.get_rng_state())


def test_of_a_window_the_bad_micro_batch_is_run(tmp_path: Path):
    record = refused(tmp_path, Net(), images(0), images(1), images(2, bad=0))
    (run,) = middle_of(record, nn.Identity()).runs
    assert run.micro_batch == 2


def test_weights_and_buffers_are_those_from_before_the_step(tmp_path: Path):
    model = Net()
    loop = Loop(model)
    loop.guard.keep_failures(tmp_path)
    loop.step(images(0))
    before = State.of(model)
    record = loop.step(images(1, bad=1))
    for step in range(2, 5):
        loop.step(images(step))
    twin = Net()
    Bundle.load(record.bundle).load_weights(twin)
    assert State.of(twin).differences(before) == []
    loaded = State.of(twin)
    replay(record.bundle, twin, two_terms)
    assert State.of(twin).differences(loaded) == []
    assert all(p.grad is None for p in twin.parameters())


def test_what_happened_stands_in_the_bundle(tmp_path: Path):
    record = refused(tmp_path, Net(Shifted()), images())
    kept = Bundle.load(record.bundle)
    assert kept.record.fault is not None
    assert str(kept.record) == str(record)
    assert kept.left_out == ()
    assert kept.places == [0]


def test_the_first_eight_and_the_latest_are_kept(tmp_path: Path):
    policy = Policy(snapshot_interval=0, inspect_refusals=11)
    loop = Loop(Net(), policy=policy)
    loop.guard.keep_failures(tmp_path / "deep" / "failures")
    written = [loop.step(images(step, bad=0)).bundle for step in range(17)]
    assert [bool(path) for path in written] == [True] * 11 + [False] * 4 + [True, False]
    names = [path.name for path in kept_failures(tmp_path / "deep" / "failures")]
    assert names == [f"step-{n:08}" for n in (*range(8), 15)]
    assert not list((tmp_path / "deep" / "failures").glob(".*"))


def test_an_attached_guard_keeps_failures_as_well(tmp_path: Path):
    model = Net(Shifted())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attachment = attach(optimizer, model)
    attachment.keep_failures(tmp_path)
    with torch.autocast("cpu", torch.bfloat16):
        loss = two_terms(model, images()).total
    loss.backward()
    optimizer.step()
    assert attachment.last is not None
    again = replay(attachment.last.bundle, Net(Shifted()))
    assert [run.precision for run in again.runs] == ["bf16", "fp32"]
    assert again.runs[0].fault == attachment.last.fault


def test_a_disk_that_refuses_costs_the_bundle_and_not_the_run(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    loop = Loop(Net())
    loop.guard.keep_failures(tmp_path / "file" / "failures")
    with pytest.warns(RuntimeWarning, match="refused step 0 could not be kept to be run again"):
        record = loop.step(images(bad=0))
    assert (record.refused, record.bundle) == (True, "")
    assert loop.step(images()).applied


def test_nothing_can_be_kept_of_refusals_that_nobody_looks_into(tmp_path: Path):
    model = Net()
    guard = Guard(
        model, torch.optim.SGD(model.parameters(), lr=0.1), policy=Policy(inspect_refusals=0)
    )
    with pytest.raises(ConfigError, match="give it an inspect_refusals above 0"):
        guard.keep_failures(tmp_path)


def test_what_cannot_be_kept_is_said_and_missed_only_where_it_is_needed(tmp_path: Path):
    def compute(model: nn.Module, x: Tensor, note: object) -> LossTerms:
        return two_terms(model, x)

    model = Net(Shifted())
    loop = Loop(model)
    loop.guard.keep_failures(tmp_path)
    record = loop.guard.step(
        compute(model, images(), object()), recompute=partial(compute, model, images(), object())
    )
    kept = Bundle.load(record.bundle)
    assert kept.left_out == ("micro-batch 0, recompute[2] (object)",)
    assert replay(record.bundle, Net(Shifted())).runs[0].fault == record.fault
    with pytest.raises(CheckpointError, match=r"a part of its input was left out: micro-batch 0"):
        replay(record.bundle, Net(Shifted()), compute)


def test_another_model_is_refused(tmp_path: Path):
    record = refused(tmp_path, Net(Shifted()), images())
    other = Net(Shifted())
    other.register_parameter("extra", nn.Parameter(torch.zeros(1)))
    with pytest.raises(CheckpointError, match=r"1 of this model's tensors are not in it \(extra"):
        replay(record.bundle, other, two_terms)
    other = Net(Shifted())
    other.head = nn.Linear(4, 3)
    with pytest.raises(CheckpointError, match=r"2 have another shape \(head\.\w+, head\.\w+\)"):
        replay(record.bundle, other, two_terms)


def test_without_compute_a_step_kept_by_recompute_asks_for_it(tmp_path: Path):
    record = refused(tmp_path, Net(Shifted()), images())
    with pytest.raises(CheckpointError, match="give that function to replay as compute"):
        replay(record.bundle, Net(Shifted()))


def test_a_model_that_mends_it_is_told_so(tmp_path: Path):
    record = refused(tmp_path, Net(Shifted()), images())
    again = middle_of(record, nn.Identity())
    assert again.runs[0].fault is None
    assert again.conclusion.startswith("It was finite this time.")
    assert "every output and gradient was finite" in str(again)


def test_a_nan_that_where_throws_away_fails_again(tmp_path: Path):
    record = refused(tmp_path, Net(Guarded()), images())
    again = middle_of(record, Guarded())
    assert again.conclusion.startswith("It is the backward pass of an operation")


# -- damage ----------------------------------------------------------------------------------------


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return Path(refused(tmp_path, Net(Shifted()), images(), tell=False).bundle)


def test_a_folder_without_a_step_is_no_bundle(tmp_path: Path):
    with pytest.raises(CheckpointError, match="holds no kept step; give one of the folders"):
        replay(tmp_path, Net())


@pytest.mark.parametrize("name", [HEAD, TENSORS, WEIGHTS])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_a_file_that_was_cut_is_damage(bundle: Path, name: str, share: float):
    content = (bundle / name).read_bytes()
    (bundle / name).write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match="the kept step is damaged"):
        replay(bundle, Net(Shifted()))


def test_a_file_that_is_gone_is_damage(bundle: Path):
    (bundle / TENSORS).unlink()
    with pytest.raises(CheckpointError, match="the kept step is damaged"):
        replay(bundle, Net(Shifted()))


def test_without_weights_the_models_own_can_be_used(bundle: Path):
    (bundle / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match="replay with weights=False"):
        replay(bundle, Net(Shifted()))
    again = replay(bundle, Net(Shifted()), weights=False)
    assert again.runs[0].fault is not None
    assert again.runs[0].fault.module == "middle"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["format"], "other"),
        (["record"], {}),
        (["record", "verdict"], "dunno"),
        (["micro_batches"], [3]),
        (["micro_batches", 0, "calls", 0, "module"], "no.such.part"),
        (["micro_batches", 0, "calls", 0, "random"], None),
        (["micro_batches", 0, "calls", 0, "random", "cpu"], "t1"),
        (["micro_batches", 0, "calls", 0, "args"], {"tuple": [{"tensor": "t99"}]}),
        (["micro_batches", 0, "calls", 0, "args"], {"tuple": [{"shape": "Path", "fields": {}}]}),
        (["micro_batches", 0, "calls", 0, "args"], {"tuple": [{"evil": "os.system"}]}),
        (["micro_batches", 0, "calls", 0, "args"], {"tuple": [[1]]}),
    ],
)
def test_a_head_that_was_tampered_with_is_damage(bundle: Path, path: list[Any], value: Any):
    head = json.loads((bundle / HEAD).read_text())
    inner = head
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    (bundle / HEAD).write_text(json.dumps(head))
    with pytest.raises(CheckpointError, match="the kept step is damaged"):
        replay(bundle, Net(Shifted()))


def test_a_head_of_endless_brackets_is_damage(bundle: Path):
    (bundle / HEAD).write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="the kept step is damaged"):
        replay(bundle, Net(Shifted()))
    deep: Any = 1
    for _ in range(40):
        deep = {"list": [deep]}
    with pytest.raises(ValueError, match="nested too deep"):
        unpack(deep, {}, None)


def test_a_newer_bundle_asks_for_an_update(bundle: Path):
    head = json.loads((bundle / HEAD).read_text())
    (bundle / HEAD).write_text(json.dumps({**head, "version": 99}))
    with pytest.raises(CheckpointError, match="Update surefoot"):
        replay(bundle, Net(Shifted()))


# -- values ----------------------------------------------------------------------------------------

plain_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)


def through(value: Any, model: nn.Module | None = None) -> tuple[Any, list[str]]:
    packer = Packer(model or nn.Identity(), most_bytes=1000)
    node = json.loads(json.dumps(packer.pack(value, "args"), allow_nan=False))
    return unpack(node, packer.tensors, model), packer.left_out


@given(plain_values)
def test_plain_values_come_back_as_they_were(value: Any):
    again, left_out = through(value)
    assert repr(again) == repr(value)
    assert left_out == []


def test_tensors_shapes_and_the_model_come_back():
    model = nn.Linear(1, 1)
    box = torch.zeros(0, 4)
    episode = Episode(
        images=torch.rand(1, 3, 2, 2),
        sample_ids=("a",),
        supports=torch.rand(1, 1, 3, 2, 2),
        boxes=box,
        box_image=box.long()[:, 0],
        box_object=box.long()[:, 0],
        ignore=box.bool()[:, 0],
    )
    (again, same, tensor, twice), left_out = through(
        (episode, model, episode.images, episode.images), model
    )
    assert left_out == []
    assert same is model
    assert tensor is twice
    assert isinstance(again, Episode)
    assert torch.equal(again.images, episode.images)
    assert again.sample_ids == ("a",)


def test_everything_else_is_left_out_by_name():
    values = {
        "object": object(),
        "large": torch.zeros(1000),
        "sparse": torch.eye(2).to_sparse(),
        "keys": {1.5: 2},
    }
    again, left_out = through(values)
    assert all(isinstance(value, LeftOut) for value in again.values())
    assert left_out == [
        "args.object (object)",
        "args.large (tensor of 0 MB)",
        "args.sparse (Tensor of torch.float32)",
        "args.keys (dict)",
    ]
