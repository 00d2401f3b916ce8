"""Read the feature files (HDF5) of CLAM and TRIDENT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np
from numpy.typing import NDArray

from napari_lrmil.errors import LRMILError

FEATURE_NAMES = ("features", "feats")

Float = TypeVar("Float", np.float32, np.float64)


class FeatureError(LRMILError):
    """Features made elsewhere can't be used for a slide."""


@dataclass(frozen=True)
class FeatureFile:
    """What a feature file says of a slide.

    Attributes
    ----------
    features : (N, D) float32 array
    coords_l0_xy : (N, 2) float64 array
        Top left corners of the patches in level-0 pixels.
    patch_l0_xy : (float, float)
        Width and height of a patch in level-0 pixels.
    """

    features: NDArray[np.float32]
    coords_l0_xy: NDArray[np.float64]
    patch_l0_xy: tuple[float, float]


def read_features(
    path: Path,
    *,
    level_downsamples: Sequence[float] = (1.0,),
    patch_px_l0: float | None = None,
    coords_path: Path | None = None,
) -> FeatureFile:
    """Read a feature file of CLAM or TRIDENT.

    Parameters
    ----------
    path : Path
        HDF5 with ``features`` (N, D) or (1, N, D) and ``coords`` (N, 2).
    level_downsamples : sequence of float
        Of the slide; CLAM counts patch sizes in pixels of a level.
    patch_px_l0 : float, optional
        Edge of a patch in level-0 pixels, for files that don't say it.
    coords_path : Path, optional
        CLAM's file of patches for this slide: its feature files don't say how large a patch is.

    Raises
    ------
    FeatureError
        Where the file can't be read or something in it is missing; the text says what and why.
    """
    try:
        with h5py.File(path, "r") as file:
            features = _matrix(file, FEATURE_NAMES, np.float32)
            if features is None:
                raise FeatureError(
                    f"it holds no dataset 'features', only {', '.join(map(repr, file)) or 'nothing'}"
                )
            coords = _matrix(file, ("coords",), np.float64)
            attributes = _attributes(file)
    except OSError as error:
        raise FeatureError(f"it can't be read as HDF5: {error}") from error
    if coords is None:
        raise FeatureError(
            "it holds no dataset 'coords': without them nobody knows which feature belongs to which tile"
        )
    if coords.shape != (len(features), 2):
        raise FeatureError(f"{len(features)} features, but coords of shape {coords.shape}")
    if not np.isfinite(features).all() or not np.isfinite(coords).all():
        raise FeatureError("it holds values that aren't finite")
    if attributes.get("unit") == "um":
        raise FeatureError(
            "its coords are in µm; expected are level-0 pixels, as CLAM and TRIDENT write them"
        )
    extent = _extent(attributes, level_downsamples)
    if extent is None and coords_path is not None:
        try:
            with h5py.File(coords_path, "r") as file:
                extent = _extent(_attributes(file), level_downsamples)
        except OSError as error:
            raise FeatureError(f"{coords_path} can't be read as HDF5: {error}") from error
    if extent is None and patch_px_l0 is not None:
        extent = (patch_px_l0, patch_px_l0)
    if extent is None:
        raise FeatureError(
            "it doesn't say how large a patch is: give CLAM's folder of patches with --patches, or the edge of a patch "
            "in level-0 pixels with --patch-px-l0"
        )
    return FeatureFile(features, coords, extent)


def find_feature_files(folder: Path) -> dict[str, Path]:
    """Return feature files below a folder by slide id: their name without ending (and TRIDENT's ``_patches``).

    Raises
    ------
    FeatureError
        Where there are none, or two of one name.
    """
    found: dict[str, Path] = {}
    for path in sorted((*folder.rglob("*.h5"), *folder.rglob("*.hdf5"))):
        name = path.stem.removesuffix("_patches")
        if name in found:
            raise FeatureError(
                f"{found[name]} and {path} are both of slide {name}; give the folder of one of them"
            )
        found[name] = path
    if not found:
        why = (
            f"no .h5 files are below {folder}" if folder.is_dir() else f"no such folder of features: {folder}"
        )
        raise FeatureError(why)
    return found


def _matrix(file: h5py.File, names: Sequence[str], dtype: type[Float]) -> NDArray[Float] | None:
    """Read the first of some datasets as (N, K); None where there is none."""
    name = next((name for name in names if name in file), None)
    if name is None:
        return None
    values = np.asarray(file[name][()])
    if values.ndim == 3 and len(values) == 1:  # a batch of one slide
        values = values[0]
    if values.ndim != 2 or values.dtype.kind not in "fiu":
        raise FeatureError(
            f"its dataset {name!r} has shape {values.shape} and type {values.dtype}, not (N, K) numbers"
        )
    return values.astype(dtype)


def _attributes(file: h5py.File) -> dict[str, Any]:
    return dict(file.attrs) | (dict(file["coords"].attrs) if "coords" in file else {})


def _extent(attributes: Mapping[str, Any], level_downsamples: Sequence[float]) -> tuple[float, float] | None:
    """Return the edges of a patch in level-0 pixels, from what CLAM or TRIDENT notes beside the coordinates."""
    if "patch_size_level0" in attributes:
        return _pair(attributes["patch_size_level0"])
    if "patch_size" not in attributes:
        return None
    width, height = _pair(attributes["patch_size"])
    if "patch_level" in attributes:
        level = int(attributes["patch_level"])
        if "downsample" in attributes:
            scale = _pair(attributes["downsample"])
        elif 0 <= level < len(level_downsamples):
            scale = (level_downsamples[level],) * 2
        else:
            raise FeatureError(f"its patches are of level {level}, which the slide doesn't have")
        return width * scale[0], height * scale[1]
    if "level0_magnification" in attributes and "target_magnification" in attributes:
        factor = float(attributes["level0_magnification"]) / float(attributes["target_magnification"])
        return width * factor, height * factor
    return None


def _pair(value: Any) -> tuple[float, float]:
    first, *_, last = np.broadcast_to(np.asarray(value, float).ravel(), max(2, np.size(value)))
    return float(first), float(last)
