"""What a row computes on a slide: parameters, and floating-point operations by torch's own counter, without any weights."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from napari_lrmil.model.encoder import Encoder, EncoderSpec
from napari_lrmil.model.mil import MILSpec, build_mil
from napari_lrmil.model.mil.focus import FOCUS
from napari_lrmil.model.tensors import shapes_alone


class Computation(NamedTuple):
    """Of encoder and head together."""

    parameters: int
    flops: float | None
    """Of a slide: the encoder's on each of its tiles, and the head's on the bag; a multiplication and an addition are two.
    None of a head of several magnifications, whose tiles depend on what it sees."""


def computation(encoder: EncoderSpec, head: MILSpec, *, tile_px: int, n_tiles: float) -> Computation:
    """Return what encoder and head compute on a slide of so many tiles.

    Parameters
    ----------
    encoder : EncoderSpec
    head : MILSpec
    tile_px : int
    n_tiles : float
        On average; the head's operations are those of the nearest whole number.
    """
    with shapes_alone():
        vit = Encoder(encoder).eval()
        mil = build_mil(head).eval()
        tile = torch.empty(1, 3, tile_px, tile_px)
        bag = torch.empty(max(1, round(n_tiles)), head.embed_dim)
    parameters = sum(one.numel() for part in (vit, mil) for one in part.parameters())
    if mil.magnifications != 1:
        return Computation(parameters, None)
    with torch.no_grad():
        with FlopCounterMode(display=False) as of_tile:
            vit(tile)
        try:
            with FlopCounterMode(display=False) as of_bag:
                mil(bag)
        except (RuntimeError, NotImplementedError):  # what it does depends on the values
            real = build_mil(head).eval()
            if isinstance(real, FOCUS):
                real.set_text(torch.ones_like(real.text))
            with FlopCounterMode(display=False) as of_bag:
                real(torch.randn(bag.shape))
    return Computation(parameters, n_tiles * of_tile.get_total_flops() + of_bag.get_total_flops())
