"""Results kept on disk: opening a slide again shows them at once. Loads no torch until one is asked for."""

from napari_lrmil.cache.limit import DEFAULT_LIMIT_BYTES
from napari_lrmil.cache.pixel_sizes import keep_typed_mpp, open_slide, typed_mpp
from napari_lrmil.cache.store import (
    CACHE_DIR_VARIABLE,
    CacheError,
    CacheSize,
    ResultCache,
    ResultKeys,
    default_cache_root,
    result_key,
)
from napari_lrmil.cache.summary import ResultSummary, summarise

__all__ = [
    "CACHE_DIR_VARIABLE",
    "DEFAULT_LIMIT_BYTES",
    "CacheError",
    "CacheSize",
    "ResultCache",
    "ResultKeys",
    "ResultSummary",
    "default_cache_root",
    "keep_typed_mpp",
    "open_slide",
    "result_key",
    "summarise",
    "typed_mpp",
]
