"""Many slides, one after the other or on a cluster: errors stay with their slide, results in the cache."""

from napari_lrmil.batch.cluster import ClusterError, classify_on_cluster
from napari_lrmil.batch.events import BatchEvent, Kind, follow
from napari_lrmil.batch.local import classify

__all__ = ["BatchEvent", "ClusterError", "Kind", "classify", "classify_on_cluster", "follow"]
