"""A step is done once: again only where its inputs are others, its files are gone, or it was cut off."""

from __future__ import annotations

import io
import tracemalloc
from pathlib import Path

import pytest
from rich.console import Console

from napari_lrmil.atomic import write_text
from training.config import RunConfig
from training.data.splits import Split
from training.hashing import content_hash
from training.progress import Reporter
from training.run.context import Context
from training.run.layout import RunDir
from training.run.markers import RunDirError
from training.run.steps import Step, Steps, each_once, is_done, once
from training.runtime import Runtime, deal
from training.stages.distill_tiles import Stage1Section


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
    step = Step("fold0/lrmil", "key", (made,), checkpoint=checkpoint)
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


def test_a_step_is_done_anew_where_a_file_isnt_as_it_was(context: Context, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    step = Step("report", "key", (page,))
    times: list[str] = []

    def draw() -> None:
        times.append("drawn")
        write_text(page, "drawn")

    once(context, step, draw)
    assert is_done(context.run_dir, step)
    page.write_text("drowm")  # of the same length
    assert not is_done(context.run_dir, step)
    once(context, step, draw)
    assert times == ["drawn"] * 2
    assert "report is done anew: page.html isn't as it was" in said(context)
    page.unlink()
    once(context, step, draw)
    assert times == ["drawn"] * 3
    assert "report is done anew: page.html is missing" in said(context)


def test_a_step_is_done_anew_where_what_it_read_has_become_another(context: Context, tmp_path: Path) -> None:
    head, table = tmp_path / "head", tmp_path / "table"
    training = Step("fold0/lrmil", "key", (head,))
    testing = Step("fold0/test_lrmil", "key", (table,), reads=(head,))
    for weights, again in (("one", True), ("one", False), ("two", True)):
        head.unlink(missing_ok=True)
        once(context, training, lambda text=weights: write_text(head, text))
        assert is_done(context.run_dir, testing) == (not again)
        once(context, testing, lambda text=weights: write_text(table, text))
        assert table.read_text() == weights


def test_a_step_isnt_done_again_for_what_only_the_report_shows(context: Context, tmp_path: Path) -> None:
    made, curve = tmp_path / "made", tmp_path / "curve.csv"
    step = Step("fold0/lrmil", "key", (made,), shows=(curve,))
    once(context, step, lambda: (made.touch(), write_text(curve, "epoch\n0\n")))
    once(context, step, lambda: pytest.fail("it is done"))
    assert "Note" not in said(context)
    curve.write_text("epoch\n1\n")
    assert is_done(context.run_dir, step)
    once(context, step, lambda: pytest.fail("it is done"))
    assert "Note: curve.csv isn't as fold0/lrmil wrote it." in said(context).replace("\n", " ")
    with pytest.raises(RunDirError, match=r"curve\.csv isn't as this run wrote it"):
        context.run_dir.markers.read(curve, "fold0/lrmil")


def test_steps_of_earlier_versions_are_done_and_their_files_are_read(
    context: Context, tmp_path: Path
) -> None:
    made, key = tmp_path / "made", content_hash("inputs")
    made.write_text("before")
    step = Step("fold0/lrmil", key, (made,), reads=(tmp_path / "not looked at",))
    write_text(context.run_dir.markers.path(step.name), key)  # all that their markers held
    once(context, step, lambda: pytest.fail("it is done"))
    assert said(context) == "fold0/lrmil: done before, by a version that kept no hashes of its files\n"
    assert context.run_dir.markers.read(made, step.name) == b"before"
    made.unlink()
    assert not is_done(context.run_dir, step)


def test_a_file_of_no_finished_step_is_refused(context: Context, tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.write_text("half")
    markers = context.run_dir.markers
    assert (
        markers.read(made, "fold0/lrmil") == b"half"
    )  # a run of before all this: it has no markers that tell
    context.run_dir.write_config(context.config)
    with pytest.raises(RunDirError, match="made belongs to no finished step of this run"):
        markers.read(made, "fold0/lrmil")
    with pytest.raises(FileNotFoundError):
        markers.read(tmp_path / "absent", "fold0/lrmil")


def test_steps_are_dealt_out_and_each_is_done(context: Context, tmp_path: Path) -> None:
    files = [tmp_path / name for name in "abc"]
    each_once(context, [(Step(f"fold0/{path.name}", "key", (path,)), path.touch) for path in files])
    assert all(path.is_file() for path in files)
    assert sorted(path.name for path in (tmp_path / "done").iterdir()) == ["fold0-a", "fold0-b", "fold0-c"]


def test_what_the_report_shows_is_not_read_into_memory_to_be_compared(
    context: Context, tmp_path: Path
) -> None:
    table = tmp_path / "slides.csv"
    with table.open("wb") as file:
        file.truncate(2**26)
    steps = Steps(context, [Split(fold=0, train=(), val=(), test=(), extra=())])
    tracemalloc.start()
    try:
        key = steps.report().key
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**23
    with table.open("r+b") as file:
        file.truncate(2**26 - 1)
    assert steps.report().key != key
    table.unlink()
    with pytest.raises(RunDirError, match=r"slides\.csv can't be read"):
        steps.report()


# --- what is stored and keyed ----------------------------------------------------------------------------------------


def of_layers(folder: Path, layers: list[int], **encoder: object) -> Context:
    config = RunConfig.model_validate(
        {
            "run": {"out_dir": folder},
            "data": {"slides": folder / "slides.csv"},
            "encoder": {"architecture": "vit_tiny_patch16_224", "options": {"depth": 6}, **encoder},
            "stage1": {"layers": layers},
        }
    )
    return Context(
        run_dir=RunDir(folder),
        config=config,
        geometry=config.tiles.geometry(None),
        tiles={},
        class_names=("a", "b"),
        runtime=Runtime("cpu"),
        reporter=Reporter(Console(file=io.StringIO())),
    )


def test_other_layers_of_a_run_are_found_in_what_is_stored(tmp_path: Path) -> None:
    first = of_layers(tmp_path, [3]).hr_store()
    assert first.spec["layers"] == [0, 1, 3, 4]  # the first two and the last but one beside
    first.prepare()
    for layers in ([], [0, 4], [0, 1, 3, 4]):
        found = of_layers(tmp_path, layers).hr_store()
        assert found.root == first.root
        # Keys are those of what is asked for, as before.
        assert found.key == of_layers(tmp_path, layers).hr_store(tuple(layers)).root.name
    other = of_layers(tmp_path, [2]).hr_store()
    assert other.root != first.root
    assert other.spec["layers"] == [0, 1, 2, 4]
    assert of_layers(tmp_path, [3], batch_size=4).hr_store().root == first.root
    assert of_layers(tmp_path, [3], mean=(0.4, 0.5, 0.5)).hr_store().root != first.root


def test_a_store_of_an_earlier_version_goes_on_being_the_runs(tmp_path: Path) -> None:
    earlier = of_layers(tmp_path, []).hr_store(())
    assert earlier.spec["layers"] == []
    earlier.prepare()
    assert of_layers(tmp_path, []).hr_store() == earlier
    assert of_layers(tmp_path, [], stored_layers=[2]).hr_store() == earlier
    fresh = of_layers(tmp_path / "fresh", [], stored_layers=[]).hr_store()
    assert (fresh.root.name, fresh.key) == (earlier.root.name, earlier.key)


def test_what_is_new_in_the_config_changes_no_key_until_it_is_used() -> None:
    config = {"run": {"out_dir": "run"}, "data": {"slides": "slides.csv"}}
    text = RunConfig.model_validate(config).model_dump_json()
    assert not [name for name in ("checkpoint_minutes", "checkpoint_steps", "stored_layers") if name in text]
    section = Stage1Section()
    assert section.pair_limit == 300_000
    assert Stage1Section(pairs_per_epoch=0).pair_limit is None
    assert '"pairs_per_epoch":null' in section.model_dump_json()


@pytest.mark.parametrize("n", [1, 2, 4, 7])
def test_work_is_dealt_by_its_size(n: int) -> None:
    sizes = [10_000, 300, 9_000, 50, 4_000, 4_000, 1_000, 8_000, 20, 700]
    dealt = deal(sizes, n)
    loads = [sum(size for size, rank in zip(sizes, dealt, strict=True) if rank == one) for one in range(n)]
    assert sum(loads) == sum(sizes)
    assert max(loads) <= max(max(sizes), 4 / 3 * sum(sizes) / n)  # the bound of this order of dealing
