"""Errors that name themselves: what each of them truly is, and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from surefoot.doctor.case import Case
from surefoot.doctor.finding import Evidence, Finding, RootCause, Severity
from surefoot.doctor.rule import Rule, rule
from surefoot.doctor.spot import said_at
from surefoot.journal.series import Message

__all__ = ["RULES"]


@dataclass(frozen=True)
class _Known:
    """One kind of error."""

    pattern: str
    what: str
    remedy: str
    cause: RootCause = RootCause.UNKNOWN
    not_this: str = "not told by the numbers before it: they did not lead to it"


_KNOWN = (
    _Known(
        r"unsafe to autocast",
        "a logarithm of probabilities under autocast",
        "binary_cross_entropy_with_logits in place of sigmoid and binary_cross_entropy; the loss "
        "in float32",
        RootCause.NUMERICALLY_UNSAFE_OP,
    ),
    _Known(
        r"(sum|add up) to (1|one)\b",
        "a sum of probabilities is checked more tightly than its precision allows",
        "assert_close with a tolerance of the dtype: 1e-3 in float16, 1e-2 in bfloat16",
        RootCause.NUMERICALLY_UNSAFE_OP,
        "not wrong weights by that alone: float16 holds three decimals, a sum of several fewer",
    ),
    _Known(
        r"'NoneType' object has no attribute .{0,40}\b(grad|hook|watch)"
        r"|does not require grad and does not have a grad_fn",
        "something that should be trained has no gradient",
        "list the parameters whose grad is None after one backward pass: they are frozen, "
        "detached, or computed under no_grad",
        RootCause.DEAD_LOSS,
        "not a fault of the logger alone: what it stumbled over is a gradient that is None",
    ),
    _Known(
        r"expected to have finished reduction|parameters that were not used in producing loss",
        "parameters that the loss does not reach, in several processes",
        "freeze them before the model is wrapped; find_unused_parameters=True is slower and hides "
        "which ones they are",
    ),
    _Known(
        r"watchdog caught collective|collective operation timeout|nccl.{0,40}time ?d? ?out",
        "the processes were out of step: one waits for what another never calls",
        "every process must run the same number of steps, and of validations; look for a branch on "
        "the rank, for data that ends early, and for a rank that died",
        not_this="not a want of memory: that would be said",
    ),
    _Known(
        r"address already in use|EADDRINUSE",
        "another run holds the port",
        "end that run, or --master_port with a free one",
    ),
    _Known(
        r"error\(s\) in loading state_dict|(missing|unexpected) key\(s\) in state_dict"
        r"|size mismatch for \S+: copying",
        "a checkpoint of another architecture",
        "build the model with the checkpoint's own settings; with strict=False print the share of "
        "weights that fitted: the others are random",
    ),
    _Known(
        r"weights[ _]only.{0,20}(load|unpickl)|was not an allowed global",
        "a checkpoint that holds more than tensors and plain numbers",
        "save metrics with float(...); weights_only=False only for files of your own",
    ),
    _Known(
        r"compiled using numpy 1|_array_api not found|numpy\.(core|dtype size changed)",
        "a module built for another NumPy",
        "numpy<2, or a newer version of that module",
    ),
    _Known(
        r"too old to be supported by the triton",
        "torch.compile on a GPU that its compiler does not know",
        "leave torch.compile out on that machine",
    ),
    _Known(
        r"expected scalar type \w+ but found|should be the same$|must have the same dtype"
        r"|input type \(.{3,30}\) and (weight|bias) type",
        "two precisions meet: a tensor that left autocast, or was made outside it",
        "cast it where it is made: x.to(weight.dtype)",
    ),
    _Known(
        r"expected input\[.{3,60}to have \d+ channels|mat1 and mat2 shapes cannot be multiplied"
        r"|split_sizes to sum exactly|shape '.{2,40}' is invalid for input of size"
        r"|size of tensor a \(\d+\) must match",
        "two widths that do not fit together",
        "read widths from the module that feeds the other one, and check them when it is built",
    ),
    _Known(
        r"ModuleNotFoundError|ImportError|cannot import name",
        "a module that is not there, or not under that name",
        "install it, or mend the name",
    ),
    _Known(
        r"FileNotFoundError|No such file or directory",
        "a file that is not there",
        "check the path and that the download before it succeeded; where no step was taken, "
        "nothing was trained",
    ),
    _Known(
        r"unrecognized arguments|the following arguments are required|invalid choice",
        "a flag that this version of the program does not have",
        "--help lists its flags; check which version runs",
    ),
    _Known(
        r"dictionary is empty|pop from (an )?empty",
        "something is taken out of a container that holds nothing",
        "check that a cache of capacity 0 stores nothing and evicts nothing",
    ),
    _Known(
        r"KeyError: ",
        "a key that the producer of a dictionary does not write",
        "print the keys that are there; training and validation must use one function for them",
    ),
    _Known(
        r"unexpected keyword argument|positional arguments? but|got multiple values"
        r"|missing \d+ required|has no attribute|must be (a )?bool|argument .{1,30} must be",
        "a call that the called code does not know: another version, or a slip",
        "compare the call with the signature of the version that is installed",
    ),
)
_FOUND = tuple((re.compile(known.pattern, re.I), known) for known in _KNOWN)
_FATAL = ("exception", "timeout", "device_assert", "error")


@rule("SF910", "an error that names itself and ended the run")
def named_error(case: Case) -> Iterator[Finding]:
    """The last thing in the log is an error whose words say what it is."""
    told = [(m, known) for m in case.of_kind(*_FATAL) if (known := _known(m)) is not None]
    if not told:
        return
    last, known = told[-1]
    if any(np.any(column.lines > last.line) for column in case.losses):
        return
    trained = any(np.isfinite(column.values).any() for column in case.losses)
    yield Finding(
        code="SF910",
        title=f"the run ended in an error: {known.what}",
        cause=known.cause,
        severity=Severity.CRITICAL,
        confidence=0.6,
        **said_at(last),
        evidence=(
            Evidence("message", last.text, f"line {last.line}: {last.text[:140]}"),
            *(() if trained else (Evidence("losses", 0, "no loss was logged before it"),)),
        ),
        not_this=(known.not_this,),
        remedy=(known.remedy,),
        explains=("SF902", "SF904", "SF905"),
    )


def _known(message: Message) -> _Known | None:
    return next((known for said, known in _FOUND if said.search(message.text)), None)


RULES: tuple[Rule, ...] = (named_error,)
