"""Regions of the open slides: what they are, in the layers, in the file and in the dock. No Qt."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from napari_lrmil._viewer.background import in_one_step
from napari_lrmil._viewer.docks.annotations import classes, wording
from napari_lrmil._viewer.docks.annotations.classes import RGB
from napari_lrmil._viewer.docks.annotations.layers import RegionLayers
from napari_lrmil._viewer.docks.annotations.pieces import pieces_of
from napari_lrmil._viewer.docks.annotations.protocols import TOOLS, Regions, Run, View
from napari_lrmil._viewer.docks.annotations.store import Loaded, RegionsError, RegionStore
from napari_lrmil._viewer.docks.annotations.sync import as_drawn, what_changed
from napari_lrmil._viewer.docks.annotations.wording import RegionRow, RegionsPanel
from napari_lrmil._viewer.layers import SLIDE_KEY
from napari_lrmil.export.annotation import Annotation

if TYPE_CHECKING:
    from napari_lrmil._viewer.window import Controller
    from napari_lrmil.slide import Slide


class RegionsState:
    """The state behind the annotations dock.

    Parameters
    ----------
    viewer : napari.Viewer
    view : View
    run : callable
    """

    def __init__(self, viewer: Any, view: View, run: Run) -> None:
        self._viewer, self._view, self._run = viewer, view, run
        self._controller: Controller | None = None
        self._open: dict[Slide, Regions] = {}
        self._class = ""
        self._refreshing = False
        viewer.layers.events.removed.connect(self._layer_removed)

    def attach(self, controller: Controller) -> None:
        """Follow this controller's slide from now on."""
        self._controller = controller

    @property
    def current(self) -> Regions | None:
        """Of the current slide."""
        slide = self._controller.slide if self._controller is not None else None
        return self._open.get(slide) if slide is not None else None

    @property
    def annotations(self) -> tuple[Annotation, ...]:
        """Of the current slide."""
        now = self.current
        return tuple(now.annotations.values()) if now is not None else ()

    @property
    def slide(self) -> Slide | None:
        """The current one."""
        now = self.current
        return now.slide if now is not None else None

    def refresh(self) -> None:
        """Slides may have come, gone, been chosen, or got their pixel size."""
        if self._refreshing:  # adding a layer makes the controller refresh
            return
        self._refreshing = True
        try:
            there = {layer.metadata.get(SLIDE_KEY) for layer in self._viewer.layers}
            for gone in [slide for slide in self._open if slide not in there]:
                self._leave(self._open.pop(gone))
            slide = self._controller.slide if self._controller is not None else None
            if slide is not None and slide in there and slide not in self._open:
                self._enter(slide)
            for each in self._open.values():
                each.layers.place()
                each.layers.set_visible(each.slide is slide)
        finally:
            self._refreshing = False
        self.camera_moved()
        self._show()

    def camera_moved(self) -> None:
        """Keep outlines visible at every magnification."""
        now = self.current
        if now is not None:
            now.layers.fit_edges(float(self._viewer.scene.camera.zoom))

    def shutdown(self) -> None:
        """Keep what isn't kept yet, and take the layers away: nobody would keep changes to them."""
        self._viewer.layers.events.removed.disconnect(self._layer_removed)
        for each in self._open.values():
            self._leave(each)
        self._open.clear()

    # ---- inside

    def _enter(self, slide: Slide) -> None:
        layers = RegionLayers(self._viewer, slide, self._view.schedule)
        now = self._open[slide] = Regions(slide, layers)

        def load() -> tuple[RegionStore, Loaded]:
            store = RegionStore(slide.path, slide.fingerprint(), slide.bounds_l0_xywh)
            return store, store.load()

        self._run(
            f"load {id(slide)}", in_one_step(load), lambda found: self._loaded(now, *found), self._fail(now)
        )

    def _loaded(self, now: Regions, store: RegionStore, loaded: Loaded) -> None:
        if self._open.get(now.slide) is not now:
            return
        now.store, now.note = store, loaded.note
        now.annotations = {each.id: each for each in loaded.annotations}
        if now.annotations:
            self._redraw(now)
        self._show()

    def _leave(self, now: Regions) -> None:
        self._sync(now)
        if now.store is not None and now.saved != now.version:
            try:
                now.store.save(self._coloured(now))
            except RegionsError as error:
                from napari.utils.notifications import show_warning

                show_warning(str(error))
        now.layers.remove()

    def _layer_removed(self, event: Any) -> None:
        for each in self._open.values():
            layer = event.value
            if layer in each.layers.layers():
                self._sync(each)  # the last strokes; the regions themselves stay
                points = each.layers.points is not None and layer == each.layers.points
                each.drawn = {
                    key: drawn for key, drawn in each.drawn.items() if (drawn[0] == "point") is not points
                }
                each.layers.forget(layer)

    def _sync(self, now: Regions) -> None:
        if now.store is None or not now.layers.layers():
            return
        drawing = now.layers.drawing
        made: list[Annotation] = []

        def make(original: Annotation | None) -> Annotation:
            pasted = original if original is not None and not drawing else None
            name = (
                pasted.name if pasted is not None else wording.next_name([*now.annotations.values(), *made])
            )
            class_name = pasted.class_name if pasted is not None else self._class or None
            base = Annotation(
                "points", (((0.0, 0.0),),), name=name, class_name=class_name, id=str(uuid.uuid4())
            )
            made.append(base)
            return base

        change = what_changed(now.annotations, now.drawn, now.layers.read(), make=make)
        if not change.changed and not change.strays:
            return
        now.annotations = change.annotations
        if change.removed:
            now.deleted.append(change.removed)
        now.layers.label(change.pieces, now.annotations, self._look(now))
        now.layers.drop(change.strays)
        now.drawn = as_drawn([piece for piece in change.pieces if piece.region_id in now.annotations])
        if change.changed:
            self._changed(now)

    def _bring_back(self, now: Regions) -> None:
        """Draw regions again whose layer was deleted."""
        drawn = {key[0] for key in now.drawn}
        if any(region_id not in drawn for region_id in now.annotations):
            self._redraw(now)

    def _redraw(self, now: Regions) -> None:
        active = self._viewer.layers.selection.active
        now.layers.show(list(now.annotations.values()), self._look(now))
        now.drawn = as_drawn([piece for each in now.annotations.values() for piece in pieces_of(each)])
        now.layers.set_visible(now is self.current)
        if active is not None and active in self._viewer.layers:
            self._viewer.layers.selection.active = active
        now.layers.fit_edges(float(self._viewer.scene.camera.zoom))

    def _changed(self, now: Regions) -> None:
        now.version += 1
        now.note = ""
        self._save(now)
        self._show()

    def _save(self, now: Regions) -> None:
        if now.saving or now.store is None:
            return
        store, version, regions = now.store, now.version, tuple(self._coloured(now))

        def ended(error: str = "", note: str = "") -> None:
            now.saving, now.error = False, error
            if not error:
                now.saved = version
                now.note = note or now.note
            if now.version != version and self._open.get(now.slide) is now:
                self._save(now)
            self._show()

        now.saving = True
        self._run(
            f"save {id(now.slide)}",
            in_one_step(lambda: store.save(regions)),
            lambda note: ended(note=note),
            lambda error: ended(error=error),
        )

    def _fail(self, now: Regions) -> Callable[[str], None]:
        def failed(text: str) -> None:
            now.note, now.error = "", text
            self._show()

        return failed

    def _names(self, now: Regions) -> tuple[str, ...]:
        bundle = self._controller.bundle if self._controller is not None else None
        model = bundle.info.class_names if bundle is not None else ()
        names = classes.class_names(now.annotations.values(), model)
        return names if not self._class or self._class in names else (*names, self._class)

    def _look(self, now: Regions) -> Callable[[Annotation], tuple[str, RGB]]:
        colours = classes.class_colours(now.annotations.values(), self._names(now))
        return lambda region: (
            region.name or region.class_name or "",
            colours.get(region.class_name or "", classes.UNCLASSED),
        )

    def _coloured(self, now: Regions) -> list[Annotation]:
        """With the colours that are shown, so that QuPath shows the same."""
        look = self._look(now)
        return [
            replace(each, class_color_rgb=look(each)[1]) if each.class_name else each
            for each in now.annotations.values()
        ]

    def _show(self) -> None:
        now = self.current
        if now is None:
            self._view.show_panel(RegionsPanel())
            return
        look, names = self._look(now), self._names(now)
        rows = tuple(
            RegionRow(
                each.id,
                each.name or "",
                each.class_name or "",
                look(each)[1],
                wording.extent(each, now.slide),
            )
            for each in now.annotations.values()
        )
        left, top, width, height = now.slide.bounds_l0_xywh
        self._view.show_panel(
            RegionsPanel(
                has_slide=True,
                ready=now.store is not None,
                rows=rows,
                classes=names,
                new_class=self._class,
                tool=self._tool(now),
                can_undo=bool(now.deleted),
                bounded=(left, top, width, height) != (0, 0, *now.slide.level_dimensions_xy[0]),
                status=now.note or wording.kept(now.store, len(rows), saving=now.saved != now.version),
                error=now.error,
            )
        )

    def _tool(self, now: Regions) -> str:
        active = self._viewer.layers.selection.active
        for tool, mode in TOOLS.items():
            layer = now.layers.points if tool == "point" else now.layers.shapes
            if layer is not None and layer == active and str(layer.mode) == mode:
                return tool
        return "pan"
