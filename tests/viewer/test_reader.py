"""The manifest, the reader and the layers, without a window where none is needed."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import npe2
import numpy as np
import pytest
import tifffile
import zarr
from made_slides import shared_slide, write_slide
from npe2 import PluginManifest
from tiny_models import tiny_spec, write_bundle

from napari_lrmil._viewer import sample_data
from napari_lrmil._viewer.layers import (
    MPP_UNKNOWN_KEY,
    SLIDE_KEY,
    heatmap_colormap,
    heatmap_layer,
    slide_layer,
)
from napari_lrmil._viewer.models import import_models
from napari_lrmil._viewer.reader import get_reader, read_slide
from napari_lrmil.errors import SlideError
from napari_lrmil.heatmap import HeatmapLook
from napari_lrmil.model.bundle import load_bundle
from napari_lrmil.model.encoder import EncoderSpec
from napari_lrmil.predict import predict_slide, run_to_end
from napari_lrmil.slide import Slide
from napari_lrmil.slide import reader as slide_reader
from napari_lrmil.slide.backends import Backend
from napari_lrmil.slide.files import SHARED_SUFFIXES, SLIDE_SUFFIXES


def test_manifest_is_valid_and_complete() -> None:
    manifest = PluginManifest.from_distribution("napari-lrmil")
    manifest.validate_imports()
    contributions = manifest.contributions
    patterns = {
        Path(pattern).suffix
        for reader in contributions.readers
        for pattern in reader.filename_patterns
        if reader.command == "napari-lrmil.get_reader"
    }
    assert patterns == SLIDE_SUFFIXES | SHARED_SUFFIXES
    assert {widget.display_name for widget in contributions.widgets} == {
        f"LRMIL: {name}"
        for name in ("classify slide", "worklist", "tiles", "overview", "annotations", "export")
    }
    assert {sample.key for sample in contributions.sample_data} == {"demo_lesion", "demo_benign"}
    assert set(contributions.menus) == {"napari/layers/classify", "napari/file/io_utilities"}


def test_reading_loads_neither_qt_nor_torch() -> None:
    code = (
        "import sys\n"
        "import napari_lrmil._viewer.reader, napari_lrmil._viewer.layers, napari_lrmil._viewer.window\n"
        "import napari_lrmil._viewer.napari_canvas, napari_lrmil._viewer.sample_data\n"
        "loaded = {name.partition('.')[0] for name in sys.modules}\n"
        "print(sorted(loaded & {'qtpy', 'PyQt5', 'PyQt6', 'PySide6', 'torch'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_models_come_without_triton() -> None:
    code = (
        "import sys\n"
        "from napari_lrmil._viewer.models import import_models\n"
        "import_models()\n"
        "import_models()\n"
        "print('triton' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False True"


@pytest.mark.parametrize(
    "spec", [tiny_spec(), EncoderSpec(options={"embed_dim": 24, "heads": 2, "image_px": 32})]
)
def test_classifying_imports_no_triton_later(small_slide: Path, spec: EncoderSpec, tmp_path: Path) -> None:
    """It would end the process once a window has drawn with Mesa's OpenGL."""
    bundle_dir = write_bundle(tmp_path / "bundle", spec, tile_px=32)
    code = (
        "import sys\n"
        "from napari_lrmil._viewer.models import load_model\n"
        "from napari_lrmil.predict import predict_slide, run_to_end\n"
        "from napari_lrmil.slide import Slide\n"
        "with Slide(sys.argv[1]) as slide:\n"
        "    bundle = load_model(sys.argv[2]).bundle\n"
        "    steps = predict_slide(slide, bundle, device=__import__('torch').device('cpu'))\n"
        "    result = run_to_end(steps)\n"
        "print('triton' in sys.modules, len(result.deletion.fractions) > 1)"
    )
    command = [sys.executable, "-c", code, str(small_slide), str(bundle_dir)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False True"


def test_ordinary_images_are_left_to_others(tmp_path: Path) -> None:
    picture = np.zeros((64, 96, 3), np.uint8)
    tifffile.imwrite(tmp_path / "strips.tif", picture)
    tifffile.imwrite(tmp_path / "tiles.tif", picture, tile=(64, 64))
    tifffile.imwrite(tmp_path / "stack.tif", np.zeros((3, 64, 64), np.uint16), imagej=True)
    (tmp_path / "text.tiff").write_text("no image")
    for path in tmp_path.iterdir():
        assert get_reader(str(path)) is None, path.name
    assert get_reader(str(tmp_path / "picture.png")) is None
    assert get_reader(["a.svs", "b.svs"]) is None


@contextlib.contextmanager
def counted_opens() -> Iterator[list[Path]]:
    """Which slide files are opened meanwhile, in order."""
    opens: list[Path] = []
    opened = slide_reader.open_backend

    def counted(path: Path, backend: str = "auto") -> Backend:
        opens.append(path)
        return opened(path, backend)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slide_reader, "open_backend", counted)
        yield opens


