"""What the main dock shows of the controller, and the values under the cursor. No Qt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from napari_lrmil._viewer.canvas import Canvas
from napari_lrmil._viewer.docks.classify.evidence import changed_look, evidence_panel
from napari_lrmil._viewer.docks.classify.panel import (
    ClassifyPanel,
    bundle_facts,
    bundle_name,
    card_markdown,
    distinct_names,
    earlier_text,
    hint_text,
    overlay_text,
    progress_text,
    result_panel,
    slide_facts,
    title_text,
)
from napari_lrmil._viewer.window import RESTING, Change, Controller
from napari_lrmil.heatmap import TileFinder, tile_text

if TYPE_CHECKING:
    from napari_lrmil.predict import SlidePrediction


class ClassifyView(Protocol):
    """The dock."""

    def show_panel(self, panel: ClassifyPanel) -> None:
        """Show exactly this."""

    def show_hover(self, text: str) -> None:
        """Show the values under the cursor; empty where there are none."""


class ClassifyPresenter:
    """Shows the controller's state in the dock and, in short, on the canvas and in the window's title.

    The answer stands on the canvas only while the slide that it is about is seen.

    Parameters
    ----------
    view : ClassifyView
    controller : Controller
    canvas : Canvas
    """

    def __init__(self, view: ClassifyView, controller: Controller, canvas: Canvas) -> None:
        self._view, self._controller, self._canvas = view, controller, canvas
        self._finder: tuple[SlidePrediction, TileFinder] | None = None
        self._read_off: SlidePrediction | None = None
        """Whose tile the values under the mouse are of."""
        controller.changed.connect(self.refresh)
        canvas.hovered.connect(self.hovered)

    @property
    def card(self) -> str:
        """The card of the model in use, as Markdown; empty without one."""
        bundle = self._controller.bundle
        return card_markdown(bundle.info) if bundle is not None else ""

    def refresh(self, change: Change) -> None:
        """Show what is so now; the dock shows something of every kind of change."""
        result = self._controller.result
        shown = result is not None and self._controller.slide_visible
        text = ""
        if result is not None and shown:
            text = overlay_text(result, revealed=self._controller.label_revealed)
        self._canvas.show_text(text)
        slide = self._controller.slide
        self._canvas.show_title(title_text(slide) if slide is not None else "")
        self._view.show_panel(self._panel())
        if self._read_off is not None and (
            self._read_off is not result or not self._controller.evidence_shown
        ):  # the mouse may rest, or be elsewhere: nothing else would take them away
            self._read_off = None
            self._view.show_hover("")

    def hovered(self, x_um: float, y_um: float) -> None:
        """The mouse is at this place in level-0 µm."""
        result = self._controller.result
        if result is None:
            return
        if not self._controller.evidence_shown:
            self._view.show_hover("")
            return
        if self._finder is None or self._finder[0] is not result:
            self._finder = (result, TileFinder(result))
        n = self._finder[1].at(x_um, y_um)
        self._read_off = result
        self._view.show_hover("" if n is None else tile_text(result, n))

    def choose_evidence(
        self,
        *,
        channel: int | None = None,
        unit: int | None = None,
        scaling: int | None = None,
        colormap: int | None = None,
        threshold: float | None = None,
        smooth: bool | None = None,
    ) -> None:
        """Change what the heatmaps show; whole numbers are places in the lists of the panel."""
        result, look = self._controller.result, self._controller.look
        if result is not None and look is not None:
            self._controller.choose_look(
                changed_look(
                    result,
                    look,
                    channel=channel,
                    unit=unit,
                    scaling=scaling,
                    colormap=colormap,
                    threshold=threshold,
                    smooth=smooth,
                )
            )

    def toggle_smooth(self) -> None:
        """Show each tile in one colour in place of a smooth heatmap, or the reverse."""
        look = self._controller.look
        if look is not None:
            self.choose_evidence(smooth=not look.smooth)

    def _panel(self) -> ClassifyPanel:
        controller = self._controller
        slides, slide, result, look = (
            controller.slides,
            controller.slide,
            controller.result,
            controller.look,
        )
        info = controller.bundle.info if controller.bundle is not None else None
        earlier = controller.earlier_result
        running, progress = controller.running_slide, controller.progress
        shown = slide is not None and result is not None
        return ClassifyPanel(
            state=controller.state,
            slide_names=distinct_names(slides),
            slide_index=slides.index(slide) if slide in slides else -1,
            slide_facts=slide_facts(slide) if slide is not None else "",
            mpp_text=f"{slide.mpp_xy[0]:.4g}" if slide is not None and slide.has_mpp else "",
            mpp_source=slide.pixel_size.text if slide is not None else "",
            icc_available=slide is not None and slide.has_icc_profile,
            icc_applied=slide is not None and slide.icc,
            bundle_names=tuple(
                bundle_name(each, controller.bundle_info(each)) for each in controller.bundle_paths
            ),
            bundle_index=controller.bundle_paths.index(controller.bundle_path) if info is not None else -1,
            bundle_facts=bundle_facts(info, controller.bundle_speed) if info is not None else "",
            bundle_is_demonstration=info is not None and info.demonstration,
            card_available=info is not None,
            devices=controller.devices,
            device=controller.device,
            can_classify=controller.state in RESTING,
            progress=None if running is None else (0, 0) if progress is None else progress[:2],
            progress_text="" if running is None else progress_text(running.name, progress),
            hint=hint_text(controller.state, slide),
            error=controller.error,
            earlier=earlier_text(earlier) if earlier is not None else "",
            can_reopen=controller.slide_replaced,
            result=result_panel(result, revealed=controller.label_revealed) if result is not None else None,
            evidence=evidence_panel(result, look)
            if result is not None and look is not None and controller.evidence_shown
            else None,
            heatmap_visible=slide is not None and shown and self._canvas.heatmap_visible(slide),
            heatmap_opacity=self._canvas.heatmap_opacity(slide) if slide is not None and shown else 0.0,
        )
