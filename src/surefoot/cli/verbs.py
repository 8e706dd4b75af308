"""What the command can do; the code of a verb is loaded when it is the one asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module

from surefoot.errors import UsageError

__all__ = ["VERBS", "Verb", "find_verb", "overview"]


@dataclass(frozen=True)
class Verb:
    """A command of one or two words, and the module whose ``run(arguments)`` does it."""

    words: tuple[str, ...]
    says: str
    module: str

    def load(self) -> Callable[[Sequence[str]], int]:
        """The verb's ``run``: takes the arguments after its words, returns the exit status."""
        run: Callable[[Sequence[str]], int] = import_module(self.module).run
        return run


VERBS = (
    Verb(
        ("train", "refdet"),
        "train the few-shot, reference-based detector on AeroEyes-like videos",
        "surefoot.cli.train_refdet",
    ),
    Verb(
        ("train", "camouflage"),
        "train the segmenter of camouflaged objects on COD10K and its family",
        "surefoot.cli.train_camouflage",
    ),
    Verb(
        ("demo", "refdet"),
        "make a procedural video set, train on it from random weights, measure, draw",
        "surefoot.cli.demo_refdet",
    ),
    Verb(
        ("demo", "camouflage"),
        "hide objects in textures, train a small segmenter from random weights, score, draw",
        "surefoot.cli.demo_camouflage",
    ),
    Verb(
        ("eval", "refdet"),
        "measure a trained detector on whole videos, with right, wrong and empty references",
        "surefoot.cli.eval_refdet",
    ),
    Verb(
        ("eval", "camouflage"),
        "score a trained segmenter on test sets, beside predictions that took no training",
        "surefoot.cli.eval_camouflage",
    ),
    Verb(
        ("predict", "refdet"),
        "find the objects of a few photos in a video; draw their boxes into it",
        "surefoot.cli.predict_refdet",
    ),
    Verb(
        ("predict", "camouflage"),
        "segment pictures: masks, overlays, both side by side",
        "surefoot.cli.predict_camouflage",
    ),
    Verb(
        ("export", "refdet"),
        "write a trained detector as ONNX, references as inputs, compared with the original",
        "surefoot.cli.export_refdet",
    ),
    Verb(
        ("export", "camouflage"),
        "write a trained segmenter as ONNX, compared with the original",
        "surefoot.cli.export_camouflage",
    ),
    Verb(
        ("doctor",),
        "read logs of any framework and say what is wrong, most likely cause first",
        "surefoot.cli.doctor",
    ),
    Verb(
        ("rules",),
        "print the page of a rule of the doctor: surefoot rules SF101",
        "surefoot.cli.rules",
    ),
    Verb(
        ("checkpoints",),
        "list what a run has saved, good or bad; verify every byte; export weights",
        "surefoot.cli.checkpoints",
    ),
    Verb(
        ("replay",),
        "run a refused step of a run again, alone, and say which module and loss term did it",
        "surefoot.cli.replay",
    ),
)


def overview(verbs: Sequence[Verb] = VERBS) -> str:
    """The help text that lists ``verbs``."""
    names = [" ".join(verb.words) for verb in verbs]
    width = max(map(len, names)) + 2
    lines = [f"  {name:{width}}{verb.says}" for name, verb in zip(names, verbs, strict=True)]
    return "\n".join(
        [
            "usage: surefoot VERB [OPTIONS]",
            "",
            "Training that does not fall over.",
            "",
            *lines,
            "",
            "surefoot VERB --help lists a verb's options; surefoot --version tells the version.",
        ]
    )


def find_verb(arguments: Sequence[str]) -> tuple[Verb, Sequence[str]]:
    """The verb that ``arguments`` begin with, and what comes after its words.

    Raises:
        UsageError: they begin with no verb.
    """
    for verb in VERBS:
        if tuple(arguments[: len(verb.words)]) == verb.words:
            return verb, arguments[len(verb.words) :]
    asked = " ".join(word for word in arguments[:2] if not word.startswith("-"))
    names = [" ".join(verb.words) for verb in VERBS]
    near = get_close_matches(asked, names, n=1)
    hint = f"; perhaps 'surefoot {near[0]}'" if near else ""
    raise UsageError(f"surefoot {asked}: no such verb{hint}. There are: {', '.join(names)}.")
