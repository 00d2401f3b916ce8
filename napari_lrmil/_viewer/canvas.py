"""The napari viewer as the controller sees it: slides, heatmaps and the text over them. No Qt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_lrmil._viewer.handles import close_with_layers
from napari_lrmil._viewer.layers import (
    DEFAULT_STUDENT_MPP,
    HEATMAP_KEY,
    HEATMAP_OPACITY,
    MPP_UNKNOWN_KEY,
    SLIDE_KEY,
    heatmap_layer,
    slide_layer,
    slide_levels,
    slide_placement,
)
from napari_lrmil.slide import Slide

if TYPE_CHECKING:
    from napari_lrmil.heatmap import HeatmapLook
    from napari_lrmil.predict import SlidePrediction

_TEXT_PT = 11


class NapariCanvas:
    """Slide and heatmap layers of one viewer.

    Parameters
    ----------
    viewer : napari.Viewer
        Or napari's public proxy of one.
    """

    def __init__(self, viewer: Any) -> None:
        self._viewer = viewer
        self._on_change: Callable[[], None] | None = None
        self._on_hover: Callable[[float, float], None] | None = None
        self._opacity: dict[Slide, float] = {}
        self.default_opacity = HEATMAP_OPACITY
        self._text = ""
        self._student_mpp = DEFAULT_STUDENT_MPP
        close_with_layers(viewer)

    def follow(
        self, on_change: Callable[[], None], on_hover: Callable[[float, float], None] | None = None
    ) -> None:
        """Call `on_change` when layers come, go, are chosen, or a heatmap's look changes.

        `on_hover` is told where the mouse is, x and y in level-0 µm.
        """
        self._on_change, self._on_hover = on_change, on_hover
        self._viewer.mouse_move_callbacks.append(self._mouse_moved)
        layers = self._viewer.layers
        layers.events.inserted.connect(self._layer_inserted)
        layers.events.removed.connect(self._layer_removed)
        layers.selection.events.active.connect(self._changed)
        if self.slides():
            self._show_scale_bar()
        for layer in layers:
            self._watch(layer)

    def unfollow(self) -> None:
        """Stop following; asking twice does no harm."""
        if self._on_change is None:
            return
        self._on_change = self._on_hover = None
        if self._mouse_moved in self._viewer.mouse_move_callbacks:
            self._viewer.mouse_move_callbacks.remove(self._mouse_moved)
        layers = self._viewer.layers
        layers.events.inserted.disconnect(self._layer_inserted)
        layers.events.removed.disconnect(self._layer_removed)
        layers.selection.events.active.disconnect(self._changed)

    def slides(self) -> tuple[Slide, ...]:
        """Open slides, the uppermost last."""
        found = (layer.metadata.get(SLIDE_KEY) for layer in self._viewer.layers)
        return tuple(dict.fromkeys(slide for slide in found if slide is not None))

    def active_slide(self) -> Slide | None:
        """The slide whose layer or heatmap is chosen in the layer list."""
        layer = self._viewer.layers.selection.active
        if layer is None:
            return None
        slide = layer.metadata.get(SLIDE_KEY) or layer.metadata.get(HEATMAP_KEY)
        return slide if slide in self.slides() else None

    def open_slide(self, path: Path, *, mpp: float | None = None) -> Slide:
        """Add a slide layer, in front of the others.

        Raises
        ------
        SlideError
        """
        slide = Slide(path, mpp=mpp)
        levels, attributes, _ = slide_layer(slide, student_mpp=self._student_mpp)
        self._viewer.add_image(levels, **attributes)
        self.bring_forward(slide)
        return slide

    def remove_slide(self, slide: Slide) -> None:
        """Take a slide's layers away, which closes it; its heatmap goes with it."""
        while (at := self._index(SLIDE_KEY, slide)) is not None:
            self._viewer.layers.pop(at)

    def bring_forward(self, slide: Slide) -> None:
        """Show this slide with its heatmap and hide the other slides: all share one origin."""
        for layer in self._viewer.layers:
            belongs_to = layer.metadata.get(SLIDE_KEY) or layer.metadata.get(HEATMAP_KEY)
            if belongs_to is not None:
                layer.visible = belongs_to is slide
        layer = self._find(SLIDE_KEY, slide)
        self._viewer.layers.selection.active = layer
        self._viewer.reset_view()

    def place_slide(self, slide: Slide, *, student_mpp: float | None) -> None:
        """Put a slide's layer in level-0 µm again, and show the level that a model of `student_mpp` reads."""
        self._student_mpp = student_mpp or self._student_mpp
        layer = self._find(SLIDE_KEY, slide)
        if layer is None:
            return
        levels = slide_levels(slide, student_mpp=self._student_mpp)
        if [level.shape for level in levels] != [level.shape for level in layer.data]:
            layer.data = levels
        placement = slide_placement(slide)
        if tuple(layer.scale) != placement["scale"]:
            for name, value in placement.items():
                setattr(layer, name, value)
            layer.metadata[MPP_UNKNOWN_KEY] = not slide.has_mpp
            self._viewer.reset_view()

    def redraw(self, slide: Slide) -> None:
        """Read again what the slide's layer shows: its colours have changed."""
        layer = self._find(SLIDE_KEY, slide)
        if layer is not None:
            layer.refresh()

    def show_heatmap(self, slide: Slide, prediction: SlidePrediction, look: HeatmapLook) -> None:
        """Lay the heatmap right over its slide; one of the same tiles that is there changes its look."""
        slide_at = self._index(SLIDE_KEY, slide)
        if slide_at is None:
            return
        values, attributes, _ = heatmap_layer(slide, prediction, look, opacity=self.heatmap_opacity(slide))
        layer = self._find(HEATMAP_KEY, slide)
        if layer is not None and layer.data.shape == values.shape:
            self._restyle(layer, values, attributes)
            return
        self.remove_heatmap(slide)
        layer = self._viewer.add_image(values, **attributes)
        layer.visible = self._viewer.layers[slide_at].visible
        layer.colorbar.visible = True
        if (added_at := len(self._viewer.layers) - 1) != slide_at + 1:
            self._viewer.layers.move(added_at, slide_at + 1)
        self._viewer.layers.selection.active = self._viewer.layers[slide_at]

    @staticmethod
    def _restyle(layer: Any, values: Any, attributes: dict[str, Any]) -> None:
        layer.data = values
        if tuple(layer.contrast_limits) != attributes["contrast_limits"]:
            layer.contrast_limits_range = layer.contrast_limits = attributes["contrast_limits"]
        if layer.colormap.name != attributes["colormap"].name:
            layer.colormap = attributes["colormap"]
        for name in ("scale", "translate"):
            if tuple(getattr(layer, name)) != attributes[name]:
                setattr(layer, name, attributes[name])
        layer.name = attributes["name"]

    def remove_heatmap(self, slide: Slide) -> None:
        """Where there is one."""
        at = self._index(HEATMAP_KEY, slide)
        if at is not None:
            self._viewer.layers.pop(at)

    def has_heatmap(self, slide: Slide) -> bool:
        """Whether a heatmap of the slide is among the layers, shown or hidden."""
        return self._index(HEATMAP_KEY, slide) is not None

    def heatmap_visible(self, slide: Slide) -> bool:
        """Whether the heatmap is there and shown."""
        layer = self._find(HEATMAP_KEY, slide)
        return layer is not None and bool(layer.visible)

    def heatmap_opacity(self, slide: Slide) -> float:
        """0 to 1; the last one chosen where no heatmap is there."""
        layer = self._find(HEATMAP_KEY, slide)
        if layer is not None:
            self._opacity[slide] = float(layer.opacity)
        return self._opacity.get(slide, self.default_opacity)

    def set_heatmap(self, slide: Slide, *, visible: bool | None, opacity: float | None) -> None:
        """Show, hide or fade; None leaves it as it is."""
        layer = self._find(HEATMAP_KEY, slide)
        if layer is None:
            return
        if visible is not None:
            layer.visible = visible
        if opacity is not None:
            layer.opacity = opacity

    # ---- camera

    @property
    def zoom(self) -> float:
        """Canvas pixels per unit of the world: µm, or pixels of a slide whose µm/px isn't known."""
        return float(self._viewer.scene.camera.zoom)

    @property
    def size_px_yx(self) -> tuple[float, float]:
        """Of the canvas; at least one pixel."""
        height, width = self._viewer.canvas.size
        return (max(1.0, float(height)), max(1.0, float(width)))

    def go_to(self, centre_um_yx: tuple[float, float], zoom: float | None = None) -> None:
        """Centre on a place; the magnification stays where `zoom` is None."""
        camera = self._viewer.scene.camera
        if zoom is not None:
            camera.zoom = zoom
        camera.center = (*camera.center[:-2], *centre_um_yx)

    # ---- layers of other parts

    def add_layer(self, layer: Any) -> Any:
        """Put a napari layer on top; returns it as napari hands it out."""
        return self._viewer.add_layer(layer)

    def remove_layer(self, layer: Any) -> None:
        """Take a layer out, if it is there."""
        if layer in self._viewer.layers:
            self._viewer.layers.remove(layer)

    @property
    def active_layer(self) -> Any:
        """The one chosen in the layer list; None where it is none or several."""
        return self._viewer.layers.selection.active

    @active_layer.setter
    def active_layer(self, layer: Any) -> None:
        if layer in self._viewer.layers:
            self._viewer.layers.selection.active = layer

    def show_text(self, text: str) -> None:
        """In the upper left corner of the canvas; nothing where empty."""
        if text == self._text:  # a text that others put there stays
            return
        self._text = text
        overlay = self._viewer.canvas.overlays.text
        # napari measures the box behind the text lower than it draws the text; an empty line makes up for it.
        overlay.text = f"{text}\n" if text else ""
        overlay.font_size, overlay.position = _TEXT_PT, "top_left"
        overlay.visible = bool(text)

    def _index(self, key: str, slide: Slide) -> int | None:
        for index, layer in enumerate(self._viewer.layers):
            if layer.metadata.get(key) is slide:
                return index
        return None

    def _find(self, key: str, slide: Slide) -> Any:
        index = self._index(key, slide)
        return None if index is None else self._viewer.layers[index]

    def _show_scale_bar(self) -> None:
        self._viewer.canvas.overlays.scale_bar.visible = True

    def _watch(self, layer: Any) -> None:
        if HEATMAP_KEY in layer.metadata:
            layer.events.visible.connect(self._changed)
            layer.events.opacity.connect(self._changed)

    def _layer_inserted(self, event: Any) -> None:
        if SLIDE_KEY in event.value.metadata:
            self._show_scale_bar()
        self._watch(event.value)
        self._changed()

    def _layer_removed(self, event: Any) -> None:
        slide = event.value.metadata.get(SLIDE_KEY)
        if slide is not None and slide not in self.slides():
            self.remove_heatmap(slide)
            self._opacity.pop(slide, None)
        self._changed()

    def _mouse_moved(self, viewer: Any, event: Any) -> None:
        if self._on_hover is not None:
            y_um, x_um = event.position[-2:]
            self._on_hover(float(x_um), float(y_um))

    def _changed(self, event: Any = None) -> None:
        if self._on_change is not None:
            self._on_change()
