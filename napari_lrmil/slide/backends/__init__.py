"""Slide backends: one protocol, one module a library."""

from napari_lrmil.slide.backends.base import Backend
from napari_lrmil.slide.backends.select import BACKENDS, open_backend

__all__ = ["BACKENDS", "Backend", "open_backend"]
