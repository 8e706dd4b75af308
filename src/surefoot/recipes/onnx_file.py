"""An exported network, run by onnxruntime."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from surefoot.errors import ConfigError

__all__ = ["onnx_session"]


def onnx_session(path: Path) -> Any:
    """A session of onnxruntime on the CPU.

    Raises:
        ConfigError: onnxruntime is not installed, or the file is none of its kind.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: there is no such file.")
    try:
        onnxruntime: Any = import_module("onnxruntime")
        state: Any = import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    except ModuleNotFoundError as missing:
        raise ConfigError(
            f"{path}: an ONNX file needs onnxruntime: pip install 'surefoot[export]'."
        ) from missing
    unreadable = (state.Fail, state.InvalidProtobuf, state.InvalidGraph, state.InvalidArgument)
    try:
        return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except unreadable as problem:
        raise ConfigError(f"{path}: onnxruntime cannot read it ({problem}).") from problem
