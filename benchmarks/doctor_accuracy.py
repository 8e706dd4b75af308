"""How often the doctor names the true cause of real runs, and leaves healthy ones in peace.

    python -m benchmarks.doctor_accuracy [--logs FOLDER] [--half even|odd] [--misses]

Sick: the label is among the causes of the first two findings. Healthy: no finding is a warning or
worse. ``FOLDER`` holds ``NNN.log`` and ``labels.jsonl``; it is ``logs`` below ``SUREFOOT_SHARED``
where it is not given. The rules were tuned on the even ids; the odd ones measure.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from surefoot.doctor import Finding, examine
from surefoot.errors import JournalError
from surefoot.journal.foreign import read_log

TARGET_SICK, TARGET_HEALTHY = 0.90, 0.95


@dataclass(frozen=True)
class Judged:
    """One log, what is true of it, and what the doctor said."""

    number: int
    format: str
    truth: str
    findings: tuple[Finding, ...]

    @property
    def causes(self) -> list[str]:
        return [finding.cause.value for finding in self.findings[:2]]

    @property
    def right(self) -> bool:
        if self.truth == "healthy":
            return bool(self.findings) and not any(finding.sick for finding in self.findings)
        return self.truth in self.causes

    @property
    def first_right(self) -> bool:
        return self.right if self.truth == "healthy" else self.causes[:1] == [self.truth]


def judge(folder: Path, number: str, truth: str) -> Judged:
    """Read and examine one log; of several runs in it the findings are put together."""
    try:
        runs = read_log(folder / f"{number}.log")
    except JournalError:
        return Judged(int(number), "unread", truth, ())
    found = [finding for run in runs for finding in examine(run).findings]
    found.sort(key=lambda finding: (not finding.sick, -finding.confidence))
    return Judged(int(number), runs[0].format, truth, tuple(found))


def judge_all(folder: Path, half: str) -> list[Judged]:
    """Every labelled log of the folder, or those with an even or an odd number."""
    lines = (folder / "labels.jsonl").read_text("utf-8").splitlines()
    labels = [json.loads(line) for line in lines if line.strip()]
    wanted = {"all": (0, 1), "even": (0,), "odd": (1,)}[half]
    return [
        judge(folder, label["id"], label["root_cause"])
        for label in labels
        if int(label["id"]) % 2 in wanted
    ]


def share(judged: Sequence[Judged]) -> str:
    """``17 of 18 (94 %)``."""
    right = sum(each.right for each in judged)
    return f"{right:3} of {len(judged):3} ({right / max(len(judged), 1):4.0%})"


def print_by(judged: Iterable[Judged], name: str) -> None:
    """A line for each value of a field."""
    groups: dict[str, list[Judged]] = defaultdict(list)
    for each in judged:
        groups[getattr(each, name)].append(each)
    for value, group in sorted(groups.items(), key=lambda pair: (-len(pair[1]), pair[0])):
        print(f"  {value:28} {share(group)}")


def print_table(judged: Sequence[Judged]) -> None:
    """By cause, by format, and the two figures that count."""
    sick = [each for each in judged if each.truth != "healthy"]
    healthy = [each for each in judged if each.truth == "healthy"]
    print("By cause:")
    print_by(judged, "truth")
    print("\nBy format:")
    print_by(judged, "format")
    first = sum(each.first_right for each in sick)
    print(f"\nSick, label among the first two: {share(sick)}, target {TARGET_SICK:.0%}")
    print(f"Sick, label first:               {first:3} of {len(sick):3}")
    print(f"Healthy without a warning:       {share(healthy)}, target {TARGET_HEALTHY:.0%}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Accuracy of the doctor on labelled real logs.")
    shared = Path(os.environ.get("SUREFOOT_SHARED", "../shared"))
    parser.add_argument("--logs", type=Path, default=shared / "logs")
    parser.add_argument("--half", choices=("all", "even", "odd"), default="all")
    parser.add_argument("--misses", action="store_true", help="list the logs that it gets wrong")
    options = parser.parse_args()
    judged = judge_all(options.logs, options.half)
    print_table(judged)
    if options.misses:
        print("\nMisses:")
        for each in judged:
            if not each.right:
                said = ", ".join(each.causes) or "nothing"
                print(f"  {each.number:03} ({each.format}): is {each.truth}, said {said}")


if __name__ == "__main__":
    main()
