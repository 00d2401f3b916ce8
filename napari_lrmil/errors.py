"""The errors a user can meet. Each message says what is wrong and what cures it."""

from __future__ import annotations


class LRMILError(Exception):
    """Base of every error that the CLI and the viewer show as a message instead of a traceback."""


class SlideError(LRMILError):
    """A slide can't be opened or read."""


class UnknownMppError(SlideError):
    """A slide doesn't say how many micrometres a pixel measures, and nobody else did."""


class NoTissueError(SlideError):
    """No tile of the slide holds enough tissue."""


class BundleError(LRMILError):
    """A model bundle is missing, damaged, or of a version this program can't read."""


class EncoderError(LRMILError):
    """An encoder can't be built, or doesn't fit the tiles it is given."""


class DeviceError(LRMILError):
    """The wanted compute device isn't there."""


class TableError(LRMILError):
    """A CSV can't be read, or what stands in it is wrong: every line of the file that is."""


class WorklistError(LRMILError):
    """A folder or slide table can't be listed, or a verdict can't be kept."""


class ConfigError(LRMILError):
    """A training configuration or slide table is wrong."""
