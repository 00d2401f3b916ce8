"""Render the window with a slide, its label and heatmap, and save it as a PNG.

    python scripts/screenshot.py SLIDE --bundle demo --out shot.png --size 1400x900

Without a display: ``xvfb-run -a -s "-screen 0 1920x1200x24" python scripts/screenshot.py ...``
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import napari
from qtpy.QtWidgets import QApplication, QDialog, QWidget

from napari_lrmil._viewer.docks.docked import dock_widget
from napari_lrmil._viewer.session import open_slide_with_result
from napari_lrmil.errors import LRMILError
from napari_lrmil.terminal import print_error

SETTLE_S = 1.5
"""How long after the result the window may still draw: tiles come in, notices fade, docks find their size."""


def parse_size(text: str) -> tuple[int, int]:
    """Return width and height from ``1400x900``."""
    try:
        width, height = (int(part) for part in text.lower().split("x"))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 1400x900") from error
    return width, height


def settle(seconds: float = SETTLE_S) -> None:
    """Let Qt draw for a while."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        QApplication.processEvents()
        time.sleep(0.01)


def dismiss_notices(window: QWidget, keep: Sequence[QWidget] = ()) -> None:
    """Close napari's pop-ups, but for those to keep: they lie over the scale bar."""
    for dialog in window.findChildren(QDialog):
        if dialog not in keep:
            dialog.close()


def take_screenshot(
    slide_path: Path,
    out_path: Path,
    *,
    bundle: str = "demo",
    size_px: tuple[int, int] = (1400, 900),
    mpp: float | None = None,
    theme: str = "dark",
) -> str:
    """Classify, draw and save; return the answer.

    Raises
    ------
    LRMILError
    """
    viewer = napari.Viewer(show=False)
    viewer.theme = theme
    try:
        viewer.window.resize(*size_px)
        viewer.show()
        prediction = open_slide_with_result(viewer, slide_path, bundle, mpp=mpp)
        settle(SETTLE_S / 2)
        viewer.window.resize(*size_px)  # docks may have widened it
        settle(SETTLE_S / 2)
        viewer.reset_view()
        dismiss_notices(dock_widget(viewer).window())
        settle(SETTLE_S)
        out_path.parent.mkdir(parents=True, exist_ok=True)
        dock_widget(viewer).window().grab().save(str(out_path))
    finally:
        viewer.close()
    return prediction.answer


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("slide", type=Path)
    parser.add_argument("--bundle", default="demo", help="folder of a model bundle, or 'demo'")
    parser.add_argument("--out", type=Path, required=True, help="PNG to write")
    parser.add_argument(
        "--size", type=parse_size, default=(1400, 900), help="of the window, such as 1400x900"
    )
    parser.add_argument("--mpp", type=float, help="µm per level-0 pixel, where the slide doesn't say")
    parser.add_argument("--theme", default="dark", choices=["dark", "light"])
    options = parser.parse_args(arguments)
    if not options.slide.exists():  # before a window opens for nothing
        print_error(f"no such slide: {options.slide}")
        return 1
    try:
        answer = take_screenshot(
            options.slide,
            options.out,
            bundle=options.bundle,
            size_px=options.size,
            mpp=options.mpp,
            theme=options.theme,
        )
    except LRMILError as error:
        print_error(error)
        return 1
    print(f"{options.slide.name}: {answer}; window saved to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
