"""What a thread is in, read off its stack."""

from __future__ import annotations

import linecache
import re
import threading
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import FrameType

__all__ = ["Waiting", "stacks", "waits_in"]

_MOST_THREADS, _MOST_CALLS = 16, 40


@dataclass(frozen=True, slots=True)
class Waiting:
    """What it is, and the line of the loop's own code that it was called from."""

    what: str
    """In words; "a call that is not known" where no rule fits."""
    line: str
    """``file:number in function: source``; empty where there is none."""
    advice: str = ""

    def __str__(self) -> str:
        where = f", called at {self.line}" if self.line else ""
        return f"{self.what}{where}" + (f". {self.advice}" if self.advice else "")


@dataclass(frozen=True, slots=True)
class _Rule:
    """Where file and function of a call fit, that is what the thread waits in."""

    file: str
    function: str
    what: str
    advice: str = ""

    def fits(self, frame: FrameType) -> bool:
        path = frame.f_code.co_filename.replace("\\", "/")
        return bool(
            re.search(self.file, path) and re.fullmatch(self.function, frame.f_code.co_name)
        )


_OTHER_RANK = "Another rank has not come to it; its report says where it is"
# The first rule that fits any call of the stack: what is known best comes first.
_RULES = (
    _Rule(
        r"torch/utils/data/dataloader\.py$",
        "_try_get_data|_get_data",
        "the DataLoader's queue: no worker has sent a batch",
        "A worker hangs in __getitem__ or has died; num_workers=0 shows the line",
    ),
    _Rule(
        r"torch/distributed/(distributed_c10d|_functional_collectives|rendezvous)\.py$",
        ".*",
        "a collective ({name})",
        _OTHER_RANK,
    ),
    _Rule(
        r"torch/nn/parallel/distributed\.py$",
        "_sync_buffers|_sync_module_states|_pre_forward|_check_.*",
        "DistributedDataParallel's exchange of buffers",
        _OTHER_RANK,
    ),
    _Rule(
        r"torch/(_inductor/(compile_fx|codecache|graph|scheduler|async_compile)"
        r"|_dynamo/(convert_frame|symbolic_convert))\.py$",
        ".*",
        "torch.compile: it compiles",
    ),
    _Rule(
        r"torch/autograd/(graph|__init__)\.py$",
        "_engine_run_backward|backward|grad",
        "the backward pass",
        "Where several ranks train together it exchanges gradients: another rank may not have come",
    ),
    _Rule(r"torch/cuda/(__init__|streams)\.py$", "synchronize|wait.*", "the GPU"),
    _Rule(
        r"/(PIL|cv2|av|h5py|imageio|torchvision/io|safetensors|zipfile)/"
        r"|/(tarfile|zipfile|gzip|pathlib|shutil)\.py$|<frozen (codecs|genericpath|posixpath)>",
        ".*",
        "reading a file ({module})",
        "The disk or the network drive it is on may have gone away",
    ),
    _Rule(
        r"/(socket|ssl|urllib/request|http/client)\.py$",
        ".*",
        "the network ({module})",
    ),
    _Rule(r"/subprocess\.py$", ".*", "another program (subprocess)"),
    _Rule(
        r"/multiprocessing/|/concurrent/futures/",
        "_?recv.*|poll|wait|get|join|result|acquire",
        "another process or thread ({module})",
    ),
    _Rule(r"/(threading|queue)\.py$", "wait|acquire|join|get|put", "a lock ({module}.{name})"),
)
_BY_SOURCE = (
    (r"\.(item|tolist|cpu|numpy)\(|synchronize\(", "the device: a value is read from it"),
    (r"\b(open|read|readline|readlines|fromfile|np\.load|torch\.load)\(", "reading a file"),
    (r"\bsleep\(", "a sleep"),
)
_LIBRARY = re.compile(
    r"(site|dist)-packages/|/lib/python\d|<frozen|<string>|/surefoot/(guard|journal|checkpoint)/"
)


def waits_in(frame: FrameType | None) -> Waiting:
    """What a thread with this innermost call is in.

    >>> print(waits_in(None))
    a thread that has ended
    """
    if frame is None:
        return Waiting("a thread that has ended", "")
    calls = list(_outwards(frame))
    own = next((f for f in calls if not _LIBRARY.search(f.f_code.co_filename)), calls[0])
    source = linecache.getline(own.f_code.co_filename, own.f_lineno).strip()
    line = f"{own.f_code.co_filename}:{own.f_lineno} in {own.f_code.co_name}"
    line = f"{line}: {source}" if source else line
    for rule in _RULES:
        for call in calls:
            if rule.fits(call):
                name, path = call.f_code.co_name, call.f_code.co_filename
                module = re.split(r"[/\\]", path.removesuffix(".py"))[-1].strip("<>")
                what = rule.what.format(name=name, module=module)
                return Waiting(what, line, rule.advice)
    for pattern, what in _BY_SOURCE:
        if re.search(pattern, source):
            return Waiting(what, line)
    return Waiting("a call that is not known", line)


def _outwards(frame: FrameType) -> Iterator[FrameType]:
    at: FrameType | None = frame
    while at is not None:
        yield at
        at = at.f_back


def stacks(frames: Mapping[int, FrameType]) -> str:
    """The stacks of all threads but this one, the main thread first; bounded."""
    names = {t.ident: t.name for t in threading.enumerate()}
    main, own = threading.main_thread().ident, threading.get_ident()
    order = sorted((i for i in frames if i != own), key=lambda i: i != main)
    parts = [
        f"Thread {names.get(i, 'without a name')} ({i}):\n"
        + "".join(traceback.format_stack(frames[i])[-_MOST_CALLS:])
        for i in order[:_MOST_THREADS]
    ]
    more = len(order) - _MOST_THREADS
    return "\n".join(parts) + (f"\nand {more} more threads\n" if more > 0 else "")
