"""How long a log of a million lines takes to read, and how much memory, by format.

    python -m benchmarks.log_reading [--lines N] [--quick] [--format NAME]

The files are made first, with plausible numbers, then each is read in a process of its own. Time
is that of the processor, which other work on the machine does not lengthen much, and of the clock.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

_Line = Callable[[int], str]


def _loss(step: int) -> float:
    return 2.0 + 8.0 / (1.0 + step / 1000) + 0.1 * math.sin(step * 12.9898)


def _transformers(step: int) -> str:
    values = {
        "loss": round(_loss(step), 4),
        "grad_norm": 1.0 + abs(math.sin(step)),
        "learning_rate": 5e-05 * (1 - step / 2e6),
        "epoch": round(step / 10_000, 4),
    }
    return str(values)


def _megatron(step: int) -> str:
    return (
        f" [2026-01-01 10:{step // 60 % 60:02d}:{step % 60:02d}] iteration {step:8d}/ 1000000 | "
        f"consumed samples: {step * 256:12d} | elapsed time per iteration (ms): "
        f"{800 + 10 * math.sin(step):.1f} | learning rate: {1e-4:.3E} | global batch size:   256 | "
        f"lm loss: {_loss(step):.6E} | loss scale: {2.0 ** (16 - step % 3):.1f} | "
        f"grad norm: {1 + abs(math.sin(step)):.3f} | number of skipped iterations: "
        f"{step % 7 == 0:3d} "
        f"| number of nan iterations:   0 |"
    )


def _openmmlab(step: int) -> str:
    epoch, batch = divmod(step, 1000)
    parts = [_loss(step) * share for share in (0.2, 0.3, 0.5)]
    return (
        f"2026/01/01 10:{step // 60 % 60:02d}:{step % 60:02d} - mmengine - INFO - "
        f"Epoch(train) [{epoch + 1}][{batch + 1:4d}/1000]  lr: 1.0000e-03  eta: "
        f"0:{step % 60:02d}:23  "
        f"time: 0.1414  data_time: 0.0077  memory: 3920  grad_norm: {abs(math.sin(step)):.4f}  "
        f"loss: {sum(parts):.4f}  loss_cls: {parts[0]:.4f}  loss_bbox: {parts[1]:.4f}  "
        f"loss_dfl: {parts[2]:.4f}"
    )


def _csv(step: int) -> str:
    if step == 0:
        return "step,loss,grad_norm,lr,val_loss,gpu_mem_gb"
    valid = f"{_loss(step) + 0.1:.4f}" if step % 100 == 0 else ""
    return f"{step},{_loss(step):.6f},{1 + abs(math.sin(step)):.4f},{1e-4},{valid},12.5"


def _json_lines(step: int) -> str:
    values = {
        "iteration": step,
        "total_loss": _loss(step),
        "lr": 1e-3,
        "time": 0.25,
        "max_mem": 2500,
    }
    return json.dumps(values)


def _unknown(step: int) -> str:
    """A format that no reader knows."""
    if step % 50 == 49:
        return f">> checkpoint kept after {step} rounds in {step % 13}.5s"
    return f"<{step:07d}> objective={_loss(step):.5f} ; |g|={abs(math.sin(step)):.4f} ; rate 3e-4"


FORMATS: dict[str, _Line] = {
    "transformers": _transformers,
    "megatron": _megatron,
    "openmmlab": _openmmlab,
    "csv": _csv,
    "json lines": _json_lines,
    "unknown": _unknown,
}
_CHILD = """
import json, resource, sys, time
from surefoot.journal.foreign import read_log
before, clock = time.process_time(), time.perf_counter()
runs = read_log(sys.argv[1])
print(json.dumps({
    "cpu": time.process_time() - before,
    "clock": time.perf_counter() - clock,
    "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    "columns": sum(len(r.columns) for r in runs),
    "points": sum(len(c.values) for r in runs for c in r.columns),
}))
"""


def lines_of(format: str, count: int) -> Iterator[str]:
    """Lines of a made-up log."""
    make = FORMATS[format]
    return (make(step) + "\n" for step in range(count))


def measure(format: str, count: int) -> dict[str, float]:
    """Make a log, read it in a new process, and say what that took."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "made.log"
        with path.open("w", encoding="utf-8") as file:
            file.writelines(lines_of(format, count))
        size = path.stat().st_size / 2**20
        done = subprocess.run(
            [sys.executable, "-c", _CHILD, str(path)], capture_output=True, text=True, check=True
        )
    return json.loads(done.stdout) | {"size": size}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--quick", action="store_true", help="20,000 lines")
    parser.add_argument("--format", choices=FORMATS, default=None)
    options = parser.parse_args()
    count = 20_000 if options.quick else options.lines
    print(f"{count:,} lines each")
    heads = ("MiB", "cpu s", "clock s", "peak MiB", "columns", "points")
    print(f"{'format':14}" + "".join(f"{head:>12}" for head in heads))
    for format in [options.format] if options.format else FORMATS:
        got = measure(format, count)
        print(
            f"{format:14}{got['size']:12.1f}{got['cpu']:12.2f}{got['clock']:12.2f}"
            f"{got['memory']:12.0f}{got['columns']:12.0f}{got['points']:12,.0f}"
        )


if __name__ == "__main__":
    main()
