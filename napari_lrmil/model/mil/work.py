"""How much work a head has with a bag, counted and not timed: the same on every machine, so that a slide's evidence is too."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

OPERATION = 1e6
"""What each call of an operation costs beside its arithmetic, in FLOPs: 25 µs on a core of 40 GFLOP/s in float64."""
ELEMENT = 60
"""The same for each number that an operation makes: it goes through memory."""


class WorkCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's
    """Counts the work of all that torch does inside: FLOPs of products and convolutions, plus `OPERATION` and `ELEMENT`.

    Wrap it around calls on the CPU, ``with WorkCounter() as work: head(bag)``, and read `done`. Other threads aren't
    counted, and don't notice.
    """

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
        count = _ATTENTION.get(packet) or flop_registry.get(packet)
        if count is None:
            with self:  # in inference mode operations arrive whole: what they are made of is counted
                parts: object = func.decompose(*args, **named)  # type: ignore[attr-defined]  # of torch's operations
            if parts is not NotImplemented:
                return parts
        found: object = func(*args, **named)
        self.done += OPERATION
        if count is not None:
            self.done += count(*args, **named, out_val=found)
        if not getattr(func, "is_view", False):
            made = found if isinstance(found, tuple | list) else (found,)
            self.done += ELEMENT * sum(math.prod(one.shape) for one in made if isinstance(one, torch.Tensor))
        return found


def _attention_flops(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: object, **__: object
) -> int:
    flops: int = sdpa_flop_count(query.shape, key.shape, value.shape)  # type: ignore[no-untyped-call]  # torch's
    return flops


_ATTENTION: dict[Any, Callable[..., int]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
}
"""What torch's own table leaves out."""
