"""The plugin's preferences, through napari's own machinery."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

import napari_lrmil
from napari_lrmil._viewer.settings import Settings, follow_settings, read_settings

MANIFEST = Path(napari_lrmil.__file__).with_name("napari.yaml")


def test_without_the_plugin_the_defaults_hold(plugin_settings: None, npe2pm: Any) -> None:
    assert read_settings() == Settings()
    follow_settings(lambda _: None)()


def test_defaults_are_the_manifests(plugin_settings: None, npe2pm: Any) -> None:
    npe2pm.register(str(MANIFEST))
    assert read_settings() == Settings()


def test_changes_are_reported_until_unfollowed_and_last(plugin_settings: None, npe2pm: Any) -> None:
    from napari.settings import get_plugin_settings

    npe2pm.register(str(MANIFEST))
    group: Any = get_plugin_settings("napari-lrmil")
    reported: list[Settings] = []
    unfollow = follow_settings(reported.append)
    group.workspace.heatmap_opacity = 0.3
    group.workspace.update({"cache_gb": 1.0, "reviewer": "Ada"})  # as the dialog does
    assert reported[0] == Settings(heatmap_opacity=0.3)
    assert reported[-1] == Settings(heatmap_opacity=0.3, cache_gb=1.0, reviewer="Ada")
    assert "cache_gb: 1.0" in group.config_path.read_text()
    unfollow()
    count = len(reported)
    group.workspace.device = "cpu"
    assert len(reported) == count
    with pytest.raises(ValidationError):
        group.workspace.device = "abacus"


def test_device_names() -> None:
    devices = ("auto", "cuda:0", "cuda:1", "cpu")
    assert Settings(device="cuda").device_among(devices) == "cuda:0"
    assert Settings(device="cpu").device_among(devices) == "cpu"
    assert Settings(device="mps").device_among(devices) is None


def test_the_window_takes_them_over(
    plugin_settings: None, npe2pm: Any, make_napari_viewer: Any, bundle_dir: Path, qtbot: Any
) -> None:
    """At the start, and when they are changed in the open window."""
    from napari.settings import get_plugin_settings

    from napari_lrmil._viewer.docks.docked import dock_widget
    from napari_lrmil.cache import ResultCache

    npe2pm.register(str(MANIFEST))
    group: Any = get_plugin_settings("napari-lrmil")
    group.workspace.default_bundle = str(bundle_dir)
    group.workspace.device = "cpu"
    main = dock_widget(make_napari_viewer(show=False, strict_qt="raise"))
    qtbot.waitUntil(lambda: main.controller.bundle is not None, timeout=60_000)
    assert main.controller.device == "cpu"
    group.workspace.cache_gb = 0.5
    qtbot.waitUntil(lambda: ResultCache().size().limit_bytes == 500_000_000, timeout=60_000)
