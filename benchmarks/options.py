"""Options that the benchmarks with a window share."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.slides import SIDE_PX


def window_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser that knows where the generated slides are kept, their size, and where all values go."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--slide-px", type=int, default=SIDE_PX, help="a multiple of 4,096; small for a trial"
    )
    parser.add_argument("--folder", type=Path, help="where the generated slides are kept")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all values here, too")
    return parser


def parse_with_display(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None
) -> argparse.Namespace:
    """Parse; exit with the cure where there is no display."""
    options = parser.parse_args(arguments)
    if sys.platform.startswith("linux") and "DISPLAY" not in os.environ:
        parser.error("there is no display: run it through xvfb-run, as the first lines of --help show")
    return options
