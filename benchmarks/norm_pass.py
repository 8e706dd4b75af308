"""A study: what would make the guard's one pass over the gradients cheaper, and what would not.

    python -m benchmarks.norm_pass

1. The norms alone, in several ways.
2. The division of the gradients: by the fused kernel, which writes them back; by a pass of its own;
   piece by piece into memory that stays in the cache, so that nothing is written back.
3. A whole step: norms after the backward pass; in hooks, while each gradient is in the cache; over
   one flat buffer that all gradients lie in.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.interleave import (
    Way,
    add_options,
    clocked,
    interleave,
    machine,
    print_table,
    save_rows,
)
from benchmarks.step_ways import Bench, Setting
from benchmarks.whole_step import Step, mlp

LARGE = 2**15
"""Elements from which a tensor is worth more than one thread."""


# -- 1. the norms alone ---------------------------------------------------------------------------


def foreach_norms(gradients: Sequence[Tensor]) -> Tensor:
    return torch.stack(torch._foreach_norm(list(gradients)))


def dot_norms(gradients: Sequence[Tensor]) -> Tensor:
    flat = [g.view(-1) for g in gradients]
    return torch.stack([torch.dot(g, g) for g in flat]).sqrt()


def mixed_norms(gradients: Sequence[Tensor]) -> Tensor:
    """``torch.dot`` where it pays, ``_foreach_norm`` for the small ones."""
    norms: list[Tensor] = [gradients[0]] * len(gradients)
    small = [i for i, g in enumerate(gradients) if g.numel() < LARGE]
    for i, gradient in enumerate(gradients):
        if gradient.numel() >= LARGE:
            flat = gradient.view(-1)
            norms[i] = torch.dot(flat, flat).sqrt()
    if small:
        for i, norm in zip(small, torch._foreach_norm([gradients[i] for i in small]), strict=True):
            norms[i] = norm
    return torch.stack(norms)


def widened_norms(gradients: Sequence[Tensor]) -> Tensor:
    """All of them widened to float32, then measured."""
    return foreach_norms([g.float() for g in gradients])


def widened_one_by_one(gradients: Sequence[Tensor]) -> Tensor:
    """Each one widened and measured while it is in the cache."""
    norms: list[Tensor] = []
    for gradient in gradients:
        wide = gradient.view(-1).float()
        norms.append(torch.dot(wide, wide).sqrt())
    return torch.stack(norms)


def flat_norm(gradients: Sequence[Tensor]) -> Tensor:
    return torch.linalg.vector_norm(gradients[0])


def norms(options: argparse.Namespace, total: int) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        bench = Bench(Setting(total, dtype=dtype))
        bench.fill()
        gradients = [p.grad for p in bench.parameters if p.grad is not None]
        functions: dict[str, Callable[[Sequence[Tensor]], Tensor]] = {
            "_foreach_norm": foreach_norms,
            "torch.dot of each": dot_norms,
            "dot for large, _foreach_norm for small": mixed_norms,
            "all widened, then _foreach_norm": widened_norms,
            "each widened, then dot": widened_one_by_one,
        }
        if dtype is torch.float32:
            functions = dict(list(functions.items())[:3])
        rival = list(functions)[0 if dtype is torch.float32 else 3]
        timed = {name: _timed(partial(f, gradients)) for name, f in functions.items()}
        if dtype is torch.float32:
            flat = torch.cat(gradients)
            timed["one flat tensor, vector_norm"] = _timed(partial(flat_norm, [flat]))
            timed["one flat tensor, torch.dot"] = _timed(partial(torch.dot, flat, flat))
        _show(f"1. norms, {dtype}, {total / 1e6:.0f} M", timed, rival, options)


# -- 2. the division ------------------------------------------------------------------------------


def kernel(setting: Setting, *, divide: str) -> Way:
    """The fused step alone, after or with a division of the gradients."""
    bench = Bench(setting)
    optimizer = bench.optimizer
    divisor = torch.tensor(1.7)

    def step() -> None:
        if divide == "kernel":
            optimizer.grad_scale = divisor  # type: ignore[attr-defined]
        elif divide == "pass":
            torch._foreach_div_([p.grad for p in bench.parameters], 1.7)
        optimizer.step()
        if divide == "kernel":
            del optimizer.grad_scale  # type: ignore[attr-defined]
        optimizer.zero_grad()

    return bench.fill, step


def pieces(setting: Setting, size: int) -> Way:
    """Divide so many elements into fresh memory, step them from there, go on with the next ones.

    The same numbers to the bit; the gradients themselves are never written.
    """
    bench = Bench(setting)
    bench.fill()
    bench.optimizer.step()  # makes the moments
    groups: list[list[tuple[nn.Parameter, slice]]] = [[]]
    room = size
    for parameter in bench.parameters:
        for start in range(0, parameter.numel(), size):
            part = slice(start, min(start + size, parameter.numel()))
            if groups[-1] and room < part.stop - part.start:
                groups.append([])
                room = size
            groups[-1].append((parameter, part))
            room -= part.stop - part.start
    state = bench.optimizer.state
    steps = [state[p]["step"] for p in bench.parameters]
    kept = [
        [
            [p.detach().view(-1)[part] for p, part in group],
            [state[p]["exp_avg"].view(-1)[part] for p, part in group],
            [state[p]["exp_avg_sq"].view(-1)[part] for p, part in group],
            [state[p]["step"] for p, _ in group],
        ]
        for group in groups
    ]
    settings = {"lr": 1e-4, "beta1": 0.9, "beta2": 0.999, "weight_decay": 0.01, "eps": 1e-8}

    def step() -> None:
        torch._foreach_add_(steps, 1)
        for group, (weights, first, second, counts) in zip(groups, kept, strict=True):
            gradients = [p.grad.view(-1)[part] for p, part in group if p.grad is not None]
            torch._fused_adamw_(
                weights,
                torch._foreach_div(gradients, 1.7),
                first,
                second,
                [],
                counts,
                amsgrad=False,
                maximize=False,
                **settings,
            )
        bench.optimizer.zero_grad()

    return bench.fill, step


def division(options: argparse.Namespace, total: int) -> None:
    setting = Setting(total)
    ways = {
        "no division": kernel(setting, divide=""),
        "in the kernel, written back": kernel(setting, divide="kernel"),
        "a pass of its own": kernel(setting, divide="pass"),
    }
    for size in (2**16, 2**18):
        ways[f"pieces of {size // 1024} k, nothing written back"] = pieces(setting, size)
    _show(f"2. fused AdamW and a division, {total / 1e6:.0f} M", ways, "no division", options)


# -- 3. a whole step ------------------------------------------------------------------------------


def whole(batch: int, how: str) -> Step:
    model, optimizer, loss_of = mlp(batch, "cpu", None).build()
    parameters = list(model.parameters())
    squares: dict[int, Tensor] = {}
    buffer = torch.zeros(sum(p.numel() for p in parameters)) if how == "flat" else torch.empty(0)
    if how == "hooks":
        for i, parameter in enumerate(parameters):
            parameter.register_post_accumulate_grad_hook(partial(_square, squares, i))

    def step() -> None:
        if how == "flat":
            buffer.zero_()
            views = buffer.split([p.numel() for p in parameters])
            for parameter, view in zip(parameters, views, strict=True):
                parameter.grad = view.view_as(parameter)
        loss_of().backward()
        gradients = [p.grad for p in parameters if p.grad is not None]
        if how in ("foreach", "dot"):
            measure = foreach_norms if how == "foreach" else mixed_norms
            float(torch.linalg.vector_norm(measure(gradients)))
        elif how == "hooks":
            float(torch.stack(list(squares.values())).sum().sqrt())
        elif how == "flat":
            float(torch.dot(buffer, buffer).sqrt())
        optimizer.step()
        optimizer.zero_grad()

    return step


def _square(squares: dict[int, Tensor], place: int, parameter: Tensor) -> None:
    if parameter.grad is not None:
        flat = parameter.grad.view(-1)
        squares[place] = torch.dot(flat, flat)


def whole_step(options: argparse.Namespace) -> None:
    names = {
        "no norm": "",
        "_foreach_norm after backward": "foreach",
        "dot after backward": "dot",
        "dot in hooks, during backward": "hooks",
        "gradients in one flat buffer, dot": "flat",
    }
    ways = {name: _timed(whole(32, how)) for name, how in names.items()}
    _show("3. whole step, MLP of 16.8 M, batch 32", ways, "no norm", options)


def _timed(step: Callable[[], object]) -> Way:
    return lambda: None, step


def _show(title: str, ways: dict[str, Way], rival: str, options: argparse.Namespace) -> None:
    rows = interleave(ways, rival=rival, **clocked(options))
    print_table(title, rows, rival=rival)
    save_rows(options.json, title, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--millions", type=float, default=16.0)
    add_options(parser)
    options = parser.parse_args()
    options.rounds, options.device = options.rounds or 30, "cpu"
    print(machine())
    total = int(options.millions * 1e6)
    norms(options, total)
    division(options, total)
    whole_step(options)


if __name__ == "__main__":
    main()
