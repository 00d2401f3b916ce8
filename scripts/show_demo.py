"""The end of `make demo`: a test slide in napari with its label and heatmap, by the student just trained.

Without a display the same window is drawn under Xvfb, and saved with the predictions.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

COHORT, BUNDLE, OUT = Path("demo/cohort"), Path("demo/run/fold0/bundle"), Path("demo/result")


def test_slides() -> list[Path]:
    """Return the first test slide of each class, lesions first: chosen by the table, not by the outcome."""
    with (COHORT / "slides.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["fold"] == "test"]
    first = {row["label"]: COHORT / row["path"] for row in reversed(rows)}
    return [first[label] for label in sorted(first, reverse=True)]


def main() -> int:
    """Show or save the window; return the exit status."""
    slides = test_slides()
    predict = ["predict", *map(str, slides), "--bundle", str(BUNDLE), "--out", str(OUT), "--overwrite"]
    status = subprocess.run([sys.executable, "-m", "napari_lrmil", *predict], check=False).returncode
    if status:
        return status
    if os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        import napari

        from napari_lrmil._viewer import open_slide_with_result

        viewer = napari.Viewer()
        viewer.window.resize(1400, 900)
        open_slide_with_result(viewer, slides[0], BUNDLE)
        viewer.reset_view()  # the dock has taken its part of the window since the slide was fitted
        napari.run()
        return 0
    shot = OUT / "window.png"
    screenshot = [
        sys.executable,
        "-Wignore:System theme detection:UserWarning",  # napari on PyQt5
        str(Path(__file__).with_name("screenshot.py")),
        str(slides[0]),
        "--bundle",
        str(BUNDLE),
        "--out",
        str(shot),
    ]
    virtual = ["xvfb-run", "-a", "-s", "-screen 0 1600x1200x24"]
    status = subprocess.run([*virtual, *screenshot], check=False).returncode
    if status == 0:
        print(f"There is no display, so the window was drawn off screen: {shot}")
        print(f"Predictions: {OUT}/*.json (slide) and *.csv (tiles). Report of the run: demo/run/report.html")
    return status


if __name__ == "__main__":
    sys.exit(main())
