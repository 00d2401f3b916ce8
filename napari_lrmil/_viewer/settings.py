"""What is set in napari's Preferences under LRMIL, as plain values. No Qt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

PLUGIN_NAME = "napari-lrmil"
GROUP = "workspace"
"""The key under ``configurations`` in the manifest."""


@dataclass(frozen=True)
class Settings:
    """The plugin's preferences; the defaults are those of the manifest.

    Attributes
    ----------
    default_bundle : str
        Folder or hub name to start with, or "demo"; empty: none.
    device : str
        "auto", "cpu", "cuda" or "mps".
    heatmap_opacity : float
        0 to 1, of new heatmaps.
    show_cached_results : bool
        Whether opening a slide shows the result it already has.
    cache_gb : float
        How much the result cache may hold, in 1e9 bytes.
    reviewer : str
        Kept with each verdict.
    offer_reader : bool
        Whether the worklist asks to open slides without napari's question; the answer ends that.
    keep_session : bool
        Whether the window's folder, slide, view and model are kept, and brought back when the workspace opens.
    """

    default_bundle: str = "demo"
    device: str = "auto"
    heatmap_opacity: float = 0.7
    show_cached_results: bool = True
    cache_gb: float = 2.0
    reviewer: str = ""
    offer_reader: bool = True
    keep_session: bool = True

    @property
    def cache_bytes(self) -> int:
        """`cache_gb` in bytes."""
        return round(self.cache_gb * 1e9)

    def device_among(self, devices: tuple[str, ...]) -> str | None:
        """The name among `devices` that is meant: "cuda" is the first CUDA device. None where it isn't there."""
        return next((name for name in devices if name.partition(":")[0] == self.device), None)


def read_settings() -> Settings:
    """What the user set; the defaults where napari doesn't know the plugin."""
    group = _group()
    if group is None:
        return Settings()
    return Settings(**{field.name: getattr(group, field.name) for field in fields(Settings)})


def change_setting(name: str, value: Any) -> None:
    """Set one as if the user had done so in the Preferences; nothing where napari doesn't know the plugin."""
    group = _group()
    if group is not None:
        setattr(group, name, value)


def follow_settings(listener: Callable[[Settings], None]) -> Callable[[], None]:
    """Call `listener` whenever one is changed, in the Preferences or from code; returns how to stop that."""
    group = _group()
    if group is None:
        return lambda: None

    def changed(event: Any = None) -> None:
        listener(read_settings())

    group.events.connect(changed)

    def unfollow() -> None:
        group.events.disconnect(changed)

    return unfollow


def _group() -> Any:
    from napari.settings import get_plugin_settings

    try:
        return getattr(get_plugin_settings(PLUGIN_NAME), GROUP)
    except KeyError:  # switched off in the plugin manager, or a test without plugins
        return None
