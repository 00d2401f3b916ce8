"""How much work a head has with a bag, counted and not timed: the same on every machine, so that a slide's evidence is too."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Size
from torch.utils._python_dispatch import TorchDispatchMode

OPERATION = 1e6
"""What each call of an operation costs beside its arithmetic, in FLOPs: 25 µs on a core of 40 GFLOP/s in float64."""
ELEMENT = 60
"""The same for each number that an operation makes: it goes through memory."""


class WorkCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's
    """Counts the work of all that torch does inside: FLOPs of products and convolutions, plus `OPERATION` and `ELEMENT`.

    Wrap it around calls on the CPU, ``with WorkCounter() as work: head(bag)``, and read `done`. Other threads aren't
    counted, and don't notice.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Torch would import its compiler, for seconds, to say that nothing here is to be compiled; nothing is."""
        return False

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.done = 0.0
        """FLOPs, and what stands for the rest"""

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        named = dict(kwargs or {})
        packet = getattr(func, "overloadpacket", func)
        count = _FLOPS.get(packet)
        if count is None:
            with self:  # in inference mode operations arrive whole: what they are made of is counted
                parts: object = func.decompose(*args, **named)  # type: ignore[attr-defined]  # of torch's operations
            if parts is not NotImplemented:
                return parts
        found: object = func(*args, **named)
        self.done += OPERATION
        if count is not None:
            self.done += count([one.shape for one in args if isinstance(one, torch.Tensor)], _shape(found))
        if not getattr(func, "is_view", False):
            made = found if isinstance(found, tuple | list) else (found,)
            self.done += ELEMENT * sum(math.prod(one.shape) for one in made if isinstance(one, torch.Tensor))
        return found


def _shape(made: object) -> Size:
    return made.shape if isinstance(made, torch.Tensor) else Size()


def _product(given: list[Size], made: Size) -> float:
    """Of the last two: (..., m, k) by (..., k, n); a bias comes before them."""
    return 2.0 * math.prod(given[-2]) * given[-1][-1]


def _matmul(given: list[Size], made: Size) -> float:
    """Each number made is a sum over the last dimension of the first, whatever the shapes."""
    return 2.0 * math.prod(made) * given[0][-1]


def _convolution(given: list[Size], made: Size) -> float:
    """Each number made sums over the weights of its channel, (out, in of its group, ...)."""
    return 2.0 * math.prod(made) * math.prod(given[1][1:])


def _attention(given: list[Size], made: Size) -> float:
    """Queries (B, heads, N, d) by keys (B, heads, M, d), then by values (B, heads, M, e)."""
    *many, rows, width = given[0]
    return 2.0 * math.prod(many) * rows * given[1][-2] * (width + given[2][-1])


_aten = torch.ops.aten
# A table of our own: torch's (`torch.utils.flop_counter`) has more, and imports Triton, whose LLVM kills a process with Mesa's.
_FLOPS: dict[Any, Callable[[list[Size], Size], float]] = {
    _aten.mm: _product,
    _aten.addmm: _product,
    _aten.bmm: _product,
    _aten.baddbmm: _product,
    _aten.matmul: _matmul,
    _aten.convolution: _convolution,
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
}