def handles_of(path: Path) -> int:
    """How many of this process's handles are on a file."""
    found = 0
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            found += os.readlink(link) == str(path)
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="counts handles in /proc")
def test_a_slide_of_a_shared_suffix_is_opened_once(small_slide: Path, tmp_path: Path) -> None:
    """Asking and reading take one opening; its handles go with the layer's slide, or with a reader never called."""
    path = Path(shutil.copy(small_slide, tmp_path / "slide.tif"))
    with counted_opens() as opens:
        read = get_reader(str(path))
        assert read is not None
        held = handles_of(path)
        assert held > 0
        ((_, attributes, _),) = read(str(path))
        assert opens == [path]
        assert handles_of(path) == held
        attributes["metadata"][SLIDE_KEY].close()
        assert handles_of(path) == 0
        # Called again, it opens again; the slide that it gave may be closed by then.
        ((_, attributes, _),) = read(str(path))
        assert len(opens) == 2
        attributes["metadata"][SLIDE_KEY].close()
        # napari asks several readers and calls one.
        unused = get_reader(str(path))
        assert unused is not None
        assert handles_of(path) == held
        del unused
        assert handles_of(path) == 0
        (tmp_path / "plain.tif").unlink(missing_ok=True)
        tifffile.imwrite(tmp_path / "plain.tif", np.zeros((64, 96, 3), np.uint8))
        assert get_reader(str(tmp_path / "plain.tif")) is None
        assert handles_of(tmp_path / "plain.tif") == 0


@pytest.mark.skipif(sys.platform != "linux", reason="counts handles in /proc")
def test_napari_opens_a_tiff_once(small_slide: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(small_slide, tmp_path / "slide.tif"))
    with counted_opens() as opens:
        npe2.PluginManager.instance().discover()
        layers = npe2.read([str(path)], plugin_name="napari-lrmil", stack=False)
    ((_, attributes, _),) = layers
    assert opens == [path]
    attributes["metadata"][SLIDE_KEY].close()
    assert handles_of(path) == 0


def test_bad_slide_says_why(tmp_path: Path) -> None:
    bad = tmp_path / "bad.svs"
    bad.write_bytes(b"not a slide")
    reader = get_reader(str(bad))
    assert reader is not None
    with pytest.raises(SlideError, match=r"bad\.svs"):
        reader(str(bad))


def test_slide_layer(small_slide: Path) -> None:
    ((levels, attributes, kind),) = read_slide(str(small_slide))
    slide = attributes["metadata"][SLIDE_KEY]
    with slide:
        assert kind == "image"
        assert levels[0].shape == (1920, 2560, 3)
        assert (480, 640, 3) in [level.shape for level in levels]
        assert attributes["name"] == "small"
        assert attributes["scale"] == pytest.approx((0.5, 0.5))
        assert attributes["translate"] == pytest.approx((0.25, 0.25))
        assert not attributes["metadata"][MPP_UNKNOWN_KEY]
        assert attributes["cache"] is False


