"""The plugin's settings and kept results, tied to the main dock."""

from __future__ import annotations

from collections.abc import Callable

from napari.utils.notifications import show_warning
from qtpy.QtCore import QThreadPool

from napari_lrmil._viewer.canvas import Canvas
from napari_lrmil._viewer.docks.classify.recall.jobs import QtRecallJobs
from napari_lrmil._viewer.docks.classify.recall.presenter import Recall
from napari_lrmil._viewer.settings import Settings, follow_settings, read_settings
from napari_lrmil._viewer.window import Controller

_THREADS = 8


def attach_recall(controller: Controller, canvas: Canvas) -> Callable[[], None]:
    """Follow the settings, show results of before and keep new ones; returns how to end that."""
    # By default as many as cores; a classification and a batch would keep two cores' looking up waiting.
    pool = QThreadPool.globalInstance()
    pool.setMaxThreadCount(max(pool.maxThreadCount(), _THREADS))
    jobs = QtRecallJobs(show_warning)
    settings = read_settings()
    canvas.set_new_heatmaps(opacity=settings.heatmap_opacity)
    recall = Recall(controller, jobs, settings)

    def changed(settings: Settings) -> None:
        canvas.set_new_heatmaps(opacity=settings.heatmap_opacity)
        recall.change_settings(settings)

    unfollow = follow_settings(changed)

    def end() -> None:
        unfollow()
        jobs.background.shutdown()

    return end
