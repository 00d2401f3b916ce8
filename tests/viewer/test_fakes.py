"""The fakes themselves: they refuse what the real class hasn't, and report as the background does."""

from __future__ import annotations

import pytest
from fakes import all_started, fake, fake_background, run_all, started

from napari_lrmil._viewer.background import in_one_step
from napari_lrmil._viewer.canvas import Canvas
from napari_lrmil.errors import SlideError


def test_a_fake_canvas_has_the_methods_of_a_real_one_and_its_signals() -> None:
    canvas = fake(Canvas)
    canvas.go_to((1.0, 2.0), zoom=3.0)
    canvas.go_to.assert_called_once_with((1.0, 2.0), zoom=3.0)
    with pytest.raises(TypeError):
        canvas.go_to()
    with pytest.raises(AttributeError):
        canvas.go_too()
    places = []
    canvas.hovered.connect(lambda x, y: places.append((x, y)))
    canvas.hovered.emit(1.0, 2.0)
    assert places == [(1.0, 2.0)]


def test_a_fake_background_keeps_what_is_started_until_the_test_ends_it() -> None:
    background, told = fake_background(), []
    background.start("read", in_one_step(lambda: 1), done=told.append)
    assert background.running("read")
    assert not background.running("write")
    started(background, "read").finish(7)
    assert told == [7]
    assert not background.running("read")
    with pytest.raises(AssertionError, match="ended already"):
        started(background, "read").finish(7)
    with pytest.raises(TypeError):
        background.start("read", in_one_step(lambda: 1), finished=told.append)


def test_jobs_can_be_run_with_those_that_they_start() -> None:
    background, told = fake_background(), []

    def fails() -> None:
        raise SlideError("no slide")

    background.start(
        "one",
        in_one_step(lambda: 1),
        done=lambda _: background.start("two", in_one_step(fails), failed=told.append),
    )
    run_all(background)
    assert told == ["no slide"]
    assert [job.name for job in all_started(background)] == ["one", "two"]
