"""Background work: Qt threads that report to the controller in the window's thread."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import closing
from typing import TYPE_CHECKING, Any

from napari.qt.threading import FunctionWorker, GeneratorWorker
from qtpy.QtCore import QThreadPool

from napari_lrmil._viewer.model_imports import import_models, leave_a_core_to_the_window
from napari_lrmil.errors import LRMILError
from napari_lrmil.slide import Slide

if TYPE_CHECKING:
    from napari_lrmil._viewer.window import Controller
    from napari_lrmil.model.bundle import ModelBundle
    from napari_lrmil.predict import PredictProgress, SlidePrediction

_BATCH_ON_CPU, _BATCH_ON_GPU = 16, 128
"""On a CPU a batch is short, so that progress moves and cancelling takes effect."""


class ComputeError(LRMILError):
    """The device failed in the middle of a slide."""


class ClassifyWorker(GeneratorWorker):
    """`predict_slide` in a thread; quitting closes it there, with the threads that it reads tiles with."""

    def __init__(self, slide: Slide, bundle: ModelBundle, device: str) -> None:
        self._steps = self._predict(slide, bundle, device)
        super().__init__(self._run)

    @staticmethod
    def _predict(
        slide: Slide, bundle: ModelBundle, device_name: str
    ) -> Generator[PredictProgress, None, SlidePrediction]:
        import_models()
        from napari_lrmil.model.device import resolve_device
        from napari_lrmil.predict import predict_slide

        device = resolve_device(device_name)
        bundle.encoder.to(device)
        bundle.mil.to(device)
        batch_size = _BATCH_ON_CPU if device.type == "cpu" else _BATCH_ON_GPU
        return (yield from predict_slide(slide, bundle, device=device, batch_size=batch_size))

    def _run(self) -> Generator[PredictProgress, None, SlidePrediction]:
        try:
            return (yield from self._steps)
        except RuntimeError as error:
            # Torch's errors, out of memory among them. napari takes a RuntimeError for a deleted window
            # and drops it, and the user would wait for ever.
            raise ComputeError(
                f"The model stopped: {error}. If memory ran out, choose the device 'cpu'."
            ) from error

    def work(self) -> Any:
        """Run to the end, or until asked to quit."""
        with closing(self._steps):
            return super().work()


def _load_bundle(bundle_path: str) -> tuple[ModelBundle, tuple[str, ...]]:
    import_models()  # takes seconds: here it doesn't hold the window up
    leave_a_core_to_the_window()
    from napari_lrmil.model.bundle import load_bundle
    from napari_lrmil.model.device import available_devices

    return load_bundle(bundle_path), tuple(available_devices())


class QtJobs:
    """The controller's `Jobs` on Qt's thread pool.

    The controller sets itself as `controller` before the first job.
    """

    controller: Controller

    def __init__(self) -> None:
        self._workers: dict[int, FunctionWorker | ClassifyWorker] = {}

    def load_bundle(self, job: int, bundle_path: str) -> None:
        """Load in the background."""
        worker = FunctionWorker(_load_bundle, bundle_path)
        worker.returned.connect(lambda loaded: self.controller.bundle_loaded(job, *loaded))
        worker.errored.connect(lambda error: self._failed(self.controller.bundle_failed, job, error))
        self._start(job, worker)

    def classify(self, job: int, slide: Slide, bundle: ModelBundle, device: str) -> None:
        """Classify in the background."""
        worker = ClassifyWorker(slide, bundle, device)
        worker.yielded.connect(lambda progress: self.controller.progressed(job, progress))
        worker.returned.connect(lambda prediction: self.controller.classified(job, prediction))
        worker.errored.connect(lambda error: self._failed(self.controller.classification_failed, job, error))
        self._start(job, worker)

    def cancel(self, job: int) -> None:
        """Ask a job to quit; it does so after the batch under way."""
        if job in self._workers:
            self._workers[job].quit()

    def shutdown(self, *, wait_s: float = 30.0) -> None:
        """Cancel all jobs and wait until their threads are done."""
        for worker in self._workers.values():
            worker.quit()
        started = time.monotonic()
        while self._running() and time.monotonic() - started < wait_s:
            QThreadPool.globalInstance().waitForDone(50)
        self._workers.clear()

    def _running(self) -> bool:
        return any(worker.is_running for worker in self._workers.values())

    def _start(self, job: int, worker: FunctionWorker | ClassifyWorker) -> None:
        self._workers[job] = worker
        worker.finished.connect(lambda: self._workers.pop(job, None))
        worker.start()

    @staticmethod
    def _failed(report: Any, job: int, error: Exception) -> None:
        if isinstance(error, LRMILError):
            report(job, str(error))
            return
        report(job, f"Something unexpected went wrong: {type(error).__name__}: {error}")
        raise error  # not foreseen: napari shows the traceback, so that it can be reported
