"""Whole-slide classification from low-resolution tiles alone, in napari and on the command line."""

__version__ = "0.1.0"
