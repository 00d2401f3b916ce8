"""The key that opens the workspace, from the first slide or dock of a window on. No Qt."""

from __future__ import annotations

from typing import Any

WORKSPACE_KEY = "Control-Shift-L"
"""As napari writes it; none of napari's own, nor a letter of a dock."""
_COMMAND = "napari-lrmil.workspace"


def bind_workspace_key(viewer: Any) -> None:
    """Have `WORKSPACE_KEY` open the workspace; asking again changes nothing.

    Parameters
    ----------
    viewer : napari.Viewer
        Or napari's public proxy of one.
    """
    viewer.bind_key(WORKSPACE_KEY, _pressed, overwrite=True)


def _pressed(viewer: Any) -> None:
    # As a command: what reads slides knows no docks.
    from npe2 import PluginManager

    PluginManager.instance().commands.execute(_COMMAND, (viewer,))
