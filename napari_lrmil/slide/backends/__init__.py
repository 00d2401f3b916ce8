"""Slide backends: one protocol, one module a library."""

from napari_lrmil.slide.backends.base import Backend, open_backend

__all__ = ["Backend", "open_backend"]
