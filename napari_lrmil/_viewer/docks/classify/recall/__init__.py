"""Results kept from before: looked up when a slide is opened, kept when one is classified."""

from napari_lrmil._viewer.docks.classify.recall.presenter import Recall, RecallJobs

__all__ = ["Recall", "RecallJobs"]
