"""``python -m training.run CONFIG``: from a table of slides to a bundle, all steps of LRMIL."""

import sys

from napari_lrmil.terminal import INTERRUPTED, print_error, stopping_afterwards
from training import notice

if __name__ == "__main__":
    try:
        with notice.heard():
            with stopping_afterwards(), notice.deferred():
                from training.run.cli import app

            app(prog_name="python -m training.run")
    except notice.Noticed as end:
        print_error(f"stopped by {end.name}, exit status {notice.RESUMABLE}; nothing was begun")
        sys.exit(notice.RESUMABLE)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
