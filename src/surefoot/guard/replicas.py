"""Replicas that were equal and are no longer: a bit has flipped on one of them.

Ranks that train together and hold whole copies of the weights start from equal ones and apply equal
gradients. A memory error on one moves its copy alone; the others' average keeps the run alive, and
nothing ever brings the copies together again. So whenever the state is looked through (every
``policy.snapshot_interval`` applied steps) the sum of the bits, read as whole numbers, of every
weight and of what the optimizer keeps of it is compared: one read pass over them and 16 bytes per
tensor and rank. One flipped bit always changes that sum; flips that cancel to the last bit are not
seen. Tensors in shards, buffers and averages are left out: they differ by design, or may.

Whether copies are meant to be equal is found out, not asked: they are when they are at the first
step, and when at the first look after it no more than half of the trained ones differ. A flipped
bit makes one differ; ranks that train apart from a common start make all differ.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple
from zlib import crc32

import torch
from torch import Tensor

from surefoot.guard.ranks import tell_all, tell_all_anything
from surefoot.guard.snapshot import Replica, Snapshot, TrainingState
from surefoot.records import Culprit, ranks_said

__all__ = ["Drift", "Replicas", "bit_sum"]

_MOST = 4
"""Tensors that are searched for the place where they differ."""
_BY_FAR = 4.0
"""Training moves a weight, too: of two copies the one that moved so many times farther since the
proven snapshot is wrong; nearer together there is no telling."""
_WHOLE = 2**63


class Drift(NamedTuple):
    """Tensors that differ between ranks, and the ranks that are taken to be wrong."""

    culprits: tuple[Culprit, ...]
    ranks: tuple[int, ...]


class Replicas:
    """Compares this rank's copies with those of the others; all ask at the same moments."""

    def __init__(self, state: TrainingState) -> None:
        self._state = state
        several = torch.distributed.get_world_size() > 1
        self._watches = {"weights": several, "optimizer": several}
        self._settled = {"weights": False, "optimizer": False}

    def begin(self) -> None:
        """Before the first step: are the weights equal on all ranks, so that they ought to stay so?

        One gather of three numbers, whatever each rank holds.
        """
        if not self._watches["weights"]:
            return
        copies = list(self._state.replicas())
        whole = sum((i + 1) * int(s) for i, s in enumerate(_sums([c.weight for c in copies])))
        names = crc32("\n".join(c.name for c in copies).encode())
        told = tell_all([len(copies), names, whole % _WHOLE])
        if not copies or any(one != told[0] for one in told):
            self._watches = dict.fromkeys(self._watches, False)

    def drifted(self, proven: Snapshot) -> Drift | None:
        """Look now; None where all is equal.

        Args:
            proven: the state that the run would go back to; it tells which of two copies moved.
        """
        if not self._watches["weights"]:
            return None
        copies = list(self._state.replicas())
        weights = _sums([c.weight for c in copies])
        kept = [_combined(_sums(list(c.kept.values()))) for c in copies]
        both = self._watches["optimizer"]
        told = tell_all([*weights, *kept] if both else weights)
        found = list(self._differing(copies, "weights", [one[: len(copies)] for one in told]))
        if self._watches["weights"] and both:
            rest = [one[len(copies) :] for one in told]
            found += self._differing(copies, "optimizer", rest)
        return self._name(found, proven) if found else None

    def _differing(
        self, copies: Sequence[Replica], half: str, told: Sequence[Sequence[int]]
    ) -> Iterator[tuple[str, Tensor]]:
        """The tensors whose sums are not equal; none, for ever, where none is meant to be."""
        places = [i for i in range(len(copies)) if len({one[i] for one in told}) > 1]
        trained = [i for i, copy in enumerate(copies) if copy.weight.requires_grad]
        apart = len(set(places) & set(trained)) * 2 > len(trained)
        if apart and not self._settled[half]:
            self._watches[half] = False
            return
        self._settled[half] = True
        for i in places:
            if half == "weights":
                yield copies[i].name, copies[i].weight
            else:
                yield from copies[i].kept.items()

    def _name(self, suspects: Sequence[tuple[str, Tensor]], proven: Snapshot) -> Drift:
        culprits, wrong = list[Culprit](), set[int]()
        for name, tensor in suspects[: 4 * _MOST]:
            told = tell_all_anything((tuple(tensor.shape), str(tensor.dtype), bit_sum(tensor)))
            if len(set(told)) == 1:
                continue  # another of the same parameter's
            if len({one[:2] for one in told}) > 1 or len(culprits) >= _MOST:
                culprits.append(Culprit(f"{name} (differs between ranks)", math.nan))
                continue
            culprit, ranks = _explain(name, tensor, proven.kept(name))
            culprits.append(culprit)
            wrong.update(ranks)
        return Drift(tuple(culprits), tuple(sorted(wrong)))


