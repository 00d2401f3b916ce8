"""Import torch and timm into a process that draws with OpenGL. No Qt."""

from __future__ import annotations

import importlib
import os
import sys
import threading

_MODULES = (
    "torch._dynamo",
    "napari_lrmil.model.bundle",
    "napari_lrmil.model.device",
    "napari_lrmil.predict",
    "napari_lrmil.heatmap",
)
_lock = threading.Lock()


def import_models() -> None:
    """Import what classifies, without Triton.

    timm imports torchvision, that torch's compiler, and that Triton, which carries an LLVM of its own.
    Mesa's OpenGL (every Linux desktop without NVIDIA's driver, every virtual display) has loaded another
    one by then, their symbols mix, and the process dies of a segmentation fault; in the other order it
    may die at exit. Classifying compiles nothing, so Triton is hidden during the import; torch
    remembers that it isn't there. Call this, in any thread, before importing a model in the viewer.
    """
    with _lock:
        hidden = sys.platform == "linux" and "triton" not in sys.modules
        if hidden:
            sys.modules["triton"] = None  # type: ignore[assignment]  # what makes an import fail
        try:
            for name in _MODULES:
                importlib.import_module(name)
        finally:
            if hidden:
                del sys.modules["triton"]


def leave_a_core_to_the_window() -> None:
    """Have torch compute on all processor cores but one: with all of them busy, clicks and pans wait.

    Call it after `import_models`, in a process with a window.
    """
    import torch

    cores = os.cpu_count() or 1
    torch.set_num_threads(max(1, min(torch.get_num_threads(), cores - 1)))
