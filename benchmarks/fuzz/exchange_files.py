"""python -m benchmarks.fuzz.exchange_files: tables, GeoJSON and feature files, broken in every way.

Bytes are changed, cut, doubled and swapped for others that mean something to the format. Each file is read as the
program reads it; whatever isn't a value or the reader's own error is printed, as is what took longer than a second.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from napari_lrmil.errors import ConfigError, LRMILError, WorklistError
from napari_lrmil.export.errors import GeoJSONError
from napari_lrmil.export.geojson import annotations_to_geojson, read_annotations
from napari_lrmil.worklist import read_slide_table
from training.data.table import read_table
from training.import_features.files import FeatureError, read_features
from training.tables.source import Layout, read_source

_SLOW_S = 1.0
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


class Kind(NamedTuple):
    """A kind of file: a good one, what means something in it, and its readers with the error each may raise."""

    suffix: str
    good: bytes
    tokens: tuple[bytes, ...]
    readers: tuple[tuple[Callable[[Path], object], type[LRMILError]], ...]


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


def kinds() -> dict[str, Kind]:
    """Return the kinds of files by name."""
    return {
        "tables": Kind(
            ".csv",
            _TABLE,
            _TABLE_TOKENS,
            (
                (read_slide_table, WorklistError),
                (read_table, ConfigError),
                (lambda path: read_source(path).records(_LABELS), ConfigError),
            ),
        ),
        "GeoJSON": Kind(".geojson", _GEOJSON, _GEOJSON_TOKENS, ((_read_geojson, GeoJSONError),)),
        "feature files": Kind(
            ".h5",
            _feature_file(),
            (b"\0\0\0\0", b"\xff" * 8, b"TREE", b"OHDR"),
            ((read_features, FeatureError),),
        ),
    }


def broken(good: bytes, tokens: tuple[bytes, ...], rng: random.Random) -> bytes:
    """Return a file with one to three faults."""
    data = bytearray(good)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(data) + 1)
        fault = rng.randrange(11) // 2  # cut off at the end half as often
        if fault == 0:
            data[at : at + 1] = bytes([rng.randrange(256)])
        elif fault == 1:
            data[at : at + rng.randint(0, 8)] = rng.choice(tokens)
        elif fault == 2:
            del data[at : at + rng.randint(1, 40)]
        elif fault == 3:
            data[at:at] = data[at : at + rng.randint(1, 200)]
        elif fault == 4:
            data[at:at] = rng.choice(tokens)
        else:
            del data[at + rng.randrange(len(data) + 1) :]
    return bytes(data)


def attack(name: str, kind: Kind, *, count: int, seed: int, folder: Path) -> tuple[Counter[str], list[str]]:
    """Read broken files.

    Returns
    -------
    counts : Counter
        Readings that gave a value ("read") and that were refused ("refused").
    faults : list of str
        The others, and what took too long.
    """
    rng = random.Random(f"{name} {seed}")
    counts: Counter[str] = Counter()
    faults = []
    path = folder / f"broken{kind.suffix}"
    for number in range(count):
        path.write_bytes(broken(kind.good, kind.tokens, rng))
        for read, promised in kind.readers:
            begin = time.perf_counter()
            try:
                read(path)
                counts["read"] += 1
            except promised:
                counts["refused"] += 1
            except Exception as error:  # noqa: BLE001 - to be counted
                faults.append(f"{name} {number}, seed {seed}: {type(error).__name__}: {str(error)[:200]}")
            if time.perf_counter() - begin > _SLOW_S:
                faults.append(f"{name} {number}, seed {seed}: took {time.perf_counter() - begin:.1f} s")
    return counts, faults


def main() -> None:
    """Attack each kind and print how it went."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=500, help="files of each kind")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name, kind in kinds().items():
            counts, faults = attack(name, kind, count=options.count, seed=options.seed, folder=Path(folder))
            print(
                f"{name}: {options.count} files, {counts['read']} read, {counts['refused']} refused, {len(faults)} faults"
            )
            for fault in faults:
                print(f"  {fault}")


if __name__ == "__main__":
    main()
