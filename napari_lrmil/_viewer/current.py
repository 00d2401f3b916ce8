"""The rule of one current slide: it alone is seen, whoever opened it. No Qt, no napari."""

from __future__ import annotations

from napari_lrmil._viewer.canvas import Canvas
from napari_lrmil.slide import Slide


class CurrentSlide:
    """Which slide of a window is the current one.

    Parameters
    ----------
    canvas : Canvas
    """

    def __init__(self, canvas: Canvas) -> None:
        self._canvas = canvas
        self.slide: Slide | None = None
        self._known: tuple[Slide, ...] = ()
        """Slides that were open when layers were last looked at."""

    def begin(self) -> None:
        """Take over what the window shows already; one slide that is seen alone stays as it is seen."""
        slides, active = self._canvas.slides(), self._canvas.active_slide()
        seen = [slide for slide in slides if self._canvas.slide_visible(slide)]
        self._known = slides
        if slides:
            self.show(active or (seen or slides)[-1], choose=False, fit=len(seen) > 1)

    def follow(self) -> bool:
        """Layers came, went or were chosen: return whether a slide was made the current one by that.

        It is the newest, where one came, whoever opened it; else the one that was chosen in the layer list.
        """
        slides, active = self._canvas.slides(), self._canvas.active_slide()
        new = [slide for slide in slides if slide not in self._known]
        self._known = slides
        if new:
            self.show(new[-1])
        elif active is not None and active is not self.slide:
            self.show(active, choose=False)
        elif self.slide is not None and self.slide not in slides:
            self.slide = None
            if slides:
                self.show(slides[-1], choose=False)
        else:
            return False
        return self.slide is not None

    def show(self, slide: Slide, *, choose: bool = True, fit: bool = True) -> None:
        """Make a slide the current one: it alone is seen. See `Canvas.bring_forward`."""
        self.slide = slide
        self._canvas.bring_forward(slide, choose=choose, fit=fit)
