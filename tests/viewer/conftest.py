"""Fixtures of the viewer tests: slides, small bundles, and a guard against slides left open."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from napari_lrmil._viewer.models import import_models

import_models()  # before anything draws; see there

from made_slides import SHARED_DATA, write_slide  # noqa: E402
from tiny_models import write_bundle  # noqa: E402

from napari_lrmil.model.encoder import EncoderSpec  # noqa: E402
from napari_lrmil.slide import Slide  # noqa: E402

VIT_WEIGHTS = SHARED_DATA / "encoder_dinov2_vits14" / "vit_small_patch14_dinov2_fp16.safetensors"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """napari's warning under PyQt5, which a plugin can do nothing about; all others are errors."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(
                pytest.mark.filterwarnings("ignore:System theme detection requires a Qt6 backend:UserWarning")
            )


@pytest.fixture(autouse=True)
def no_slide_left_open(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail the test that leaves a slide open. Set up first, so it looks when the viewers are gone."""
    opened: weakref.WeakSet[Slide] = weakref.WeakSet()
    original = Slide.__init__

    def recording(self: Slide, *args: object, **options: object) -> None:
        original(self, *args, **options)
        opened.add(self)

    monkeypatch.setattr(Slide, "__init__", recording)
    yield
    left = [slide for slide in opened if not slide.closed]
    for slide in left:
        slide.close()
    assert not left, f"left open: {left}"


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A result cache for each test: windows look results up when a slide is opened."""
    root = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("LRMIL_CACHE_DIR", str(root))
    monkeypatch.setenv("LRMIL_DATA_DIR", str(root / "data"))
    return root


@pytest.fixture(autouse=True)
def own_plugin_settings(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Preferences of the plugin for each test; else tests would change the user's own."""
    from napari import settings

    folder = tmp_path_factory.mktemp("settings")
    monkeypatch.setattr(settings, "_CFG_PATH", str(folder / "settings.yaml"))
    monkeypatch.setattr(settings, "_PLUGIN_SETTINGS", {})


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """For tests of windows: docks start without a model, and background work doesn't outlive its window."""
    from real_windows import end_threads

    monkeypatch.setattr("napari_lrmil._viewer.docks.classify.widget.DEMO_BUNDLE_DIR", tmp_path / "absent")
    yield
    end_threads()


@pytest.fixture
def viewer(make_napari_viewer: Callable[..., Any]) -> Any:
    """A window on the screen."""
    return make_napari_viewer(show=True, strict_qt="raise")


@pytest.fixture
def main_dock(viewer: Any, small_slide: Path, bundle_dir: Path) -> Any:
    """The main dock of a large window, with a result."""
    from napari_lrmil._viewer import open_slide_with_result
    from napari_lrmil._viewer.docks.docked import dock_widget

    viewer.window.resize(1300, 1000)
    open_slide_with_result(viewer, small_slide, bundle_dir)
    return dock_widget(viewer)


@pytest.fixture(scope="session")
def bundle_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's own small encoder, 64 px tiles."""
    target = tmp_path_factory.mktemp("bundles") / "random"
    return write_bundle(target, EncoderSpec(options={"image_px": 64}), tile_px=64)


@pytest.fixture(scope="session")
def vit_bundle_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ViT-S/14 with its published weights, 112 px tiles."""
    if not VIT_WEIGHTS.exists():
        pytest.skip("the ViT-S/14 weights (../shared/data/encoder_dinov2_vits14) are absent")
    spec = EncoderSpec(architecture="vit_small_patch14_dinov2", options={"img_size": 518})
    target = tmp_path_factory.mktemp("bundles") / "vit"
    return write_bundle(target, spec, tile_px=112, weights=VIT_WEIGHTS)


@pytest.fixture
def small_slide(tmp_path: Path) -> Path:
    """A generated slide of 2560 x 1920 px at 0.5 µm/px."""
    return write_slide(tmp_path / "small.tiff")


@pytest.fixture
def slide_without_mpp(tmp_path: Path) -> Path:
    """The same without a pixel size."""
    return write_slide(tmp_path / "nompp.tiff", mpp=None)
