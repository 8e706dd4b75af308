"""Flags of ``surefoot train refdet``: the users' own command lines, both spellings, refusals."""

from __future__ import annotations

import re
import shlex
from dataclasses import fields, replace
from pathlib import Path

import pytest

from surefoot.cli.train_refdet import parse
from surefoot.errors import ConfigError
from surefoot.recipes.refdet import RunOptions, TrainConfig

RECOMMENDED = r"""
python train.py \
    --stage 2 \
    --epochs 100 \
    --batch_size 32 \
    --n_way 4 \
    --n_query 4 \
    --lr 1e-4 \
    --gradient_clip_norm 10.0 \
    --dfl_weight 0.75 \
    --warmup_epochs 3 \
    --data_root ./datasets/train \
    --val_data_root ./datasets/val \
    --checkpoint <path_to_stage1_checkpoint>
"""
SHORT_TEST = r"""
python train.py \
    --stage 2 \
    --epochs 5 \
    --batch_size 16 \
    --n_way 2 \
    --n_query 2 \
    --gradient_clip_norm 10.0 \
    --dfl_weight 0.75 \
    --warmup_epochs 1 \
    --data_root ./datasets/train \
    --val_data_root ./datasets/val
"""
QUICK_SHORT = "python train.py --stage 2 --epochs 5 --gradient_clip_norm 10.0 --dfl_weight 0.75"
QUICK_FULL = """python train.py --stage 2 --epochs 100 --gradient_clip_norm 10.0 --dfl_weight 0.75
--warmup_epochs 3"""
MORE_CONSERVATIVE = r"""
python train.py \
  --lr 1e-5 \
  --gradient_clip_norm 0.25 \
  --dfl_weight 0.25
"""


def flags_of(document: str) -> list[str]:
    """The words after ``python train.py`` as a shell would pass them on."""
    words = shlex.split(document.replace("\\\n", " ").replace("<", "").replace(">", ""))
    assert words[:2] == ["python", "train.py"]
    return words[2:]


def test_the_recommended_command_of_the_documents_runs_with_its_meaning() -> None:
    config = parse(flags_of(RECOMMENDED))
    assert (config.run.stage, config.run.epochs, config.hardware.batch_size) == (2, 100, 32)
    assert (config.episode.n_way, config.episode.n_query) == (4, 4)
    assert (config.optimizer.lr, config.optimizer.gradient_clip_norm) == (1e-4, 10.0)
    assert (config.loss.dfl_weight, config.optimizer.warmup_epochs) == (0.75, 3.0)
    assert config.data.data_root == Path("datasets/train")
    assert config.data.val_data_root == Path("datasets/val")
    assert config.run.checkpoint == Path("path_to_stage1_checkpoint")


def test_the_short_test_of_the_documents_runs_with_its_meaning() -> None:
    config = parse(flags_of(SHORT_TEST))
    assert (config.run.epochs, config.hardware.batch_size) == (5, 16)
    assert (config.episode.n_way, config.episode.n_query) == (2, 2)
    assert config.optimizer.warmup_epochs == 1.0


@pytest.mark.parametrize("document", [QUICK_SHORT, QUICK_FULL, MORE_CONSERVATIVE])
def test_the_other_commands_of_the_documents_run(document: str) -> None:
    config = parse(flags_of(document))
    given = dict(zip(flags_of(document)[::2], flags_of(document)[1::2], strict=True))
    assert config.loss.dfl_weight == float(given["--dfl_weight"])
    assert config.optimizer.gradient_clip_norm == float(given["--gradient_clip_norm"])
    assert config.optimizer.lr == float(given.get("--lr", "1e-4"))


def test_every_command_line_in_the_documents_themselves_is_read(shared: Path) -> None:
    texts = [p.read_text("utf-8", errors="replace") for p in (shared / "seeds").glob("*.txt")]
    found = [
        m[0] for text in texts for m in re.finditer(r"^python train\.py(.*\\\n)*.*", text, re.M)
    ]
    assert len(found) >= 6
    for command in found:
        # What the documents leave out: "# ... (rest of args)", "[... other args ...]".
        flags = flags_of(re.sub(r"#.*|\[\.\.\..*\]", "", command))
        if "--resume" in flags:
            with pytest.raises(ConfigError, match="is no run folder and no checkpoint of one"):
                parse(flags)
        else:
            assert parse(flags) != TrainConfig()


@pytest.mark.parametrize(
    ("advice", "section", "field", "value"),
    [
        ("--no-mixed_precision", "hardware", "mixed_precision", False),
        ("--val_interval 5", "run", "val_interval", 5),
        ("--gradient_clip_norm 15.0", "optimizer", "gradient_clip_norm", 15.0),
        ("--dfl_weight 0.5", "loss", "dfl_weight", 0.5),
        ("--lr 5e-5", "optimizer", "lr", 5e-5),
        ("--warmup_epochs 5", "optimizer", "warmup_epochs", 5.0),
        ("--debug_mode", "run", "debug_mode", True),
        ("--debug", "run", "debug_mode", True),
        ("--accumulation-steps 4", "optimizer", "gradient_accumulation", 4),
        ("--gradient_accumulation 4", "optimizer", "gradient_accumulation", 4),
        ("--grad-clip 0.3", "optimizer", "gradient_clip_norm", 0.3),
        ("--test_data_root x", "data", "val_data_root", Path("x")),
        ("--checkpoint_dir x", "run", "save_dir", Path("x")),
        ("--save_dir x", "run", "save_dir", Path("x")),
        ("--dinov3_model vit", "model", "support_encoder", "vit"),
        ("--bbox_loss wiou", "loss", "bbox_loss", "wiou"),
    ],
)
def test_every_piece_of_advice_in_the_documents_is_a_flag(
    advice: str, section: str, field: str, value: object
) -> None:
    assert getattr(getattr(parse(shlex.split(advice)), section), field) == value


