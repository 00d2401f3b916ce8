"""What the overview shows and does: picture, field, magnification, facts, associated images. No Qt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from numpy.typing import NDArray

from napari_lrmil._viewer.docks.overview import field as fields
from napari_lrmil._viewer.docks.overview.facts import slide_facts
from napari_lrmil._viewer.docks.overview.field import Area
from napari_lrmil._viewer.docks.overview.picture import (
    Overlay,
    associated_steps,
    heatmap_overlay,
    overview_steps,
)
from napari_lrmil._viewer.layers import HEATMAP_KEY

if TYPE_CHECKING:
    from napari_lrmil._viewer.background import Steps
    from napari_lrmil._viewer.window import Controller
    from napari_lrmil.slide import Slide

_STEP = 0.5
"""Of the field, by an arrow key."""


@dataclass(frozen=True)
class OverviewPanel:
    """What the dock says in words."""

    has_slide: bool = False
    can_magnify: bool = False
    facts: tuple[tuple[str, str], ...] = ()
    associated: tuple[str, ...] = ()
    heatmap_shown: bool = True
    has_heatmap: bool = False


class View(Protocol):
    """The dock."""

    def show_panel(self, panel: OverviewPanel) -> None: ...
    def show_picture(self, pixels: NDArray[Any] | None, area: Area | None) -> None: ...
    def show_overlay(self, overlay: Overlay | None) -> None: ...
    def show_field(self, field: Area | None, magnification: str) -> None: ...
    def show_associated(self, name: str, pixels: NDArray[Any]) -> None: ...
    def show_error(self, text: str) -> None: ...
    def schedule(self) -> None: ...


Run = Callable[[str, "Steps[Any, Any]", Callable[[Any], None]], None]
"""Runs steps in the background: (name, steps, done). Errors go to ``View.show_error``."""


class Orientation:
    """The state behind the overview dock.

    Parameters
    ----------
    viewer : napari.Viewer
        Only its layers, camera and canvas size are used.
    view : View
    run : callable
    """

    def __init__(self, viewer: Any, view: View, run: Run) -> None:
        self._viewer, self._view, self._run = viewer, view, run
        self._controller: Controller | None = None
        self._slide: Slide | None = None
        self._placed: tuple[Any, ...] = ()
        self._overlay_of: Any = None
        self._overlay_stale = False
        self._heatmap_shown = True

    def attach(self, controller: Controller) -> None:
        """Follow this controller's slide from now on."""
        self._controller = controller

    @property
    def has_slide(self) -> bool:
        """Whether one is open."""
        return self._controller is not None and self._controller.slide is not None

    @property
    def um_per_px(self) -> float | None:
        """Of a device-independent pixel of the canvas; None where the slide's pixel size isn't known."""
        slide = self._slide
        return 1 / self._camera.zoom if slide is not None and slide.has_mpp else None

    def refresh(self) -> None:
        """The slide, its pixel size, its colours or the heatmap may have changed."""
        slide = self._controller.slide if self._controller is not None else None
        self._slide = slide
        placed = () if slide is None else (slide, slide.has_mpp and slide.mpp_xy, slide.icc)
        if placed != self._placed:
            self._placed = placed
            self._view.show_error("")
            self._view.show_picture(None, fields.scanned_area(slide) if slide is not None else None)
            if slide is not None:
                self._run("overview", overview_steps(slide), lambda pixels: self._pictured(placed, pixels))
        self._refresh_overlay()
        self._view.show_panel(self._panel())
        self.show_field()

    def show_field(self) -> None:
        """The camera moved, or the canvas got another size."""
        if self._overlay_stale:
            self._refresh_overlay()
        if self._slide is None:
            self._view.show_field(None, "")
            return
        self._view.show_field(self._field, fields.magnification_text(self.um_per_px))

    def magnify(self, magnification: float) -> None:
        """Show this magnification; the middle of the field stays where it is."""
        if self.um_per_px is not None:
            self._camera.zoom = fields.zoom_of(magnification)

    def magnify_by_step(self, steps: int) -> None:
        """To the next preset up or down."""
        if self.um_per_px is None:
            return
        now = fields.magnification_of(self.um_per_px)
        if steps > 0:
            above = [each for each in fields.MAGNIFICATIONS if each > now * 1.01]
            self.magnify(above[0] if above else fields.MAGNIFICATIONS[-1])
        else:
            below = [each for each in fields.MAGNIFICATIONS if each < now * 0.99]
            self.magnify(below[-1]) if below else self.whole_slide()

    def centre_on(self, world_yx: tuple[float, float]) -> None:
        """Move the field there, within the slide."""
        if self._slide is None:
            return
        area = fields.scanned_area(self._slide)
        y = min(max(world_yx[0], area.top), area.top + area.height)
        x = min(max(world_yx[1], area.left), area.left + area.width)
        self._camera.center = (*self._camera.center[:-2], y, x)

    def move(self, down: int, right: int) -> None:
        """By half a field."""
        field = self._field
        y, x = field.center_yx
        self.centre_on((y + down * _STEP * field.height, x + right * _STEP * field.width))

    def whole_slide(self) -> None:
        """Fit the slide's scanned area into the canvas."""
        if self._slide is None:
            return
        area = fields.scanned_area(self._slide)
        height, width = (max(1.0, float(px)) for px in self._viewer.canvas.size)
        self._camera.zoom = 0.95 * min(height / area.height, width / area.width)
        self._camera.center = (*self._camera.center[:-2], *area.center_yx)

    def toggle_heatmap(self, shown: bool) -> None:
        """Over the map; the canvas has a switch of its own."""
        self._heatmap_shown = shown
        self._overlay_stale = True
        self._refresh_overlay()
        self._view.show_panel(self._panel())

    def show_associated(self, name: str) -> None:
        """Read and show a label, macro or thumbnail image; the view has asked whether it may."""
        slide = self._slide
        if slide is not None:
            self._run(
                "associated",
                associated_steps(slide, name),
                lambda pixels: self._view.show_associated(name, pixels) if self._slide is slide else None,
            )

    @property
    def _camera(self) -> Any:
        return self._viewer.scene.camera

    @property
    def _field(self) -> Area:
        y, x = (float(each) for each in self._camera.center[-2:])
        height, width = (float(each) for each in self._viewer.canvas.size)
        return fields.field_of((y, x), float(self._camera.zoom), (height, width))

    def _pictured(self, placed: tuple[Any, ...], pixels: NDArray[Any]) -> None:
        if placed == self._placed and self._slide is not None:
            self._view.show_picture(pixels, fields.scanned_area(self._slide))

    def _refresh_overlay(self) -> None:
        layer = self._heatmap_layer()
        if layer != self._overlay_of:  # equal, not the same: napari wraps what it hands to plugins
            self._overlay_of = layer
            self._overlay_stale = True
            if layer is not None:
                for event in (layer.events.colormap, layer.events.contrast_limits, layer.events.opacity):
                    event.connect(self._heatmap_changed)
                layer.events.data.connect(self._heatmap_changed)
        if self._overlay_stale:
            self._overlay_stale = False
            wanted = self._slide is not None and layer is not None and self._heatmap_shown
            self._view.show_overlay(
                heatmap_overlay(self._viewer, self._slide) if wanted and self._slide else None
            )

    def _heatmap_changed(self, event: Any = None) -> None:
        self._overlay_stale = True
        self._view.schedule()

    def _heatmap_layer(self) -> Any:
        slide = self._slide
        if slide is None:
            return None
        found = [layer for layer in self._viewer.layers if layer.metadata.get(HEATMAP_KEY) is slide]
        return found[-1] if found else None

    def _panel(self) -> OverviewPanel:
        slide = self._slide
        if slide is None:
            return OverviewPanel(heatmap_shown=self._heatmap_shown)
        return OverviewPanel(
            has_slide=True,
            can_magnify=slide.has_mpp,
            facts=slide_facts(slide),
            associated=slide.associated_images,
            heatmap_shown=self._heatmap_shown,
            has_heatmap=self._overlay_of is not None,
        )
