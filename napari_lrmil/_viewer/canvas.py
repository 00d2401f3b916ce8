"""What the docks see of napari's viewer and do with it. No Qt, no napari; `napari_canvas` has the real one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from psygnal import Signal

if TYPE_CHECKING:
    from napari_lrmil.heatmap import HeatmapLook
    from napari_lrmil.predict import SlidePrediction
    from napari_lrmil.slide import Slide


UM_PER_PX_AT_1X = 10.0
"""Magnification is the one that a microscope's objective would give on the field's convention that 10x means 1.0 µm a
pixel. A pixel here is a device-independent one: on a HiDPI screen, where it covers several physical ones, the same
magnification shows the same field at the same size as on an ordinary screen.
"""


def magnification_of(um_per_px: float) -> float:
    """The objective that shows `um_per_px`."""
    return UM_PER_PX_AT_1X / um_per_px


def zoom_of(magnification: float) -> float:
    """The camera's zoom (pixels per µm) that shows this magnification."""
    return magnification / UM_PER_PX_AT_1X


class Area(NamedTuple):
    """A rectangle in world units: level-0 µm, or pixels where their size isn't known."""

    top: float
    left: float
    height: float
    width: float

    @property
    def center_yx(self) -> tuple[float, float]:
        """Its middle."""
        return (self.top + self.height / 2, self.left + self.width / 2)


class DrawnHeatmap(NamedTuple):
    """A heatmap as the canvas draws it, (rows, cols, 4) uint8 RGBA, and where it lies."""

    rgba: NDArray[np.uint8]
    area: Area


