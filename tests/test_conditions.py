"""What the machine does to a program: pipes where files are meant, full and read-only disks, no home, other processes, clocks."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from napari_lrmil.errors import LRMILError, TableError, WorklistError
from napari_lrmil.export.geojson import read_annotations
from napari_lrmil.export.result import read_prediction
from napari_lrmil.table import read_table_file
from napari_lrmil.worklist import Worklist
from training.config import load_config
from training.import_features.files import read_features

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="mounts and pipes of Linux")
ROOT = Path(__file__).resolve().parents[1]
PROGRAM = ("-m", "napari_lrmil", "predict")


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mount a small file system of its own; again with other options it is that one changed."""
    places: list[Path] = []

    def mount(name: str, options: str) -> Path:
        place = tmp_path / name
        place.mkdir(exist_ok=True)
        again = "remount," if place in places else ""
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", again + options, "tmpfs", str(place)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        if place not in places:
            places.append(place)
        return place

    yield mount
    for place in places:
        subprocess.run(["umount", "-l", str(place)], capture_output=True, check=False)


def lrmil(*words: object, cache: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """`lrmil predict` as a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "300", "OMP_NUM_THREADS": "1"}
    environment |= {"LRMIL_CACHE_DIR": str(cache)} | more
    return subprocess.run(
        [sys.executable, *PROGRAM, *map(str, words), "--device", "cpu"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def slides(cohort: Path, tmp_path: Path) -> Path:
    """A folder of four slides."""
    folder = tmp_path / "slides"
    folder.mkdir()
    for path in sorted((cohort.parent / "slides").iterdir())[:4]:
        shutil.copy(path, folder)
    return folder


def test_a_named_pipe_is_refused_wherever_a_file_is_meant(tmp_path: Path) -> None:
    """Opened, it would wait for ever for somebody who writes."""

    def pipe(name: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        os.mkfifo(path)
        return path

    readers: dict[str, tuple[Callable[[Path], object], type[LRMILError]]] = {
        "slides.csv": (lambda path: read_table_file(path, needed=("path",)), TableError),
        "worklist.csv": (Worklist.open, WorklistError),
        "config.toml": (lambda path: load_config(path, []), LRMILError),
        "a.geojson": (
            lambda path: read_annotations(path, bounds_l0_xywh=(0, 0, 9, 9), left_out=print),
            LRMILError,
        ),
        "s.h5": (read_features, LRMILError),
        "result.json": (read_prediction, LRMILError),
        "judged/lrmil-review.jsonl": (lambda path: Worklist.open(path.parent), LRMILError),
    }
    (tmp_path / "judged").mkdir()
    (tmp_path / "judged" / "s1.svs").touch()
    for name, (read, error) in readers.items():
        path = pipe(name)
        with pytest.raises(error, match="is a pipe or a device, not a file"):
            read(path)
