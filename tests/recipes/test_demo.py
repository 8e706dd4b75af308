"""``surefoot demo refdet`` at a size of seconds, and what both demos say when cut short."""

from __future__ import annotations

import io
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from surefoot import cli
from surefoot.checkpoint import RESUMABLE, CheckpointStore
from surefoot.data import AeroEyes
from surefoot.errors import ConfigError, TrainingDiverged
from surefoot.journal import JournalReader
from surefoot.recipes.camouflage.train import CamouflageRun
from surefoot.recipes.refdet.demo import DemoConfig, run_demo
from surefoot.recipes.refdet.train import Run
from surefoot.records import StepRecord, Verdict

TINY = ["--steps", "3", "--epoch-steps", "2", "--videos", "2", "--frames", "6", "--n-way", "3"]


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """The demo chooses the number of threads of its process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "out"
    assert cli.main(["demo", "refdet", "--out", str(out), *TINY]) == 0
    return out


def test_the_demo_writes_a_run_folder_with_pictures(demo: Path) -> None:
    steps = list(JournalReader(demo / "journal.jsonl").steps())
    assert [record.step for record in steps] == [0, 1, 2]
    best = CheckpointStore(demo / "checkpoints").best()
    assert best is not None
    assert best.metric is not None
    for name in ("contact_sheet.png", "curves.png"):
        with Image.open(demo / name) as image:
            picture = np.array(image.convert("RGB"))
        assert min(picture.shape[:2]) > 400
        some = picture[::5, ::5].reshape(-1, 3)
        assert len(np.unique(some, axis=0)) > 50, name


def test_objects_of_the_three_sets_are_others(demo: Path) -> None:
    photos = {
        path.read_bytes()
        for split in ("calibration", "validation")
        for video in AeroEyes.open(demo / "data" / split).videos
        for path in video.references
    }
    assert len(photos) == 2 * 2 * 3


def test_the_table_has_the_right_and_the_swapped_references(demo: Path, tmp_path: Path) -> None:
    out, said = tmp_path / "out", io.StringIO()
    config = DemoConfig(out=out, steps=3, epoch_steps=2, videos=2, frames=6, n_way=3, seed=1)
    outcome = run_demo(config, stream=said)
    assert outcome.evaluation is not None
    for column in ("ST-IoU", "mAP50", "mAP75", "recall", "fires on empty frames"):
        assert column in said.getvalue()
    rows = [line for line in said.getvalue().splitlines() if line.startswith("│ of ")]
    assert len(rows) == 2
    assert f"{outcome.evaluation.right.st_iou:.3f}" in rows[0]
    assert f"{outcome.evaluation.swapped.st_iou:.3f}" in rows[1]
    assert losses(out) != losses(demo)  # another seed


def losses(folder: Path) -> list[float]:
    return [record.loss for record in JournalReader(folder / "journal.jsonl").steps()]


def test_a_demo_replaces_an_earlier_one_and_gives_the_same_numbers(demo: Path) -> None:
    before = losses(demo)
    assert cli.main(["demo", "refdet", "--out", str(demo), *TINY]) == 0
    assert losses(demo) == before


def test_a_folder_of_something_else_is_not_removed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.txt").write_text("years of work", "utf-8")
    assert cli.main(["demo", "refdet", "--out", str(tmp_path), *TINY]) == 2
    assert "holds something that is no earlier demo" in capsys.readouterr().err
    assert (tmp_path / "thesis.txt").read_text("utf-8") == "years of work"


@pytest.mark.parametrize(("name", "value"), [("steps", 0), ("videos", 1), ("n_way", 1)])
def test_an_impossible_demo_names_its_flag(tmp_path: Path, name: str, value: int) -> None:
    flag = f"--{name.replace('_', '-')} {value}: has to be at least"
    with pytest.raises(ConfigError, match=flag):
        DemoConfig(out=tmp_path, **{name: value})  # type: ignore[arg-type]


CAMOUFLAGE = ["--steps", "4", "--epoch-steps", "2", "--size", "32", "--batch-size", "2"]


@pytest.fixture
def happens(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Has something happen after every step of a demo."""

    def after_steps(what: Callable[[], object]) -> None:
        for kind in (Run, CamouflageRun):
            monkeypatch.setattr(kind, "stepped", lambda self, record: what())

    return after_steps


def way_on(name: str, out: Path) -> str:
    """The sentence, up to the flags."""
    return f"A demo does not go on; it begins anew with: surefoot demo {name} --out '{out}' --steps"


@pytest.mark.parametrize(("name", "flags"), [("refdet", TINY), ("camouflage", CAMOUFLAGE)])
def test_a_demo_that_is_asked_to_stop_names_its_own_command_as_the_way_on(
    happens: Callable[[Callable[[], object]], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    flags: list[str],
) -> None:
    happens(lambda: signal.raise_signal(signal.SIGTERM))
    out = tmp_path / "a demo"
    with pytest.raises(SystemExit) as stop:
        cli.main(["demo", name, "--out", str(out), *flags])
    assert stop.value.code == RESUMABLE
    said = capsys.readouterr().out
    (line,) = (one for one in said.splitlines() if "SIGTERM" in one)
    assert line.startswith(f"  SIGTERM: step 1 is saved in {out}/checkpoints/")
    assert f"-step-1. {way_on(name, out)}" in line
    assert str(stop.value) == line.strip()
    assert "surefoot train" not in said


DIVERGED = TrainingDiverged(
    "too many steps were refused", record=StepRecord(step=2, verdict=Verdict.REFUSED)
)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), DIVERGED], ids=["Ctrl-C", "diverged"])
def test_a_demo_that_fails_names_its_own_command_as_the_way_on(
    happens: Callable[[Callable[[], object]], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
) -> None:
    steps: list[int] = []

    def third() -> None:
        steps.append(1)
        if len(steps) == 3:  # there is a checkpoint
            raise error

    happens(third)
    out = tmp_path / "a demo"
    assert cli.main(["demo", "camouflage", "--out", str(out), *CAMOUFLAGE]) in (2, 130)
    said = capsys.readouterr().err
    assert way_on("camouflage", out) in said
    assert "surefoot train" not in said
