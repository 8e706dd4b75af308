"""What is saved comes back; what cannot be, or should not be, is refused by its name."""

from __future__ import annotations

import enum
from collections import Counter, OrderedDict, namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from surefoot.checkpoint import CheckpointStore, check_state
from surefoot.checkpoint.weights import read_weights, write_weights
from surefoot.errors import CheckpointError, UsageError

Weights = dict[str, dict[str, Tensor]]


class Colour(enum.Enum):
    RED = 1


Pair = namedtuple("Pair", "a b")


def test_a_whole_run_comes_back_to_the_bit(store: CheckpointStore) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    ema = {name: value * 0.5 for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5])
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    state = {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict(), "epoch": 3}
    store.save(
        7, state, weights={"model": model.state_dict(), "ema": ema}, metric=0.5, measured_on="ema"
    )

    checkpoint = store.newest()
    assert checkpoint is not None
    assert (checkpoint.step, checkpoint.metric, checkpoint.measured_on) == (7, 0.5, "ema")
    assert checkpoint.weights == ("ema", "model")
    for name, expected in (("model", model.state_dict()), ("ema", ema)):
        loaded = checkpoint.load_weights(name)
        assert loaded.keys() == expected.keys()
        for key, value in expected.items():
            assert loaded[key].dtype == value.dtype
            assert torch.equal(loaded[key], value)
    loaded = checkpoint.load_state()
    assert loaded["epoch"] == 3
    assert loaded["schedule"] == schedule.state_dict()
    moments, expected = loaded["optimizer"]["state"], optimizer.state_dict()["state"]
    assert all(torch.equal(moments[i]["exp_avg"], expected[i]["exp_avg"]) for i in expected)
    optimizer.load_state_dict(loaded["optimizer"])


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.float8_e4m3fn,
        torch.complex64,
        torch.int8,
        torch.int64,
        torch.bool,
    ],
)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (2, 3)])
def test_every_kind_of_tensor_comes_back(
    tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    tensor = (torch.rand(shape) * 4).to(dtype)
    write_weights(tmp_path / "w.safetensors", {"x": tensor, "y": tensor.clone()})
    both = read_weights(tmp_path / "w.safetensors")
    assert both["x"] is not both["y"]
    loaded = both["x"]
    assert (loaded.dtype, loaded.shape) == (dtype, tensor.shape)
    assert loaded.tolist() == tensor.tolist()


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2),
            st.sampled_from(["whole", "slice", "transposed", "expanded", "flat"]),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_views_of_shared_memory_come_back_whatever_they_are(
    tmp_path_factory: pytest.TempPathFactory, views: list[tuple[int, str]]
) -> None:
    bases = torch.randn(3, 4, 4)
    kinds = {
        "whole": lambda t: t,
        "slice": lambda t: t[1:],
        "transposed": lambda t: t.t(),
        "expanded": lambda t: t[:1].expand(4, 4),
        "flat": lambda t: t.view(-1),
    }
    bases = [base.clone() for base in bases]
    tensors = {f"{i}": kinds[kind](bases[base]) for i, (base, kind) in enumerate(views)}
    path = tmp_path_factory.mktemp("views") / "w.safetensors"
    write_weights(path, tensors)
    loaded = read_weights(path)
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


def test_tied_weights_are_saved_once_and_tied_again(store: CheckpointStore) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(1000, 8)
            self.head = nn.Linear(8, 1000, bias=False)
            self.head.weight = self.embed.weight

    model = Tied()
    path = store.save(1, {}, weights={"model": model.state_dict()})
    assert (path / "model.safetensors").stat().st_size < 1.1 * 4 * 8 * 1000
    checkpoint = store.newest()
    assert checkpoint is not None
    loaded = checkpoint.load_weights("model")
    assert loaded["embed.weight"] is loaded["head.weight"]
    fresh = Tied()
    fresh.load_state_dict(loaded)
    assert torch.equal(fresh.head.weight, model.embed.weight)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.complex64])
def test_weights_that_are_not_finite_are_refused_by_name(
    store: CheckpointStore, weights: Weights, value: float, dtype: torch.dtype
) -> None:
    good = store.save(1, {}, weights=weights)
    bad = torch.ones(5, dtype=dtype)
    bad[2] = value
    with pytest.raises(
        CheckpointError,
        match=r"1 of the 3 tensors of weights 'ema' are not finite: bn\.running_var\. .*"
        r"The earlier checkpoint 00001-step-1 is intact\.",
    ):
        store.save(2, {}, weights=weights | {"ema": weights["model"] | {"bn.running_var": bad}})
    assert list(store.folder.iterdir()) == [good]


