"""YOLOv8 whole: what Ultralytics' own module says, ours says with the same weights."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from surefoot.errors import CheckpointError, ConfigError, UsageError
from surefoot.models import decode_boxes, detections
from surefoot.models.heads import StandardHead
from surefoot.models.yolov8 import YoloV8Detector
from surefoot.models.yolov8_weights import load_ultralytics, read_state_dict

PARAMETERS = {"n": 3157200, "s": 11166560, "m": 25902640, "l": 43691520, "x": 68229648}
"""Of the original, which counts its 16 fixed bins."""


def original(scale: str = "n", classes: int = 80) -> nn.Module:
    """Ultralytics' own module with random weights and random batch statistics."""
    tasks = pytest.importorskip("ultralytics.nn.tasks", reason="Ultralytics is not installed")
    model = tasks.DetectionModel(f"yolov8{scale}.yaml", nc=classes, verbose=False)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    for towers in (model.model[-1].cv2, model.model[-1].cv3):
        for tower in towers:  # the last layers as well: fresh ones say next to nothing
            nn.init.normal_(tower[-1].weight, std=0.2)
            nn.init.normal_(tower[-1].bias)
    return model


@pytest.fixture(scope="module")
def nano() -> nn.Module:
    torch.manual_seed(0)
    return original()


def corners(centred: Tensor) -> Tensor:
    """B 4 A, centre and size -> B A 4, x1 y1 x2 y2."""
    centre, size = centred.transpose(1, 2).split(2, dim=-1)
    return torch.cat((centre - size / 2, centre + size / 2), dim=-1)


SIZES = [(64, 96), (160, 64), (96, 128)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("scale", ["n", "s"])
def test_evaluation_equals_the_originals(scale: str, size: tuple[int, int]) -> None:
    theirs = original(scale).eval()
    ours = load_ultralytics(theirs.state_dict()).eval()
    images = torch.rand(2, 3, *size)
    with torch.no_grad():
        expected = theirs(images)[0]
        said = ours(images)
        boxes = decode_boxes(said.distribution, said.anchor_points, said.strides)
    scores = expected[:, 4:].transpose(1, 2)
    assert scores.std() > 0.05
    torch.testing.assert_close(said.logits.sigmoid(), scores, atol=1e-4, rtol=0)
    torch.testing.assert_close(boxes, corners(expected[:, :4]), atol=1e-4, rtol=1e-6)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("scale", ["n", "s"])
def test_training_equals_the_originals_and_so_do_the_statistics(
    scale: str, size: tuple[int, int]
) -> None:
    theirs = original(scale).train()
    ours = load_ultralytics(theirs.state_dict()).train()
    images = torch.rand(2, 3, *size)
    with torch.no_grad():
        expected, said = theirs(images), ours(images)
    boxes = said.distribution.flatten(2).transpose(1, 2)
    torch.testing.assert_close(boxes, expected["boxes"], atol=1e-4, rtol=0)
    torch.testing.assert_close(said.logits.transpose(1, 2), expected["scores"], atol=1e-4, rtol=0)
    again = load_ultralytics(theirs.state_dict()).state_dict()
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, again[name], atol=1e-4, rtol=0, msg=name)


@pytest.mark.parametrize("scale", list(PARAMETERS))
def test_every_size_has_the_originals_parameters_and_names(scale: str) -> None:
    tasks = pytest.importorskip("ultralytics.nn.tasks", reason="Ultralytics is not installed")
    with torch.device("meta"):
        ours = YoloV8Detector(scale, classes=80)
    assert sum(p.numel() for p in ours.parameters()) == PARAMETERS[scale] - 16
    theirs = tasks.DetectionModel(f"yolov8{scale}.yaml", verbose=False)
    state = theirs.state_dict()
    assert sum(p.numel() for p in theirs.parameters()) == PARAMETERS[scale]
    loaded = load_ultralytics(state).state_dict()
    assert len(loaded) == len(state) - 1
    sums = [sum(float(v.double().sum()) for v in s.values()) for s in (loaded, state)]
    assert sums[0] == pytest.approx(sums[1] - sum(range(16)), rel=1e-9)


@pytest.mark.parametrize("classes", [1, 3, 200])
def test_other_numbers_of_classes_are_read_off_the_weights(classes: int) -> None:
    ours = load_ultralytics(original("n", classes).half().state_dict())
    assert ours.head.classes == classes
    assert ours(torch.rand(1, 3, 32, 64)).logits.shape == (1, 42, classes)
    assert ours.head.label[0][0].conv.weight.dtype == torch.float32


