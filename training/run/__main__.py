"""``python -m training.run CONFIG``: from a table of slides to a bundle, all steps of LRMIL."""

import sys

from napari_lrmil.terminal import INTERRUPTED, stopping_afterwards

if __name__ == "__main__":
    try:
        with stopping_afterwards():
            from training.run.cli import app

        app(prog_name="python -m training.run")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
