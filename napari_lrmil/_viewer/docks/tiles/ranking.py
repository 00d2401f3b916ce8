"""Which tiles count most and least. No Qt."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def ranked_tiles(values: NDArray[np.float64], k: int) -> tuple[list[int], list[int]]:
    """The k tiles of highest value, highest first, and the k of lowest, lowest first.

    None is in both: of fewer than 2 k tiles the larger half counts as high. Ties keep the order of the tiles.

    Parameters
    ----------
    values : (N,) array
    k : int
    """
    order = np.argsort(-values, kind="stable")
    n_top = min(k, (len(order) + 1) // 2)
    n_bottom = min(k, len(order) - n_top)
    return order[:n_top].tolist(), order[len(order) - n_bottom :][::-1].tolist()