def test_names_may_carry_more_than_one_prefix(nano: nn.Module) -> None:
    state = nano.state_dict()
    twice = load_ultralytics({f"model.{name}": value for name, value in state.items()})
    assert torch.equal(twice.backbone.stem.conv.weight, state["model.0.conv.weight"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("model.9.cv2.bn.bias"), r"missing: backbone\.stages\.32\.sppf\.cv2\.bn\."),
        (lambda s: s.update({"model.22.cv4.0.bias": torch.zeros(2)}), r"no place for: 22\.cv4\.0"),
        (lambda s: s.update({"model.30.x": torch.zeros(2)}), r"no place for: 30\.x"),
        (
            lambda s: s.update({"model.4.cv1.bn.bias": torch.zeros(3)}),
            r"other shape: 4\.cv1\.bn\.bias is \(3,\), here \(64,\)",
        ),
        (lambda s: s.update({"model.22.dfl.conv.weight": torch.ones(1, 16, 1, 1)}), r"0 to 15"),
        (lambda s: s.pop("model.22.cv3.0.2.weight"), r"called model\.22\.cv3\.0\.2\.weight"),
        (lambda s: s.update({"model.0.conv.weight": torch.zeros(24, 3, 3, 3)}), "24 channels"),
    ],
)
def test_what_would_not_be_loaded_whole_is_refused(nano: nn.Module, change, said: str) -> None:
    state = dict(nano.state_dict())
    change(state)
    with pytest.raises(CheckpointError, match=said):
        load_ultralytics(state)


def test_a_model_of_another_size_is_left_as_it_was(nano: nn.Module) -> None:
    model = YoloV8Detector("n", classes=5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"shape: 22\.cv3\.0\.0\.conv\.weight is \(80, 64"):
        load_ultralytics(nano.state_dict(), model)
    assert all(torch.equal(value, before[n]) for n, value in model.state_dict().items())


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_files_of_plain_tensors_are_read(nano: nn.Module, tmp_path: Path, suffix: str) -> None:
    state, path = nano.state_dict(), tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save(state, path)
    else:
        save_file({name: value.clone() for name, value in state.items()}, path)
    read = read_state_dict(path)
    assert read.keys() == state.keys()
    assert all(torch.equal(read[name], state[name]) for name in state)


def test_a_pickled_model_is_not_opened_and_the_error_says_how_to_export(
    nano: nn.Module, tmp_path: Path
) -> None:
    path = tmp_path / "best.pt"
    torch.save({"model": nano}, path)
    with pytest.raises(CheckpointError, match=r"YOLO\('.*best\.pt'\).*best-state\.pt") as refused:
        read_state_dict(path)
    assert refused.value.path == path


@pytest.mark.parametrize(
    ("content", "said"),
    [({"epoch": 3}, r"holds a dict with epoch"), ([torch.zeros(2)], "holds a list with")],
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: object, said: str) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=said):
        read_state_dict(tmp_path / "x.pt")


@pytest.mark.parametrize("name", ["absent.pt", "torn.pt", "torn.safetensors"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    if name.startswith("torn"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(CheckpointError, match=rf"reading the weights .*{name}"):
        read_state_dict(tmp_path / name)


def test_a_fresh_head_says_the_prior_and_uniform_distributions() -> None:
    head = StandardHead((16, 32), (8, 16), classes=4)
    distribution, logits = head([torch.rand(1, 16, 8, 8), torch.rand(1, 32, 4, 4)])
    share = logits[0, :64].sigmoid().mean() * 4 * 80**2
    assert share.item() == pytest.approx(5, rel=0.5)
    assert -distribution.log_softmax(-1).mean().item() == pytest.approx(math.log(16), rel=0.03)


def test_every_parameter_of_the_detector_gets_gradient() -> None:
    model = YoloV8Detector("n", classes=2)
    said = model(torch.rand(2, 3, 64, 64))
    (said.logits.square().sum() + said.distribution.square().sum()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_the_standard_heads_scores_become_detections() -> None:
    said = YoloV8Detector("n", classes=3).eval()(torch.rand(2, 3, 64, 64))
    found = detections(said, threshold=0.0, limit=7)
    assert [f.boxes.shape for f in found] == [(7, 4), (7, 4)]
    assert all(((f.objects >= 0) & (f.objects < 3)).all() for f in found)


@pytest.mark.parametrize("shape", [(1, 3, 64, 100), (3, 64, 64), (1, 1, 64, 64), (1, 3, 0, 64)])
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=r"multiples of 32"):
        YoloV8Detector("n", classes=1)(torch.zeros(shape))


@pytest.mark.parametrize("change", [{"classes": 0}, {"reg_max": 1}])
def test_a_head_without_classes_or_bins_is_refused(change: dict) -> None:
    with pytest.raises(ConfigError, match="at least 1 and 2"):
        StandardHead((8,), (8,), **({"classes": 1} | change))
