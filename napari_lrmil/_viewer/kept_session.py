"""Where the user stopped, and what was opened lately: one file in the user's data folder. No Qt, no napari.

Two windows at once write the same file: the last one wins, and what both have opened is among the recent ones. Paths may
hold patients' names: they stand in that file and in the window, and nowhere else.
"""

from __future__ import annotations

import contextlib
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from napari_lrmil.atomic import write_text
from napari_lrmil.model.hub import HUB_PREFIX
from napari_lrmil.model.naming import DEMO_BUNDLE, is_bundle
from napari_lrmil.outside import parse_json, read_file
from napari_lrmil.slide.files import user_folder
from napari_lrmil.slide.identity import stamp_of

MOST_RECENT = 5
_FORMAT = 1
_MOST_BYTES = 100_000
_LONGEST_PATH = 4096


class View(NamedTuple):
    """What was seen of a slide: the middle in the world's units (y, x), and the camera's zoom in pixels a unit."""

    center_yx: tuple[float, float]
    zoom: float


@dataclass(frozen=True)
class Session:
    """Where somebody stopped. Paths are absolute; empty where there is none.

    Attributes
    ----------
    listed : str
        The folder or table of the worklist.
    deeper : bool
        Whether folders in it were listed too.
    slide : str
        The one that was shown last.
    stamp : str
        Which file that was, see `slide.identity.stamp_of`.
    view : View or None
        What was seen of it.
    model : str
        As the controller names it.
    fronts : tuple of str
        Names of the docks that stood in front.
    recent_lists, recent_slides : tuple of str
        The newest first, at most `MOST_RECENT`.
    """

    listed: str = ""
    deeper: bool = False
    slide: str = ""
    stamp: str = ""
    view: View | None = None
    model: str = ""
    fronts: tuple[str, ...] = ()
    recent_lists: tuple[str, ...] = ()
    recent_slides: tuple[str, ...] = ()


def read_session() -> Session:
    """What was kept; an empty session where nothing was, or where it can't be read."""
    try:
        said = parse_json(read_file(_file(), most_bytes=_MOST_BYTES))
    except (OSError, ValueError):
        return Session()
    if not isinstance(said, dict) or said.get("format") != _FORMAT:
        return Session()
    return Session(
        listed=_path(said.get("listed")),
        deeper=said.get("deeper") is True,
        slide=_path(said.get("slide")),
        stamp=_text(said.get("stamp")),
        view=_view(said.get("view")),
        model=_text(said.get("model")),
        fronts=_texts(said.get("fronts")),
        recent_lists=_paths(said.get("recent_lists")),
        recent_slides=_paths(said.get("recent_slides")),
    )


def keep_session(session: Session) -> None:
    """Keep a session in the place of the one before; what that one had as recent comes after this one's.

    Raises
    ------
    OSError
        Where it can't be written.
    """
    before = read_session()
    view = session.view
    said = {
        "format": _FORMAT,
        "listed": session.listed,
        "deeper": session.deeper,
        "slide": session.slide,
        "stamp": session.stamp,
        "view": None if view is None else [*view.center_yx, view.zoom],
        "model": session.model,
        "fronts": session.fronts,
        "recent_lists": _newest(session.recent_lists, before.recent_lists),
        "recent_slides": _newest(session.recent_slides, before.recent_slides),
    }
    # Names that aren't text on this system are escaped, and come back.
    write_text(_file(), json.dumps(said, indent=1))


def forget_session() -> None:
    """Delete what was kept.

    Raises
    ------
    OSError
    """
    _file().unlink(missing_ok=True)


def with_recent(session: Session, *, listed: str = "", slide: str = "") -> Session:
    """The session with one more folder or slide, as the newest."""
    return replace(
        session,
        recent_lists=_newest((listed,) if listed else (), session.recent_lists),
        recent_slides=_newest((slide,) if slide else (), session.recent_slides),
    )


class Found(NamedTuple):
    """What of a session is still there, and what there is to say of the rest."""

    listed: Path | None
    slide: Path | None
    view: View | None
    model: str
    notes: tuple[str, ...]


def look_for(session: Session) -> Found:
    """See what of a session is still there. Files may be far away: not in the window's thread."""
    notes: list[str] = []
    listed, slide, view, model = None, None, session.view, session.model
    if session.listed:
        listed = Path(session.listed)
        if not _exists(listed):
            notes.append(f"{listed.name}, the list of last time, is no longer there.")
            listed = None
    if session.slide:
        slide = Path(session.slide)
        try:
            same = stamp_of(slide) == session.stamp
        except OSError:
            notes.append(f"{slide.name}, the slide of last time, is no longer there.")
            slide = None
        else:
            if not same:  # or nobody knows: it couldn't be looked at when the session was kept
                view = None
            if session.stamp and not same:
                notes.append(f"{slide.name} is another file by now than last time.")
    if model and model != DEMO_BUNDLE and not model.startswith(HUB_PREFIX) and not _is_model(Path(model)):
        notes.append(f"{Path(model).name}, the model of last time, is no longer there.")
        model = ""
    return Found(listed, slide, view, model, tuple(notes))


def stamp_or_none(path: str) -> str:
    """The stamp of a slide; empty where it can't be looked at."""
    with contextlib.suppress(OSError):
        return stamp_of(Path(path))
    return ""


def _file() -> Path:
    return user_folder("data") / "session.json"


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False


def _is_model(path: Path) -> bool:
    try:
        return is_bundle(path)
    except OSError:
        return False


def _newest(first: tuple[str, ...], then: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*first, *then)))[:MOST_RECENT]


def _text(said: Any) -> str:
    return said if isinstance(said, str) and len(said) <= _LONGEST_PATH and "\0" not in said else ""


def _path(said: Any) -> str:
    text = _text(said)
    return text if text and Path(text).is_absolute() else ""


def _texts(said: Any) -> tuple[str, ...]:
    return tuple(filter(None, map(_text, said))) if isinstance(said, list) else ()


def _paths(said: Any) -> tuple[str, ...]:
    return tuple(filter(None, map(_path, said)))[:MOST_RECENT] if isinstance(said, list) else ()


def _view(said: Any) -> View | None:
    if not isinstance(said, list) or len(said) != 3:
        return None
    if not all(isinstance(each, int | float) and math.isfinite(each) for each in said) or said[2] <= 0:
        return None
    y, x, zoom = (float(each) for each in said)
    return View((y, x), zoom)
