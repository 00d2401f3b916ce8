"""Annotations of the open slides: what they are, in napari's layers, in the file and in the dock. No Qt."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from napari_lrmil._viewer.canvas import Area, Canvas
from napari_lrmil._viewer.docks.annotations import panel as panels
from napari_lrmil._viewer.docks.annotations import store as files
from napari_lrmil._viewer.docks.annotations.layers import AnnotationLayers, Look
from napari_lrmil._viewer.docks.annotations.panel import PAN, AnnotationRow, AnnotationsPanel
from napari_lrmil._viewer.docks.annotations.pieces import (
    Drawn,
    alike,
    as_drawn,
    box_of,
    pieces_of,
    read_edits,
)
from napari_lrmil._viewer.docks.annotations.store import AnnotationsError, AnnotationStore, LoadedAnnotations
from napari_lrmil._viewer.window import Change
from napari_lrmil.export.annotation import Annotation

if TYPE_CHECKING:
    from napari_lrmil._viewer.background import Background
    from napari_lrmil._viewer.window import Controller
    from napari_lrmil.slide import Slide

MAX_ANNOTATIONS = 5000
"""That napari still draws without stutter."""

_CONCERNS = Change.SLIDES | Change.SLIDE | Change.PIXELS | Change.MODEL
_MAX_JUMP_ZOOM = 4.0  # 40x
_JUMP_SHARE = 0.6


class AnnotationsView(Protocol):
    """The dock."""

    def show_panel(self, panel: AnnotationsPanel) -> None:
        """Show exactly this."""
        ...

    def read_edits_soon(self) -> None:
        """Call the presenter's `read_edits` once napari is done with what the user does."""
        ...

    def warn(self, text: str) -> None:
        """Say this outside of the dock, which may be going."""
        ...


@dataclass
class SlideAnnotations:
    """Of one open slide. `version` counts the changes, `saved` says which of them is in the file."""

    slide: Slide
    layers: AnnotationLayers
    store: AnnotationStore | None = None
    annotations: dict[str, Annotation] = field(default_factory=dict)
    drawn: Drawn = field(default_factory=dict)
    edited: bool = False
    deleted: list[list[Annotation]] = field(default_factory=list)
    version: int = 0
    saved: int = 0
    saving: bool = False
    note: str = ""
    error: str = ""


