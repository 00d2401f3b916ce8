"""Predictions and annotations as files."""

from napari_lrmil.export.tables import write_prediction

__all__ = ["write_prediction"]
