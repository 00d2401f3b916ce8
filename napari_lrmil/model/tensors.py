"""Tensors of files from outside: plain arrays, or refused; and models without tensors, for their shapes alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from napari_lrmil.errors import reason_of


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, as `as_float32` does.

    Raises
    ------
    OSError
    ValueError
        Where it isn't such a file.
    """
    try:
        tensors = load_file(path)
    except OSError:
        raise
    except Exception as error:  # a file from outside makes libraries raise anything
        raise ValueError(reason_of(error)) from error
    return as_float32(tensors)


def as_float32(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors with their floating numbers in single precision, whatever precision they were stored in.

    Raises
    ------
    ValueError
        Where one isn't a plain array of numbers, or says that it is larger than what is stored of it.
    """
    return {name: _as_float32(name, value) for name, value in tensors.items()}


def _as_float32(name: str, value: Tensor) -> Tensor:
    plain = value.layout is torch.strided and not value.is_quantized and value.device.type == "cpu"
    # One number repeated a billion times takes four bytes in a file.
    if not plain or value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise ValueError(f"{name} is no plain array")
    if not value.is_floating_point():
        return value
    try:
        return value.detach().float()
    except RuntimeError as error:  # of kinds that torch can store and not convert
        raise ValueError(f"{name} has numbers of the kind {value.dtype}") from error


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of tensors that hold numbers which aren't finite."""
    return sorted(name for name, value in tensors.items() if not bool(torch.isfinite(value).all()))


@contextmanager
def shapes_alone() -> Iterator[None]:
    """Modules that are built inside take no memory and have no numbers: what they hold has a shape, and no more."""
    with torch.device("meta"), _Undrawn():
        yield


class _Undrawn(TorchFunctionMode):
    """Leaves out the drawing of weights, for which torch would import its compiler: two seconds for nothing."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))
