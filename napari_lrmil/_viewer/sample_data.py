"""File > Open Sample > LRMIL: the slides that ship with the package. No Qt."""

from __future__ import annotations

from pathlib import Path

from napari_lrmil._viewer.layers import LayerData
from napari_lrmil._viewer.reader import read_slide
from napari_lrmil.errors import SlideError

_DEMO_DIR = Path(__file__).resolve().parents[1] / "demo"
DEMO_SLIDES_DIR = _DEMO_DIR / "slides"
DEMO_BUNDLE_DIR = _DEMO_DIR / "bundle"
"""What `model.bundle` calls "demo"; asked here because that module takes torch along."""


def lesion_slide() -> list[LayerData]:
    """The generated slide with a lesion."""
    return _demo_slide("lesion")


def benign_slide() -> list[LayerData]:
    """The generated slide without one."""
    return _demo_slide("benign")


def _demo_slide(name: str) -> list[LayerData]:
    path = DEMO_SLIDES_DIR / f"{name}.tiff"
    if not path.exists():
        raise SlideError(
            f"the demo slide {path.name!r} is missing from this installation; reinstall napari-lrmil"
        )
    return read_slide(str(path))