class AnnotationsPresenter:
    """The state behind the annotations dock, and what the user can do with it.

    Parameters
    ----------
    view : AnnotationsView
    canvas : Canvas
    background : Background
    """

    def __init__(self, view: AnnotationsView, canvas: Canvas, background: Background) -> None:
        self._view, self._canvas, self._background = view, canvas, background
        self._controller: Controller | None = None
        self._open: dict[Slide, SlideAnnotations] = {}
        self._new_class = ""
        self._tool = PAN
        self._refreshing = False
        canvas.layer_removed.connect(self._layer_removed)
        canvas.layers_changed.connect(self._tool_changed)

    # ---- slides come and go

    def attach(self, controller: Controller) -> None:
        """Follow this controller's slide from now on."""
        self._controller = controller

    @property
    def current(self) -> SlideAnnotations | None:
        """Of the current slide."""
        slide = self._controller.slide if self._controller is not None else None
        return self._open.get(slide) if slide is not None else None

    @property
    def annotations(self) -> tuple[Annotation, ...]:
        """Of the current slide."""
        now = self.current
        return tuple(now.annotations.values()) if now is not None else ()

    def refresh(self, change: Change = Change.ALL) -> None:
        """Slides may have come, gone, been chosen, or got their pixel size; a model brings its classes."""
        if (
            self._refreshing or not change & _CONCERNS
        ):  # removing our layers can make another slide the current one
            return
        self._refreshing = True
        try:
            there = self._canvas.slides()
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
            now.layers.fit_edges()

    def _tool_changed(self) -> None:
        """Another layer may have been chosen, or another tool by napari's own keys and buttons."""
        now = self.current
        if now is not None and now.layers.tool != self._tool:
            self._show()

    def _layer_removed(self, layer: Any) -> None:
        """If it held annotations, they stay, with the last strokes."""
        for each in self._open.values():
            if layer in each.layers.present():
                self._read_edits(each)
                each.layers.forget(layer)
                held = {piece.key for piece in each.layers.read()}
                each.drawn = {key: drawn for key, drawn in each.drawn.items() if key in held}

    def shutdown(self) -> None:
        """Keep what isn't kept yet, and take the layers away: nobody would keep changes to them."""
        while self._open:
            _, gone = self._open.popitem()
            self._leave(gone)

    # ---- drawing and editing

    def draw(self, tool: str) -> None:
        """Take a tool in hand: 'rectangle', 'ellipse', 'polygon' or 'point'; `PAN` puts it down."""
        now = self.current
        if now is None or now.store is None:
            return
        if tool != PAN:
            self._bring_back(now)
        now.layers.take(tool)
        self.camera_moved()
        self._show()

    def choose_class(self, name: str) -> None:
        """Of what is drawn from now on; empty for none."""
        self._new_class = name.strip()
        self._show()

    def read_edits(self) -> None:
        """Take over what the user did in the layers."""
        for each in self._open.values():
            if each.edited:
                self._read_edits(each)
        self._show()

    def rename(self, annotation_id: str, name: str) -> None:
        """Call an annotation so; empty takes the name away."""
        self._edit([annotation_id], lambda annotation: replace(annotation, name=name.strip() or None))

    def set_class(self, annotation_ids: Sequence[str], class_name: str) -> None:
        """Give annotations a class; empty takes it away."""
        wanted = class_name.strip() or None
        self._edit(
            annotation_ids, lambda annotation: replace(annotation, class_name=wanted, class_color_rgb=None)
        )

    def delete(self, annotation_ids: Sequence[str]) -> None:
        """Delete annotations; `undo_delete` brings them back while the slide is open."""
        now = self._current_as_drawn()
        gone = (
            [now.annotations.pop(each) for each in annotation_ids if each in now.annotations] if now else []
        )
        if now is not None and gone:
            now.deleted.append(gone)
            self._redraw(now)
            self._changed(now)

    def undo_delete(self) -> None:
        """Bring back what was deleted last."""
        now = self._current_as_drawn()
        if now is not None and now.deleted:
            now.annotations.update({each.id: each for each in now.deleted.pop()})
            self._redraw(now)
            self._changed(now)

    def jump_to(self, annotation_id: str) -> None:
        """Centre on an annotation, so far away that all of it is seen, and mark it."""
        now = self.current
        if now is None or annotation_id not in now.annotations:
            return
        self._bring_back(now)
        left, top, width, height = box_of(now.annotations[annotation_id])
        mpp_x, mpp_y = now.slide.mpp_xy if now.slide.has_mpp else (1.0, 1.0)
        area = Area(top * mpp_y, left * mpp_x, height * mpp_y, width * mpp_x)
        self._canvas.fit(area, share=_JUMP_SHARE, max_zoom=_MAX_JUMP_ZOOM)
        now.layers.select(annotation_id)

    # ---- exchange

    def import_file(self, path: Path, *, cropped: bool) -> None:
        """Add the annotations of a GeoJSON file, in the background."""
        now = self.current
        if now is None or now.store is None:
            return
        now.note, now.error = "Reading …", ""
        self._background.start(
            "import",
            files.import_geojson(path, now.slide.bounds_l0_xywh, cropped=cropped),
            done=lambda found: self._imported(now, found),
            failed=lambda text: self._failed(now, text),
        )
        self._show()

    def export_file(self, path: Path, *, cropped: bool) -> None:
        """Write the slide's annotations as GeoJSON, in the background."""
        now = self._current_as_drawn()
        if now is None:
            return
        annotations = self._coloured(now)

        def written(_: Path) -> None:
            now.note = f"{panels.counted(len(annotations))} exported to {path.name}."
            self._show()

        now.note, now.error = "", ""
        self._background.start(
            "export",
            files.export_geojson(path, annotations, now.slide.bounds_l0_xywh, cropped=cropped),
            done=written,
            failed=lambda text: self._failed(now, text),
        )

    def _imported(self, now: SlideAnnotations, found: Sequence[Annotation]) -> None:
        if self._open.get(now.slide) is not now:
            return
        if now.edited:
            self._read_edits(now)
        there = {each.id: each for each in self._coloured(now)}
        new = [each for each in found if each.id not in there or not alike(each, there[each.id])]
        same = len(found) - len(new)
        if len(now.annotations) + len(new) > MAX_ANNOTATIONS:
            now.note, now.error = "", panels.too_many(len(found), MAX_ANNOTATIONS)
        else:
            for each in new:
                added = replace(each, id=str(uuid.uuid4())) if each.id in now.annotations else each
                now.annotations[added.id] = added
            if new:
                self._redraw(now)
                self._changed(now)
            now.note = panels.imported(new, same)
        self._show()

    def _failed(self, now: SlideAnnotations, text: str) -> None:
        now.note, now.error = "", text
        self._show()

    # ---- a slide's annotations: found, read from the layers, drawn, kept

    def _enter(self, slide: Slide) -> None:
        def edited() -> None:
            now.edited = True
            self._view.read_edits_soon()

        layers = AnnotationLayers(self._canvas, slide, on_edit=edited, on_tool=self._tool_changed)
        now = self._open[slide] = SlideAnnotations(slide, layers)
        self._background.start(
            f"load {id(slide)}",
            files.open_store(slide),
            done=lambda found: self._loaded(now, *found),
            failed=lambda text: self._failed(now, text),
        )

    def _loaded(self, now: SlideAnnotations, store: AnnotationStore, loaded: LoadedAnnotations) -> None:
        if self._open.get(now.slide) is not now:
            return
        now.store, now.note = store, loaded.note
        now.annotations = {each.id: each for each in loaded.annotations}
        if now.annotations:
            self._redraw(now)
        self._show()

    def _leave(self, now: SlideAnnotations) -> None:
        self._read_edits(now)
        if now.store is not None and now.saved != now.version:
            try:
                # Here and now: the background may not come to it any more.
                now.store.save(self._coloured(now), now.version)
            except AnnotationsError as error:
                self._view.warn(str(error))
        now.layers.remove()

    def _edit(self, annotation_ids: Sequence[str], change: Callable[[Annotation], Annotation]) -> None:
        now = self._current_as_drawn()
        if now is None:
            return
        touched = False
        for annotation_id in annotation_ids:
            before = now.annotations.get(annotation_id)
            if before is not None and (after := change(before)) != before:
                now.annotations[annotation_id], touched = after, True
        if touched:
            now.layers.label(now.layers.read(), now.annotations, self._look(now))
            self._changed(now)

    def _current_as_drawn(self) -> SlideAnnotations | None:
        """Those of the current slide, with the very last stroke."""
        now = self.current
        if now is not None and now.edited:
            self._read_edits(now)
        return now

    def _read_edits(self, now: SlideAnnotations) -> None:
        now.edited = False
        if now.store is None or not now.layers.present():
            return
        drawing = now.layers.drawing
        made: list[Annotation] = []

        def make(original: Annotation | None) -> Annotation:
            if original is not None and not drawing:
                name, class_name = original.name, original.class_name
            else:
                name = panels.next_name([*now.annotations.values(), *made])
                class_name = self._new_class or None
            base = Annotation(
                "points", (((0.0, 0.0),),), name=name, class_name=class_name, id=str(uuid.uuid4())
            )
            made.append(base)
            return base

        edits = read_edits(now.annotations, now.drawn, now.layers.read(), make=make)
        if not edits.changed and not edits.without_extent:
            return
        now.annotations = edits.annotations
        if edits.removed:
            now.deleted.append(edits.removed)
        now.layers.label(edits.pieces, now.annotations, self._look(now))
        now.layers.drop(edits.without_extent)
        now.drawn = as_drawn(piece for piece in edits.pieces if piece.annotation_id in now.annotations)
        if edits.changed:
            self._changed(now)

    def _bring_back(self, now: SlideAnnotations) -> None:
        """Draw annotations again whose layer was deleted."""
        drawn = {annotation_id for annotation_id, _, _ in now.drawn}
        if any(annotation_id not in drawn for annotation_id in now.annotations):
            self._redraw(now)

    def _redraw(self, now: SlideAnnotations) -> None:
        chosen = self._canvas.chosen_layer()
        now.layers.show(list(now.annotations.values()), self._look(now))
        now.drawn = as_drawn(piece for each in now.annotations.values() for piece in pieces_of(each))
        now.layers.set_visible(now is self.current)
        self._canvas.choose_layer(chosen)
        now.layers.fit_edges()

    def _changed(self, now: SlideAnnotations) -> None:
        now.version += 1
        now.note = ""
        self._save(now)
        self._show()

    def _save(self, now: SlideAnnotations) -> None:
        if now.saving or now.store is None:
            return
        version = now.version

        def ended(*, error: str = "", note: str = "") -> None:
            now.saving, now.error = False, error
            if not error:
                now.saved = version
                now.note = note or now.note
            if now.version != version and self._open.get(now.slide) is now:
                self._save(now)
            self._show()

        now.saving = True
        self._background.start(
            f"save {id(now.slide)}",
            files.save(now.store, self._coloured(now), version),
            done=lambda note: ended(note=note),
            failed=lambda text: ended(error=text),
        )

    # ---- what is shown

    def _names(self, now: SlideAnnotations) -> tuple[str, ...]:
        bundle = self._controller.bundle if self._controller is not None else None
        model = bundle.info.class_names if bundle is not None else ()
        names = panels.class_names(now.annotations.values(), model)
        return names if not self._new_class or self._new_class in names else (*names, self._new_class)

    def _look(self, now: SlideAnnotations) -> Look:
        colours = panels.class_colours(now.annotations.values(), self._names(now))
        return lambda annotation: (
            annotation.name or annotation.class_name or "",
            colours.get(annotation.class_name or "", panels.UNCLASSED),
        )

    def _coloured(self, now: SlideAnnotations) -> list[Annotation]:
        """With the colours that are shown, so that QuPath shows the same."""
        look = self._look(now)
        return [
            replace(each, class_color_rgb=look(each)[1]) if each.class_name else each
            for each in now.annotations.values()
        ]

    def _show(self) -> None:
        now = self.current
        if now is None:
            self._view.show_panel(AnnotationsPanel())
            return
        look, self._tool = self._look(now), now.layers.tool
        rows = tuple(
            AnnotationRow(
                each.id,
                each.name or "",
                each.class_name or "",
                look(each)[1],
                panels.extent(each, now.slide),
            )
            for each in now.annotations.values()
        )
        whole = (0, 0, *now.slide.level_dimensions_xy[0])
        self._view.show_panel(
            AnnotationsPanel(
                has_slide=True,
                ready=now.store is not None,
                rows=rows,
                classes=self._names(now),
                new_class=self._new_class,
                tool=self._tool,
                can_undo=bool(now.deleted),
                bounded=now.slide.bounds_l0_xywh != whole,
                status=now.note or panels.where_kept(now.store, len(rows), saving=now.saved != now.version),
                error=now.error,
            )
        )
