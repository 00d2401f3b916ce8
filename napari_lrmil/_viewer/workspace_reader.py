"""npe2 reader of what is no layer: a model loads, a folder of slides opens as worklist. No Qt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from napari_lrmil.errors import LRMILError
from napari_lrmil.model.naming import bundle_folder, is_bundle
from napari_lrmil.worklist import WorklistError, find_slides

NO_LAYERS: list[tuple[None]] = [(None,)]
"""What napari takes for: read, and nothing to show."""

Reader = Callable[[str | Sequence[str]], list[tuple[None]]]


def get_reader(path: str | Sequence[str]) -> Reader | None:
    """The reader for a folder or bundle.json, or None where it is neither model nor folder of slides.

    Parameters
    ----------
    path : str or sequence of str
    """
    if not isinstance(path, str):
        return None
    where = Path(path)
    if is_bundle(where):
        return _load_bundle
    return _open_worklist if holds_slides(where) else None


def holds_slides(folder: Path) -> bool:
    """Whether a path is a folder with slides in it; a slide that is a folder itself isn't one."""
    if not folder.is_dir():
        return False
    try:
        return find_slides(folder) not in ([], [folder])
    except WorklistError:
        return False


def _load_bundle(path: str | Sequence[str]) -> list[tuple[None]]:
    from napari_lrmil._viewer.docks.docked import dock_widget

    dock_widget(_viewer()).controller.load_bundle(str(bundle_folder(Path(str(path)))))
    return NO_LAYERS


def _open_worklist(path: str | Sequence[str]) -> list[tuple[None]]:
    from napari_lrmil._viewer.docks.worklist.widget import worklist_dock

    worklist_dock(_viewer()).presenter.open_list(Path(str(path)))
    return NO_LAYERS


def _viewer() -> Any:
    from napari.viewer import current_viewer

    viewer = current_viewer()
    if viewer is None:
        raise LRMILError("a model or a folder of slides opens in napari's window; there is none")
    return viewer
