"""A step is done once: again only where its inputs are others, its files are gone, or it was cut off."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from napari_lrmil.atomic import write_text
from training.config import RunConfig
from training.progress import Reporter
from training.run.context import Context
from training.run.layout import RunDir
from training.run.steps import Step, each_once, is_done, once
from training.runtime import Runtime


@pytest.fixture
def context(tmp_path: Path) -> Context:
    config = RunConfig.model_validate(
        {"run": {"out_dir": tmp_path}, "data": {"slides": tmp_path / "slides.csv"}}
    )
    return Context(
        run_dir=RunDir(tmp_path),
        config=config,
        geometry=config.tiles.geometry(None),
        tiles={},
        class_names=("a", "b"),
        runtime=Runtime("cpu"),
        reporter=Reporter(Console(file=io.StringIO())),
    )


def said(context: Context) -> str:
    file = context.reporter.console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_a_step_is_done_once(context: Context, tmp_path: Path) -> None:
    made, checkpoint = tmp_path / "made.txt", tmp_path / "checkpoint"
    checkpoint.touch()
    step = Step("fold0/lrmil", "key", (made,), checkpoint)
    times: list[str] = []

    def make() -> None:
        assert checkpoint.exists() == (not times)  # it is there until the step is whole
        times.append("made")
        made.touch()

    once(context, step, make)
    assert times == ["made"]
    assert not checkpoint.exists()
    assert said(context) == ""
    once(context, step, make)
    assert times == ["made"]
    assert said(context) == "fold0/lrmil: done before\n"
    once(context, step, make, quiet=True)
    assert said(context).count("done before") == 1
    made.unlink()
    once(context, step, make)
    assert times == ["made"] * 2
    once(context, step._replace(key="of other inputs"), make)
    assert times == ["made"] * 3
    assert not is_done(context.run_dir, step)


def test_a_step_that_is_cut_off_is_not_done_whatever_it_was_before(context: Context, tmp_path: Path) -> None:
    made = tmp_path / "made.txt"
    first, second = (Step("fold0/lrmil", key, (made,)) for key in ("first", "second"))
    once(context, first, made.touch)

    def cut_off() -> None:
        made.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        once(context, second, cut_off)
    assert not is_done(context.run_dir, first)
    assert not is_done(context.run_dir, second)


def test_a_step_whose_key_holds_what_it_makes(context: Context, tmp_path: Path) -> None:
    page = tmp_path / "page.html"

    def step() -> Step:
        return Step("report", page.read_text() if page.is_file() else "", (page,))

    once(context, step(), lambda: write_text(page, "drawn"), afterwards=step)
    assert is_done(context.run_dir, step())
    page.write_text("damaged")
    assert not is_done(context.run_dir, step())


def test_steps_are_dealt_out_and_each_is_done(context: Context, tmp_path: Path) -> None:
    files = [tmp_path / name for name in "abc"]
    each_once(context, [(Step(f"fold0/{path.name}", "key", (path,)), path.touch) for path in files])
    assert all(path.is_file() for path in files)
    assert sorted(path.name for path in (tmp_path / "done").iterdir()) == ["fold0-a", "fold0-b", "fold0-c"]
