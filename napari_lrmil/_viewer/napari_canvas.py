"""`Canvas` on a napari viewer. No Qt."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.components.overlays import TextOverlay
from numpy.typing import NDArray

from napari_lrmil._viewer.canvas import Area, Canvas, DrawnHeatmap
from napari_lrmil._viewer.layers import (
    DEFAULT_STUDENT_MPP,
    HEATMAP_KEY,
    HEATMAP_OPACITY,
    MPP_UNKNOWN_KEY,
    PUT_AWAY_KEY,
    SLIDE_KEY,
    TILE_MARK_KEY,
    UNREAD_KEY,
    close_with_layers,
    heatmap_layer,
    measured_as_others,
    slide_layer,
    slide_levels,
    slide_of,
    slide_placement,
)
from napari_lrmil.cache import open_slide
from napari_lrmil.slide import Slide

if TYPE_CHECKING:
    from napari_lrmil.heatmap import HeatmapLook
    from napari_lrmil.predict import SlidePrediction

_TEXT_PT = 11
_MAGNIFICATION = "lrmil_magnification"
_NAPARI = "napari"
"""The window's title without a slide."""
_MARK_COLOURS = ("#000000", "#ffd400")
"""Bright on dark, so that it shows on white glass, on dark nuclei and on any heatmap."""


_arranging = 0
"""How many arrangements are under way, in whichever dock's canvas: all hear of what napari does meanwhile."""


@contextmanager
def _arranged() -> Iterator[None]:
    """Layers are added, shown and hidden by us: what napari chooses or shows meanwhile isn't the user's choice."""
    global _arranging
    _arranging += 1
    try:
        yield
    finally:
        _arranging -= 1


