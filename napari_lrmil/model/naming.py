"""How a bundle is named: by its folder or its bundle.json, by the word "demo", or on the hub. Loads no torch."""

from __future__ import annotations

from pathlib import Path

from napari_lrmil.model.hub import is_hub_name

BUNDLE_FILE = "bundle.json"
DEMO_BUNDLE = "demo"
"""Means the packaged one, where no folder of this name holds a bundle."""


def is_bundle(path: Path) -> bool:
    """Whether a path is a bundle: a folder with bundle.json, or that file."""
    return path.name == BUNDLE_FILE or (path / BUNDLE_FILE).is_file()


def bundle_folder(path: Path) -> Path:
    """The folder of a bundle that `is_bundle` knows."""
    return path.parent if path.name == BUNDLE_FILE else path


def names_bundle(path: Path) -> bool:
    """Whether `lrmil predict --bundle` takes it."""
    return is_bundle(path) or is_hub_name(path) or str(path) == DEMO_BUNDLE