def _explain(name: str, tensor: Tensor, kept: Tensor | None) -> tuple[Culprit, tuple[int, ...]]:
    """The first place where copies differ, the values there, and which rank is taken for wrong."""
    flat = _flat(tensor)
    place = _first_difference(flat)
    value = float(flat[place])
    before = value if kept is None else float(_flat(kept)[place])
    moved = abs(value - before)
    told: list[tuple[float, float, int]]
    told = tell_all_anything((value, moved, bit_sum(flat[place : place + 1])))
    parts = 2 if tensor.is_complex() else 1
    index = torch.unravel_index(torch.tensor(place // parts), tensor.shape)
    where = f" at [{', '.join(str(int(i)) for i in index)}]" if tensor.ndim else ""
    wrong, says = _judge(told, where)
    values = [v for v, *_ in told]
    return Culprit(f"{name} ({says})", max(values) - min(values)), wrong


def _judge(told: Sequence[tuple[float, float, int]], where: str) -> tuple[tuple[int, ...], str]:
    """Who is wrong, and a sentence: the minority; where there is none, the one whose value lies by
    far farthest from the proven one; where there is no such one, all of them.
    """
    counts = Counter(bits for *_, bits in told).most_common()
    if counts[0][1] > counts[1][1]:
        wrong = tuple(rank for rank, (*_, bits) in enumerate(told) if bits != counts[0][0])
    else:
        far, near = (sorted((moved for _, moved, _ in told), reverse=True)[i] for i in (0, -1))
        wrong = tuple(rank for rank, (_, moved, _) in enumerate(told) if moved == far)
        if not far > _BY_FAR * near:
            values = " and ".join(f"{value:.9g}" for value, *_ in told[:_MOST])
            moved = f"{ranks_said(wrong)} moved most"
            return tuple(range(len(told))), f"ranks differ: {values}{where}; {moved}"
    right = next(rank for rank in range(len(told)) if rank not in wrong)
    bad, good = told[wrong[0]][0], told[right][0]
    says = f"{ranks_said(wrong)} differ{'s' * (len(wrong) == 1)}: {bad:.9g}{where}, not {good:.9g}"
    return wrong, says


def _first_difference(flat: Tensor) -> int:
    """Halved until one element is left: a gather of one number each time, log2(N) of them."""
    low, high = 0, flat.numel()
    while high - low > 1:
        middle = (low + high) // 2
        told = tell_all([bit_sum(flat[low:middle])])
        low, high = (low, middle) if any(one != told[0] for one in told) else (middle, high)
    return low


def bit_sum(tensor: Tensor) -> int:
    """Sum of a tensor's bits, read as whole numbers of 64, modulo 2^64.

    >>> tensor = torch.ones(3)
    >>> before = bit_sum(tensor)
    >>> tensor.view(torch.int32)[2] ^= 1
    >>> bit_sum(tensor) - before
    1
    """
    return _sums([tensor])[0]


def _sums(tensors: Sequence[Tensor]) -> list[int]:
    """Of each tensor; one read for all of a device's."""
    if not tensors:
        return []
    home = tensors[0].device
    return torch.stack([_sum(t).to(home) for t in tensors]).tolist()


def _combined(sums: Sequence[int]) -> int:
    """One number for several, in which their order counts."""
    return sum((i + 1) * s for i, s in enumerate(sums)) % _WHOLE


def _flat(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).reshape(-1)


_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _sum(tensor: Tensor) -> Tensor:
    """0-d, int64. Words of 64 bits are added up 30 times faster than words of 32 on a CPU."""
    flat = _flat(tensor)
    per_word = 8 // flat.element_size()
    aligned = flat.storage_offset() % per_word == 0
    words = flat.numel() // per_word * per_word if aligned else 0
    rest = flat[words:].view(_INTEGERS[flat.element_size()]).sum(dtype=torch.int64)
    return rest + flat[:words].view(torch.int64).sum() if words else rest
