"""Models in a window: how they are named, loaded, and how one classifies a slide. No Qt; torch only when asked."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from napari_lrmil.errors import LRMILError
from napari_lrmil.model.hub import HUB_PREFIX

if TYPE_CHECKING:  # they load torch, which the background does while the window is already there
    from napari_lrmil._viewer.background import Steps
    from napari_lrmil.model.bundle import ModelBundle
    from napari_lrmil.model.speed import Speed
    from napari_lrmil.predict import PredictProgress, SlidePrediction
    from napari_lrmil.slide import Slide

# ---- how a person names one


def hub_name(text: str) -> str:
    """What was typed as a name on the hub, with its prefix; a pasted web address is understood too."""
    name = text.strip().removeprefix(HUB_PREFIX)
    for address in ("https://huggingface.co/", "http://huggingface.co/", "huggingface.co/"):
        name = name.removeprefix(address)
    return f"{HUB_PREFIX}{name.strip('/')}"


# ---- importing what they need

_MODULES = (
    "napari_lrmil.model.bundle",
    "napari_lrmil.model.device",
    "napari_lrmil.predict",
    "napari_lrmil.heatmap",
)
_lock = threading.RLock()


@contextlib.contextmanager
def without_triton() -> Iterator[None]:
    """Let what is imported inside find no Triton.

    timm imports torchvision, that torch's compiler, and that Triton, which carries an LLVM of its own.
    Mesa's OpenGL (every Linux desktop without NVIDIA's driver, every virtual display) has loaded another
    one by then, their symbols mix, and the process dies of a segmentation fault; in the other order it
    may die at exit. Classifying compiles nothing, so Triton is hidden, and torch remembers that it isn't there.
    What classifies imports no more later on.
    """
    with _lock:
        hidden = sys.platform == "linux" and "triton" not in sys.modules
        if hidden:
            sys.modules["triton"] = None  # type: ignore[assignment]  # what makes an import fail
        try:
            yield
        finally:
            if hidden:
                del sys.modules["triton"]


def import_models() -> None:
    """Import what classifies, in any thread, before importing a model in the viewer; see `without_triton`."""
    with without_triton():
        for name in _MODULES:
            importlib.import_module(name)


def leave_a_core_to_the_window() -> None:
    """Have torch compute on all processor cores but one: with all of them busy, clicks and pans wait.

    Call it after `import_models`, in a process with a window.
    """
    import torch

    cores = os.cpu_count() or 1
    torch.set_num_threads(max(1, min(torch.get_num_threads(), cores - 1)))


# ---- what is computed behind the window

_BATCH_ON_CPU, _BATCH_ON_GPU = 16, 128
"""On a CPU a batch is short, so that progress moves and cancelling takes effect."""


class ComputeError(LRMILError):
    """The device failed in the middle of a slide."""


class LoadedModel(NamedTuple):
    """A bundle, the names of the devices that this machine can compute on, and how fast the first of them is."""

    bundle: ModelBundle
    devices: tuple[str, ...]
    speed: Speed | None = None


def load_model(bundle_path: str) -> LoadedModel:
    """Load a bundle from a folder, the hub, or "demo". Takes seconds.

    Raises
    ------
    BundleError
    """
    import_models()
    leave_a_core_to_the_window()
    from napari_lrmil.model.bundle import load_bundle
    from napari_lrmil.model.device import available_devices, resolve_device
    from napari_lrmil.model.speed import measured_speed

    with without_triton():  # an encoder of timm's imports timm
        bundle = load_bundle(bundle_path)
    speed = None
    with contextlib.suppress(
        RuntimeError
    ):  # as where the memory of a GPU is full: classifying takes smaller batches then
        speed = measured_speed(bundle, resolve_device())
    return LoadedModel(bundle, tuple(available_devices()), speed)


def classification(
    slide: Slide, bundle: ModelBundle, device_name: str
) -> Steps[PredictProgress, SlidePrediction]:
    """Classify a slide, batch by batch.

    Raises
    ------
    LRMILError
        See `napari_lrmil.predict.predict_slide`; `ComputeError` where the device fails.
    """
    import_models()
    from napari_lrmil.model.device import resolve_device
    from napari_lrmil.predict import predict_slide

    try:
        device = resolve_device(device_name)
        bundle.encoder.to(device)
        bundle.mil.to(device)
        batch_size = _BATCH_ON_CPU if device.type == "cpu" else _BATCH_ON_GPU
        return (yield from predict_slide(slide, bundle, device=device, batch_size=batch_size))
    except RuntimeError as error:  # torch's, out of memory among them
        raise ComputeError(
            f"The model stopped: {error}. If memory ran out, choose the device 'cpu'."
        ) from error