class NapariCanvas(Canvas):
    """See `Canvas`.

    Parameters
    ----------
    viewer : napari.Viewer
        Or napari's public proxy of one.
    """

    def __init__(self, viewer: Any) -> None:
        self._viewer = viewer
        self._opacity: dict[Slide, float] = {}
        self._new_opacity = HEATMAP_OPACITY
        self._text = ""
        self._student_mpp = DEFAULT_STUDENT_MPP
        self._forward: Slide | None = None
        """The slide brought forward here; each window has one canvas that does it, that of the controller."""
        self._keys: set[str] = set()
        self._says_magnification = False
        close_with_layers(viewer)
        layers, camera = viewer.layers, viewer.scene.camera
        self._followed = [
            (layers.events.inserted, self._layer_inserted),
            (layers.events.removed, self._layer_removed),
            (layers.selection.events.active, self._layers_changed),
            (camera.events.center, self._camera_moved),
            (camera.events.zoom, self._camera_moved),
            (viewer.canvas.events.size, self._camera_moved),
        ]
        for event, listener in self._followed:
            # The last one: napari's own lists and pictures know the layer then.
            event.connect(listener, position="last" if event is layers.events.inserted else "first")
        viewer.mouse_move_callbacks.append(self._mouse_moved)
        for layer in layers:
            self._watch(layer)

    def close(self) -> None:
        """See `Canvas.close`."""
        for event, listener in self._followed:
            event.disconnect(listener)
        self._followed = []
        if self._mouse_moved in self._viewer.mouse_move_callbacks:
            self._viewer.mouse_move_callbacks.remove(self._mouse_moved)
        for signal in (self.layers_changed, self.layer_removed, self.heatmap_changed, self.camera_moved):
            signal.disconnect()
        self.slide_unread.disconnect()
        self.hovered.disconnect()
        for key in self._keys:
            self._viewer.bind_key(key, None)
        self._keys.clear()
        if self._says_magnification:
            self._viewer.canvas.overlays.pop(_MAGNIFICATION, None)

    # ---- slides

    def slides(self) -> tuple[Slide, ...]:
        """See `Canvas.slides`."""
        found = (layer.metadata.get(SLIDE_KEY) for layer in self._viewer.layers)
        return tuple(dict.fromkeys(slide for slide in found if slide is not None))

    def active_slide(self) -> Slide | None:
        """See `Canvas.active_slide`."""
        layer = self._viewer.layers.selection.active
        if layer is None or _arranging:
            return None
        slide = slide_of(layer)
        return slide if slide in self.slides() else None

    def open_slide(self, path: Path, *, mpp: float | None = None) -> Slide:
        """See `Canvas.open_slide`."""
        slide = open_slide(path, mpp=mpp)
        layer = slide_layer(slide, student_mpp=self._student_mpp)
        levels, attributes, _ = measured_as_others(self._viewer, layer)
        self._viewer.add_image(levels, **attributes)
        return slide

    def remove_slide(self, slide: Slide) -> None:
        """See `Canvas.remove_slide`."""
        while (at := self._index(SLIDE_KEY, slide)) is not None:
            self._viewer.layers.pop(at)

    def bring_forward(self, slide: Slide, *, choose: bool = True, fit: bool = True) -> None:
        """See `Canvas.bring_forward`."""
        shown = self._find(SLIDE_KEY, slide)
        if shown is None:
            return
        with _arranged():
            if self._forward is not slide:
                self.clear_tile_mark()  # it lies on the other slide
            self._forward = slide
            for layer in list(self._viewer.layers):
                belongs_to = slide_of(layer)
                if belongs_to is slide:
                    if layer.metadata.pop(PUT_AWAY_KEY, False) or layer == shown:
                        layer.visible = True
                elif belongs_to is not None:
                    _put_away(layer)
            self._measure_alike()
            if choose:
                self._viewer.layers.selection.active = shown
            if fit:
                self._viewer.reset_view(layers=[shown])
        self.layers_changed.emit()

    def slide_visible(self, slide: Slide) -> bool:
        """See `Canvas.slide_visible`."""
        return any(layer.visible for layer in self._viewer.layers if layer.metadata.get(SLIDE_KEY) is slide)

    def place_slide(self, slide: Slide, *, student_mpp: float | None) -> None:
        """See `Canvas.place_slide`."""
        self._student_mpp = student_mpp or self._student_mpp
        layer = self._find(SLIDE_KEY, slide)
        if layer is None:
            return
        unread = layer.metadata.get(UNREAD_KEY)
        levels = slide_levels(slide, student_mpp=self._student_mpp, unread=unread)
        if [level.shape for level in levels] != [level.shape for level in layer.data]:
            layer.data = levels
        placement = slide_placement(slide)
        if tuple(layer.scale) != placement["scale"]:
            for name, value in placement.items():
                setattr(layer, name, value)
            layer.metadata.update({MPP_UNKNOWN_KEY: not slide.has_mpp, "lrmil": slide.metadata})
            self._measure_alike()
            if layer.visible:
                self._viewer.reset_view(layers=[layer])

    def redraw(self, slide: Slide) -> None:
        """See `Canvas.redraw`."""
        layer = self._find(SLIDE_KEY, slide)
        if layer is not None:
            layer.refresh()

    # ---- heatmaps

    def show_heatmap(self, slide: Slide, prediction: SlidePrediction, look: HeatmapLook) -> None:
        """See `Canvas.show_heatmap`."""
        slide_at = self._index(SLIDE_KEY, slide)
        if slide_at is None:
            return
        made = heatmap_layer(slide, prediction, look, opacity=self.heatmap_opacity(slide))
        values, attributes, _ = measured_as_others(self._viewer, made)
        layer = self._find(HEATMAP_KEY, slide)
        if layer is not None:  # hidden or not, it stays as it is
            self._restyle(layer, values, attributes)
            return
        with self._choice_kept():
            layer = self._viewer.add_image(values, **attributes, visible=self.slide_visible(slide))
            layer.metadata[PUT_AWAY_KEY] = not layer.visible
            layer.colorbar.visible = True
            self._measure_alike()
            if (added_at := len(self._viewer.layers) - 1) != slide_at + 1:
                self._viewer.layers.move(added_at, slide_at + 1)

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
        """See `Canvas.remove_heatmap`."""
        at = self._index(HEATMAP_KEY, slide)
        if at is not None:
            self._viewer.layers.pop(at)

    def has_heatmap(self, slide: Slide) -> bool:
        """See `Canvas.has_heatmap`."""
        return self._index(HEATMAP_KEY, slide) is not None

    def heatmap_visible(self, slide: Slide) -> bool:
        """See `Canvas.heatmap_visible`."""
        layer = self._find(HEATMAP_KEY, slide)
        return layer is not None and bool(layer.visible)

    def heatmap_opacity(self, slide: Slide) -> float:
        """See `Canvas.heatmap_opacity`."""
        layer = self._find(HEATMAP_KEY, slide)
        if layer is not None:
            self._opacity[slide] = float(layer.opacity)
        return self._opacity.get(slide, self._new_opacity)

    def set_heatmap(self, slide: Slide, *, visible: bool | None, opacity: float | None) -> None:
        """See `Canvas.set_heatmap`."""
        layer = self._find(HEATMAP_KEY, slide)
        if layer is None:
            return
        if visible is not None:
            layer.visible = visible
        if opacity is not None:
            layer.opacity = opacity

    def set_new_heatmaps(self, *, opacity: float) -> None:
        """See `Canvas.set_new_heatmaps`."""
        self._new_opacity = opacity

    def drawn_heatmap(self, slide: Slide) -> DrawnHeatmap | None:
        """See `Canvas.drawn_heatmap`."""
        layers = [layer for layer in self._viewer.layers if layer.metadata.get(HEATMAP_KEY) is slide]
        for layer in reversed(layers):
            if (
                getattr(layer, "multiscale", True)
                or np.ndim(layer.data) != 2
                or not hasattr(layer, "colormap")
            ):
                continue
            values = np.asarray(layer.data, np.float64)
            low, high = layer.contrast_limits
            heat = (np.clip(values, low, high) - low) / ((high - low) or 1.0)
            colours = np.asarray(layer.colormap.map(heat.ravel()), np.float64).reshape(*values.shape, 4)
            colours[..., 3] *= np.isfinite(values) * float(layer.opacity)
            rgba = np.ascontiguousarray(np.rint(colours * 255).astype(np.uint8))
            pixel_y, pixel_x = (float(each) for each in layer.scale)
            middle_y, middle_x = (float(each) for each in layer.translate)  # of the first pixel
            height, width = pixel_y * values.shape[0], pixel_x * values.shape[1]
            return DrawnHeatmap(rgba, Area(middle_y - pixel_y / 2, middle_x - pixel_x / 2, height, width))
        return None

    # ---- camera

    @property
    def zoom(self) -> float:
        """See `Canvas.zoom`."""
        return float(self._viewer.scene.camera.zoom)

    @property
    def field(self) -> Area:
        """See `Canvas.field`."""
        (y, x), (height_px, width_px) = self._viewer.scene.camera.center[-2:], self._viewer.canvas.size
        height, width = float(height_px) / self.zoom, float(width_px) / self.zoom
        return Area(float(y) - height / 2, float(x) - width / 2, height, width)

    def go_to(self, center_yx: tuple[float, float], *, zoom: float | None = None) -> None:
        """See `Canvas.go_to`."""
        camera = self._viewer.scene.camera
        if zoom is not None:
            camera.zoom = zoom
        camera.center = (*camera.center[:-2], *center_yx)

    def fit(self, area: Area, *, share: float, max_zoom: float = float("inf")) -> None:
        """See `Canvas.fit`."""
        height_px, width_px = (max(1.0, float(px)) for px in self._viewer.canvas.size)
        zooms = [
            px / extent for px, extent in ((height_px, area.height), (width_px, area.width)) if extent > 0
        ]
        self.go_to(area.center_yx, zoom=min(max_zoom, share * min(zooms)) if zooms else None)

    # ---- marks, texts and keys

    def mark_tile(self, n: int, area: Area) -> None:
        """See `Canvas.mark_tile`."""
        line = max(area.height, area.width) / 60
        with self._choice_kept():
            self.clear_tile_mark()
            self._viewer.add_shapes(
                [_corners(area, line * grown) for grown in (1.5, 0.5)],
                shape_type="rectangle",
                edge_color=list(_MARK_COLOURS),
                face_color="transparent",
                edge_width=[line, line],
                opacity=1.0,
                name="tile",
                units=("µm", "µm"),
                metadata={TILE_MARK_KEY: n},
            ).editable = False

    def clear_tile_mark(self) -> None:
        """See `Canvas.clear_tile_mark`."""
        for layer in [each for each in self._viewer.layers if TILE_MARK_KEY in each.metadata]:
            self._viewer.layers.remove(layer)

    def show_text(self, text: str) -> None:
        """See `Canvas.show_text`."""
        if text == self._text:  # a text that others put there stays
            return
        self._text = text
        overlay = self._viewer.canvas.overlays.text
        # napari measures the box behind the text lower than it draws the text; an empty line makes up for it.
        overlay.text = f"{text}\n" if text else ""
        overlay.font_size, overlay.position = _TEXT_PT, "top_left"
        overlay.visible = bool(text)

    def show_title(self, name: str) -> None:
        """See `Canvas.show_title`."""
        title = f"{name} – {_NAPARI}" if name else _NAPARI
        if self._viewer.title != title:
            self._viewer.title = title

    def show_magnification(self, text: str) -> None:
        """See `Canvas.show_magnification`."""
        overlays = self._viewer.canvas.overlays
        self._says_magnification = True
        if _MAGNIFICATION not in overlays:
            overlays[_MAGNIFICATION] = TextOverlay(position="bottom_left", font_size=_TEXT_PT, box=True)
        overlay = overlays[_MAGNIFICATION]
        if overlay.text != text:
            overlay.text = text
            overlay.visible = bool(text)

    def show_scale_bar(self) -> None:
        """See `Canvas.show_scale_bar`."""
        self._viewer.canvas.overlays.scale_bar.visible = True

    def bind_key(self, key: str, action: Callable[[], object]) -> None:
        """See `Canvas.bind_key`."""

        def pressed(_: Any) -> None:
            action()

        self._viewer.bind_key(key, pressed, overwrite=True)
        self._keys.add(key)

    # ---- layers to draw on

    def add_shapes(self, **attributes: Any) -> Any:
        """See `Canvas.add_shapes`."""
        return self._added(self._viewer.add_shapes, attributes)

    def add_points(self, **attributes: Any) -> Any:
        """See `Canvas.add_points`."""
        return self._added(self._viewer.add_points, attributes)

    def remove_layer(self, layer: Any) -> None:
        """See `Canvas.remove_layer`."""
        if layer in self._viewer.layers:
            self._viewer.layers.remove(layer)

    def chosen_layer(self) -> Any:
        """See `Canvas.chosen_layer`."""
        return self._viewer.layers.selection.active

    def choose_layer(self, layer: Any) -> None:
        """See `Canvas.choose_layer`."""
        if layer is not None and layer in self._viewer.layers:
            self._viewer.layers.selection.active = layer

    # ---- inside

    def _index(self, key: str, slide: Slide) -> int | None:
        for index, layer in enumerate(self._viewer.layers):
            if layer.metadata.get(key) is slide:
                return index
        return None

    def _find(self, key: str, slide: Slide) -> Any:
        index = self._index(key, slide)
        return None if index is None else self._viewer.layers[index]

    def _added(self, add: Callable[..., Any], attributes: dict[str, Any]) -> Any:
        with self._choice_kept():
            layer = add(**attributes)
            slide = slide_of(layer)
            if slide is not None and not self.slide_visible(slide):
                _put_away(layer)
            self._measure_alike()
        return layer

    def _measure_alike(self) -> None:
        """Give all layers of slides the unit of the one that is seen.

        napari takes the unit from the scale bar where layers differ, hidden ones too: one slide without µm/px would take
        it from all others.
        """
        slides = self.slides()
        if not slides:
            return
        current = next((slide for slide in slides if self.slide_visible(slide)), None)
        # Where the user has hidden it: as the slides are by now.
        units = slide_placement(current)["units"] if current else self._find(SLIDE_KEY, slides[0]).units
        for layer in self._viewer.layers:
            if slide_of(layer) is not None:
                layer.units = units

    @contextmanager
    def _choice_kept(self) -> Iterator[None]:
        """Add layers, of which napari chooses each, and have the user's choice as it was."""
        selection = self._viewer.layers.selection
        active, chosen = selection.active, list(selection)
        with _arranged():
            try:
                yield
            finally:
                there = [layer for layer in chosen if layer in self._viewer.layers]
                if active is not None and active in there:
                    selection.active = active
                else:
                    selection.clear()
                    selection.update(there)
        self.layers_changed.emit()

    def _watch(self, layer: Any) -> None:
        if slide_of(layer) is None:
            return
        events = layer.events
        events.visible.connect(self._visibility_changed)
        if UNREAD_KEY in layer.metadata:
            events.set_data.connect(self._drawn)
        if HEATMAP_KEY not in layer.metadata:
            return
        events.opacity.connect(self._layers_changed)
        for event in (events.data, events.colormap, events.contrast_limits, events.opacity):
            event.connect(self._heatmap_changed)

    def _layer_inserted(self, event: Any) -> None:
        if SLIDE_KEY in event.value.metadata:
            self.show_scale_bar()
        self._watch(event.value)
        self.layers_changed.emit()
        self._tell_unread(event.value)

    def _layer_removed(self, event: Any) -> None:
        slide = event.value.metadata.get(SLIDE_KEY)
        if slide is not None and slide not in self.slides():
            self.remove_heatmap(slide)
            self._opacity.pop(slide, None)
            self._forward = None if self._forward is slide else self._forward
        self.layer_removed.emit(event.value)
        self.layers_changed.emit()

    def _visibility_changed(self, event: Any) -> None:
        layer = event.source
        slide = slide_of(layer)
        if _arranging:
            return
        if layer.visible and slide is not None and self._forward is not None:
            if slide is not self._forward:
                self._viewer.layers.selection.active = layer  # which is how the user chooses a slide
            elif SLIDE_KEY in layer.metadata:  # what came while it was hidden shows with it
                self.bring_forward(slide, choose=False, fit=False)
        self.layers_changed.emit()

    def _drawn(self, event: Any) -> None:
        self._tell_unread(event.source)

    def _tell_unread(self, layer: Any) -> None:
        unread = layer.metadata.get(UNREAD_KEY)
        if unread is not None and unread.error is not None:
            self.slide_unread.emit(layer.metadata[SLIDE_KEY], unread)

    def _layers_changed(self, event: Any = None) -> None:
        self.layers_changed.emit()

    def _heatmap_changed(self, event: Any = None) -> None:
        self.heatmap_changed.emit()

    def _camera_moved(self, event: Any = None) -> None:
        self.camera_moved.emit()

    def _mouse_moved(self, viewer: Any, event: Any) -> None:
        y_um, x_um = event.position[-2:]
        self.hovered.emit(float(x_um), float(y_um))


def _put_away(layer: Any) -> None:
    """Hide a layer of a slide that isn't the current one; one that the user has hidden stays as it is."""
    if layer.visible:
        layer.metadata[PUT_AWAY_KEY] = True
        layer.visible = False


def _corners(area: Area, grown: float) -> NDArray[np.float64]:
    """(4, 2) vertices of a rectangle that is larger by `grown` on each side."""
    top, left = area.top - grown, area.left - grown
    bottom, right = area.top + area.height + grown, area.left + area.width + grown
    return np.array([(top, left), (top, right), (bottom, right), (bottom, left)])
