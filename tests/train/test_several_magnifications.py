"""Runs whose heads read several magnifications: their tiles and bags are those of prediction, as teacher, student and bundle."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from run_helpers import python, read_rows, write_config
from typer.testing import CliRunner

from napari_lrmil.cli.main import app
from napari_lrmil.errors import ConfigError
from napari_lrmil.model.bundle import ModelBundle, load_bundle
from napari_lrmil.model.mil import HEADS, Bag
from napari_lrmil.predict import ReadBags, bundle_tiles, predict_slide, read_bags, run_to_end
from napari_lrmil.slide import Slide
from training.config import load_config
from training.data.tile_index import Magnifications, Reading
from training.methods import BY_KEY, LR, TEACHER
from training.progress import Reporter
from training.run.context import Context
from training.run.pipeline import tiles_of_both
from training.run.prepare import Prepared, prepare
from training.stages.embed_tiles import embed_slide
from training.studies.diagnose import diagnose
from training.studies.head_fits import train_heads

CPU = torch.device("cpu")
ZOOM = {"zoom": [2], "k": 2, "projection_dim": 16, "hidden_dim": 16}
HDMIL = {"projection_dim": 16, "hidden_dim": 16, "light_dim": 16, "k": 4, "degree": 3}
ROWS = f"""
[stage2]
gate = "off"

[mil.teacher]
name = "hdmil"
head = {{ zoom = 2, {", ".join(f"{key} = {value}" for key, value in HDMIL.items())} }}
[mil.student]
name = "zoommil"
head = {{ {", ".join(f"{key} = {value}" for key, value in ZOOM.items())} }}
[[compare]]
key = "teacher_hr"
[[compare]]
key = "lr_scratch"
[[compare]]
key = "hdmil_student"
embedding = "student"
head = "hdmil"
losses = ["ce", "bag", "soft", "hard"]
mil = {{ head = {{ zoom = 2, {", ".join(f"{key} = {value}" for key, value in HDMIL.items())} }} }}
"""
"""Teacher HDMIL at 1 and 0.5 µm/px; LRMIL and LR from scratch with ZoomMIL, and a row with HDMIL, at 4 and 2 µm/px."""


@pytest.fixture(scope="module")
def several(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``config.toml`` and a finished run of it. Don't change it."""
    folder = tmp_path_factory.mktemp("several")
    path = write_config(folder, cohort)
    path.write_text(
        path.read_text().replace("bootstrap = 100", 'bootstrap = 100\nshortcuts = ["random_init"]') + ROWS
    )
    done = python(folder, "-m", "training.run", "config.toml", timeout_s=900)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "stdout.txt").write_text(done.stdout)
    return folder


def quiet() -> Reporter:
    return Reporter(Console(file=io.StringIO()))


def prepared(folder: Path, *words: str) -> Prepared:
    config = load_config(folder / "config.toml", ["--run.out_dir", str(folder / "run"), *words])
    return prepare(config, skip_bad=False, reporter=quiet(), writes=False)


def bundles(folder: Path) -> list[tuple[str, ModelBundle]]:
    """The student's, and the teacher's, which is the cheapest that is good enough where nothing can be shown."""
    fold = folder / "run" / "fold0"
    return [("lrmil", load_bundle(fold / "bundle")), (TEACHER.key, load_bundle(fold / "cheapest"))]


def read_by(bundle: ModelBundle, slide: Slide) -> ReadBags:
    sets = bundle_tiles(slide, bundle.info)
    return run_to_end(read_bags(bundle.encoder, bundle.mil, slide, sets, device=CPU, batch_size=64))


# --- a whole run


@pytest.mark.slow
def test_bundles_say_of_test_slides_what_the_run_said(several: Path) -> None:
    context = prepared(several).context
    for method, bundle in bundles(several):
        name, mpps = ("zoommil", (4.0, 2.0)) if method == "lrmil" else ("hdmil", (1.0, 0.5))
        assert (bundle.info.mil.name, bundle.info.mpps) == (name, mpps)
        rows = read_rows(several / "run" / "fold0" / "predictions" / f"{method}.csv")
        assert len(rows) == 4
        for row in rows:
            with Slide(context.tiles[row["slide_id"]].row.path) as slide:
                found = run_to_end(predict_slide(slide, bundle, device=CPU))
            # f keeps its weights; the bundle of what it reads rounds them. Those of f' were rounded before.
            assert found.class_probabilities[0] == pytest.approx(
                float(row["p_benign"]), abs=1e-6 if method == "lrmil" else 2e-3
            )
            assert found.ood_score is not None


