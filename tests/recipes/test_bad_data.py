"""A training set that goes bad under a run: it goes on, says so, and resumes exactly."""

from __future__ import annotations

import io
import logging
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from recipes.camouflage_runs import cod10k, tiny
from recipes.test_camouflage_train import differing, entries, newest
from surefoot.checkpoint import CheckpointStore
from surefoot.data import DataIncident
from surefoot.data.camouflage import CamouflageDataset
from surefoot.errors import DataError
from surefoot.journal import JournalReader
from surefoot.recipes.camouflage import CamouflageConfig
from surefoot.recipes.camouflage.feed import CamouflageFeed
from surefoot.recipes.camouflage.options import DataOptions
from surefoot.recipes.camouflage.sources import Sources, open_sources
from surefoot.recipes.camouflage.train import CamouflageRun, train
from surefoot.records import StepRecord

IMAGES = 20


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cod10k(tmp_path_factory.mktemp("data") / "COD10K-v3", count=22)  # two are held out


def settings(folder: Path, pictures: Path, workers: int = 0, **run: Any) -> CamouflageConfig:
    """2 epochs of 5 steps."""
    data = DataOptions(
        dataset_path=pictures, img_size=32, batch_size=2, num_workers=workers, val_share=0.1
    )
    config = tiny(folder, **{"epochs": 2, "stage1_epochs": 1, "val_interval": 99, **run})
    return replace(config, data=data)


def opened(config: CamouflageConfig) -> Sources:
    """Opened while all files are whole, and without a validation."""
    return replace(open_sources(config), validation=None)


def truncate(training: Any, index: int) -> str:
    """Cut an image file in half; gives its name."""
    path: Path = training.pairs[index].image
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return training.id_of(index)


@pytest.fixture
def own(pictures: Path, tmp_path: Path) -> Path:
    """The same files, to be damaged."""
    import shutil

    return Path(shutil.copytree(pictures, tmp_path / "own" / "COD10K-v3"))


def test_a_truncated_image_is_set_aside_and_a_resumed_run_ends_where_it_would_have(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, said = settings(tmp_path / "whole", own), io.StringIO()
    sources = opened(config)
    name = truncate(sources.training, 7)
    train(config, sources, stream=said)
    (told,) = entries(tmp_path / "whole", "data")
    assert (told.values["sample"], told.values["index"]) == (name, 7)
    assert told.values["what"] == "exception"
    assert told.values["replaced_by"] in range(IMAGES)
    assert said.getvalue().count(f"  {name}: sample 7 is not loaded again") == 1
    ids = [
        i for r in JournalReader(tmp_path / "whole" / "journal.jsonl").steps() for i in r.samples
    ]
    assert name not in ids

    for at in (1, 6):  # before and after it was found, of 10 steps

        def cut(run: CamouflageRun, record: StepRecord, at: int = at) -> None:
            if record.step == at:
                raise KeyboardInterrupt

        folder = tmp_path / f"cut at {at}"
        config = settings(folder, own, save_steps=1)
        with monkeypatch.context() as patch:
            patch.setattr(CamouflageRun, "stepped", cut)
            with pytest.raises(KeyboardInterrupt):
                train(config, sources, stream=io.StringIO())
        train(
            replace(config, run=replace(config.run, resume=folder)), sources, stream=io.StringIO()
        )
        assert differing(newest(tmp_path / "whole"), newest(folder)) == []
        assert len(entries(folder, "data")) == 1
        assert entries(folder, "data")[0].values["epoch"] == told.values["epoch"]


def test_a_sample_that_was_set_aside_is_not_tried_again_after_a_resume(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that can be read again by then: its batch is the one that the run would have had."""
    config = settings(tmp_path / "a", own, epochs=1)
    sources = opened(config)
    path: Path = sources.training.pairs[7].image  # type: ignore[attr-defined]
    whole = path.read_bytes()
    truncate(sources.training, 7)
    train(config, sources, stream=io.StringIO())
    path.write_bytes(whole)
    found = CheckpointStore(tmp_path / "a" / "checkpoints").newest()
    assert found is not None
    aside = found.load_state()["order"]["quarantine"]["quarantined"]
    assert [one["index"] for one in aside] == [7]
    config = settings(tmp_path / "a", own, epochs=2, resume=tmp_path / "a")
    train(config, sources, stream=io.StringIO())
    assert len(entries(tmp_path / "a", "data")) == 1
    feed = CamouflageFeed(config, sources.training, torch.device("cpu"))
    feed.order.load_state_dict(found.load_state()["order"] | {"samples_done": 0, "batches_done": 0})
    names = [name for batch in feed.batches(99) for name in feed.names(batch)]
    assert len(names) == IMAGES
    assert sources.training.id_of(7) not in names


def test_images_that_are_all_bad_stop_the_run_and_are_listed(own: Path, tmp_path: Path) -> None:
    config, said = settings(tmp_path / "a", own), io.StringIO()
    sources = opened(config)
    for index in range(IMAGES):
        truncate(sources.training, index)
    with pytest.raises(DataError, match=f"2 samples of {IMAGES} could not be used, and 1 may be"):
        train(config, sources, stream=said)
    stopped = entries(tmp_path / "a", "stopped")
    assert "COD10K-CAM" in stopped[0].values["message"]
    assert len(entries(tmp_path / "a", "data")) == 2


def test_a_worker_that_is_killed_costs_nothing_but_a_line(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(tmp_path / "whole", pictures, workers=1)
    sources = opened(config)
    train(config, sources, stream=io.StringIO())
    mark, original, here = tmp_path / "killed", CamouflageDataset.original, os.getpid()

    def killed_once(self: CamouflageDataset, index: int) -> Any:
        if index == 7 and not mark.exists() and os.getpid() != here:
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, index)

    monkeypatch.setattr(CamouflageDataset, "original", killed_once)
    said = io.StringIO()
    train(settings(tmp_path / "killed once", pictures, workers=1), sources, stream=said)
    assert mark.exists()
    (told,) = entries(tmp_path / "killed once", "data")
    assert (told.values["what"], told.values["quarantined"]) == ("killed", False)
    assert "is tried once more" in said.getvalue()
    assert differing(newest(tmp_path / "whole"), newest(tmp_path / "killed once")) == []


def test_batches_are_counted_from_the_epochs_beginning_after_a_resume(
    own: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = settings(tmp_path / "a", own)
    sources = opened(config)
    order = CamouflageFeed(config, sources.training, torch.device("cpu")).order
    last = list(order)[-1][0]  # in the last batch of the first epoch
    truncate(sources.training, last)
    found: list[DataIncident] = []
    for done in (0, 3):
        feed = CamouflageFeed(config, sources.training, torch.device("cpu"))
        feed.told = found.append
        for _ in range(done):
            feed.order.advance()
        assert len(list(feed.batches(99))) == IMAGES // 2 - done
    assert [one.batch for one in found] == [IMAGES // 2 - 1] * 2
    with caplog.at_level(logging.WARNING, "surefoot.data"):  # where nobody is told
        list(CamouflageFeed(config, sources.training, torch.device("cpu")).batches(99))
    assert f"sample {last} is not loaded again" in caplog.text
