"""Open a slide with its result in one call: for scripts, the demo and screenshots."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QEventLoop, QTimer

from napari_lrmil._viewer.docks.docked import dock_widget
from napari_lrmil._viewer.window import State
from napari_lrmil.errors import LRMILError

if TYPE_CHECKING:
    from collections.abc import Callable

    from napari_lrmil.predict import SlidePrediction

_POLL_MS = 20


def open_slide_with_result(
    viewer: Any,
    slide_path: str | Path,
    bundle: str | Path = "demo",
    *,
    mpp: float | None = None,
    device: str = "auto",
    timeout_s: float = 600.0,
) -> SlidePrediction:
    """Open a slide, dock the widget, load a bundle, classify, and wait for label and heatmap.

    The window stays responsive while this waits.

    Parameters
    ----------
    viewer : napari.Viewer
    slide_path : path-like
    bundle : path-like
        A folder, or ``"demo"``.
    mpp : float, optional
        µm per level-0 pixel, for a slide that doesn't say.
    device : str
        See `napari_lrmil.model.device.resolve_device`.
    timeout_s : float
        For the bundle and the slide together.

    Returns
    -------
    SlidePrediction
        The one shown.

    Raises
    ------
    LRMILError
        Where any step fails; the message is the one in the window.
    """
    controller = dock_widget(viewer).controller
    controller.open_slide(slide_path)
    _raise_error(controller.error)
    if controller.state is State.NEEDS_MPP and mpp is not None:
        controller.set_mpp(mpp)
    if controller.state is State.NEEDS_MPP:
        raise LRMILError(f"{Path(slide_path).name} doesn't say how many µm a pixel measures: give mpp")
    controller.load_bundle(str(bundle))
    _wait_while(lambda: controller.state is State.LOADING_BUNDLE, timeout_s)
    _raise_error(controller.error)
    controller.choose_device(device)
    controller.classify()
    _wait_while(lambda: controller.state is State.RUNNING, timeout_s)
    _raise_error(controller.error)
    if controller.result is None:
        raise LRMILError("the classification was cancelled")
    return controller.result


def _raise_error(message: str) -> None:
    if message:
        raise LRMILError(message)


def _wait_while(condition: Callable[[], bool], timeout_s: float) -> None:
    """Run the window until `condition` no longer holds."""
    loop, poll = QEventLoop(), QTimer()
    poll.timeout.connect(lambda: None if condition() else loop.quit())
    QTimer.singleShot(round(timeout_s * 1000), loop.quit)
    poll.start(_POLL_MS)
    loop.exec()
    poll.stop()
    if condition():
        raise LRMILError(f"no result after {timeout_s:g} s")