@pytest.mark.slow
def test_nothing_finer_than_declared_is_read_and_only_the_children_of_what_the_head_chose(
    several: Path, generated_slide: Path
) -> None:
    for _, bundle in bundles(several):
        with Slide(generated_slide) as slide:
            sets = bundle_tiles(slide, bundle.info)
        with Slide(generated_slide) as slide:
            read = read_by(bundle, slide)
            levels = [slide.level_mpps[level] for level in slide.pixels_read]
        assert min(levels) >= max(mpp for mpp in (0.5, 2.0, 8.0) if mpp <= bundle.info.mpps[-1])
        assert len(read.tiles[0]) == len(sets[0])
        (wanted,) = [bundle.mil.children_to_read(read.bags[:1]).tolist()]
        chosen = {sets[0].places[index] for index in wanted}
        expected = [(row, col) for row, col in sets[1].places if (row // 2, col // 2) in chosen]
        assert read.tiles[1].places == expected
        if bundle.info.mil.name == "zoommil":
            assert len(wanted) == 2
            assert len(expected) < len(sets[1])


@pytest.mark.slow
def test_the_bag_that_training_makes_is_the_one_that_prediction_makes(several: Path) -> None:
    context, (split,), steps = prepared(several)
    plan = steps.stage1_plan(split)
    hashes = {"lrmil": steps.student_hash(plan), TEACHER.key: context.encoder_hash}
    for method, bundle in bundles(several):
        store = context.several(BY_KEY[method], hashes[method])
        assert store is not None
        (row, *_) = split.test
        (bag,) = context.bags(store, [row])
        with Slide(row.path) as slide:
            sets, served = bundle_tiles(slide, bundle.info), read_by(bundle, slide).bags
        for whole, tiles in zip(bag.several, sets, strict=True):
            assert whole.places is not None
            assert whole.places.flip(1).tolist() == [list(place) for place in tiles.places]
        part = bundle.mil.part_to_read(bag.several)
        assert isinstance(part, tuple)
        for mine, theirs in zip(part, served, strict=True):
            assert mine.mpp == theirs.mpp
            assert torch.equal(mine.places, theirs.places)
            assert (mine.parents is None) == (theirs.parents is None)
            assert mine.parents is None or torch.equal(mine.parents, theirs.parents)
            torch.testing.assert_close(mine.embeddings, theirs.embeddings, atol=0.02, rtol=0.02)
        # Tiles that aren't read change nothing of what the head says.
        with torch.inference_mode():
            torch.testing.assert_close(
                bundle.mil(part).bag_logits, bundle.mil(bag.several).bag_logits, atol=1e-5, rtol=1e-5
            )


@pytest.mark.slow
def test_the_costs_are_of_the_tiles_that_the_head_reads(several: Path) -> None:
    _, (split,), _ = prepared(several)
    front = json.loads((several / "run" / "front.json").read_text())
    costs = {row["key"]: row["costs"] for row in front["rows"]}
    assert set(costs) == {TEACHER.key, "lr_scratch", "lrmil", "hdmil_student"}
    for method, bundle in bundles(several):
        counts = []
        for row in split.test:
            with Slide(row.path) as slide:
                counts.append(sum(map(len, read_by(bundle, slide).tiles)))
        assert costs[method]["tiles"] == pytest.approx(np.mean(counts), abs=1)
    assert all(one["seconds"] > 0 and one["megabytes"] > 0 for one in costs.values())
    # 4 tiles at 4 µm/px, and 2 x 4 at most of those in them.
    assert costs["lrmil"]["tiles"] <= 12


@pytest.mark.slow
def test_attention_is_kept_of_all_finest_tiles_and_is_0_where_none_is_read(several: Path) -> None:
    context, (split,), _ = prepared(several)
    folder = context.run_dir.fold(0)
    for key, reading in (("lrmil", Reading(1, False, 2, 1)), (TEACHER.key, Reading(4, False, 2, 1))):
        kept = folder.read_attention(key)
        for row in split.test:
            one = kept[row.slide_id]
            np.testing.assert_array_equal(one.places, context.tiles[row.slide_id].several[reading].places)
            assert one.scores.sum() == pytest.approx(1, abs=1e-5)
            if key == "lrmil":
                assert (one.scores > 1e-6).sum() <= 8


@pytest.mark.slow
def test_the_run_says_which_terms_are_left_out_and_goes_on_where_it_was(
    several: Path,
) -> None:
    results: dict[str, Any] = json.loads((several / "run" / "results.json").read_text())
    note = "stage 2 without l_hard's instances: its own head ({}) doesn't classify tiles as deciding or not"
    assert results["lrmil"]["left_out"] == note.format("zoommil")
    assert results["hdmil_student"]["left_out"] == note.format("hdmil")
    terms = (several / "run" / "fold0" / "metrics" / "hdmil_student.csv").read_text().partition("\n")[0]
    own = {"light_mask", "light_rate", "rate", "kept_classes", "soft", "bag", "hard"}
    assert {f"train_{name}" for name in own} <= set(terms.split(","))
    report = (several / "run" / "report.html").read_text()
    assert "All other rows read LR tiles alone, with head hdmil or zoommil coarser ones too." in report
    printed = python(several, "-m", "training.run", "config.toml").stdout
    trained = (
        "teacher_mil",
        "stage1",
        "lr_scratch",
        "lrmil",
        "hdmil_student",
        "random_init",
        "export",
        "export_cheapest",
    )
    for name in trained:
        assert f"fold0/{name}: done before" in printed
    assert "Embedding" not in printed
    plan = python(several, "-m", "training.run", "config.toml", "--dry-run").stdout
    assert "0 of " in plan
    assert "embed HR x 2 (grid x 2)" in plan


@pytest.mark.slow
def test_diagnose_has_such_rows_and_head_fits_refuses_them(several: Path) -> None:
    found = prepared(several)
    facts = diagnose(found)
    assert {TEACHER.key, "lr_scratch", "lrmil", "hdmil_student"} <= facts.heads.keys()
    assert all(0 <= value <= 1 for values in facts.heads.values() for value in values)
    section = found.context.config.student_mil
    with pytest.raises(ConfigError, match="'zoommil' reads 2"):
        next(train_heads(found, section, seeds=[0], hr=False, fold=0))


@pytest.mark.slow
def test_the_command_line_reads_the_bundle_of_such_a_run(
    several: Path, generated_slide: Path, tmp_path: Path
) -> None:
    path = several / "run" / "fold0" / "bundle"
    done = CliRunner().invoke(
        app, ["predict", str(generated_slide), "--bundle", str(path), "--out", str(tmp_path)]
    )
    assert done.exit_code == 0, done.output
    assert len(read_rows(tmp_path / "predictions.csv")) == 1


# --- tiles, bags and keys


@pytest.fixture(scope="module")
def planned(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """The same config, before anything is done but for the tiles."""
    folder = tmp_path_factory.mktemp("planned")
    path = write_config(folder, cohort)
    path.write_text(path.read_text() + ROWS)
    config = load_config(path, ["--run.out_dir", str(folder / "run")])
    return prepare(config, skip_bad=False, reporter=quiet())


def test_what_each_row_reads_follows_its_head(planned: Prepared) -> None:
    context = planned.context
    rows = {row.key: row for row in context.config.rows}
    assert context.magnifications(TEACHER) == Magnifications(4, (2, 1))
    assert context.magnifications(rows["lrmil"]) == Magnifications(1, (2, 1))
    assert context.magnifications(rows["tissue_fraction"]) is None
    assert [context.geometry.mpp(one) for one in context.readings(TEACHER)] == [1.0, 0.5]
    assert [context.geometry.mpp(one) for one in context.readings(rows["hdmil_student"])] == [4.0, 2.0]
    # A row's context says the same of it.
    mine = context.of_row(rows["hdmil_student"])
    assert mine.readings(rows["hdmil_student"]) == context.readings(rows["hdmil_student"])
    assert set(context.config.magnifications) == {Magnifications(4, (2, 1)), Magnifications(1, (2, 1))}


def test_tiles_are_remembered_and_each_has_a_parent_or_none(planned: Prepared) -> None:
    context = planned.context
    again = prepare(context.config, skip_bad=False, reporter=quiet()).context
    for name, tiles in context.tiles.items():
        assert list(tiles.several) == list(again.tiles[name].several)
        for reading, one in tiles.several.items():
            np.testing.assert_array_equal(one.places, again.tiles[name].several[reading].places)
            assert one.shape_yx == again.tiles[name].several[reading].shape_yx
        for method in (TEACHER, BY_KEY["lrmil"]):
            for coarse, fine in pairwise(context.readings(method)):
                held = {tuple(place) for place in (tiles.several[fine].places // 2).tolist()}
                # By the same mask a tile with tissue has a child with as much.
                assert {tuple(place) for place in tiles.several[coarse].places.tolist()} <= held


def test_tiles_that_are_embedded_are_not_embedded_again(planned: Prepared) -> None:
    context = planned.context
    row = context.labelled[0]
    reading = Reading(1, False, 2, 1)
    store = context.several(BY_KEY["lr_scratch"], "tried").stores[reading]  # type: ignore[union-attr]
    (job,) = context.jobs([row], store, reading=reading)  # type: ignore[arg-type]
    assert job.alike is not None
    encoder = context.teacher_encoder()
    tiles = job.alike.tiles
    part = replace(job.alike, tiles=replace(tiles, lr_places=tiles.lr_places[1:]))
    job = replace(job, alike=part)
    embed_slide(job, encoder, CPU)  # the other one isn't done: all of them
    plain = store.instances(row.slide_id)
    n = len(part.places)
    part.store.write(row.slide_id, embedding=np.full((n, encoder.embed_dim), 7.0), stamp=part.stamp)
    (store.root / "again").mkdir()  # type: ignore[attr-defined]
    other = replace(store, root=store.root / "again")  # type: ignore[type-var]
    embed_slide(replace(job, store=other), encoder, CPU)
    found = other.instances(row.slide_id)
    index = job.places_alike()
    assert (index >= 0).sum() == n
    assert (found[index >= 0] == 7).all()
    np.testing.assert_array_equal(found[index < 0], plain[index < 0])


def test_the_teachers_attention_is_gathered_from_its_tiles_onto_the_heads(planned: Prepared) -> None:
    context = planned.context
    tiles = next(iter(context.tiles.values()))
    both = tiles_of_both(context, BY_KEY["lrmil"], tiles)
    np.testing.assert_array_equal(both.lr_places, tiles.several[Reading(1, False, 2, 1)].places)
    np.testing.assert_array_equal(both.hr_places, tiles.several[Reading(4, False, 2, 1)].places)
    assert (np.array(both.lr_shape_yx) > both.lr_places.max(axis=0)).all()
    assert (np.array(both.lr_shape_yx) > both.hr_places.max(axis=0) // 4).all()


def keys_of(found: Prepared) -> dict[str, str]:
    """Of the steps and stores that need no other to be finished."""
    context, (split, *_), steps = found
    rows = {row.key: row for row in context.config.rows}
    lr = context.lr_store(context.encoder_hash)
    keys = {"hr": context.hr_store().key, "lr": lr.key, "teacher": steps.teacher(split).key}
    for name in ("lr_scratch", "stage2_only"):
        keys[name] = steps.of(rows[name]).head(split, rows[name], lr).key
    keys["stage1"] = steps.stage1(steps.stage1_plan(split)).key
    training = steps.of(rows["lr_scratch"]).head(split, rows["lr_scratch"], lr)
    keys["test"] = steps.test(split, rows["lr_scratch"], training, context.run_dir.fold(0)).key
    return keys


def test_keys_of_rows_with_other_heads_are_those_of_before(cohort: Path, tmp_path: Path) -> None:
    """Run directories of before stay valid, and such a row beside the others changes nothing of theirs."""
    write_config(tmp_path, cohort)
    before = keys_of(prepared(tmp_path))
    assert (before["hr"], before["lr"]) == ("hr-ba8dcf18a4de31d9", "lr-f5c2646ae4461be1")
    with (tmp_path / "config.toml").open("a") as file:
        file.write(
            '[[compare]]\nset = "decisive"\n'
            '[[compare]]\nkey = "zoomed"\nembedding = "lr"\nhead = "zoommil"\nmil = { head = { zoom = [2] } }\n'
        )
    assert keys_of(prepared(tmp_path)) == before


def test_the_part_that_is_read_by_hand() -> None:
    """Of three coarse tiles the last two are chosen; their children are the finer tiles 1, 2 and 4."""
    head = (
        HEADS["zoommil"].model_validate({"embed_dim": 3, "n_classes": 2, "zoom": (2,), "k": 2}).build().eval()
    )
    head.children_to_read = lambda read: torch.tensor([1, 2])  # type: ignore[method-assign]
    places = torch.arange(10).view(5, 2)
    coarse = Bag(torch.randn(3, 3), places=places[:3])
    fine = Bag(torch.randn(5, 3), places=places, parents=torch.tensor([0, 1, 2, -1, 1]))
    part = head.part_to_read((coarse, fine))
    assert isinstance(part, tuple)
    assert part[0] is coarse
    assert torch.equal(part[1].embeddings, fine.embeddings[[1, 2, 4]])
    assert part[1].parents.tolist() == [1, 2, 1]  # type: ignore[union-attr]
    assert part[1].places.tolist() == [[2, 3], [4, 5], [8, 9]]  # type: ignore[union-attr]
    # Of three magnifications, parents become indices in what is read of the middle one.
    finest = Bag(torch.randn(4, 3), parents=torch.tensor([0, 4, 2, 1]))
    head.children_to_read = lambda read: torch.tensor([1, 2])  # type: ignore[method-assign]
    *_, last = head.part_to_read((coarse, fine, finest))
    assert last.parents.tolist() == [2, 1]  # type: ignore[union-attr]
    assert torch.equal(last.embeddings, finest.embeddings[[1, 2]])  # type: ignore[union-attr]
    alone = Bag(torch.randn(2, 3))
    assert head.part_to_read(alone) is alone


SMALL = '[run]\nout_dir = "run"\n[data]\nslides = "slides.csv"\n'


@pytest.mark.parametrize(("text", "message"), [
    ('[[compare]]\nkey = "a"\nembedding = "lr_enlarged_2"\nhead = "zoommil"\n',
     r"compare row 'a': head 'zoommil' reads 3 magnifications, and 'lr_enlarged_2' \(f on LR enlarged 2 times\) has one: "
     "take a head of one for this row, or another embedding"),
    ('[[compare]]\nkey = "a"\nembedding = "hr_subset"\nhead = "hdmil"\n', "'hdmil' reads 2 magnifications, and 'hr_subset'"),
    ('[[compare]]\nkey = "a"\nembedding = "end_to_end"\nhead = "hdmil"\n', "'hdmil' reads 2 magnifications, and 'end_to_end'"),
    ('[mil]\nname = "zoommil"\n[[compare]]\nset = "controls"\n', "compare row 'lr_enlarged_2': head 'zoommil' reads 3"),
    ('[stage1]\nweighting = "attention"\nscope = "fold"\nslides = "train"\n[mil.teacher]\nname = "zoommil"\n',
     "'zoommil' looks at those that it chose: take stage1.weighting 'uniform'"),
])  # fmt: skip
def test_what_has_no_magnifications_is_refused_in_one_sentence(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "config.toml").write_text(SMALL + text)
    with pytest.raises(ConfigError, match=message) as raised:
        load_config(tmp_path / "config.toml", [])
    assert "\n" not in str(raised.value)


def test_a_slide_without_tissue_at_the_coarsest_is_named_before_anything_starts(
    cohort: Path, tmp_path: Path
) -> None:
    """Tiles of 2 mm hold too little of a slide of 256 µm."""
    write_config(tmp_path, cohort)
    with (tmp_path / "config.toml").open("a") as file:
        file.write(
            '[[compare]]\nkey = "a"\nembedding = "lr"\nhead = "hdmil"\nmil = { head = { zoom = 32 } }\n'
        )
    with pytest.raises(ConfigError, match=r"for a head that reads 64, 2 µm/px: .*no tissue found"):
        prepared(tmp_path)


def test_context_knows_its_heads(planned: Prepared) -> None:
    context: Context = planned.context
    assert context.several(TEACHER, "f") is not None
    assert LR.has_magnifications
    names = {reading: store.key for reading, store in context.several(TEACHER, "f").stores.items()}  # type: ignore[union-attr]
    assert len(set(names.values())) == 2
    assert all(name.startswith("several-") for name in names.values())