class Canvas(ABC):
    """Layers, camera, texts and keys of one viewer.

    Places are in world units, (y, x): level-0 µm, or level-0 pixels where mpp is unknown. Each dock has a canvas
    of its own; closing that takes back what the dock added to the viewer for itself.
    """

    layers_changed = Signal()
    """Layers came, went, were chosen, shown or hidden, or a heatmap faded."""
    slide_unread = Signal(object, object)
    """A slide, and the `Unread` that says what of it couldn't be read as it was drawn: that is hatched."""
    layer_removed = Signal(object)
    """The layer; before `layers_changed`."""
    heatmap_changed = Signal()
    """Values or colours of a heatmap."""
    camera_moved = Signal()
    """To another place or magnification, or the canvas got another size."""
    hovered = Signal(float, float)
    """Where the mouse is: x and y in world units."""

    @abstractmethod
    def close(self) -> None:
        """Stop following the viewer; take back keys and the magnification. Asking twice does no harm."""

    # ---- slides

    @abstractmethod
    def slides(self) -> tuple[Slide, ...]:
        """Open slides, the uppermost last."""

    @abstractmethod
    def active_slide(self) -> Slide | None:
        """The slide that the user chose in the layer list: any layer of it, also by making one visible.

        None while layers are being arranged here: what napari chooses then is nobody's choice.
        """

    @abstractmethod
    def open_slide(self, path: Path, *, mpp: float | None = None) -> Slide:
        """Add a slide layer, in front of the others.

        Raises
        ------
        SlideError
        """

    @abstractmethod
    def remove_slide(self, slide: Slide) -> None:
        """Take a slide's layers away, which closes it; its heatmap goes with it."""

    @abstractmethod
    def bring_forward(self, slide: Slide, *, choose: bool = True, fit: bool = True) -> None:
        """Show this slide with what lies on it, and put away the layers of others: all share one origin.

        What the user had hidden stays hidden.

        Parameters
        ----------
        slide : Slide
        choose : bool
            Choose its layer in the layer list.
        fit : bool
            Bring all of it into view.
        """

    @abstractmethod
    def slide_visible(self, slide: Slide) -> bool:
        """Whether the slide is there and shown."""

    @abstractmethod
    def place_slide(self, slide: Slide, *, student_mpp: float | None) -> None:
        """Put a slide's layer in level-0 µm again, and show the level that a model of `student_mpp` reads."""

    @abstractmethod
    def redraw(self, slide: Slide) -> None:
        """Read again what the slide's layer shows: its colours have changed."""

    # ---- heatmaps

    @abstractmethod
    def show_heatmap(self, slide: Slide, prediction: SlidePrediction, look: HeatmapLook) -> None:
        """Lay the heatmap right over its slide; one of the same tiles that is there changes its look.

        It is hidden where the slide is, and chooses no layer.
        """

    @abstractmethod
    def remove_heatmap(self, slide: Slide) -> None:
        """Take the slide's heatmap away, where there is one."""

    @abstractmethod
    def has_heatmap(self, slide: Slide) -> bool:
        """Whether a heatmap of the slide is among the layers, shown or hidden."""

    @abstractmethod
    def heatmap_visible(self, slide: Slide) -> bool:
        """Whether the heatmap is there and shown."""

    @abstractmethod
    def heatmap_opacity(self, slide: Slide) -> float:
        """0 to 1; the last one chosen where no heatmap is there."""

    @abstractmethod
    def set_heatmap(self, slide: Slide, *, visible: bool | None, opacity: float | None) -> None:
        """Show, hide or fade; None leaves it as it is."""

    @abstractmethod
    def set_new_heatmaps(self, *, opacity: float) -> None:
        """How opaque heatmaps are that are added from now on, 0 to 1."""

    @abstractmethod
    def drawn_heatmap(self, slide: Slide) -> DrawnHeatmap | None:
        """The slide's heatmap with the colours that the canvas gives it, whether it is shown there or not."""

    # ---- camera

    @property
    @abstractmethod
    def zoom(self) -> float:
        """Device-independent pixels of the screen to a world unit."""

    @property
    @abstractmethod
    def field(self) -> Area:
        """What is seen now."""

    @abstractmethod
    def go_to(self, center_yx: tuple[float, float], *, zoom: float | None = None) -> None:
        """Move the middle of the field there; the zoom stays where none is given."""

    @abstractmethod
    def fit(self, area: Area, *, share: float, max_zoom: float = float("inf")) -> None:
        """Centre on an area, which then takes up `share` of the canvas's height or width, and no more of the other.

        Parameters
        ----------
        area : Area
            One without extent is only centred on.
        share : float
        max_zoom : float
            Not nearer than this, see `zoom`.
        """

    # ---- marks, texts and keys

    @abstractmethod
    def mark_tile(self, n: int, area: Area) -> None:
        """Outline the tile of this number, and no other."""

    @abstractmethod
    def clear_tile_mark(self) -> None:
        """Take the outline away, where there is one."""

    @abstractmethod
    def show_text(self, text: str) -> None:
        """In the upper left corner of the canvas; nothing where empty."""

    @abstractmethod
    def show_title(self, name: str) -> None:
        """Name the slide in the window's title; empty: none."""

    @abstractmethod
    def show_magnification(self, text: str) -> None:
        """In the lower left corner; nothing where empty."""

    @abstractmethod
    def show_scale_bar(self) -> None:
        """In the lower right corner."""

    @abstractmethod
    def bind_key(self, key: str, action: Callable[[], object]) -> None:
        """Have a key, named as napari names it, do something while the canvas has the focus."""

    # ---- layers to draw on; what they are is napari's

    @abstractmethod
    def add_shapes(self, **attributes: Any) -> Any:
        """A new layer of shapes, uppermost, not chosen; hidden where its slide is. See `napari.Viewer.add_shapes`."""

    @abstractmethod
    def add_points(self, **attributes: Any) -> Any:
        """A new layer of points, uppermost, not chosen; hidden where its slide is. See `napari.Viewer.add_points`."""

    @abstractmethod
    def remove_layer(self, layer: Any) -> None:
        """Where it is there."""

    @abstractmethod
    def chosen_layer(self) -> Any:
        """The one that the user works on; None where there is none, or several."""

    @abstractmethod
    def choose_layer(self, layer: Any) -> None:
        """Have the user work on this one; nothing where it isn't among the layers."""
