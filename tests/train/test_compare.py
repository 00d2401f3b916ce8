"""What a run compares: rows of the config, the embeddings that they name, and work that rows share."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from run_helpers import rerun, write_config

from napari_lrmil.errors import ConfigError
from napari_lrmil.slide import choose_level, read_tile
from training.config import RunConfig, load_config
from training.data.derived import ChildrenMean, Ridged, Subset, fit_ridge, write_shuffled
from training.data.store import EmbeddingStore
from training.data.table import SlideRow
from training.data.tile_index import Reading, SlideTiles
from training.methods import BY_KEY, EMBEDDINGS, OURS
from training.progress import Reporter
from training.run import pipeline
from training.run.layout import RunDir
from training.run.pipeline import Embedded, embed
from training.run.prepare import Prepared, prepare
from training.stages.embed_tiles import enlarge

BASE = '[run]\nout_dir = "run"\n[data]\nslides = "slides.csv"\n'


def config_of(tmp_path: Path, text: str, before: str = "") -> RunConfig:
    path = tmp_path / "c.toml"
    path.write_text(BASE + before + text)
    return load_config(path)


# --- the config ------------------------------------------------------------------------------------------------------


def test_without_rows_a_run_compares_what_it_always_did(tmp_path: Path) -> None:
    keys = [
        "teacher_hr",
        "lr_scratch",
        "stage1_only",
        "stage2_only",
        "lrmil",
        "tissue_fraction",
        "rgb",
        "random_init",
    ]
    assert [row.key for row in config_of(tmp_path, "").rows] == keys
    decisive = config_of(tmp_path, '[[compare]]\nset = "decisive"\n')
    assert [row.key for row in decisive.rows] == keys
    before = config_of(tmp_path, '[evaluate]\nmethods = ["lr_scratch"]\nshortcuts = ["rgb"]\n')
    assert [row.key for row in before.rows] == ["lr_scratch", "rgb", "lrmil"]


def test_sets_hold_each_row_once_and_leave_out_what_the_ratio_cannot_give(tmp_path: Path) -> None:
    every = config_of(tmp_path, '[[compare]]\nset = "all"\n[[compare]]\nset = "controls"\n').rows
    keys = [row.key for row in every]
    assert len(set(keys)) == len(keys) == 5 + 8 + 5 + 3
    assert {row.embedding.key for row in every if row.embedding} == set(EMBEDDINGS)
    assert "mid" in keys
    assert "mid" not in [
        row.key for row in config_of(tmp_path, '[[compare]]\nset = "all"\n', "[tiles]\nratio = 2\n").rows
    ]
    # The paper's layers are at the ends of f, however deep it is.
    layers = {row.key: row.options for row in every}["paper_layers"]
    depth = 4  # of convstem_vit
    assert layers == {"stage1": {"layers": (0, 1, depth - 2)}}


def test_a_key_alone_names_a_row_of_the_program(tmp_path: Path) -> None:
    text = '[[compare]]\nkey = "lr_scratch"\n[[compare]]\nkey = "lr_enlarged_2"\n[[compare]]\nkey = "tissue_fraction"\n'
    config = config_of(tmp_path, text, "[evaluate]\nshortcuts = []\n")
    assert list(config.rows) == [
        BY_KEY[key] for key in ("lr_scratch", "lr_enlarged_2", "tissue_fraction", "lrmil")
    ]
    again = RunConfig.model_validate(config.model_dump(mode="json"))
    assert again.rows == config.rows


def test_a_row_of_ones_own_comes_back_from_the_kept_config(tmp_path: Path) -> None:
    text = (
        '[[compare]]\nset = "decisive"\n[[compare]]\nkey = "soft"\nembedding = "student"\nlosses = ["soft", "ce"]\n'
        "stage1 = { shifted = false }\nmil = { hidden_dim = 16 }\nstage2 = { l_soft = 2.0 }\n"
    )
    config = config_of(tmp_path, text)
    run_dir = RunDir(tmp_path)
    run_dir.write_config(config)
    assert run_dir.read_config() == config
    row = {row.key: row for row in config.rows}["soft"]
    assert (row.losses, row.is_distilled, row.is_of_student) == (("ce", "soft"), True, True)
    assert row.name == "f' on LR, ce + soft, stage1.shifted = False, mil.hidden_dim = 16, stage2.l_soft = 2.0"
    mine = config.of_row(row)
    stage2 = mine.stage2
    assert (stage2.l_ce, stage2.l_bag, stage2.l_soft, stage2.l_hard) == (1.0, 0.0, 2.0, 0.0)
    assert (mine.stage1.shifted, mine.mil.hidden_dim, mine.mil.epochs) == (False, 16, config.mil.epochs)
    assert (config.stage1.shifted, config.stage2.l_bag) == (True, 1.0)


OWN = '[[compare]]\nkey = "a"\nembedding = "lr"\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[[compare]]\nset = "decisiv"\n', "unknown set 'decisiv'; did you mean 'decisive'?"),
        ('[[compare]]\nkey = "a"\nembedding = "lr_enlargd_2"\n', "unknown embedding 'lr_enlargd_2'; did you mean 'lr_enlarged_2'?"),  # noqa: E501
        (OWN + 'losses = ["ce", "sofd"]\n', "unknown loss 'sofd'; did you mean 'soft'?"),
        (OWN + 'losses = ["ce", "ce"]\n', "each once"),
        (OWN + "hed = 3\n", "unknown key 'compare.0.hed'; did you mean 'compare.0.head'?"),
        (OWN + "mil = { gate = false }\n", "compare row 'a', mil: unknown key 'gate'; did you mean 'gated'?"),
        (OWN + "mil = { hidden_dim = 0 }\n", "compare row 'a', mil: hidden_dim: Input should be greater than 0"),
        (OWN + OWN, "two rows have the key 'a'"),
        ('[[compare]]\nkey = "lrmil"\nembedding = "lr"\n', "key 'lrmil' is taken"),
        ('[[compare]]\nkey = "stage1"\nembedding = "lr"\n', "key 'stage1' is taken"),
        ('[[compare]]\nkey = "a/b"\nembedding = "lr"\n', "key 'a/b': take up to 40"),
        ('[[compare]]\nkey = "A"\nembedding = "lr"\n', "key 'A': take up to 40"),
        ('[[compare]]\nkey = "a"\n', "a row needs 'embedding'"),
        ('[[compare]]\nset = "all"\nkey = "a"\n', "beside set = 'all' leave out 'key'"),
        ('[[compare]]\nkey = "a"\nembedding = "mid"\n[tiles]\nratio = 2\n', "compare row 'a': embedding 'mid' needs tiles.ratio of 4 or more"),  # noqa: E501
        ('[[compare]]\nkey = "a"\nembedding = "hr_subset"\nlosses = ["ce", "bag"]\n', "those of 'hr_subset' aren't"),
        (OWN + "stage1 = { shifted = false }\n", "stage1 concerns f' alone"),
        (
            '[[compare]]\nkey = "a"\nembedding = "student"\nstage1 = { weighting = "attention" }\n[stage1]\nslides = "unlabelled"\n',  # noqa: E501
            "compare row 'a': stage1.slides 'unlabelled' needs",
        ),
        (OWN + '[evaluate]\nmethods = ["lrmil"]\n', "leave out evaluate.methods"),
    ],
)  # fmt: skip
def test_a_wrong_row_is_told_in_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        config_of(tmp_path, text)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


# --- embeddings ------------------------------------------------------------------------------------------------------


def slide_tiles(
    hr: list[tuple[int, int]], lr: list[tuple[int, int]], shape: tuple[int, int] = (2, 2)
) -> SlideTiles:
    row = SlideRow("s", Path("s.tif"), "p", "a")
    return SlideTiles(row, shape, np.array(lr, np.int64), np.array(hr, np.int64))


def test_tiles_between_the_grids_are_those_that_hold_an_hr_tile() -> None:
    tiles = slide_tiles([(0, 0), (1, 1), (3, 6), (7, 7)], [(0, 0)])
    np.testing.assert_array_equal(tiles.places(2, 4), [(0, 0), (1, 3), (3, 3)])
    np.testing.assert_array_equal(tiles.places(4, 4), tiles.hr_places)
    np.testing.assert_array_equal(tiles.places(1, 4), tiles.lr_places)
    # Finer than HR: each part of it; and where the grids share no edge, each tile that overlaps.
    fine = slide_tiles([(0, 1)], [(0, 0)])
    np.testing.assert_array_equal(fine.places(4, 2), [(0, 2), (0, 3), (1, 2), (1, 3)])
    np.testing.assert_array_equal(
        slide_tiles([(1, 1)], [(0, 0)]).places(2, 3), [(0, 0), (0, 1), (1, 0), (1, 1)]
    )


def store_of(folder: Path, **slides: np.ndarray) -> EmbeddingStore:
    store = EmbeddingStore(folder)
    for name, values in slides.items():
        store.write(name, embedding=values)
    return store


def test_the_mean_of_the_children_leaves_out_those_without_tissue(tmp_path: Path) -> None:
    tiles = slide_tiles([(0, 0), (0, 1), (1, 1), (2, 3), (3, 1)], [(0, 0), (1, 1)])
    values = np.array(
        [[1, 8], [2, 8], [6, 8], [5, 7], [100, 100]], np.float32
    )  # the last one's parent is no LR tile
    found = ChildrenMean(store_of(tmp_path, s=values), {"s": tiles}, 2).instances("s")
    np.testing.assert_array_equal(found, np.array([[3, 8], [5, 7]], np.float16))


def test_a_subset_is_as_large_as_the_lr_bag_and_follows_slide_and_seed(tmp_path: Path) -> None:
    hr = [(row, col) for row in range(8) for col in range(10)]
    tiles = {
        "s": slide_tiles(hr, [(0, 0)], (2, 3)),
        "t": slide_tiles([(row, col + 2) for row, col in hr], [(0, 0)], (2, 3)),
    }
    values = np.arange(160, dtype=np.float32).reshape(80, 2)
    store = store_of(tmp_path, s=values, t=values)
    one = Subset(store, tiles, 4, 0)
    assert one.chosen("s").tolist() == sorted(set(one.chosen("s").tolist()))
    assert len(one.chosen("s")) == 5 == len(hr) // 16
    np.testing.assert_array_equal(one.instances("s"), values[one.chosen("s")])
    np.testing.assert_array_equal(one.chosen("s"), Subset(store, tiles, 4, 0).chosen("s"))
    assert one.chosen("s").tolist() != one.chosen("t").tolist()
    assert one.chosen("s").tolist() != Subset(store, tiles, 4, 1).chosen("s").tolist()
    assert one.key != Subset(store, tiles, 4, 1).key


def test_ridge_is_the_closed_form_of_the_least_generalised_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = {name: (100 + rng.normal(size=(n, 6))).astype(np.float16) for name, n in (("s", 40), ("t", 25))}
    true = rng.normal(size=(6, 4))
    y = {name: (v @ true + rng.normal(size=(len(v), 4))).astype(np.float16) for name, v in x.items()}
    inputs, targets = store_of(tmp_path / "x", **x), store_of(tmp_path / "y", **y)
    fit = fit_ridge(inputs, targets, ["s", "t"])
    both_x, both_y = (np.concatenate(list(values.values())).astype(np.float64) for values in (x, y))
    centred, wanted = both_x - both_x.mean(axis=0), both_y - both_y.mean(axis=0)

    def solve(strength: float) -> tuple[np.ndarray, float]:
        inverse = np.linalg.inv(centred.T @ centred + strength * np.eye(6))
        weights = inverse @ centred.T @ wanted
        freedom = 1 + np.trace(centred @ inverse @ centred.T)
        return weights, float(np.square(wanted - centred @ weights).sum() / (65 - freedom) ** 2)

    weights, error = solve(fit.strength)
    np.testing.assert_allclose(fit.coefficients, weights, rtol=1e-8)
    np.testing.assert_allclose(fit.intercept, both_y.mean(axis=0) - both_x.mean(axis=0) @ weights, rtol=1e-8)
    assert error <= min(solve(fit.strength * 10**power)[1] for power in (-0.5, 0.5))
    expected = x["t"].astype(np.float64) @ weights + fit.intercept
    np.testing.assert_allclose(Ridged(inputs, fit, "k").instances("t"), expected, rtol=2e-3)


def test_shuffled_targets_are_the_same_values_and_none_of_their_tiles(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = {name: rng.normal(size=(n, 3)).astype(np.float16) for name, n in (("s", 300), ("t", 200))}
    layers = {name: np.stack([one, 2 * one]) for name, one in values.items()}
    store, shuffled = EmbeddingStore(tmp_path / "a"), EmbeddingStore(tmp_path / "b")
    for name, one in values.items():
        store.write(name, embedding=one, layer_class_tokens=layers[name])
    write_shuffled(shuffled, store, ["s", "t"], ["embedding", "layer_class_tokens"], stamp="k", seed=3)
    before = np.concatenate(list(values.values()))
    after = np.concatenate([shuffled.read(name) for name in values])
    np.testing.assert_array_equal(np.sort(after, axis=0), np.sort(before, axis=0))
    assert abs(np.corrcoef(before[:, 0], after[:, 0])[0, 1]) < 0.15  # 3 standard errors of no relation
    assert set(after[:300, 0]) - set(before[:300, 0])  # also of other slides
    for name in values:  # a tile's targets stay together
        one = shuffled.read(name)
        np.testing.assert_array_equal(shuffled.read(name, "layer_class_tokens"), np.stack([one, 2 * one]))
    assert sorted(path.name for path in shuffled.root.iterdir()) == ["s.zarr", "store.json", "t.zarr"]
    written = (shuffled.root / "s.zarr" / "manifest.json").stat().st_mtime_ns
    write_shuffled(shuffled, store, ["s", "t"], ["embedding", "layer_class_tokens"], stamp="k", seed=3)
    assert (shuffled.root / "s.zarr" / "manifest.json").stat().st_mtime_ns == written


@pytest.mark.parametrize("factor", [2, 4])
def test_enlarged_pixels_are_pillows_bicubic(factor: int) -> None:
    """Of floats, which Pillow doesn't cut to 0 to 255 between its two passes: black beside white overshoots."""
    tile = np.random.default_rng(1).integers(0, 256, (2, 16, 16, 3), np.uint8)
    tile[0, :8], tile[0, 8:] = 0, 255
    size = (16 * factor, 16 * factor)
    bands = [
        [
            Image.fromarray(one[..., c].astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
            for c in range(3)
        ]
        for one in tile
    ]
    expected = np.stack([np.stack([np.asarray(band) for band in of_tile], axis=-1) for of_tile in bands])
    assert expected.min() < -10
    assert expected.max() > 265
    found = enlarge(tile, factor)
    assert found.dtype == np.uint8
    assert np.abs(found - expected.clip(0, 255)).max() <= 0.501


@pytest.fixture
def fresh(cohort: Path, tmp_path: Path, one_thread: None) -> Prepared:
    config = load_config(write_config(tmp_path, cohort), ["--run.out_dir", str(tmp_path / "run")])
    return prepare(config, skip_bad=False, reporter=Reporter(Console(file=io.StringIO())))


@pytest.mark.slow
@pytest.mark.parametrize("key", ["mid", "lr_enlarged_2", "lr_enlarged_4"])
def test_what_the_encoder_reads_is_what_the_name_says(fresh: Prepared, key: str) -> None:
    context, row = fresh.context, fresh.context.labelled[0]
    reading = EMBEDDINGS[key].reading(4)
    encoder, store = context.teacher_encoder(), context.read_store(reading)
    embed(context, [row], Embedded(encoder, store), None, reading=reading)
    found, tiles = store.instances(row.slide_id), context.tiles[row.slide_id]
    places = tiles.places(reading.factor, 4)
    assert len(found) == len(places)
    if key == "lr_enlarged_4":
        np.testing.assert_array_equal(places, tiles.hr_places)
    expected = []
    with context.geometry.open(row) as slide:
        lr = context.geometry.lr_grid(slide)
        for place_row, place_col in places.tolist():
            if key == "mid":
                grid = lr.subdivide(2)
                assert grid.spec.mpp == 1.0
                pixels = read_tile(slide, grid, choose_level(slide.level_mpps, 1.0), place_row, place_col)
            else:
                factor, edge = reading.factor, 32
                level = choose_level(slide.level_mpps, 2.0)
                whole = read_tile(slide, lr, level, place_row // factor, place_col // factor)
                large = enlarge(whole[None], factor)[0]
                top, left = place_row % factor * edge, place_col % factor * edge
                pixels = large[top : top + edge, left : left + edge]
            with torch.inference_mode():
                one = encoder(encoder.preprocess(torch.from_numpy(np.array(pixels))[None]))
            expected.append(one.embedding[0].numpy())
    np.testing.assert_allclose(found.astype(np.float32), np.stack(expected), rtol=2e-3, atol=2e-3)


@pytest.mark.slow
def test_an_encoder_of_enlarged_targets_learns_from_these_and_from_no_hr_tile(fresh: Prepared) -> None:
    """It is, weight for weight, what stage 1 makes where the HR tiles' embeddings are those of the enlarged LR tile."""
    (context, (split, *_), steps), enlarged = fresh, EMBEDDINGS["lr_enlarged_4"].reading(4)
    teacher, store = context.teacher_encoder(), context.read_store(enlarged)
    embed(context, context.rows, Embedded(teacher, store), None, reading=enlarged)
    plan = steps.stage1_plan(split, encoder="student_enlarged")
    pipeline.train_encoder(context, plan, steps, teacher)  # no HR tile has been embedded
    pretended = context.hr_store()
    assert not pretended.root.exists()
    pretended.prepare()
    for row in context.rows:
        arrays = {name: store.read(row.slide_id, name) for name in ("embedding", "layer_class_tokens")}
        pretended.write(row.slide_id, **arrays)
    usual = steps.stage1_plan(split)
    assert (usual.folder, plan.folder) == ("fold0", "fold0/student_enlarged")
    pipeline.train_encoder(context, usual, steps, teacher)
    found, expected = (context.run_dir.folder(one.folder).read_student() for one in (plan, usual))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    assert any(not torch.equal(found[name], value) for name, value in teacher.vit.state_dict().items())


# --- a whole run -----------------------------------------------------------------------------------------------------

ALL = """
[[compare]]
set = "all"

[[compare]]
key = "own-soft"
name = "soft alone"
embedding = "student"
losses = ["ce", "soft"]
stage1 = { shifted = false }
mil = { hidden_dim = 8 }
stage2 = { l_soft = 2.0 }
"""


@pytest.mark.slow
def test_a_run_of_all_rows_does_shared_work_once(
    cohort: Path, tmp_path: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_config(tmp_path, cohort)
    path.write_text(path.read_text() + ALL)
    embedded: list[tuple[str, int]] = []
    encoders: list[str] = []
    heads: list[str] = []
    embed_slides, distill, fit_head = pipeline.embed_slides, pipeline.distill_encoder, pipeline.fit_head

    def counted_embed(jobs: list, *args: object) -> None:
        todo = [job for job in jobs if not job.is_done]
        embedded.extend((job.store.key, len(job.places)) for job in todo)
        embed_slides(jobs, *args)

    def counted_distill(
        student: object, train: object, val: object, section: object, session: object, **more: object
    ) -> None:
        encoders.append(session.files.metrics_csv.parents[1].relative_to(tmp_path / "run").as_posix())
        distill(student, train, val, section, session, **more)

    def counted_head(train: object, val: object, section: object, session: object, **more: object) -> object:
        heads.append(session.files.metrics_csv.stem)
        return fit_head(train, val, section, session, **more)

    monkeypatch.setattr(pipeline, "embed_slides", counted_embed)
    monkeypatch.setattr(pipeline, "distill_encoder", counted_distill)
    monkeypatch.setattr(pipeline, "fit_head", counted_head)
    planned = rerun_plan(tmp_path)
    rerun(tmp_path)
    config = load_config(path)
    context = prepare(
        load_config(path, ["--run.out_dir", str(tmp_path / "run")]),
        skip_bad=False,
        reporter=Reporter(Console(file=io.StringIO())),
    ).context
    labelled, every = len(context.labelled), len(context.rows)
    # f' trained once for lrmil, stage1_only, paper_mean and paper_ungated; unshifted once for two rows.
    assert len(encoders) == len(set(encoders)) == 6
    assert sorted(heads) == sorted([row.key for row in config.rows if row.embedding])
    by_store: dict[str, int] = {}
    for key, _ in embedded:
        by_store[key.split("-")[0]] = by_store.get(key.split("-")[0], 0) + 1
    # HR, enlarged 4 times (also targets) of every slide, enlarged twice and mid of the labelled; LR by f, by six f' and
    # by the untrained one.
    assert by_store == {"hr": every, "enlarged": every + labelled, "mid": labelled, "lr": labelled * 8}
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert set(results) == {row.key for row in config.rows}
    assert results["own-soft"]["name"] == "soft alone"
    assert "soft alone" in (tmp_path / "run" / "report.html").read_text()
    assert (tmp_path / "run" / "fold0" / "predictions" / "own-soft.csv").is_file()
    assert (
        "embed HR: once for teacher_hr, lrmil" in planned
        or "embed HR: once for teacher_hr, stage1_only" in planned
    )
    assert "own-soft" in planned
    # Again: nothing is done, nothing changes.
    before = {
        one.relative_to(tmp_path): one.read_bytes()
        for one in sorted((tmp_path / "run").rglob("*"))
        if one.is_file() and "tensorboard" not in one.parts
    }
    for counted in (embedded, encoders, heads):
        counted.clear()
    rerun(tmp_path)
    assert (embedded, encoders, heads) == ([], [], [])
    for name, content in before.items():
        assert (tmp_path / name).read_bytes() == content, name


@pytest.mark.parametrize(
    ("embedding", "unlabelled_too"), [("lr_enlarged_4", False), ("student_enlarged", True)]
)
def test_unlabelled_slides_are_embedded_only_where_an_encoder_learns_from_them(
    cohort: Path, tmp_path: Path, embedding: str, *, unlabelled_too: bool
) -> None:
    path = write_config(tmp_path, cohort)
    path.write_text(path.read_text() + f'\n[[compare]]\nkey = "own"\nembedding = "{embedding}"\n')
    config = load_config(path, ["--run.out_dir", str(tmp_path / "run")])
    context = prepare(config, skip_bad=False, reporter=Reporter(Console(file=io.StringIO()))).context
    assert len(context.rows) > len(context.labelled)
    rows = pipeline.rows_read(context, Reading(context.geometry.ratio, enlarged=True))
    assert rows == (context.rows if unlabelled_too else context.labelled)
    assert pipeline.rows_read(context, context.hr_tiles) == context.rows
    assert pipeline.rows_read(context, context.lr_tiles) == context.labelled


def rerun_plan(folder: Path) -> str:
    text = io.StringIO()
    pipeline_config = load_config(folder / "config.toml", ["--run.out_dir", str(folder / "run")])
    from training.run.cli import run

    run(pipeline_config, skip_bad=False, reporter=Reporter(Console(file=text, width=250)), dry_run=True)
    assert not (folder / "run").exists()
    return text.getvalue()


@pytest.mark.slow
def test_a_row_more_leaves_what_others_share_as_it_was(copied: Callable[..., Path]) -> None:
    folder = copied()
    run = folder / "run"
    kept = {one: one.read_bytes() for one in (run / "fold0" / "mil").glob("*.safetensors")}
    kept[run / "fold0" / "student_encoder.safetensors"] = (
        run / "fold0" / "student_encoder.safetensors"
    ).read_bytes()
    assert OURS.key in {one.stem for one in kept}
    path = folder / "config.toml"
    own = '[[compare]]\nset = "decisive"\n[[compare]]\nkey = "early"\nembedding = "student"\nstage1 = { layers = [1] }\n'
    path.write_text(path.read_text() + own)
    _, said = rerun(folder)
    assert "fold0/stage1: done before" in said
    assert f"fold0/{OURS.key}: done before" in said
    assert "fold0/teacher_mil: done before" in said
    assert all(one.read_bytes() == content for one, content in kept.items())
    assert (run / "fold0" / "mil" / "early.safetensors").is_file()
    assert "f' on LR, stage1.layers = [1]" in said
