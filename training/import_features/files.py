"""Read the feature files (HDF5) of CLAM and TRIDENT."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import h5py
import numpy as np
from numpy.typing import NDArray

from napari_lrmil.errors import LRMILError, refuse_pipe
from napari_lrmil.table import NO_VALUE

FEATURE_NAMES = ("features", "feats")
MAX_BYTES = 8 * 2**30

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
    with _opened(path, "it") as file:
        features = _matrix(file, FEATURE_NAMES, np.float32)
        if features is None:
            raise FeatureError(
                f"it holds no dataset 'features', only {', '.join(map(repr, file)) or 'nothing'}"
            )
        coords = _matrix(file, ("coords",), np.float64)
        attributes = _attributes(file)
    if coords is None:
        raise FeatureError(
            "it holds no dataset 'coords': without them nobody knows which feature belongs to which tile"
        )
    if coords.shape != (len(features), 2):
        raise FeatureError(f"{len(features)} features, but coords of shape {coords.shape}")
    if not len(features):
        raise FeatureError("it holds no features")
    if not np.isfinite(features).all() or not np.isfinite(coords).all():
        raise FeatureError("it holds values that aren't finite")
    if str(attributes.get("unit")) == "um":
        raise FeatureError(
            "its coords are in µm; expected are level-0 pixels, as CLAM and TRIDENT write them"
        )
    extent = _extent(attributes, level_downsamples)
    if extent is None and coords_path is not None:
        with _opened(coords_path, str(coords_path)) as file:
            extent = _extent(_attributes(file), level_downsamples)
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


@contextmanager
def _opened(path: Path, what: str) -> Iterator[h5py.File]:
    """Open an HDF5 file; whatever reading it raises is an error of that file."""
    try:
        refuse_pipe(path)
        with h5py.File(path, "r") as file:
            yield file
    except FeatureError:
        raise
    except OSError as error:
        raise FeatureError(f"{what} can't be read as HDF5: {error}") from error
    except Exception as error:  # a damaged file makes h5py raise anything
        raise FeatureError(f"{what} can't be read: {type(error).__name__}: {error}") from error


def _matrix(file: h5py.File, names: Sequence[str], dtype: type[Float]) -> NDArray[Float] | None:
    """Read the first of some datasets as (N, K); None where there is none."""
    name = next((name for name in names if name in file), None)
    if name is None:
        return None
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset):
        raise FeatureError(f"its {name!r} is no dataset")
    shape: tuple[int, ...] = dataset.shape or ()
    if len(shape) == 3 and shape[0] == 1:  # a batch of one slide
        shape = shape[1:]
    if len(shape) != 2 or dataset.dtype.kind not in "fiu":
        raise FeatureError(
            f"its dataset {name!r} has shape {dataset.shape} and type {dataset.dtype}, not (N, K) numbers"
        )
    # A few bytes of HDF5 can promise any shape.
    if math.prod(shape) * max(dataset.dtype.itemsize, np.dtype(dtype).itemsize) > MAX_BYTES:
        raise FeatureError(
            f"its dataset {name!r} has shape {dataset.shape}: more than {MAX_BYTES // 2**30} GiB is no slide's"
        )
    return np.asarray(dataset[()]).reshape(shape).astype(dtype)


def _attributes(file: h5py.File) -> dict[str, object]:
    """Read attributes of the file and of its coords; a text that stands for no value is none."""
    found = dict(file.attrs) | (dict(file["coords"].attrs) if "coords" in file else {})
    texts = {
        name: value.decode(errors="replace") if isinstance(value, bytes) else value
        for name, value in found.items()
    }
    return {
        name: value
        for name, value in texts.items()
        if not (value is None or (isinstance(value, str) and value.strip().lower() in NO_VALUE))
    }


def _extent(
    attributes: Mapping[str, object], level_downsamples: Sequence[float]
) -> tuple[float, float] | None:
    """Return the edges of a patch in level-0 pixels, from what CLAM or TRIDENT notes beside the coordinates."""
    if "patch_size_level0" in attributes:
        return _pair(attributes, "patch_size_level0")
    if "patch_size" not in attributes:
        return None
    width, height = _pair(attributes, "patch_size")
    if "patch_level" in attributes:
        level = _numbers(attributes, "patch_level")[0]
        if "downsample" in attributes:
            scale = _pair(attributes, "downsample")
        elif level in range(len(level_downsamples)):
            scale = (level_downsamples[int(level)],) * 2
        else:
            raise FeatureError(f"its patches are of level {level:g}, which the slide doesn't have")
        return width * scale[0], height * scale[1]
    if "level0_magnification" in attributes and "target_magnification" in attributes:
        factor = _pair(attributes, "level0_magnification")[0] / _pair(attributes, "target_magnification")[0]
        return width * factor, height * factor
    return None


def _pair(attributes: Mapping[str, object], name: str) -> tuple[float, float]:
    """Return an attribute of one or two numbers above 0, or more of which the last is the height."""
    numbers = _numbers(attributes, name)
    if not all(0 < number < 1e9 for number in numbers):
        raise FeatureError(f"its {name} is {_shown(attributes[name])}: no number of pixels above 0")
    return numbers[0], numbers[-1]


def _numbers(attributes: Mapping[str, object], name: str) -> list[float]:
    try:
        numbers = np.asarray(attributes[name], float).ravel().tolist()
    except (ValueError, TypeError):
        numbers = []
    if not numbers:
        raise FeatureError(f"its {name} is {_shown(attributes[name])}, not a number")
    return numbers


def _shown(value: object) -> str:
    return repr(value)[:60]
