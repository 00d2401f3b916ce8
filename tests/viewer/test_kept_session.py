"""Where the user stopped, as a file: what comes back of it, and what a damaged or foreign one does."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from made_slides import write_slide

from napari_lrmil._viewer.kept_session import (
    MOST_RECENT,
    Session,
    View,
    forget_session,
    keep_session,
    look_for,
    read_session,
    stamp_or_none,
)
from napari_lrmil.slide.files import user_folder

SESSION = Session(
    listed="/slides",
    deeper=True,
    slide="/slides/a.svs",
    stamp="1-2",
    view=View((10.5, -3.0), 0.25),
    model="demo",
    fronts=("worklist", "tiles"),
    recent_lists=("/slides",),
    recent_slides=("/slides/a.svs",),
)


def test_what_is_kept_comes_back_and_can_be_forgotten() -> None:
    assert read_session() == Session()
    keep_session(SESSION)
    assert read_session() == SESSION
    forget_session()
    forget_session()
    assert read_session() == Session()


def test_of_two_windows_the_last_wins_and_both_are_among_the_recent() -> None:
    keep_session(SESSION)
    other = Session(slide="/b.svs", recent_slides=("/b.svs",))
    keep_session(other)
    kept = read_session()
    assert (kept.slide, kept.listed, kept.view) == ("/b.svs", "", None)
    assert kept.recent_slides == ("/b.svs", "/slides/a.svs")
    assert kept.recent_lists == ("/slides",)
    keep_session(Session(recent_slides=tuple(f"/{n}.svs" for n in range(9))))
    assert len(read_session().recent_slides) == MOST_RECENT


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "[" * 100_000,
        '{"format": 2, "slide": "/a.svs"}',
        '{"format": 1, "slide": 3, "listed": ["/x"], "view": "far", "model": {}, "fronts": 1, "recent_slides": [1, null]}',
        '{"format": 1, "slide": "a.svs", "listed": "\\u0000", "view": [NaN, 1, 1], "recent_lists": ["relative"]}',
        '{"format": 1, "view": [1, 2, 0], "model": "' + "x" * 5000 + '"}',
        '{"format": 1, "view": [1, 2, Infinity], "deeper": "yes"}',
    ],
)
def test_a_damaged_file_is_an_empty_session(text: str) -> None:
    path = user_folder("data") / "session.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    assert read_session() == Session()
    keep_session(SESSION)
    assert read_session() == SESSION


def test_bytes_that_are_no_text_and_names_that_are_none_come_through() -> None:
    path = user_folder("data") / "session.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\xff\xfe\x00")
    assert read_session() == Session()
    odd = os.fsdecode(b"/slides/caf\xe9.svs")
    keep_session(Session(slide=odd))
    assert read_session().slide == odd


def test_what_is_gone_or_another_file_is_said_and_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "slides"
    folder.mkdir()
    slide = write_slide(folder / "a.tiff")
    model = tmp_path / "model"
    model.mkdir()
    (model / "bundle.json").write_text("{}")
    session = Session(str(folder), False, str(slide), stamp_or_none(str(slide)), SESSION.view, str(model))
    assert look_for(session) == (folder, slide, SESSION.view, str(model), ())

    write_slide(slide, size_xy=(1536, 1024))
    shutil.rmtree(model)
    found = look_for(session)
    assert found[:4] == (folder, slide, None, "")
    assert found.notes == (
        "a.tiff is another file by now than last time.",
        "model, the model of last time, is no longer there.",
    )

    shutil.rmtree(folder)
    found = look_for(session)
    assert found[:4] == (None, None, SESSION.view, "")
    assert [note.partition(",")[0] for note in found.notes] == ["slides", "a.tiff", "model"]
