"""A slide that is damaged, replaced or taken away after the run has looked at it: told, never embedded as it isn't."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest
import tifffile
from rich.console import Console
from run_helpers import absolute_rows, write_config, write_rows
from typer.testing import CliRunner

from napari_lrmil.errors import SlideChangedError, SlideError
from training.config import load_config
from training.progress import Reporter
from training.run.cli import app
from training.run.context import Context
from training.run.prepare import prepare
from training.stages.embed_tiles import embed_slide, embed_slides

N_SLIDES = 15


@pytest.fixture
def table(cohort: Path, tmp_path: Path) -> Path:
    """The cohort's table with the first two slides copied, so that they may be changed."""
    rows = absolute_rows(cohort)
    for row in rows[:2]:
        row["path"] = shutil.copy(row["path"], tmp_path / f"{row['slide_id']}.tif")
    return write_rows(tmp_path / "slides.csv", rows)


def context_of(folder: Path, table: Path) -> Context:
    config = load_config(write_config(folder, table), ["--run.out_dir", str(folder / "run")])
    return prepare(config, skip_bad=False, reporter=Reporter(Console(file=io.StringIO()))).context


def damage_finest_level(path: Path) -> bytes:
    """Zeros over all tiles but the first of level 0: the mask, of a coarser one, doesn't see it. Returns what was there."""
    whole = path.read_bytes()
    with tifffile.TiffFile(path) as tif:
        page = tif.pages.first
        places = list(zip(page.dataoffsets, page.databytecounts, strict=True))[1:]
    with path.open("r+b") as file:
        for offset, count in places:
            file.seek(offset)
            file.write(bytes(count))
    return whole


def test_a_slide_damaged_beyond_the_share_is_refused_and_the_others_are_embedded(
    table: Path, tmp_path: Path, one_thread: None
) -> None:
    first, second = sorted(tmp_path.glob("*.tif"))
    whole = {path: damage_finest_level(path) for path in (first, second)}
    context = context_of(tmp_path, table)  # which passes: what is damaged wasn't read
    assert len(context.rows) == N_SLIDES
    store = context.hr_store()

    def embed() -> None:
        jobs = context.jobs(context.rows, store, hr=True)
        embed_slides(jobs, context.teacher_encoder(), context.runtime, context.reporter, "Embedding")

    with pytest.raises(SlideError) as refusal:
        embed()
    said = str(refusal.value).splitlines()
    assert said[0].startswith(
        "2 slides can't be embedded; the others are, and are kept. Copy what is damaged"
    )
    for path, line in zip((first, second), said[1:], strict=True):
        assert f"{path.name} is damaged: " in line
        assert "can't be decoded" in line
        path.write_bytes(whole[path])
    done = {job.tiles.row.slide_id for job in context.jobs(context.rows, store, hr=True) if job.is_done}
    assert done == {row.slide_id for row in context.rows} - {first.stem, second.stem}
    embed()
    assert all(job.is_done for job in context.jobs(context.rows, store, hr=True))


@pytest.mark.parametrize("hr", [True, False])
@pytest.mark.parametrize("what", ["replaced", "taken away"])
def test_a_slide_that_changes_while_it_is_embedded_is_not_kept(
    table: Path, tmp_path: Path, one_thread: None, what: str, hr: bool
) -> None:
    context = context_of(tmp_path, table)
    job = context.jobs(context.rows[:1], context.hr_store(), hr=hr)[0]
    path = job.tiles.row.path
    whole = path.read_bytes()

    def change(_n_tiles: int) -> None:
        path.unlink(missing_ok=True)
        if what == "replaced":
            shutil.copy(context.rows[1].path, path)

    said = {
        "replaced": "changed while it was read: it was replaced",
        "taken away": r"can't be read any more \(No such file or directory\): it was taken away",
    }
    with pytest.raises(SlideChangedError, match=said[what]):
        embed_slide(job, context.teacher_encoder(), context.runtime.device, advance=change)
    assert not context.hr_store().has(job.tiles.row.slide_id)
    path.write_bytes(whole)
    again = context.jobs(context.rows[:1], context.hr_store(), hr=hr)[0]
    assert embed_slide(again, context.teacher_encoder(), context.runtime.device) == len(again.places)
    assert again.is_done


@pytest.mark.parametrize("option", [[], ["--skip-bad-slides"]])
def test_the_command_stops_with_a_sentence_and_goes_on_once_the_slide_is_whole(
    table: Path, tmp_path: Path, one_thread: None, option: list[str]
) -> None:
    path = sorted(tmp_path.glob("*.tif"))[0]
    whole = damage_finest_level(path)
    config = write_config(tmp_path, table)
    args = [str(config), "--run.out_dir", str(tmp_path / "run"), "--evaluate.methods", '["lrmil"]', *option]
    stopped = CliRunner().invoke(app, args)
    assert stopped.exit_code == 1
    assert "Traceback" not in stopped.output
    said = " ".join(stopped.output.split())
    assert (
        "error: 1 slide can't be embedded; the others are, and are kept. Copy what is damaged again" in said
    )
    assert f"{path.stem}: {path.name} is damaged: " in said
    path.write_bytes(whole)
    done = CliRunner().invoke(app, args)
    assert done.exit_code == 0, done.output
