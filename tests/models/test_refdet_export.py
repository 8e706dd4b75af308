"""Detection as an ONNX graph of images and references, whatever the fusion."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from surefoot.models import (
    BackboneSupportConfig,
    FusionName,
    RefDet,
    RefDetConfig,
    References,
    YoloV8Config,
)

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


class Detect(nn.Module):
    """RefDet.detect with tensors in and out."""

    def __init__(self, model: RefDet) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, images: Tensor, prototypes: Tensor, tokens: Tensor, places: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        references = References(
            prototypes=prototypes, shots=prototypes[:, None], tokens=tokens, places=places
        )
        prediction = self.model.detect(images, references)
        return prediction.logits, prediction.distribution


def example(model: RefDet, images: int, objects: int, photos: int) -> dict[str, Tensor]:
    references = model.encode(torch.rand(objects, photos, 3, 32, 32))
    given = {
        "images": torch.rand(images, 3, 32, 48),
        "prototypes": references.prototypes,
        "tokens": references.tokens,
        "places": references.places,
    }
    return {name: value for name, value in given.items() if value is not None}


# Plain tokens go through surefoot export itself, in tests/recipes/test_refdet_onnx.py.
@pytest.mark.parametrize("fusion", ["psalm", "cheaf"])
def test_any_number_of_images_and_objects_goes_through_one_graph(
    fusion: FusionName, tmp_path: Path
) -> None:
    strides = (4, 8)
    model = RefDet(
        RefDetConfig(
            backbone=YoloV8Config(  # as few nodes as can be: tracing takes its time by the node
                channels=(8, 8, 8)[: 1 + len(strides)],
                depths=(0, 0)[: len(strides)],
                neck_depth=0,
                strides=strides,
                sppf=False,
            ),
            head_depth=0,
            support=BackboneSupportConfig(stride=4),
            embedding=16,
            fusion=fusion,
        )
    ).eval()
    if fusion == "tokens":
        nn.init.normal_(model.conditioning.value.weight, std=1 / 16)
    with torch.no_grad():
        traced = example(model, 2, 3, 2)
        axes = {"images": {0: Dim("images", max=64)}}
        axes |= {name: {0: Dim("objects", max=64)} for name in traced if name != "images"}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's own
            torch.onnx.export(
                Detect(model),
                tuple(traced.values()),
                tmp_path / "model.onnx",
                input_names=list(traced),
                dynamic_shapes=axes,
                dynamo=True,
                verbose=False,
                optimize=False,  # a third of the time; the graph says the same
            )
        session = onnxruntime.InferenceSession(
            str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"]
        )
        taken = {put.name for put in session.get_inputs()}
        assert {"images", "prototypes"} <= taken
        for images, objects in ((2, 3), (1, 1), (3, 5)):
            given = example(model, images, objects, 2)
            expected = Detect(model)(**given)
            found = session.run(None, {n: v.numpy() for n, v in given.items() if n in taken})
            for ours, theirs in zip(expected, found, strict=True):
                torch.testing.assert_close(torch.from_numpy(theirs), ours, atol=1e-4, rtol=0)
