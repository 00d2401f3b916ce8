"""python -m benchmarks.fuzz.exchange_files: tables, GeoJSON and feature files, broken in every way.

Bytes are changed, cut, doubled and swapped for others that mean something to the format; each file is read as the
program reads it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random

import h5py
import numpy as np

from benchmarks.fuzz.attack import Target, broken, main
from napari_lrmil.errors import ConfigError, LRMILError, WorklistError
from napari_lrmil.export.errors import GeoJSONError
from napari_lrmil.export.geojson import annotations_to_geojson, read_annotations
from napari_lrmil.worklist import read_slide_table
from training.data.table import read_table
from training.import_features.files import FeatureError, read_features
from training.tables.source import Layout, read_source

_LABELS = Layout("labels", {"slide": ("slide_id",), "label": ("label",)}, closed=False)
_TABLE = (
    b"slide_id,path,patient_id,label,mpp\n"
    b's1,s1.tiff,7,Tumor,0.5\n"s 2","sub/s2.tiff","Doe, J",normal,\n\ns3,/x/s3.tiff,07,NA,0.25\n'
)
_GEOJSON = (
    b'{"type": "FeatureCollection", "features": ['
    b'{"type": "Feature", "id": "a", "geometry": {"type": "Polygon", "coordinates": [[[0, 0], [9, 0], [9, 9], [0, 0]]]},'
    b' "properties": {"objectType": "annotation", "name": "one", "classification": {"name": "x", "color": [1, 2, 3]},'
    b' "measurements": {"area": 1.5}}},'
    b'{"type": "Feature", "geometry": {"type": "MultiPoint", "coordinates": [[1, 2], [3, 4.5]]}, "properties": {}},'
    b'{"type": "Feature", "geometry": {"type": "GeometryCollection", "geometries": []}, "properties": {"childObjects": []}}]}'
)
_TABLE_TOKENS = (
    b",", b";", b"\t", b"\n", b"\r", b'"', b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\xfc", b"~nobody/", b"/" * 5000,
    b"nan", b"7.0", b"=1+1", b"path", b"label", b"sep=;\n", b"a" * 200_000, b"\xed\xa0\x80", b"../", b"1e999", b"-1",
)  # fmt: skip
_GEOJSON_TOKENS = (
    b"null", b"NaN", b"1e999", b"[]", b"{}", b'"\\ud800"', b"[" * 3000, b'"Feature"', b'"Polygon"', b"9" * 5000, b"-0",
    b"true", b'"', b",", b"\xff", b"\0", b"1e308", b'{"type": "Point"}', b'"x"',
)  # fmt: skip


def _read_geojson(path: Path) -> object:
    found = read_annotations(path, bounds_l0_xywh=(0, 0, 99, 99), left_out=lambda text: None)
    return annotations_to_geojson(found, bounds_l0_xywh=(0, 0, 99, 99))


def _feature_file() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s.h5"
        with h5py.File(path, "w") as file:
            file["features"] = np.arange(24, dtype=np.float32).reshape(6, 4)
            file["coords"] = np.arange(12, dtype=np.int64).reshape(6, 2) * 256
            file["coords"].attrs.update({"patch_size": 256, "patch_level": 0, "patch_size_level0": 512})
        return path.read_bytes()


def targets() -> Iterable[Target]:
    """Return what is attacked here: a reader of a kind of files each."""
    feature_tokens = (b"\0\0\0\0", b"\xff" * 8, b"TREE", b"OHDR")
    return (
        _target("table: worklist", ".csv", _TABLE, _TABLE_TOKENS, read_slide_table, WorklistError),
        _target("table: training", ".csv", _TABLE, _TABLE_TOKENS, read_table, ConfigError),
        _target(
            "table: labels of others",
            ".csv",
            _TABLE,
            _TABLE_TOKENS,
            lambda path: read_source(path).records(_LABELS),
            ConfigError,
        ),
        _target("GeoJSON", ".geojson", _GEOJSON, _GEOJSON_TOKENS, _read_geojson, GeoJSONError),
        _target("feature file", ".h5", _feature_file(), feature_tokens, read_features, FeatureError),
    )


def _target(
    name: str,
    suffix: str,
    good: bytes,
    tokens: tuple[bytes, ...],
    read: Callable[[Path], object],
    promised: type[LRMILError],
) -> Target:
    def make(folder: Path) -> None:
        (folder / f"file{suffix}").write_bytes(good)

    def spoil(folder: Path, rng: Random) -> str:
        (folder / f"file{suffix}").write_bytes(broken(good, tokens, rng))
        return "bytes"

    return Target(name, make, spoil, lambda folder: read(folder / f"file{suffix}"), promised)


if __name__ == "__main__":
    main(__doc__, targets)
