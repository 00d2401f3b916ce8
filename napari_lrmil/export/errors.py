"""What can go wrong on the way out of, or back into, this program."""

from __future__ import annotations

from napari_lrmil.errors import LRMILError


class ExportError(LRMILError):
    """A file can't be written as wanted."""


class ResultFileError(LRMILError):
    """The files of a result can't be read back."""


class GeoJSONError(LRMILError):
    """A file of annotations can't be read."""