def test_the_level_that_the_model_reads_is_there(tmp_path: Path) -> None:
    with Slide(write_slide(tmp_path / "fine.tiff", mpp=0.37)) as slide:
        levels, _, _ = slide_layer(slide, student_mpp=2.0)
        widths = [level.shape[1] for level in levels]
        assert int(2560 * 0.37 / 2.0) in widths
        assert widths == sorted(widths, reverse=True)


def test_no_identifiers_in_metadata() -> None:
    path = shared_slide("slides_real/CMU-1-Small-Region.svs")
    ((_, attributes, _),) = read_slide(str(path))
    with attributes["metadata"][SLIDE_KEY]:
        shown = str(attributes["metadata"]["lrmil"]).lower()
    for word in ("scanscope", "user", "date", "filename", "title", "barcode"):
        assert word not in shown


def test_heatmap_scale_shows_nothing_hot_where_nothing_is(small_slide: Path, bundle_dir: Path) -> None:
    bundle = load_bundle(bundle_dir)
    with Slide(small_slide) as slide:
        prediction = run_to_end(predict_slide(slide, bundle, device=next(bundle.mil.parameters()).device))
        values, attributes, _ = heatmap_layer(slide, prediction, HeatmapLook())
    low, high = attributes["contrast_limits"]
    assert (low, high) == (1.0, 4.0)
    read = values[np.isfinite(values)]
    assert len(read) == len(prediction.tiles)
    assert read.mean() == pytest.approx(1.0, abs=1e-4)
    assert np.isnan(values).any()
    # An average tile is nearly clear, a hot one is not, one that wasn't read not there at all.
    alpha = heatmap_colormap(HeatmapLook()).map(np.array([0.0, 1.0, np.nan]))[:, 3]
    assert alpha[0] < 0.2
    assert alpha[1] == 1.0
    assert alpha[2] == 0.0


@pytest.mark.parametrize("name", ["lesion", "benign"])
def test_sample_data(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_data, "DEMO_SLIDES_DIR", tmp_path)
    sample = getattr(sample_data, f"{name}_slide")
    with pytest.raises(SlideError, match="missing from this installation"):
        sample()
    write_slide(tmp_path / f"{name}.tiff", size_xy=(512, 512))
    ((_, attributes, _),) = sample()
    attributes["metadata"][SLIDE_KEY].close()
    assert attributes["name"] == name


def test_import_models_can_be_called_again() -> None:
    import_models()
    assert sys.modules.get("triton", "absent") is not None


def test_an_ome_zarr_folder_opens_as_a_slide_and_another_folder_does_not(tmp_path: Path) -> None:
    root = zarr.open_group(tmp_path / "slide.zarr", mode="w", zarr_format=3)
    datasets = []
    for level, size in enumerate((600, 300)):
        root.create_array(str(level), data=np.full((size, size, 3), 200, np.uint8), chunks=(256, 256, 3))
        scale = [0.5 * 2**level, 0.5 * 2**level, 1.0]
        datasets.append(
            {"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": scale}]}
        )
    axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "yx"]
    axes.append({"name": "c", "type": "channel"})
    root.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}
    read = get_reader(str(tmp_path / "slide.zarr"))
    assert read is not None
    ((levels, attributes, kind),) = read(str(tmp_path / "slide.zarr"))
    assert kind == "image"
    assert levels[0].shape == (600, 600, 3)
    assert tuple(attributes["scale"]) == (0.5, 0.5)
    attributes["metadata"][SLIDE_KEY].close()

    zarr.open_group(tmp_path / "other.zarr", mode="w", zarr_format=3)
    assert get_reader(str(tmp_path / "other.zarr")) is None


def test_what_layers_are_made_of_is_imported_while_a_slide_opens() -> None:
    """dask.array takes 0.4 s; whoever only classifies never pays for it."""
    code = (
        "import sys, threading; from napari_lrmil._viewer.reader import get_reader; before = 'dask.array' in sys.modules;"
        "get_reader('x.svs'); [one.join() for one in threading.enumerate() if one.name == 'lrmil-import'];"
        "print(before, 'dask.array' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
