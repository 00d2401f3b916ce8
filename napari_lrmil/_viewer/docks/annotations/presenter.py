"""What the user can do with regions: draw, name, class, delete, jump to, exchange. No Qt."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from napari_lrmil._viewer.background import in_one_step
from napari_lrmil._viewer.docks.annotations import wording
from napari_lrmil._viewer.docks.annotations.pieces import alike, box_of
from napari_lrmil._viewer.docks.annotations.protocols import TOOLS, Regions
from napari_lrmil._viewer.docks.annotations.state import RegionsState
from napari_lrmil.export.annotation import Annotation
from napari_lrmil.export.geojson import read_annotations, write_annotations

MAX_REGIONS = 5000
"""That napari still draws without stutter."""

_MAX_JUMP_ZOOM = 4.0  # 40x
_JUMP_SHARE = 0.6


class RegionsPresenter(RegionsState):
    """The commands of the annotations dock; see `RegionsState`."""

    def draw(self, tool: str) -> None:
        """Take a tool in hand: 'rectangle', 'ellipse', 'polygon' or 'point'; 'pan' puts it down."""
        now = self.current
        if now is None or now.store is None:
            return
        if tool == "pan":
            for layer in now.layers.layers():
                layer.mode = "pan_zoom"
            self._show()
            return
        self._bring_back(now)
        layer = now.layers.need_points() if tool == "point" else now.layers.need_shapes()
        now.layers.set_visible(True)
        self._viewer.layers.selection.active = layer
        layer.mode = TOOLS[tool]
        self.camera_moved()
        self._show()

    def choose_class(self, name: str) -> None:
        """Of what is drawn from now on; empty for none."""
        self._class = name.strip()
        self._show()

    def sync(self) -> None:
        """Take over what the user did in the layers."""
        for each in self._open.values():
            self._sync(each)
        self._show()

    def rename(self, region_id: str, name: str) -> None:
        """Call a region so; empty takes the name away."""
        self._edit([region_id], lambda region: replace(region, name=name.strip() or None))

    def set_class(self, region_ids: Sequence[str], class_name: str) -> None:
        """Give regions a class; empty takes it away."""
        wanted = class_name.strip() or None
        self._edit(region_ids, lambda region: replace(region, class_name=wanted, class_color_rgb=None))

    def delete(self, region_ids: Sequence[str]) -> None:
        """Delete regions; `undo_delete` brings them back while the slide is open."""
        now = self.current
        gone = [now.annotations.pop(each) for each in region_ids if each in now.annotations] if now else []
        if now is not None and gone:
            now.deleted.append(gone)
            self._redraw(now)
            self._changed(now)

    def undo_delete(self) -> None:
        """Bring back what was deleted last."""
        now = self.current
        if now is not None and now.deleted:
            now.annotations.update({each.id: each for each in now.deleted.pop()})
            self._redraw(now)
            self._changed(now)

    def jump_to(self, region_id: str) -> None:
        """Centre on a region, so far away that all of it is seen, and mark it."""
        now = self.current
        if now is None or region_id not in now.annotations:
            return
        self._bring_back(now)
        left, top, width, height = box_of(now.annotations[region_id])
        mpp_x, mpp_y = now.slide.mpp_xy if now.slide.has_mpp else (1.0, 1.0)
        camera = self._viewer.scene.camera
        canvas_y, canvas_x = (max(1.0, float(px)) for px in self._viewer.canvas.size)
        if width > 0 or height > 0:
            fits = _JUMP_SHARE * min(
                canvas_y / max(height * mpp_y, 1e-9), canvas_x / max(width * mpp_x, 1e-9)
            )
            camera.zoom = min(_MAX_JUMP_ZOOM, fits)
        centre = ((top + height / 2) * mpp_y, (left + width / 2) * mpp_x)
        camera.center = (*camera.center[:-2], *centre)
        now.layers.select(region_id)

    def import_file(self, path: Path, *, cropped: bool) -> None:
        """Add the annotations of a GeoJSON file, in the background."""
        now = self.current
        if now is None or now.store is None:
            return
        bounds = now.slide.bounds_l0_xywh

        def read() -> list[Annotation]:
            return read_annotations(path, bounds_l0_xywh=bounds, cropped=cropped, object_types={"annotation"})

        now.note, now.error = "Reading …", ""
        self._run("import", in_one_step(read), lambda found: self._imported(now, found), self._fail(now))
        self._show()

    def export_file(self, path: Path, *, cropped: bool) -> None:
        """Write the slide's regions as GeoJSON, in the background."""
        now = self.current
        if now is None:
            return
        regions, bounds = tuple(self._coloured(now)), now.slide.bounds_l0_xywh

        def write() -> Path:
            return write_annotations(path, regions, bounds_l0_xywh=bounds, cropped=cropped)

        def written(_: Any) -> None:
            now.note = f"{wording.counted(len(regions))} exported to {path.name}."
            self._show()

        now.note, now.error = "", ""
        self._run("export", in_one_step(write), written, self._fail(now))

    def _edit(self, region_ids: Sequence[str], change: Callable[[Annotation], Annotation]) -> None:
        now = self.current
        if now is None:
            return
        self._sync(now)
        touched = False
        for region_id in region_ids:
            before = now.annotations.get(region_id)
            if before is not None and (after := change(before)) != before:
                now.annotations[region_id], touched = after, True
        if touched:
            now.layers.label(now.layers.read(), now.annotations, self._look(now))
            self._changed(now)

    def _imported(self, now: Regions, found: list[Annotation]) -> None:
        if self._open.get(now.slide) is not now:
            return
        there = {each.id: each for each in self._coloured(now)}
        new = [each for each in found if each.id not in there or not alike(each, there[each.id])]
        same = len(found) - len(new)
        if len(now.annotations) + len(new) > MAX_REGIONS:
            now.note, now.error = "", wording.too_many(len(found), MAX_REGIONS)
        else:
            for each in new:
                kept = replace(each, id=str(uuid.uuid4())) if each.id in now.annotations else each
                now.annotations[kept.id] = kept
            if new:
                self._redraw(now)
                self._changed(now)
            now.note = wording.imported(new, same)
        self._show()
