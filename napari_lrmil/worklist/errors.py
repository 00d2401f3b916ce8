"""What can be wrong with a worklist."""

from napari_lrmil.errors import LRMILError


class WorklistError(LRMILError):
    """A folder or slide table can't be listed, or a verdict can't be kept."""
