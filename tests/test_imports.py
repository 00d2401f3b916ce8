"""What importing the project loads, and which way its imports go."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
WINDOWS = ("napari", "qtpy", "PyQt5", "PyQt6", "PySide2", "PySide6", "superqt", "vispy")
HEAVY = (*WINDOWS, "torch", "timm", "openslide", "dask", "zarr", "skimage", "scipy", "numpy", "pydantic")


def loaded_by(statement: str) -> set[str]:
    """Top-level packages in a new process after `statement`."""
    code = f"import sys\n{statement}\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    return set(done.stdout.split())


@pytest.mark.slow
@pytest.mark.parametrize(
    "statement",
    [
        "import napari_lrmil.cli.main, napari_lrmil.predict, napari_lrmil.heatmap, napari_lrmil.export",
        "import training.run.cli",
    ],
)
def test_neither_qt_nor_napari_is_loaded(statement: str) -> None:
    assert not loaded_by(statement) & set(WINDOWS)


def test_command_line_starts_without_torch() -> None:
    """Help and wrong arguments shouldn't take the seconds that torch does."""
    assert not loaded_by("import napari_lrmil.cli.main") & set(HEAVY)


def test_package_alone_loads_nothing_heavy() -> None:
    assert not loaded_by("import napari_lrmil, napari_lrmil.errors") & set(HEAVY)


def test_slides_load_no_torch_and_models_no_openslide() -> None:
    assert not loaded_by("import napari_lrmil.slide") & {"torch", "timm", *WINDOWS}


@pytest.mark.slow
def test_models_load_no_slide_library() -> None:
    assert not loaded_by("import napari_lrmil.model.bundle") & {"openslide", "dask", "zarr", *WINDOWS}


def test_contracts_hold() -> None:
    program = Path(sys.executable).with_name("lint-imports")
    if not program.exists():
        pytest.skip("import-linter is not installed")
    done = subprocess.run(
        [str(program), "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
