"""Views, canvas and background of a presenter, made from their ABCs, so that they can't drift from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import create_autospec

from psygnal import Signal, SignalInstance

from napari_lrmil._viewer.background import Background, Steps, error_text, ignore
from napari_lrmil._viewer.canvas import Canvas
from napari_lrmil.errors import SlideError
from napari_lrmil.heatmap import HeatmapLook
from napari_lrmil.slide import Slide
from napari_lrmil.slide.pixel_size import Evidence, decide

T = TypeVar("T")


def fake(spec: type[T]) -> Any:
    """A mock that has the methods of `spec` with their signatures; its psygnal signals are real ones."""
    made = create_autospec(spec, instance=True)
    for each in spec.__mro__:
        for name, value in vars(each).items():
            if isinstance(value, Signal):
                setattr(made, name, SignalInstance(value.signature, name=name))
    return made


@dataclass(eq=False)
class Job:
    """A job that was started on a `fake_background`. The test says how it goes on and how it ends."""

    name: str
    steps: Steps[Any, Any]
    done: Callable[[Any], None] = ignore
    failed: Callable[[str], None] = ignore
    progressed: Callable[[Any], None] = ignore
    cancelled: Callable[[], None] = ignore
    over: bool = False

    def progress(self, step: Any) -> None:
        """Report a step."""
        self.progressed(step)

    def finish(self, result: Any = None) -> None:
        """End with a result; the steps aren't run."""
        self._end()
        self.done(result)

    def fail(self, message: str) -> None:
        """End with an error."""
        self._end()
        self.failed(message)

    def cancel(self) -> None:
        """Notice that it was cancelled, and end."""
        self._end()
        self.cancelled()

    def run(self) -> None:
        """Run the steps to their end and report as a real background does."""
        try:
            while True:
                self.progressed(next(self.steps))
        except StopIteration as stop:
            self.finish(stop.value)
        except Exception as error:  # noqa: BLE001  # as `QtBackground`: whatever it is, it is told
            self.fail(error_text(error))

    def _end(self) -> None:
        assert not self.over, f"the job {self.name!r} has ended already"
        self.over = True
        self.steps.close()


def fake_background() -> Any:
    """A `Background` that keeps what is started; see `started` and `Job`.

    A job runs until the test ends it; cancelling one only notes it.
    """
    background = fake(Background)
    background.jobs = []

    def start(name: str, steps: Steps[Any, Any], **reports: Callable[..., None]) -> None:
        background.jobs.append(Job(name, steps, **reports))

    def running(name: str) -> bool:
        mine = [job for job in background.jobs if job.name == name]
        return bool(mine) and not mine[-1].over

    background.start.side_effect = start
    background.running.side_effect = running
    return background


def all_started(background: Any, name: str | None = None) -> list[Job]:
    """The jobs of a name, or all, in the order in which they were started."""
    return [job for job in background.jobs if name in (None, job.name)]


def started(background: Any, name: str | None = None) -> Job:
    """The last job of a name, or the last of all; the test fails where there is none."""
    jobs = all_started(background, name)
    assert jobs, f"no job {name or ''} was started"
    return jobs[-1]


def run_all(background: Any) -> None:
    """Run all jobs that are under way, and those that they start."""
    while under_way := [job for job in background.jobs if not job.over]:
        under_way[0].run()


def fake_slide(name: str, mpp: float | None = 0.5) -> Any:
    """A slide of 2000 x 1000 px with a colour profile, whose µm/px the user can give."""
    slide = create_autospec(Slide, instance=True)
    kind = type(slide)
    kind.has_mpp = property(lambda self: self.mpp_override is not None)
    kind.mpp_xy = property(lambda self: (self.mpp_override, self.mpp_override))
    slide.name, slide.path, slide.mpp_override, slide.icc = name, Path(f"{name}.svs"), mpp, False
    kind.pixel_size = property(
        lambda self: decide([Evidence("the value given", self.mpp_xy)] if self.has_mpp else [])
    )
    slide.shown_image = ""
    slide.level_dimensions_xy = ((2000, 1000),)
    slide.bounds_l0_xywh = (0, 0, 2000, 1000)
    slide.metadata = {"objective_power": 20.0}
    slide.has_icc_profile = True
    return slide


def fake_canvas() -> Any:
    """A `Canvas` that remembers slides and heatmaps, and has no layers.

    `opened` are its slides, `active` the chosen one, `heatmaps` and `looks` what lies on them. A path that ends
    in ``.bad`` is no slide.
    """
    canvas = fake(Canvas)
    canvas.opened, canvas.active, canvas.heatmaps, canvas.looks, canvas.opacity = [], None, {}, {}, 0.5

    def open_slide(path: Path, *, mpp: float | None = None) -> Any:
        if path.suffix == ".bad":
            raise SlideError(f"{path.name} is no slide")
        canvas.opened.append(fake_slide(path.stem, mpp or 0.5))
        return canvas.opened[-1]

    def bring_forward(slide: Any, *, choose: bool = True, fit: bool = True) -> None:
        canvas.active = slide

    def show_heatmap(slide: Any, prediction: Any, look: HeatmapLook) -> None:
        canvas.heatmaps[slide], canvas.looks[slide] = prediction, look

    def set_heatmap(slide: Any, *, visible: bool | None, opacity: float | None) -> None:
        canvas.opacity = canvas.opacity if opacity is None else opacity

    canvas.slides.side_effect = lambda: tuple(canvas.opened)
    canvas.active_slide.side_effect = lambda: canvas.active
    canvas.open_slide.side_effect = open_slide
    canvas.remove_slide.side_effect = canvas.opened.remove
    canvas.bring_forward.side_effect = bring_forward
    canvas.slide_visible.side_effect = lambda slide: slide in canvas.opened
    canvas.show_heatmap.side_effect = show_heatmap
    canvas.remove_heatmap.side_effect = lambda slide: canvas.heatmaps.pop(slide, None)
    canvas.has_heatmap.side_effect = canvas.heatmap_visible.side_effect = lambda slide: (
        slide in canvas.heatmaps
    )
    canvas.heatmap_opacity.side_effect = lambda slide: canvas.opacity
    canvas.set_heatmap.side_effect = set_heatmap
    return canvas