@pytest.mark.parametrize("part", [part.name for part in fields(TrainConfig)])
def test_both_spellings_of_every_flag_mean_the_same(part: str) -> None:
    samples = {
        "stage": "2", "device": "cpu", "preset": "pocket", "bbox_loss": "giou",
        "precision": "fp32", "image_size": "64", "support_size": "64", "val_image_size": "64",
        "background_share": "0.4",
        "beta2": "0.9", "ema_decay": "0.9", "mosaic": "0.3",
        "stranger_share": "0.3", "replay_share": "0.3",
        "frame_cache_encoding": "jpeg",
        "data": "procedural", "fusion": "cheaf", "head": "dual",
    }  # fmt: skip
    for option in fields(getattr(TrainConfig(), part)):
        if option.name == "resume":  # reads the folder that it names
            continue
        flag = isinstance(getattr(getattr(TrainConfig(), part), option.name), bool)
        value = [] if flag else [samples.get(option.name, "3")]
        dashed = parse([f"--{option.name.replace('_', '-')}", *value])
        assert dashed == parse([f"--{option.name}", *value])
        if not flag and option.name != "stage":
            assert value[0] in str(getattr(getattr(dashed, part), option.name))


@pytest.mark.parametrize(
    ("flags", "stage", "lr", "triplet", "frozen"),
    [
        ("", 2, 1e-4, 0.0, False),
        ("--stage 2", 2, 1e-4, 0.0, False),
        ("--stage=3", 3, 3e-5, 0.3, True),
        ("--stage 3 --triplet_weight 0.5 --no-freeze-yolo", 3, 3e-5, 0.5, False),
        ("--stage 1", 1, 1e-3, 0.0, False),
        ("--stage 1 --data procedural", 1, 3e-3, 0.0, False),
    ],
)
def test_every_stage_has_defaults_of_its_own(flags, stage, lr, triplet, frozen) -> None:
    config = parse(shlex.split(flags))
    assert config.run.stage == stage
    assert config.optimizer.lr == lr
    assert config.loss.triplet_weight == triplet
    assert config.model.freeze_yolo is frozen


@pytest.mark.parametrize("arguments", [["--stage", "4"], ["--stage"], ["--stage", "two"]])
def test_there_are_three_stages(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(arguments)
    assert ended.value.code == 2


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ("--lr 0", r"--lr 0\.0: has to be finite and above 0"),
        ("--lr nan", "--lr nan: has to be finite"),
        ("--epochs 0", "--epochs 0: has to be at least 1"),
        ("--n_way 0", "--n-way 0: has to be at least 1"),
        ("--n_query -1", "--n-query -1: has to be at least 1"),
        ("--dfl_weight -1", r"--dfl-weight -1\.0: has to be finite and >= 0"),
        ("--bbox_weight 0 --cls_weight 0 --dfl_weight 0", "are all 0: no detector learns"),
        ("--gradient_clip_norm inf", "--gradient-clip-norm inf: has to be finite, 0 for off"),
        ("--accumulation-steps 0", "--gradient-accumulation 0: has to be at least 1"),
        ("--background_share 1", r"--background-share 1\.0: has to be a share from 0 up to"),
        ("--image_size 8", "--image-size 8: has to be at least 32 pixels"),
        ("--seed -1", "--seed -1: has to be from 0 to 2"),
        ("--no-mixed_precision --precision bf16", "contradict each other"),
        (
            "--preset pocket --pretrained",
            "--pretrained: the pocket preset has no support encoder",
        ),
        ("--resume a --checkpoint b", "--resume and --checkpoint together"),
    ],
)
def test_an_impossible_value_names_its_flag(flags: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        parse(shlex.split(flags))


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ("--lerning_rate 1", "Unrecognized options: --lerning_rate"),
        ("--lr fast", "--lr: could not convert string to float: 'fast'"),
        ("--preset giant", "invalid choice 'giant' for argument '--preset'"),
        ("--epochs", "Missing value for argument '--epochs'"),
    ],
)
def test_an_unknown_flag_or_unreadable_value_is_refused_by_name(
    flags: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse(shlex.split(flags))
    said = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert complaint in said


def test_help_names_every_setting_and_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        parse(["--help"])
    shown = capsys.readouterr().out
    for part in fields(TrainConfig):
        for option in fields(getattr(TrainConfig(), part.name)):
            assert f"--{option.name.replace('_', '-')}" in shown


def test_a_resumed_run_keeps_its_settings_but_for_what_is_given(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    saved = replace(parse(["--lr", "3e-4", "--n-way", "5"]), run=RunOptions(epochs=7))
    saved.save(run / "config.json")
    config = parse(["--resume", str(run), "--lr", "1e-5"])
    assert (config.optimizer.lr, config.episode.n_way, config.run.epochs) == (1e-5, 5, 7)
    assert config.run.save_dir == run
    assert config.differences(saved)[-1] == "--lr: 0.0003 -> 1e-05"


def test_settings_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    config = parse(flags_of(RECOMMENDED))
    config.save(tmp_path / "config.json")
    assert TrainConfig.load(tmp_path / "config.json") == config


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "is damaged"),
        ('{"version": 99}', "was written by another version"),
        ('{"version": 1, "loss": {"x": 1}}', r"LossOptions has no settings \['x'\]"),
        ('{"version": 1, "losses": {}}', "no subject 'losses'"),
    ],
)
def test_settings_that_cannot_be_read_say_why(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "config.json").write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=complaint):
        TrainConfig.load(tmp_path / "config.json")


def test_a_folder_without_a_run_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--resume .*: is no run folder and no checkpoint"):
        parse(["--resume", str(tmp_path)])