def test_many_bad_tensors_are_counted_and_the_first_named(store: CheckpointStore) -> None:
    bad = {f"layer{i}": torch.tensor([1.0, torch.nan]) for i in range(9)}
    with pytest.raises(
        CheckpointError,
        match=r"9 of the 9 .* layer0, layer1, layer2, layer3, layer4 and 4 more\. .* no earlier",
    ):
        store.save(1, {}, weights={"model": bad})
    assert store.newest() is None


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"version": 1}, r"weights\['model'\]\['x'\] is a dict, no tensor; put it into the state"),
        (torch.empty(3, device="meta"), r"\['x'\] is on the meta device; only dense tensors"),
        (torch.eye(3).to_sparse(), r"\['x'\] is torch.sparse_coo, torch.float32; only dense"),
        (torch.zeros(2, dtype=torch.complex128), r"safetensors knows no torch.complex128: x\."),
    ],
)
def test_what_is_no_dense_tensor_is_refused_by_name(
    store: CheckpointStore, value: Any, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        store.save(1, {}, weights={"model": {"x": value, "y": torch.ones(2)}})
    assert store.newest() is None


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (np.float64(0.5), r"state\['a'\]\[0\]\['b'\] \(numpy\.float64\)"),
        (np.zeros(3), r"state\['a'\]\[0\]\['b'\] \(numpy\.ndarray\)"),
        (Colour.RED, r"\['b'\] \(\S*Colour\)"),
        (Pair(1, 2), r"\['b'\] \(\S*Pair\)"),
        (lambda: 0, r"\['b'\] \(function\)"),
        (Path("x"), r"\['b'\] \(pathlib\.[\w.]+\)"),
        (torch.Generator(), r"\['b'\] \(torch\._C\.Generator\)"),
        (nn.Linear(1, 1), r"\['b'\] \(torch\.nn\.\S+Linear\)"),
        (iter([]), r"\['b'\] \(list_iterator\)"),
        ({Colour.RED: 1}, r"\['b'\]: the key <Colour\.RED: 1> \(\S*Colour\)"),
    ],
)
def test_a_state_that_would_need_code_to_load_is_refused_by_its_place(
    store: CheckpointStore, weights: Weights, value: object, place: str
) -> None:
    with pytest.raises(UsageError, match=f"without running code: .*{place}"):
        store.save(1, {"a": [{"b": value}], "fine": 1}, weights=weights)
    assert store.newest() is None


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text() | st.integers(), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(plain)
@settings(max_examples=40)
def test_every_plain_state_is_taken_and_comes_back(
    tmp_path_factory: pytest.TempPathFactory, value: object
) -> None:
    store = CheckpointStore(tmp_path_factory.mktemp("plain"))
    store.save(1, {"value": value}, weights={"model": {"w": torch.ones(1)}})
    checkpoint = store.newest()
    assert checkpoint is not None
    assert repr(checkpoint.load_state()) == repr({"value": value})


def test_what_torch_can_load_by_itself_is_taken() -> None:
    loop: dict[str, Any] = {"x": 1}
    loop["self"] = loop
    check_state(
        {
            "counter": Counter([1, 1]),
            "ordered": OrderedDict(a=1),
            "size": torch.Size([1]),
            "dtype": torch.float32,
            "parameter": nn.Parameter(torch.ones(1)),
            "set": {1, 2},
            "loop": loop,
        }
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": {}}, "no weights to save"),
        ({"weights": {"../model": {}}}, r"weights \['\.\./model'\]: letters, digits"),
        ({"step": -1}, "step -1; steps are counted from 0"),
        ({"best": True}, "saved as best with the metric None"),
        ({"best": True, "metric": float("nan")}, "saved as best with the metric nan"),
        ({"metric": 0.5, "measured_on": "ema"}, r"measured_on='ema' is none of .*\['model'\]"),
        (
            {"metric": 0.5, "weights": {"model": {}, "ema": {}}},
            r"measured on one of \['ema', 'model'\]; say which",
        ),
    ],
)
def test_arguments_that_cannot_be_right_are_refused(
    store: CheckpointStore, weights: Weights, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        store.save(**({"step": 1, "state": {}, "weights": weights} | arguments))
    assert not store.folder.exists()


@pytest.mark.parametrize("metric", [None, 0.25, float("nan"), float("inf"), np.float32(0.5)])
def test_every_metric_comes_back(
    store: CheckpointStore, weights: Weights, metric: float | None
) -> None:
    store.save(1, {}, weights=weights, metric=metric)
    checkpoint = store.newest()
    assert checkpoint is not None
    assert repr(checkpoint.metric) == repr(None if metric is None else float(metric))
    assert checkpoint.measured_on == (None if metric is None else "model")


def test_weights_that_are_not_there_are_named(store: CheckpointStore, weights: Weights) -> None:
    store.save(1, {}, weights=weights)
    checkpoint = store.newest()
    assert checkpoint is not None
    with pytest.raises(CheckpointError, match=r"has no weights 'ema'; it has \['model'\]"):
        checkpoint.load_weights("ema")
