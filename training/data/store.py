"""Embeddings on disk: one zarr group a slide, written whole, read in part.

A store belongs to one encoder and one tile spec; its folder's name carries the hash of both, so that
embeddings of two encoders never mix.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

_CHUNK_TILES = 4096


@dataclass(frozen=True)
class EmbeddingStore:
    """A folder of embeddings.

    Each slide has ``embedding`` (N, D) and, where layers were tapped, ``layer_class_tokens`` (L, N, D),
    both float16 in the order of the slide's tile places.
    """

    root: Path

    def has(self, slide_id: str) -> bool:
        """Whether a slide is there, whole."""
        return self._place(slide_id).exists()

    def write(self, slide_id: str, **arrays: NDArray[np.floating]) -> None:
        """Store a slide's arrays; an interrupted write leaves nothing that `has` sees.

        Raises
        ------
        ValueError
            Where a value doesn't fit float16.
        """
        scratch = self.root / f".writing-{slide_id}"
        shutil.rmtree(scratch, ignore_errors=True)
        group = zarr.open_group(scratch, mode="w")
        for name, values in arrays.items():
            with np.errstate(over="ignore"):
                half = values.astype(np.float16)
            if not np.isfinite(half).all():
                raise ValueError(f"{slide_id}: {name} holds values that aren't finite in float16")
            chunks = tuple(
                min(size, _CHUNK_TILES) if axis == half.ndim - 2 else size
                for axis, size in enumerate(half.shape)
            )
            stored = group.create_array(name, shape=half.shape, dtype=half.dtype, chunks=chunks)
            stored[...] = half
        shutil.rmtree(self._place(slide_id), ignore_errors=True)
        scratch.rename(self._place(slide_id))

    def read(self, slide_id: str, name: str = "embedding") -> NDArray[np.float32]:
        """One array of a slide as float32."""
        array: Any = zarr.open_group(self._place(slide_id), mode="r")[name]
        return np.asarray(array[...], np.float32)

    def _place(self, slide_id: str) -> Path:
        return self.root / f"{slide_id}.zarr"
