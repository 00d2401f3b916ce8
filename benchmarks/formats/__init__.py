"""One picture as a slide of every format that can be made here, with a word of one's own in each field of its metadata.

`FORMATS` maps a name to its writer. Each writer is given a folder, a stem, pixels, and `plant`: what it is to write into a
field, by the field's name; fields that mean something to readers come with the value that is right, and what is returned
in its place is written. Files are small and hold a pyramid where the format has one.
"""

from __future__ import annotations

from functools import partial

from benchmarks.formats.dicom import write_dicom
from benchmarks.formats.folders import write_deepzoom, write_ome_zarr
from benchmarks.formats.images import write_jpeg, write_png
from benchmarks.formats.indexed import write_mirax, write_vms
from benchmarks.formats.tiff import (
    write_aperio,
    write_hamamatsu,
    write_leica,
    write_lossless_tiff,
    write_ome_tiff,
    write_philips,
    write_tiff,
    write_trestle,
    write_ventana,
)
from benchmarks.formats.writing import LAYOUT, MPP, Layout, Pixels, Plant, Writer, stained, unplanted

__all__ = [
    "FORMATS",
    "LAYOUT",
    "MPP",
    "WITHOUT_MPP",
    "Layout",
    "Pixels",
    "Plant",
    "Writer",
    "stained",
    "unplanted",
    "write_lossless_tiff",
    "write_mirax",
    "write_ome_zarr",
    "write_tiff",
    "write_ventana",
    "write_vms",
]

FORMATS: dict[str, Writer] = {
    "tiff": write_tiff,
    "lossless tiff": write_lossless_tiff,
    "aperio": write_aperio,
    "ome-tiff": write_ome_tiff,
    "philips": write_philips,
    "hamamatsu": write_hamamatsu,
    "ome-zarr": write_ome_zarr,
    "deepzoom": write_deepzoom,
    "png": write_png,
    "jpeg": write_jpeg,
    "dicom": write_dicom,
    "mirax": write_mirax,
    "ome-zarr 0.5": partial(write_ome_zarr, zarr_format=3),
    "trestle": write_trestle,
    "leica": write_leica,
    "ventana": write_ventana,
    "vms": write_vms,
}
"""Name -> writer."""

WITHOUT_MPP = frozenset({"deepzoom", "png", "jpeg"})
"""Formats that can't say what a pixel measures."""
