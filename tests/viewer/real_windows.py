"""What the tests of the docks share: the canvas as a person meets it, and quick results."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
from npe2 import PluginManifest
from numpy.typing import NDArray
from qtpy.QtCore import QEvent, QPoint, QPointF, Qt, QThreadPool
from qtpy.QtGui import QMouseEvent
from qtpy.QtWidgets import (
    QAbstractButton,
    QAbstractSlider,
    QAbstractSpinBox,
    QApplication,
    QComboBox,
    QListWidget,
    QWidget,
)

from napari_lrmil._viewer.docks.docked import dock_widget
from napari_lrmil._viewer.layers import SLIDE_KEY
from napari_lrmil._viewer.qt.background import thread_pool
from napari_lrmil.slide import Slide

PLUGIN = "napari-lrmil"
LONG_MS = 60_000
"""As long as nothing needs on any machine, however busy: what isn't so by then never will be."""


def further_docks() -> list[str]:
    """Names of the docks beside the main one and the worklist, which have functions of their own."""
    names = [widget.display_name for widget in PluginManifest.from_distribution(PLUGIN).contributions.widgets]
    assert names[:2] == ["LRMIL: classify slide", "LRMIL: worklist"]
    return names[2:]


def slide_of(viewer: Any) -> Slide:
    """The slide of the first slide layer."""
    slide = next(layer.metadata[SLIDE_KEY] for layer in viewer.layers if SLIDE_KEY in layer.metadata)
    assert isinstance(slide, Slide)
    return slide


def open_slide(viewer: Any, path: Path) -> Slide:
    """As the main dock does."""
    controller = dock_widget(viewer).controller
    controller.open_slide(path)
    assert not controller.error
    assert controller.slide is not None
    return controller.slide


def canvas_widget() -> QWidget:
    """The widget that napari draws in."""
    (canvas,) = [each for each in QApplication.allWidgets() if "CanvasBackend" in type(each).__name__]
    return canvas


def canvas_point(viewer: Any, world_yx: tuple[float, float]) -> QPoint:
    """Where a place of the world is on the canvas widget."""
    camera = viewer.scene.camera
    height, width = viewer.canvas.size
    y, x = (
        (place - middle) * camera.zoom for place, middle in zip(world_yx, camera.center[-2:], strict=True)
    )
    return QPoint(round(width / 2 + x), round(height / 2 + y))


def drag_to(widget: QWidget, at: QPoint) -> None:
    """Move the mouse with its left button down; pytest-qt's move lets go of it in Qt 6."""
    event = QMouseEvent(
        QEvent.Type.MouseMove,
        QPointF(at),
        QPointF(widget.mapToGlobal(at)),
        Qt.MouseButton.NoButton,
        Qt.MouseButton.LeftButton,
        Qt.KeyboardModifier.NoModifier,
    )
    QApplication.sendEvent(widget, event)


def choose_by_keys(qtbot: Any, combo: QComboBox, index: int) -> None:
    """Up to the first entry, down to the one wanted."""
    combo.setFocus()
    qtbot.keyClick(combo, Qt.Key.Key_Home)
    for _ in range(index):
        qtbot.keyClick(combo, Qt.Key.Key_Down)
    assert combo.currentIndex() == index


def assert_controls_say_what_they_do(*parts: QWidget) -> None:
    """Each control of these widgets can be reached by Tab, and has a tool tip and a name."""
    kinds = (QAbstractButton, QComboBox, QAbstractSlider, QAbstractSpinBox, QListWidget)
    found = [control for part in parts for kind in kinds for control in part.findChildren(kind)]
    controls = [control for control in found if not _is_part_of_another(control)]
    assert controls
    for control in controls:
        assert control.toolTip(), control
        assert control.accessibleName() or getattr(control, "text", str)(), control
        assert control.focusPolicy() & Qt.FocusPolicy.TabFocus, control


def _is_part_of_another(control: QWidget) -> bool:
    return control.objectName().startswith("qt_") or "ScrollBar" in type(control).__name__


def delete_what_is_due() -> None:
    """What Qt does once its loop turns again; a loop inside a test doesn't."""
    QApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)
    QApplication.processEvents()


def wait_for_jobs(qtbot: Any) -> None:
    """All background work is done, and what it has told was heard: nothing more will come of it."""
    qtbot.waitUntil(lambda: thread_pool().activeThreadCount() == 0, timeout=LONG_MS)
    QApplication.processEvents()  # which a thread's last word came before


def shot_at_rest(qtbot: Any, viewer: Any, *, unlike: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
    """What the canvas shows once it shows the same twice, and something else than `unlike`; (height, width, 4)."""
    shots: list[NDArray[np.uint8]] = []

    def rests() -> bool:
        shots.append(viewer.screenshot(canvas_only=True, flash=False))
        if len(shots) < 2 or (unlike is not None and np.array_equal(shots[-1], unlike)):
            return False
        return np.array_equal(shots[-1], shots[-2])

    qtbot.waitUntil(rests, timeout=LONG_MS)
    return shots[-1]


def end_threads() -> None:
    """All background work is done and no thread of ours is left, or the test fails."""
    assert QThreadPool.globalInstance().waitForDone(10_000)
    assert thread_pool().waitForDone(10_000)
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("lrmil")]
