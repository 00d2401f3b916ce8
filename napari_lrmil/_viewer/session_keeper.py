"""Follows a window and keeps where the user is, for the next start. No Qt, no napari."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from psygnal import Signal

from napari_lrmil._viewer.background import Background, Steps, in_one_step
from napari_lrmil._viewer.canvas import Canvas
from napari_lrmil._viewer.kept_session import (
    Found,
    Session,
    View,
    forget_session,
    keep_session,
    look_for,
    read_session,
    stamp_or_none,
    with_recent,
)
from napari_lrmil._viewer.window import Change, Controller

_KEEP, _RESUME, _VIEW = "keep the session", "look for the last session", "show the last view"


class SessionKeeper:
    """What is kept of one window.

    A slide that is closed stays the last one: closing the window closes it.

    Parameters
    ----------
    controller : Controller
    canvas : Canvas
    background : Background
    keeping : bool
        Whether anything is kept, see `Settings.keep_session`.
    """

    changed = Signal()
    """There is something to keep: `keep` does it, and may be called later."""

    def __init__(
        self, controller: Controller, canvas: Canvas, background: Background, *, keeping: bool
    ) -> None:
        self._controller, self._canvas, self._background = controller, canvas, background
        self._keeping = keeping
        self._session = self.recent  # what this window doesn't do anew stays
        self._unkept = False
        self._resuming: tuple[Path, View] | None = None
        controller.changed.connect(self._controller_changed)
        canvas.camera_moved.connect(self._camera_moved)

    @property
    def recent(self) -> Session:
        """What was kept last; empty where nothing is."""
        return read_session() if self._keeping else Session()

    # ---- keeping

    def note_list(self, path: Path, *, deeper: bool) -> None:
        """A folder or table was opened as worklist."""
        listed = str(path.absolute())
        self._note(with_recent(replace(self._session, listed=listed, deeper=deeper), listed=listed))

    def note_fronts(self, names: tuple[str, ...]) -> None:
        """These docks stand in front."""
        self._note(replace(self._session, fronts=names))

    def choose(self, *, keeping: bool) -> None:
        """Keep from now on, or forget what was kept."""
        before, self._keeping = self._keeping, keeping
        if before and not keeping:
            self._unkept = False
            self._background.start(_KEEP, in_one_step(forget_session))
        elif keeping and not before:
            self._unkept = True
            self.changed.emit()

    def forget(self) -> None:
        """Forget what was kept until now, the recent ones too."""
        self._session, self._unkept = Session(), False
        forget_session()

    def keep(self) -> None:
        """Write what is new, behind the window. Where it can't be written, the next start doesn't know of it."""
        if self._unkept and self._keeping:
            self._unkept = False
            session = self._session
            self._background.start(_KEEP, in_one_step(lambda: _keep(session)), failed=self._not_kept)

    def close(self) -> None:
        """Write what is new: the window is going."""
        self._controller.changed.disconnect(self._controller_changed, missing_ok=True)
        self._canvas.camera_moved.disconnect(self._camera_moved, missing_ok=True)
        if self._unkept and self._keeping:
            self._unkept = False
            try:
                _keep(self._session)
            except OSError:  # nobody is there to be told, and nothing but a place is lost
                return

    def _not_kept(self, _: str) -> None:
        self._unkept = True  # perhaps with the next change

    def _note(self, session: Session) -> None:
        if session != self._session:
            self._session, self._unkept = session, True
            self.changed.emit()

    def _controller_changed(self, change: Change) -> None:
        slide = self._controller.slide
        if Change.SLIDE in change and slide is not None:
            path = str(slide.path.absolute())
            if path != self._session.slide:
                self._note(with_recent(replace(self._session, slide=path, stamp="", view=None), slide=path))
            self._show_view()
        if Change.MODEL in change and self._controller.bundle is not None:
            self._note(replace(self._session, model=self._controller.bundle_path))

    def _camera_moved(self) -> None:
        slide = self._controller.slide
        if slide is not None and str(slide.path.absolute()) == self._session.slide:
            self._note(replace(self._session, view=View(self._canvas.field.center_yx, self._canvas.zoom)))

    # ---- going on

    def look(self, done: Callable[[Found], None]) -> None:
        """Look, behind the window, for what was kept; `done` gets what of it is there."""
        session = self.recent
        if session != Session():
            self._background.start(_RESUME, _look_steps(session), done=done)

    def show_view_of(self, slide: Path, view: View) -> None:
        """Show this once the slide is the current one."""
        self._resuming = (slide, view)
        self._show_view()

    def _show_view(self) -> None:
        slide = self._controller.slide
        if self._resuming is None or slide is None or slide.path.absolute() != self._resuming[0]:
            return
        view, self._resuming = self._resuming[1], None

        def show(_: None) -> None:
            if self._controller.slide is slide:
                self._canvas.go_to(view.center_yx, zoom=view.zoom)

        # Not at once: who opens a slide fits it into the view after it has become the current one.
        self._background.start(_VIEW, in_one_step(lambda: None), done=show)


def _look_steps(session: Session) -> Steps[None, Found]:
    return in_one_step(lambda: look_for(session))


def _keep(session: Session) -> None:
    stamp = stamp_or_none(session.slide) if session.slide else ""
    keep_session(replace(session, stamp=stamp))
