"""What the user may drop or type to name a model. No Qt, no torch."""

from __future__ import annotations

from pathlib import Path

BUNDLE_FILE = "bundle.json"
_HUB_PREFIX = "hf-hub:"


def is_bundle(path: Path) -> bool:
    """Whether a path is a model: a folder with bundle.json, or that file."""
    return path.name == BUNDLE_FILE or (path / BUNDLE_FILE).is_file()


def bundle_folder(path: Path) -> Path:
    """The folder of a model that `is_bundle` knows."""
    return path.parent if path.name == BUNDLE_FILE else path


def hub_name(text: str) -> str:
    """What was typed as a name on the hub, with its prefix; a pasted web address is understood too."""
    name = text.strip().removeprefix(_HUB_PREFIX)
    for address in ("https://huggingface.co/", "http://huggingface.co/", "huggingface.co/"):
        name = name.removeprefix(address)
    return f"{_HUB_PREFIX}{name.strip('/')}"
