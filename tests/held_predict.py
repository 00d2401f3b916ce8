"""`lrmil`, but before it keeps its third result it says ``held`` and waits to be ended. Run by test_cli.py."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from napari_lrmil.cache import ResultCache
from napari_lrmil.cli.main import app

if TYPE_CHECKING:
    from napari_lrmil.predict import SlidePrediction

KEPT = 2

really_put = ResultCache.put
n_put = 0


def put(cache: ResultCache, prediction: SlidePrediction, tiles_key: str) -> None:
    global n_put
    if n_put == KEPT:
        print("held", flush=True)
        while True:  # not signal.pause(): a signal that comes just before it would be waited for once more
            time.sleep(0.05)
    n_put += 1
    really_put(cache, prediction, tiles_key)


if __name__ == "__main__":
    ResultCache.put = put  # type: ignore[method-assign]
    app(prog_name="lrmil")
