"""How long a bundle takes on this machine: what its encoder needs for a tile, measured on random pixels."""

from __future__ import annotations

import time
from typing import NamedTuple

import torch

from napari_lrmil.model.bundle import BundleInfo, ModelBundle
from napari_lrmil.model.encoder import Encoder

_SLOW = 0.5
"""Seconds of the first tile, after which no second time is taken: a large encoder on a CPU."""


class Speed(NamedTuple):
    """What a bundle reads of 1 cm² of tissue, and how long its encoder takes for that; reading pixels comes on top."""

    tiles: int
    """At most: a head that chooses among the finer tiles reads fewer."""
    seconds: float
    device: str


def tiles_per_cm2(info: BundleInfo) -> int:
    """Return how many tiles of 1 cm² of tissue are read at most, of all magnifications together."""
    edges_mm = [info.tiles.tile_px * mpp / 1000 for mpp in info.mpps]
    return round(sum(100 / edge**2 for edge in edges_mm) / info.tiles.one_in)


def measured_speed(bundle: ModelBundle, device: torch.device) -> Speed:
    """Measure the encoder on a few random tiles, after one to warm up, on a device where it is left.

    Takes a fraction of a second for a small encoder, and as long as one tile for a large one.
    """
    info, encoder = bundle.info, bundle.encoder.to(device)
    first = _seconds(encoder, info.tiles.tile_px, 1, device)
    n = 4 if device.type == "cpu" else 64
    one = first if first > _SLOW else _seconds(encoder, info.tiles.tile_px, n, device) / n
    tiles = tiles_per_cm2(info)
    return Speed(tiles, tiles * one, str(device))


def _seconds(encoder: Encoder, edge: int, n: int, device: torch.device) -> float:
    """Return how long `n` tiles in one batch take."""
    tiles = torch.randint(0, 256, (n, edge, edge, 3), dtype=torch.uint8, device=device)
    started = time.perf_counter()
    with torch.inference_mode():
        told = encoder(encoder.preprocess(tiles)).embedding
    float(told.sum())  # waits for the device
    return time.perf_counter() - started
