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
        opened = self.current
        return tuple(opened.annotations.values()) if opened is not None else ()

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
        finally:
            self._refreshing = False
        self.camera_moved()
        self._show()

    def camera_moved(self) -> None:
        """Keep outlines visible at every magnification."""
        opened = self.current
        if opened is not None:
            opened.layers.fit_edges()

    def _tool_changed(self) -> None:
        """Another layer may have been chosen, or another tool by napari's own keys and buttons."""
        opened = self.current
        if opened is not None and opened.layers.tool != self._tool:
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
        opened = self.current
        if opened is None or opened.store is None:
            return
        if tool != PAN:
            self._bring_back(opened)
        opened.layers.take(tool)
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
        opened = self._current_as_drawn()
        gone = (
            [opened.annotations.pop(each) for each in annotation_ids if each in opened.annotations]
            if opened
            else []
        )
        if opened is not None and gone:
            opened.deleted.append(gone)
            self._redraw(opened)
            self._changed(opened)

    def undo_delete(self) -> None:
        """Bring back what was deleted last."""
        opened = self._current_as_drawn()
        if opened is not None and opened.deleted:
            opened.annotations.update({each.id: each for each in opened.deleted.pop()})
            self._redraw(opened)
            self._changed(opened)

    def jump_to(self, annotation_id: str) -> None:
        """Centre on an annotation, so far away that all of it is seen, and mark it."""
        opened = self.current
        if opened is None or annotation_id not in opened.annotations:
            return
        self._bring_back(opened)
        left, top, width, height = box_of(opened.annotations[annotation_id])
        mpp_x, mpp_y = opened.slide.mpp_xy if opened.slide.has_mpp else (1.0, 1.0)
        area = Area(top * mpp_y, left * mpp_x, height * mpp_y, width * mpp_x)
        self._canvas.fit(area, share=_JUMP_SHARE, max_zoom=_MAX_JUMP_ZOOM)
        opened.layers.select(annotation_id)

    # ---- exchange

    def import_file(self, path: Path, *, cropped: bool) -> None:
        """Add the annotations of a GeoJSON file, in the background."""
        opened = self.current
        if opened is None or opened.store is None:
            return
        opened.note, opened.error = "Reading …", ""
        self._background.start(
            "import",
            files.import_geojson(path, opened.slide.bounds_l0_xywh, cropped=cropped),
            done=lambda found: self._imported(opened, found),
            failed=lambda text: self._failed(opened, text),
        )
        self._show()

    def export_file(self, path: Path, *, cropped: bool) -> None:
        """Write the slide's annotations as GeoJSON, in the background."""
        opened = self._current_as_drawn()
        if opened is None:
            return
        annotations = self._coloured(opened)

        def written(_: Path) -> None:
            opened.note = f"{panels.counted(len(annotations))} exported to {path.name}."
            self._show()

        opened.note, opened.error = "", ""
        self._background.start(
            "export",
            files.export_geojson(path, annotations, opened.slide.bounds_l0_xywh, cropped=cropped),
            done=written,
            failed=lambda text: self._failed(opened, text),
        )

    def _imported(self, opened: SlideAnnotations, file: LoadedAnnotations) -> None:
        if self._open.get(opened.slide) is not opened:
            return
        if opened.edited:
            self._read_edits(opened)
        found = file.annotations
        there = {each.id: each for each in self._coloured(opened)}
        new = [each for each in found if each.id not in there or not alike(each, there[each.id])]
        same = len(found) - len(new)
        if len(opened.annotations) + len(new) > MAX_ANNOTATIONS:
            opened.note, opened.error = "", panels.too_many(len(found), MAX_ANNOTATIONS)
        else:
            for each in new:
                added = replace(each, id=str(uuid.uuid4())) if each.id in opened.annotations else each
                opened.annotations[added.id] = added
            if new:
                self._redraw(opened)
                self._changed(opened)
            opened.note = panels.imported(new, same, file.note)
        self._show()

    def _failed(self, opened: SlideAnnotations, text: str) -> None:
        opened.note, opened.error = "", text
        self._show()

    # ---- a slide's annotations: found, read from the layers, drawn, kept

    def _enter(self, slide: Slide) -> None:
        def edited() -> None:
            opened.edited = True
            self._view.read_edits_soon()

        layers = AnnotationLayers(self._canvas, slide, on_edit=edited, on_tool=self._tool_changed)
        opened = self._open[slide] = SlideAnnotations(slide, layers)
        self._background.start(
            f"load {id(slide)}",
            files.open_store(slide),
            done=lambda found: self._loaded(opened, *found),
            failed=lambda text: self._failed(opened, text),
        )

    def _loaded(self, opened: SlideAnnotations, store: AnnotationStore, loaded: LoadedAnnotations) -> None:
        if self._open.get(opened.slide) is not opened:
            return
        opened.store, opened.note = store, loaded.note
        opened.annotations = {each.id: each for each in loaded.annotations}
        if opened.annotations:
            self._redraw(opened)
        self._show()

    def _leave(self, opened: SlideAnnotations) -> None:
        self._read_edits(opened)
        if opened.store is not None and opened.saved != opened.version:
            try:
                # Here and opened: the background may not come to it any more.
                opened.store.save(self._coloured(opened), opened.version)
            except AnnotationsError as error:
                self._view.warn(str(error))
        opened.layers.remove()

    def _edit(self, annotation_ids: Sequence[str], change: Callable[[Annotation], Annotation]) -> None:
        opened = self._current_as_drawn()
        if opened is None:
            return
        touched = False
        for annotation_id in annotation_ids:
            before = opened.annotations.get(annotation_id)
            if before is not None and (after := change(before)) != before:
                opened.annotations[annotation_id], touched = after, True
        if touched:
            opened.layers.label(opened.layers.read(), opened.annotations, self._look(opened))
            self._changed(opened)

    def _current_as_drawn(self) -> SlideAnnotations | None:
        """Those of the current slide, with the very last stroke."""
        opened = self.current
        if opened is not None and opened.edited:
            self._read_edits(opened)
        return opened

    def _read_edits(self, opened: SlideAnnotations) -> None:
        opened.edited = False
        if opened.store is None or not opened.layers.present():
            return
        drawing = opened.layers.drawing
        made: list[Annotation] = []

        def make(original: Annotation | None) -> Annotation:
            if original is not None and not drawing:
                name, class_name = original.name, original.class_name
            else:
                name = panels.next_name([*opened.annotations.values(), *made])
                class_name = self._new_class or None
            base = Annotation(
                "points", (((0.0, 0.0),),), name=name, class_name=class_name, id=str(uuid.uuid4())
            )
            made.append(base)
            return base

        edits = read_edits(opened.annotations, opened.drawn, opened.layers.read(), make=make)
        if not edits.changed and not edits.without_extent:
            return
        opened.annotations = edits.annotations
        if edits.removed:
            opened.deleted.append(edits.removed)
        opened.layers.label(edits.pieces, opened.annotations, self._look(opened))
        opened.layers.drop(edits.without_extent)
        opened.drawn = as_drawn(piece for piece in edits.pieces if piece.annotation_id in opened.annotations)
        if edits.changed:
            self._changed(opened)

    def _bring_back(self, opened: SlideAnnotations) -> None:
        """Draw annotations again whose layer was deleted."""
        drawn = {annotation_id for annotation_id, _, _ in opened.drawn}
        if any(annotation_id not in drawn for annotation_id in opened.annotations):
            self._redraw(opened)

    def _redraw(self, opened: SlideAnnotations) -> None:
        opened.layers.show(list(opened.annotations.values()), self._look(opened))
        opened.drawn = as_drawn(piece for each in opened.annotations.values() for piece in pieces_of(each))
        opened.layers.fit_edges()

    def _changed(self, opened: SlideAnnotations) -> None:
        opened.version += 1
        opened.note = ""
        self._save(opened)
        self._show()

    def _save(self, opened: SlideAnnotations) -> None:
        if opened.saving or opened.store is None:
            return
        version = opened.version

        def ended(*, error: str = "", note: str = "") -> None:
            opened.saving, opened.error = False, error
            if not error:
                opened.saved = version
                opened.note = note or opened.note
            if opened.version != version and self._open.get(opened.slide) is opened:
                self._save(opened)
            self._show()

        opened.saving = True
        self._background.start(
            f"save {id(opened.slide)}",
            files.save(opened.store, self._coloured(opened), version),
            done=lambda note: ended(note=note),
            failed=lambda text: ended(error=text),
        )

    # ---- what is shown

    def _names(self, opened: SlideAnnotations) -> tuple[str, ...]:
        bundle = self._controller.bundle if self._controller is not None else None
        model = bundle.info.class_names if bundle is not None else ()
        names = panels.class_names(opened.annotations.values(), model)
        return names if not self._new_class or self._new_class in names else (*names, self._new_class)

    def _look(self, opened: SlideAnnotations) -> Look:
        colours = panels.class_colours(opened.annotations.values(), self._names(opened))
        return lambda annotation: (
            annotation.name or annotation.class_name or "",
            colours.get(annotation.class_name or "", panels.UNCLASSED),
        )

    def _coloured(self, opened: SlideAnnotations) -> list[Annotation]:
        """With the colours that are shown, so that QuPath shows the same."""
        look = self._look(opened)
        return [
            replace(each, class_color_rgb=look(each)[1]) if each.class_name else each
            for each in opened.annotations.values()
        ]

    def _show(self) -> None:
        opened = self.current
        if opened is None:
            self._view.show_panel(AnnotationsPanel())
            return
        look, self._tool = self._look(opened), opened.layers.tool
        rows = tuple(
            AnnotationRow(
                each.id,
                each.name or "",
                each.class_name or "",
                look(each)[1],
                panels.extent(each, opened.slide),
            )
            for each in opened.annotations.values()
        )
        whole = (0, 0, *opened.slide.level_dimensions_xy[0])
        self._view.show_panel(
            AnnotationsPanel(
                has_slide=True,
                ready=opened.store is not None,
                rows=rows,
                classes=self._names(opened),
                new_class=self._new_class,
                tool=self._tool,
                can_undo=bool(opened.deleted),
                bounded=opened.slide.bounds_l0_xywh != whole,
                status=opened.note
                or panels.where_kept(opened.store, len(rows), saving=opened.saved != opened.version),
                error=opened.error,
            )
        )
