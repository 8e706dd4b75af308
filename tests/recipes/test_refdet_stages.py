"""Stage 1 on drawn scenes, stage 3, and the terms that only some stages have."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from surefoot.cli.main import main
from surefoot.data import SceneConfig, SceneEpisodes
from surefoot.models import RefDet, RefDetConfig
from surefoot.recipes.refdet import LossOptions
from surefoot.recipes.refdet.build import build_criterion
from surefoot.recipes.refdet.contrast import Contrast, empty_points
from surefoot.recipes.session import find_checkpoint
from surefoot.shapes import Episode, LossTerms

SMALL = SceneConfig(
    n_way=4, k_shot=2, scenes=4, scene_size=64, support_size=32, objects_per_scene=(1, 3)
)


@pytest.fixture(scope="module")
def episode() -> Episode:
    return SceneEpisodes(SMALL)[0]


def terms_of(model: RefDet, episode: Episode, options: LossOptions) -> LossTerms:
    prediction = model.detect(episode.images, model.encode(episode.supports))
    terms = build_criterion(options)(prediction, episode)
    return Contrast.of(options)(terms, model, prediction, episode)


@pytest.mark.parametrize("fusion", ["tokens", "psalm", "cheaf", "none"])
def test_each_of_the_two_terms_reaches_what_makes_its_features(episode, fusion):
    torch.manual_seed(0)
    model = RefDet(RefDetConfig.pocket(fusion=fusion))
    options = LossOptions(cpe_weight=0.5, triplet_weight=0.3)
    terms = terms_of(model, episode, options)
    assert terms.weight("cpe") == 0.5
    assert terms.weight("triplet") == 0.3
    rows = 4 * len(episode.boxes)
    assert 0 < float(terms.values["cpe"].detach()) < 3 * math.log(rows)
    assert 0 < float(terms.values["triplet"].detach()) <= 2.3
    for name in ("cpe", "triplet"):
        model.zero_grad()
        terms.values[name].backward(retain_graph=True)
        reached = {n.partition(".")[0] for n, p in model.named_parameters() if p.grad is not None}
        assert {"backbone", "head"} <= reached
        if name == "triplet":  # the photos are rows of it
            assert "pool" in reached


def test_terms_of_no_weight_are_not_computed(episode):
    model = RefDet(RefDetConfig.pocket())
    assert "cpe" not in terms_of(model, episode, LossOptions()).names


def test_an_episode_without_a_box_gives_terms_that_are_zero_or_have_only_photos(episode):
    model = RefDet(RefDetConfig.pocket())
    none = torch.zeros(0, dtype=torch.int64)
    bare = Episode(
        images=episode.images,
        sample_ids=episode.sample_ids,
        supports=episode.supports,
        boxes=torch.zeros(0, 4),
        box_image=none,
        box_object=none,
        ignore=torch.zeros(0, dtype=torch.bool),
    )
    terms = terms_of(model, bare, LossOptions(cpe_weight=1.0, triplet_weight=1.0))
    assert float(terms.values["cpe"].detach()) == 0.0
    terms.total.backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(torch.isfinite(g).all() for g in grads)


def test_empty_points_are_outside_every_box_of_their_image(episode):
    model = RefDet(RefDetConfig.pocket()).eval()
    with torch.no_grad():
        prediction = model(episode.images, episode.supports)
    at = empty_points(prediction, episode, 4)
    assert at.shape == (len(episode.images), 4)
    for image, points in enumerate(prediction.anchor_points[at]):
        for x1, y1, x2, y2 in episode.boxes[episode.box_image == image].tolist():
            for x, y in points.tolist():
                assert not (x1 <= x <= x2 and y1 <= y <= y2)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of stage 1 on drawn scenes."""
    folder = tmp_path_factory.mktemp("drawn") / "run"
    arguments = [
        "train", "refdet", "--stage", "1", "--data", "procedural", "--preset", "pocket",
        "--n-way", "4", "--n-query", "1", "--n-episodes", "3", "--epochs", "1", "--image-size",
        "64", "--support-size", "32", "--num-workers", "0", "--device", "cpu", "--precision",
        "fp32", "--val-frames", "2", "--calibration-frames", "2", "--save-dir", str(folder),
    ]  # fmt: skip
    assert main(arguments) == 0
    return folder


def entries(folder: Path, kind: str) -> list[dict]:
    lines = (folder / "journal.jsonl").read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if entry["kind"] == kind]


def test_drawn_scenes_are_learnt_from_and_drawn_videos_measured_on(drawn):
    assert len(entries(drawn, "step")) == 3
    (measured,) = entries(drawn, "evaluation")
    assert len(measured["right"]["per_video"]) == 12


def test_stage_3_trains_all_but_the_backbone_with_triplets_and_replay(drawn, videos, tmp_path):
    folder = tmp_path / "run"
    arguments = [
        "train", "refdet", "--stage", "3", "--preset", "pocket", "--checkpoint", str(drawn),
        "--data-root", str(videos / "train"), "--n-way", "2", "--n-query", "2", "--n-episodes",
        "4", "--epochs", "1", "--image-size", "64", "--support-size", "32", "--num-workers", "0",
        "--device", "cpu", "--precision", "fp32", "--lr", "1e-3", "--cpe-weight", "0.2",
        "--save-dir", str(folder),
    ]  # fmt: skip
    assert main(arguments) == 0
    steps = entries(folder, "step")
    assert [name for name, *_ in steps[0]["terms"]] == [
        "bbox", "cls", "dfl", "supcon", "obj", "cpe", "triplet"
    ]  # fmt: skip
    replayed = [not any("Object" in name for name in step["sample_ids"]) for step in steps]
    assert replayed.count(True) == 1
    before = find_checkpoint(drawn, best=True)[0].load_weights("ema")
    after = find_checkpoint(folder)[0].load_weights("model")
    moved = {
        name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])
    }
    assert "backbone" not in moved
    assert {"pool", "head", "score"} <= moved


def test_frames_are_decoded_into_a_folder_and_memory_is_told_beforehand(
    tiny_flags, tmp_path, capsys
):
    stored, direct = tmp_path / "stored", tmp_path / "direct"
    cache = ["--frame-cache", str(tmp_path / "frames"), "--frame-cache-mb", "100"]
    assert main(["train", "refdet", *tiny_flags(direct, "--epochs", "1")]) == 0
    assert main(["train", "refdet", *tiny_flags(stored, "--epochs", "1", *cache)]) == 0
    said = capsys.readouterr().out
    assert "frames" in said
    assert "memory" in said
    assert any((tmp_path / "frames").iterdir())
    pairs = [find_checkpoint(folder)[0].load_weights("model") for folder in (stored, direct)]
    assert [name for name in pairs[0] if not torch.equal(pairs[0][name], pairs[1][name])] == []
