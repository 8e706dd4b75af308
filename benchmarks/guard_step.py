"""What the guard's step costs beside the lines it replaces, and beside what others do.

    python -m benchmarks.guard_step --quick                    # the ratios, in under a minute
    python -m benchmarks.guard_step --millions 16,100 --precision fp32,bf16,fp16

Fresh gradients lie in place before the clock starts; timed is everything from there to the next
forward pass: measure, clip, step, zero. Backward and forward are left out, because every way runs
the same ones; ``benchmarks.whole_step`` has them. bf16 is weights and gradients in bfloat16; under
autocast weights and gradients are float32, and the step is that of fp32.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import islice

import psutil
import torch

from benchmarks.interleave import (
    Way,
    add_options,
    clocked,
    interleave,
    machine,
    print_table,
    save_rows,
)
from benchmarks.peers import PEERS
from benchmarks.step_ways import Setting, attached, limit, ours, plain, scaler

Maker = Callable[[], Way | None]

_CLIPS = {"clipped at every step": 1e-4, "never clipped": 1e9}
_SCALE = 65536.0
_RIVALS = {
    "fp32": "clip_grad_norm_ + fused AdamW",
    "bf16": "clip_grad_norm_ + fused AdamW",
    "fp16": "unscale_ + clip + scaler.step + update",
}


def ways(precision: str, setting: Setting, *, peers: bool) -> dict[str, Maker]:
    """Ours and the rival's, and the others' on request."""
    rival = scaler if precision == "fp16" else plain
    found: dict[str, Maker] = {
        _RIVALS[precision]: partial(rival, setting),
        "the same again (noise floor)": partial(rival, setting),
        "surefoot": partial(ours, setting),
        "surefoot, verdict on the device": partial(ours, setting, decide="device"),
        "surefoot, attached": partial(attached, setting),
        "limit: norm pass + fused AdamW": partial(limit, setting),
    }
    if precision == "fp32":
        found["limit, norms by torch.dot"] = partial(limit, setting, threaded=True)
    if precision != "fp16":
        found["fused AdamW alone, no clip"] = partial(plain, replace(setting, clip=None))
        if peers:
            found |= {name: partial(make, setting) for name, make in PEERS.items()}
    return found


def groups(makers: Mapping[str, Maker], rival: str, room: int) -> Iterator[dict[str, Maker]]:
    """So many ways at once as fit into memory, each time with the rival."""
    others = iter([(name, make) for name, make in makers.items() if name != rival])
    while part := dict(islice(others, max(room - 1, 1))):
        yield {rival: makers[rival], **part}


def compare(precision: str, setting: Setting, title: str, options: argparse.Namespace) -> None:
    """One table."""
    rival = _RIVALS[precision]
    each = 6 * setting.total * torch.empty(0, dtype=setting.dtype).element_size()
    room = int(0.7 * _free(setting.device) / each)
    for makers in groups(ways(precision, setting, peers=options.peers), rival, room):
        made = {name: make() for name, make in makers.items()}
        there = {name: way for name, way in made.items() if way is not None}
        rows = interleave(there, rival=rival, **clocked(options))
        missing = {name: "not installed" for name in made if name not in there}
        print_table(title, rows, rival=rival, missing=missing)
        save_rows(options.json, title, rows)
        del made, there
        gc.collect()


def _free(device: str) -> float:
    if device.startswith("cuda"):
        return float(torch.cuda.mem_get_info()[0])
    return float(psutil.virtual_memory().available)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="15 rounds, no peers, fp32 and fp16")
    parser.add_argument("--millions", default="16", help="parameters, in millions: 16,100")
    parser.add_argument("--precision", default=None, help="fp32,bf16,fp16 where it is not given")
    add_options(parser)
    options = parser.parse_args()
    options.rounds = options.rounds or (15 if options.quick else 30)
    options.peers = options.peers and not options.quick
    precisions = options.precision or ("fp32,fp16" if options.quick else "fp32,bf16,fp16")
    print(machine(options.device))
    for millions in options.millions.split(","):
        for precision in precisions.split(","):
            for name, clip in _CLIPS.items():
                scale = _SCALE if precision == "fp16" else 1.0
                dtype = torch.bfloat16 if precision == "bf16" else torch.float32
                total = int(float(millions) * 1e6)
                setting = Setting(total, options.device, dtype, scale, clip)
                compare(precision, setting, f"{precision}, {millions} M, {name}", options)


if __name__ == "__main__":
    main()
