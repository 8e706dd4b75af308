"""Arguments of a forward pass as JSON and tensors, and back: no code is kept, none is run.

Tensors, numbers, strings, lists, tuples, dicts and the shapes of :mod:`surefoot.shapes` are kept.
Everything else is left out, and said to be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, cast

import torch
from torch import Tensor, nn

from surefoot import shapes

__all__ = ["LeftOut", "Packer", "can_be_kept", "unpack"]

_SHAPES: dict[str, type] = {name: getattr(shapes, name) for name in shapes.__all__}
_FLOATS = ("float64", "float32", "float16", "bfloat16")
_OTHERS = ("int64", "int32", "int16", "int8", "uint8", "bool")
_DEEPEST = 32


_LEFT_OUT = "left out"


class LeftOut:
    """Stands where a value could not be kept."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __repr__(self) -> str:
        return f"<left out: {self.what}>"


class Packer:
    """Turns values into JSON, and gathers their tensors.

    Args:
        model: stands for itself: whoever runs the values again gives one.
        most_bytes: of all tensors together; a tensor beyond it is left out.

    >>> packer = Packer(nn.Identity(), most_bytes=100)
    >>> packer.pack([torch.ones(2), 0.5, {"mask": None}], "args")
    {'list': [{'tensor': 't0'}, 0.5, {'dict': [['mask', None]]}]}
    >>> list(packer.tensors)
    ['t0']
    """

    def __init__(self, model: nn.Module, *, most_bytes: int) -> None:
        self._model, self._room = model, most_bytes
        self._known: dict[int, str] = {}
        self.tensors: dict[str, Tensor] = {}
        self.left_out: list[str] = []

    def pack(self, value: Any, place: str) -> Any:
        """A JSON value; ``place`` is what the value is called where it has to be left out."""
        if value is None or isinstance(value, bool | int | str):
            return value
        if isinstance(value, float):
            return value if value - value == 0.0 else {"float": str(value)}
        if value is self._model:
            return {"model": True}
        if isinstance(value, Tensor):
            return self._tensor(value, place)
        if isinstance(value, list | tuple):
            kind = "list" if isinstance(value, list) else "tuple"
            return {kind: [self.pack(v, f"{place}[{i}]") for i, v in enumerate(value)]}
        if isinstance(value, Mapping) and all(isinstance(k, str | int) for k in value):
            return {"dict": [[k, self.pack(v, f"{place}.{k}")] for k, v in value.items()]}
        if _SHAPES.get(type(value).__name__) is type(value):
            parts = {f.name: getattr(value, f.name) for f in fields(cast(Any, value))}
            packed = {name: self.pack(v, f"{place}.{name}") for name, v in parts.items()}
            return {"shape": type(value).__name__, "fields": packed}
        return self._leave_out(type(value).__name__, place)

    def _tensor(self, tensor: Tensor, place: str) -> Any:
        if id(tensor) in self._known:
            return {"tensor": self._known[id(tensor)]}
        if not can_be_kept(tensor):
            return self._leave_out(f"{type(tensor).__name__} of {tensor.dtype}", place)
        if tensor.nbytes > self._room:
            return self._leave_out(f"tensor of {tensor.nbytes / 2**20:.0f} MB", place)
        self._room -= tensor.nbytes
        name = self._known[id(tensor)] = f"t{len(self.tensors)}"
        self.tensors[name] = tensor
        return {"tensor": name}

    def _leave_out(self, what: str, place: str) -> Any:
        self.left_out.append(f"{place} ({what})")
        return {_LEFT_OUT: what}


def can_be_kept(tensor: Tensor) -> bool:
    """Whether it is an ordinary tensor of a dtype that safetensors knows."""
    known = str(tensor.dtype).removeprefix("torch.") in (*_FLOATS, *_OTHERS)
    ordinary = type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided
    return known and ordinary and not tensor.is_meta


def unpack(
    node: Any, tensors: Mapping[str, Tensor], model: nn.Module | None, depth: int = 0
) -> Any:
    """The inverse of :meth:`Packer.pack`; what was left out comes back as :class:`LeftOut`.

    Raises:
        ValueError, KeyError, TypeError: ``node`` is not what :meth:`Packer.pack` gives.
    """
    if depth > _DEEPEST:
        raise ValueError("nested too deep")
    if node is None or isinstance(node, bool | int | float | str):
        return node
    if not isinstance(node, dict) or not node:
        raise ValueError(f"a {type(node).__name__} where a value was expected")
    again: Callable[[Any], Any] = lambda part: unpack(part, tensors, model, depth + 1)  # noqa: E731
    kind, content = next(iter(node.items()))
    if kind == "tensor":
        return tensors[content]
    if kind == "float":
        return float(content)
    if kind == "model":
        return model
    if kind in ("list", "tuple"):
        parts = [again(part) for part in content]
        return parts if kind == "list" else tuple(parts)
    if kind == "dict":
        return {key: again(part) for key, part in content}
    if kind == "shape":
        return _SHAPES[content](**{name: again(v) for name, v in node["fields"].items()})
    if kind == _LEFT_OUT:
        return LeftOut(str(content))
    raise ValueError(f"a value of the unknown kind {kind!r}")
