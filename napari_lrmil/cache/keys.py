"""Where the results of a bundle stand in a cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

from napari_lrmil.cache.store import result_key

if TYPE_CHECKING:
    from napari_lrmil.model.bundle import BundleInfo


class ResultKeys:
    """`result_key` of one bundle, worked out once for each mpp."""

    def __init__(self, info: BundleInfo) -> None:
        self._info = info
        self._keys: dict[float | None, str] = {}

    def __call__(self, mpp: float | None) -> str:
        """`result_key` for a given mpp."""
        if mpp not in self._keys:
            self._keys[mpp] = result_key(self._info, mpp=mpp)
        return self._keys[mpp]
