"""``torchrun failing_rank.py RANK HOW CONFIG ...``: a training run of which one process fails at its first slide."""

from __future__ import annotations

import errno
import os
import sys

from napari_lrmil.errors import SlideError


def main() -> None:
    rank, how, *args = sys.argv[1:]
    from training.losses import last_layer_loss
    from training.objectives import lrmil
    from training.run import cli
    from training.stages import embed_tiles

    def bad(*values: object, **options: object) -> int:
        if how == "disk":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "slide-7")
        raise SlideError("slide-7 can't be read")

    if os.environ["RANK"] == rank:
        if how == "nan":
            lrmil.last_layer_loss = lambda *values: last_layer_loss(*values) * float("nan")
        else:
            embed_tiles.embed_slide = bad
    cli.app(args, prog_name="failing_rank")


if __name__ == "__main__":
    main()
