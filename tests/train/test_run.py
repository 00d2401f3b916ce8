"""``python -m training.run`` from a table of slides to a bundle that serves what was evaluated."""

from __future__ import annotations

import io
import json
import shutil
import signal
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from run_helpers import (
    METHODS,
    SHORTCUTS,
    absolute_rows,
    python,
    read_rows,
    rerun,
    weights,
    write_config,
    write_rows,
)
from safetensors.torch import load_file as load_tensors
from typer.testing import CliRunner

from napari_lrmil.cli.main import app as lrmil
from napari_lrmil.errors import ConfigError, EncoderError
from napari_lrmil.model.bundle import load_bundle, load_info
from napari_lrmil.model.calibration import called_class
from napari_lrmil.predict import embed_tiles, predict_slide, run_to_end, student_tiles
from napari_lrmil.slide import Slide
from training.config import load_config
from training.data.store import EmbeddingStore
from training.files import save_tensors
from training.intervals import FoldScores
from training.metrics import slide_metrics
from training.progress import Reporter
from training.run.cli import app
from training.run.layout import RunDir
from training.run.markers import Markers, RunDirError
from training.run.prepare import Prepared, prepare
from training.run.results import compare
from training.stages.distill_tiles import pair_loader
from training.stages.heads import Fit

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")


def results_of(folder: Path) -> dict[str, dict[str, object]]:
    results: dict[str, dict[str, object]] = json.loads((folder / "run" / "results.json").read_text())
    return results


def prepared(folder: Path, table: Path, *overrides: str) -> Prepared:
    """A run in a folder, made or to be made, as its steps see it."""
    config = load_config(write_config(folder, table), ["--run.out_dir", str(folder / "run"), *overrides])
    return prepare(config, skip_bad=False, reporter=Reporter(Console(file=io.StringIO())))


# --- what a run leaves -----------------------------------------------------------------------------------------------


def test_results_name_every_method_with_interval_and_paired_difference(finished: Path) -> None:
    results = results_of(finished)
    assert list(results) == [*METHODS, *SHORTCUTS]
    for method, found in results.items():
        low, value, high = (found["auc_interval"][i] for i in (1, 0, 2))  # type: ignore[index]
        assert 0 <= low <= value <= high <= 1
        assert value == pytest.approx(found["auc"])
        assert found["n_test"] == 4
        assert ("lrmil_minus_this" in found) == (method != "lrmil")
        if method != "lrmil":
            difference = results["lrmil"]["auc"] - found["auc"]  # type: ignore[operator]
            assert found["lrmil_minus_this"][0] == pytest.approx(difference)  # type: ignore[index]
    said = (finished / "stdout.txt").read_text()
    for name in ("teacher on HR", "LR from scratch", "LRMIL", "Test slides: 2 benign, 2 lesion"):
        assert name in said
    for name in ("tissue alone", "colour alone", "random encoder"):
        assert name in said


def test_classes_of_one_patient_have_no_interval_and_are_no_crash_at_the_end_of_a_run(
    copied: Callable[..., Path], cohort: Path
) -> None:
    """Of seven patients, nearly every resample lacks one: too few are left, and the AUC itself is defined."""
    context, _, steps = prepared(copied(), cohort, "--evaluate.bootstrap", "100")
    names = tuple(str(index) for index in range(7))
    labels = np.arange(7)
    one = FoldScores(labels, names, np.eye(7)[None, None])
    other = one._replace(probabilities=np.full((1, 1, 7, 7), 1 / 7))
    tested = {"lrmil": [one], "lr_scratch": [other]}
    fits = {method: [Fit(train_auc=1.0, fitted=True)] for method in tested}
    results = compare(replace(context, class_names=names), steps, [0], tested, fits)
    assert results["lrmil"]["auc_interval"] == [1.0, None, None]
    assert results["lr_scratch"]["lrmil_minus_this"] == [0.5, None, None]
    assert json.loads((context.run_dir.root / "results.json").read_text())["lrmil"]["auc"] == 1.0


def test_resolved_config_is_in_the_run_directory(finished: Path) -> None:
    config = json.loads((finished / "run" / "config.json").read_text())
    assert config["run"]["seed"] == 5
    assert config["stage2"]["k"] == 4  # a default, written out


def test_every_method_is_judged_on_every_test_slide(finished: Path, cohort: Path) -> None:
    """Also those of which the teacher saw nothing: the table chooses test slides, and nobody else."""
    test = [row for row in read_rows(cohort) if row["fold"] == "test"]
    for method in (*METHODS, *SHORTCUTS):
        told = read_rows(finished / "run" / "fold0" / "predictions" / f"{method}.csv")
        assert [(row["slide_id"], row["label"]) for row in told] == [
            (row["slide_id"], row["label"]) for row in test
        ]
        for row in told:
            assert float(row["p_benign"]) + float(row["p_lesion"]) == pytest.approx(1, abs=1e-12)


def test_predictions_hold_every_digit_of_what_the_results_say(finished: Path) -> None:
    for method, results in results_of(finished).items():
        told = read_rows(finished / "run" / "fold0" / "predictions" / f"{method}.csv")
        labels = np.array([["benign", "lesion"].index(row["label"]) for row in told])
        probabilities = np.array([[float(row["p_benign"]), float(row["p_lesion"])] for row in told])
        assert {name: results[name] for name in ("auc", "brier")} == {
            name: slide_metrics(labels, probabilities, labels)[name] for name in ("auc", "brier")
        }
        assert 0 <= results["train_auc"] <= 1
        assert results["n_trainings"] == 1
        called = np.array([["benign", "lesion"].index(row["called"]) for row in told])
        assert results["accuracy"] == pytest.approx((called == labels).mean())
        if method == "lrmil":
            point = load_bundle(finished / "run" / "fold0" / "bundle").info.operating_point
            assert point is not None
            assert called.tolist() == called_class(probabilities, point.thresholds).tolist()


def test_attention_on_the_test_slides_is_kept_with_its_places(finished: Path, cohort: Path) -> None:
    context = prepared_copy(finished).context
    test = [row["slide_id"] for row in read_rows(cohort) if row["fold"] == "test"]
    for method in (*METHODS, "random_init"):
        kept = load_tensors(finished / "run" / "fold0" / "test_attention" / f"{method}.safetensors")
        assert {key.split("/")[0] for key in kept} == set(test)
        for name in test:
            places = (
                context.tiles[name].hr_places if method == "teacher_hr" else context.tiles[name].lr_places
            )
            np.testing.assert_array_equal(kept[f"{name}/places"].numpy(), places)
            scores = kept[f"{name}/attention_scores"]
            assert scores.shape == (len(places),)
            assert scores.sum().item() == pytest.approx(1, abs=1e-5)


def prepared_copy(finished: Path) -> Prepared:
    """The finished run as its steps see it; only reads."""
    config = load_config(finished / "config.toml", ["--run.out_dir", str(finished / "run")])
    quiet = Reporter(Console(file=io.StringIO()))
    return prepare(config, skip_bad=False, reporter=quiet, writes=False)


def test_the_teachers_words_are_kept_for_training_slides_alone(finished: Path, cohort: Path) -> None:
    outputs = load_tensors(finished / "run" / "fold0" / "teacher_outputs.safetensors")
    names = {key.split("/")[0] for key in outputs}
    assert names == {row["slide_id"] for row in read_rows(cohort) if row["fold"] == "train"}
    for name in names:
        scores = outputs[f"{name}/attention_scores"]
        assert scores.sum().item() == pytest.approx(1, abs=1e-5)
        torch.testing.assert_close(scores, torch.softmax(outputs[f"{name}/attention_logits"], 0))


def test_the_teachers_embeddings_are_of_the_tiles_in_the_index(finished: Path, cohort: Path) -> None:
    """Computed here one tile at a time, from plain crops of level 0: at 0.5 µm/px a HR tile is 32 of its pixels."""
    context = prepared_copy(finished).context
    encoder, store = context.teacher_encoder(), context.hr_store()
    item = context.tiles["train-000"]
    embeddings, tokens = store.read("train-000"), store.read("train-000", "layer_class_tokens")
    n = len(item.hr_places)
    assert embeddings.shape == (n, 24)
    assert tokens.shape == (3, n, 24)  # of the layers that are matched, and of one beside
    with Slide(item.row.path) as slide, torch.no_grad():
        for index in (0, 1, n // 2, n - 1):
            row, col = (int(value) for value in item.hr_places[index])
            tile = slide.read_region((32 * col, 32 * row), 0, (32, 32))
            output = encoder(encoder.preprocess(torch.from_numpy(tile)[None]), (0, 1, 2))
            np.testing.assert_allclose(embeddings[index], output.embedding[0], rtol=2e-3, atol=2e-3)
            np.testing.assert_allclose(
                tokens[:, index], output.layer_class_tokens[:, 0], rtol=2e-3, atol=2e-3
            )


def test_one_store_holds_the_embeddings_of_each_encoder_and_resolution(finished: Path, cohort: Path) -> None:
    root = finished / "run" / "embeddings.zarr"
    specs = {place.name: json.loads((place / "store.json").read_text()) for place in root.iterdir()}
    assert sorted(name.split("-")[0] for name in specs) == ["hr", "lr", "lr", "lr"]  # f, f' and a random one
    assert len({(spec["kind"], spec["encoder"]) for spec in specs.values()}) == 4
    names = [row["slide_id"] for row in read_rows(cohort)]
    labelled = [row["slide_id"] for row in read_rows(cohort) if row["label"]]
    assert len(labelled) < len(names)
    for name, spec in specs.items():
        assert (spec["mpp"], spec["layers"]) == ((0.5, [0, 1, 2]) if spec["kind"] == "hr" else (2.0, []))
        store = EmbeddingStore(root / name)
        held = sorted(path.stem for path in store.root.glob("*.zarr"))
        assert held == sorted(names if spec["kind"] == "hr" else labelled)
        assert all(store.has(slide_id) for slide_id in held)


def test_stage1_has_changed_the_encoder(finished: Path) -> None:
    history = read_rows(finished / "run" / "fold0" / "metrics" / "stage1.csv")
    assert [row["epoch"] for row in history] == ["0.0", "1.0"]
    assert float(history[1]["train_loss"]) < float(history[0]["train_loss"])
    assert all(
        float(row["train_loss"])
        == pytest.approx(
            sum(float(row[f"train_{name}"]) for name in ("layer", "last", "attention")), rel=1e-4
        )
        for row in history
    )


def test_the_bundle_serves_what_was_evaluated(finished: Path, cohort: Path) -> None:
    """Train/serve skew: the probabilities on the test slides, by the run and by the bundle from the files anew."""
    model = load_bundle(finished / "run" / "fold0" / "bundle")
    fold = RunDir(finished / "run").fold(0)
    told = {row["slide_id"]: row for row in read_rows(fold.predictions("lrmil"))}
    attention = fold.read_attention("lrmil")
    _, (split,), steps = prepared_copy(finished)
    store = steps.student_store(steps.stage1_plan(split))
    for row in absolute_rows(cohort):
        if row["fold"] != "test":
            continue
        with Slide(row["path"]) as slide:
            result = run_to_end(predict_slide(slide, model, device=torch.device("cpu")))
        one = told[row["slide_id"]]
        # Batches of another size may round an embedding to the next half.
        assert result.class_probabilities[1] == pytest.approx(float(one["p_lesion"]), abs=1e-5)
        np.testing.assert_allclose(
            result.attention_scores, attention[row["slide_id"]].scores, rtol=0, atol=1e-5
        )
        bag = store.read(row["slide_id"])
        with Slide(row["path"]) as slide:
            tiles = student_tiles(slide, model.info)
            batches = embed_tiles(
                model.encoder, slide, tiles.grid, tiles.level, tiles.places, device=CPU, batch_size=32
            )
            served = torch.cat(list(batches)).numpy()
        assert (served.astype(np.float16) == served).all()  # the numbers that the store can hold
        np.testing.assert_allclose(served, bag, rtol=2**-10, atol=2**-24)  # the next half, at most


def test_the_bundle_says_where_it_comes_from(finished: Path) -> None:
    info = load_bundle(finished / "run" / "fold0" / "bundle").info
    assert (info.name, info.class_names, info.demonstration) == ("Tiny student", ("benign", "lesion"), True)
    assert (info.tiles.tile_px, info.tiles.mpp, info.teacher_mpp, info.token_px) == (32, 2.0, 0.5, 8)
    assert info.provenance.metrics["test_auc"] == pytest.approx(results_of(finished)["lrmil"]["auc"])
    assert len(info.provenance.config_sha256) == 64
    assert {"torch", "timm", "napari-lrmil", "python"} <= set(info.provenance.versions)
    assert info.scaling is not None
    assert min(info.scaling.temperatures) >= 1
    assert info.operating_point is not None
    assert (info.operating_point.rule, info.operating_point.positive) == ("youden", "lesion")


def test_lrmil_predict_takes_the_bundle(finished: Path, cohort: Path, tmp_path: Path) -> None:
    slide = next(row["path"] for row in absolute_rows(cohort) if row["fold"] == "test")
    bundle = finished / "run" / "fold0" / "bundle"
    done = CliRunner().invoke(lrmil, ["predict", slide, "-b", str(bundle), "-o", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    told = json.loads((tmp_path / "out" / f"{Path(slide).stem}.json").read_text())
    assert told["label"] in ("benign", "lesion")


def test_the_bundle_reads_the_tiles_that_training_stored(finished: Path, cohort: Path) -> None:
    """Of every slide: the same places, and as many embeddings of them in the store."""
    info = load_info(finished / "run" / "fold0" / "bundle")
    context = prepared(finished, cohort).context
    assert len(context.tiles) == 15
    stored = [EmbeddingStore(path.parent) for path in (finished / "run").rglob("store.json")]
    for slide_id, item in context.tiles.items():
        with context.geometry.open(item.row) as slide:
            served = student_tiles(slide, info)
        np.testing.assert_array_equal(item.lr_places, np.stack([served.rows, served.cols], axis=1))
        assert item.lr_shape_yx == served.grid.shape_yx
        counts = {store.n_tiles(slide_id) for store in stored if store.has(slide_id)}
        wanted = (
            {len(item.hr_places)} if item.row.label is None else {len(item.lr_places), len(item.hr_places)}
        )
        assert counts == wanted, slide_id  # LR tiles of unlabelled slides train no head


def test_nothing_pickled_lies_in_the_run(finished: Path) -> None:
    endings = {path.suffix for path in (finished / "run").rglob("*") if path.is_file()}
    assert not endings & {".pt", ".pth", ".pkl", ".npy", ".npz"}  # checkpoints last as long as their stage
    assert (finished / "run" / "report.html").is_file()
    assert not list((finished / "run").rglob(".writing-*"))


# --- seeds and leaks -------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bytes(cohort: Path, tmp_path: Path, one_thread: None) -> None:
    found = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        write_config(folder, cohort)
        rerun(folder, "--run.threads", "1" if name == "one" else "3")
        found.append(((folder / "run" / "results.json").read_bytes(), weights(folder)))
    assert found[0] == found[1]


def test_test_slides_touch_nothing_that_is_trained_or_chosen(
    finished: Path, cohort: Path, tmp_path: Path, one_thread: None
) -> None:
    """Other pixels and other labels on the test slides: the same weights, the same temperature, other results."""
    rows = absolute_rows(cohort)
    spare = [row["path"] for row in rows if row["fold"] == "test"]
    flip = {"benign": "lesion", "lesion": "benign"}
    for row in rows:
        if row["fold"] == "test":
            row["path"] = spare.pop()
            row["label"] = flip[row["label"]]
    write_config(tmp_path, write_rows(tmp_path / "slides.csv", rows))
    bundle, _ = rerun(tmp_path)
    write_config(tmp_path, cohort)
    again = tmp_path / "again"
    again.mkdir()
    write_config(again, cohort)
    reference, _ = rerun(again)
    assert weights(tmp_path) == weights(again)
    assert load_bundle(bundle).info.temperature == load_bundle(reference).info.temperature
    told = [read_rows(folder / "run" / "fold0" / "predictions" / "lrmil.csv") for folder in (tmp_path, again)]
    assert told[0] != told[1]


# --- resuming --------------------------------------------------------------------------------------------------------


def state_of(folder: Path) -> dict[Path, tuple[int, int]]:
    """The markers of finished steps and the manifests of embedded slides, as files."""
    places = [*folder.glob("run/done/*-*"), *folder.glob("run/embeddings.zarr/*/*.zarr/manifest.json")]
    return {place: (place.stat().st_ino, place.stat().st_mtime_ns) for place in places}


def work_since(folder: Path, before: dict[Path, tuple[int, int]]) -> set[str]:
    """What was trained, and which stores got slides: their files are others now."""
    specs = {
        path.parent: json.loads(path.read_text()) for path in folder.glob("run/embeddings.zarr/*/store.json")
    }
    teachers = {spec["encoder"] for spec in specs.values() if spec["kind"] == "hr"}
    found = set()
    for place, file in state_of(folder).items():
        if before.get(place) == file:
            continue
        if place.name == "manifest.json":
            spec = specs[place.parents[1]]
            student = "lr-teacher" if spec["encoder"] in teachers else "lr-student"
            lr = "lr-random" if spec["encoder"].startswith("random ") else student
            found.add(f"store {'hr' if spec['kind'] == 'hr' else lr}")
        else:
            found.add(place.name.partition("-")[2].replace("teacher_mil", "teacher"))
    return {name for name in found if not name.startswith(("export", "gate", "test_"))}


RANDOM = {"store lr-random", "random_init"}
STORES = {"store hr", "store lr-teacher", "store lr-student"}
STUDENTS = {"lr_scratch", "stage1_only", "stage2_only", "lrmil"}
ALL = {*STORES, *STUDENTS, *RANDOM, "teacher", "stage1"}


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], set()),
        (["--evaluate.bootstrap", "101"], set()),
        (["--export.name", "Other"], set()),
        (["--run.threads", "1"], set()),
        (["--stage2.l_soft", "0.25"], {"stage2_only", "lrmil"}),
        (["--run.checkpoint_seconds", "0"], set()),
        (["--data.cache_gib", "0"], set()),
        (["--mil.epochs", "3"], {"teacher", "random_init", *STUDENTS}),
        (["--stage1.learning_rate", "1e-4"], {"stage1", "store lr-student", "stage1_only", "lrmil"}),
        # The tokens of other layers are stored already.
        (["--stage1.layers", "[0, 1]"], {"stage1", "store lr-student", "stage1_only", "lrmil"}),
        (["--encoder.mean", "[0.5, 0.5, 0.5]"], ALL),
        (["--tiles.min_tissue", "0.3"], ALL),
        (["--run.seed", "6"], ALL),
    ],
    ids=lambda value: value[0] if isinstance(value, list) and value else None,
)
def test_a_second_run_does_what_changed_and_no_more(
    copied: Callable[..., Path], overrides: list[str], expected: set[str]
) -> None:
    folder = copied()
    before, trained = state_of(folder), weights(folder)
    bundle, said = rerun(folder, *overrides)
    assert work_since(folder, before) == expected
    if not expected:
        assert "fold0/stage1: done before" in said
        assert weights(folder) == trained
    if overrides == []:
        assert results_of(folder).keys() == {*METHODS, *SHORTCUTS}
    if "Other" in overrides:
        assert load_bundle(bundle).info.name == "Other"


def test_a_second_run_gives_the_same_results(finished: Path, copied: Callable[..., Path]) -> None:
    folder = copied()
    rerun(folder)
    assert results_of(folder) == results_of(finished)


def times_of(folder: Path) -> dict[str, int]:
    """Of the files that a run leaves for others, but for those that every run writes."""
    run = folder / "run"
    return {
        str(path.relative_to(run)): path.stat().st_mtime_ns
        for path in run.rglob("*")
        if path.is_file()
        and path.name not in ("config.json", "results.json", ".lock")
        and ".locks" not in path.parts
    }


def test_a_finished_run_again_writes_and_draws_nothing(copied: Callable[..., Path]) -> None:
    folder = copied()
    rerun(folder)  # this copy's out_dir stands in the config, so in bundle and report
    before = times_of(folder)
    _, said = rerun(folder)
    assert times_of(folder) == before
    assert "Report: examples" not in said
    table = folder / "run" / "fold0" / "metrics" / "lrmil.csv"
    table.write_text(table.read_text().replace("e-05", "e-04") + "\n")
    with pytest.raises(RunDirError, match=r"lrmil\.csv isn't as this run wrote it"):
        rerun(folder)  # the report would show what no training was like
    table.unlink()
    _, said = rerun(folder)
    assert "Report: examples" in said
    (folder / "run" / "report.html").write_text("damaged")
    rerun(folder)
    assert "Tiny student" in (folder / "run" / "report.html").read_text()


def test_what_other_configs_left_does_not_pass_for_this_runs(copied: Callable[..., Path]) -> None:
    """Experiments read every table of predictions in the directory, the report every fold."""
    folder = copied()
    run_dir = folder / "run"
    shutil.copytree(run_dir / "fold0", run_dir / "fold3")
    rerun(folder, "--evaluate.methods", '["teacher_hr"]', "--evaluate.shortcuts", '["rgb"]')
    left = {str(path.relative_to(run_dir)) for path in run_dir.glob("fold*/predictions/*.csv")}
    assert left == {f"fold0/predictions/{name}.csv" for name in ("teacher_hr", "lrmil", "rgb")}
    attention = {str(path.relative_to(run_dir)) for path in run_dir.glob("fold*/test_attention/*")}
    assert attention == {f"fold0/test_attention/{name}.safetensors" for name in ("teacher_hr", "lrmil")}


def test_predictions_name_the_patients_of_the_table(copied: Callable[..., Path], cohort: Path) -> None:
    """Intervals are taken over them."""
    folder = copied()
    rows = [row | {"patient_id": f"new-{row['patient_id']}"} for row in absolute_rows(cohort)]
    table = write_rows(folder / "slides.csv", rows)
    rerun(folder, "--data.slides", str(table))
    for path in (folder / "run" / "fold0" / "predictions").glob("*.csv"):
        assert all(row["patient_id"].startswith("new-") for row in read_rows(path)), path.stem


def test_changed_labels_retrain_what_has_seen_them(copied: Callable[..., Path], cohort: Path) -> None:
    folder = copied()
    before = state_of(folder)
    rows = absolute_rows(cohort)
    train = [row for row in rows if row["fold"] == "train"]
    one, other = train[0], next(row for row in train if row["label"] != train[0]["label"])
    one["label"], other["label"] = other["label"], one["label"]
    table = write_rows(folder / "other.csv", rows)
    rerun(folder, "--data.slides", str(table))
    assert work_since(folder, before) == {
        "teacher",
        "random_init",
        *STUDENTS,
    }  # stage 1, weighted evenly, has seen no label


def test_other_weights_at_the_same_path_are_another_encoder(copied: Callable[..., Path]) -> None:
    folder = copied()
    file = folder / "encoder.safetensors"
    state = load_tensors(folder / "run" / "fold0" / "student_encoder.safetensors")

    def save(factor: float) -> None:
        save_tensors(
            file,
            {name: value * factor if value.is_floating_point() else value for name, value in state.items()},
        )

    def work() -> set[str]:
        before = state_of(folder)
        rerun(folder, "--encoder.weights", str(file))
        return work_since(folder, before)

    for factor in (1.01, 1.02):
        save(factor)
        assert work() == ALL - RANDOM  # the random encoder of the baseline is still the same
        assert not work()
    save(1.0)  # the student of the first run: its LR embeddings are there already
    assert work() == ALL - RANDOM - {"store lr-teacher"}


def test_a_step_that_was_cut_off_under_another_config_does_not_pass_for_the_old_one(
    finished: Path, copied: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights may be half replaced: going back to the first config must train them again."""
    folder = copied()
    mark_done = Markers.write

    def cut_off(self: Markers, step: str, key: str, files: Iterable[Path] = ()) -> None:
        if step == "fold0/lr_scratch":
            raise KeyboardInterrupt  # after the files, before the marker
        mark_done(self, step, key, files)

    with monkeypatch.context() as patch:
        patch.setattr(Markers, "write", cut_off)
        with pytest.raises(KeyboardInterrupt):
            rerun(folder, "--mil.learning_rate", "1e-2")
    rerun(folder)
    assert results_of(folder) == results_of(finished)


def test_a_killed_run_goes_on_to_the_same_result(finished: Path, cohort: Path, tmp_path: Path) -> None:
    write_config(tmp_path, cohort)
    script = str(Path(__file__).with_name("killed_run.py"))
    third_slide = (
        "training.data.store",
        "EmbeddingStore.has",
        "18",
        "after",
    )  # 15 looks before the first slide
    done = python(tmp_path, script, *third_slide, "config.toml")
    assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr
    assert not (tmp_path / "run" / "results.json").exists()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rerun(tmp_path)
    finally:
        torch.set_num_threads(threads)
    results = results_of(tmp_path)
    for method, expected in results_of(finished).items():
        assert results[method]["auc"] == expected["auc"]
        assert results[method]["brier"] == pytest.approx(expected["brier"], rel=1e-4)


# --- other paths -----------------------------------------------------------------------------------------------------


def test_folds_with_attention_weights(cohort: Path, tmp_path: Path, one_thread: None) -> None:
    """Three folds dealt by the program; then the second alone: nothing was carried over from the first."""
    rows = [{key: value for key, value in row.items() if key != "fold"} for row in absolute_rows(cohort)]
    options = ["--data.n_folds", "3", "--stage1.weighting", "attention", "--stage2.aggregation", "mean"]
    for name in ("both", "alone"):
        folder = tmp_path / name
        folder.mkdir()
        write_config(folder, write_rows(folder / "slides.csv", rows))
        rerun(folder, *options, "--data.folds", "[0, 1]" if name == "both" else "[1]")
    both, alone = tmp_path / "both", tmp_path / "alone"
    assert weights(both, 1) == weights(alone, 1)
    assert weights(both, 0)["student_encoder"] != weights(both, 1)["student_encoder"]
    n_labelled = sum(bool(row["label"]) for row in rows)
    pooled = results_of(both)["lrmil"]["n_test"]
    assert isinstance(pooled, int)
    assert 2 * n_labelled / 3 - 2 <= pooled <= 2 * n_labelled / 3 + 2
    # Student embeddings for each fold, of its own encoder.
    found = prepared(both, both / "slides.csv", *options, "--data.folds", "[0, 1]")
    stores = [found.steps.student_store(found.steps.stage1_plan(split)) for split in found.splits]
    name = next(row["slide_id"] for row in rows if row["label"])
    assert not np.array_equal(stores[0].read(name), stores[1].read(name))


@pytest.mark.parametrize("slides", ["all", "train"])
def test_folds_share_an_encoder_of_all_slides_or_have_their_own(
    cohort: Path,
    tmp_path: Path,
    one_thread: None,
    slides: str,
) -> None:
    rows = [{key: value for key, value in row.items() if key != "fold"} for row in absolute_rows(cohort)]
    write_config(tmp_path, write_rows(tmp_path / "slides.csv", rows))
    options = ["--data.n_folds", "3", "--stage1.slides", slides, "--evaluate.shortcuts", "[]"]
    options += ["--evaluate.methods", '["lrmil"]']
    _, said = rerun(tmp_path, *options)
    run = tmp_path / "run"
    folders = ["shared"] if slides == "all" else ["fold0", "fold1", "fold2"]
    assert said.count("Stage 1: tiles") == len(folders)
    trained = sorted(path.relative_to(run).parts[0] for path in run.rglob("student_encoder.safetensors"))
    assert trained == folders
    assert sorted(path.relative_to(run).parts[0] for path in run.rglob("metrics/stage1.csv")) == folders
    assert results_of(tmp_path)["lrmil"]["n_test"] == sum(bool(row["label"]) for row in rows)
    if (
        slides == "all"
    ):  # another fold alone: nothing is trained anew, although the shared encoder is of all folds
        before, trained = state_of(tmp_path), weights(tmp_path, 1)
        rerun(tmp_path, *options, "--data.folds", "[1]")
        assert not work_since(tmp_path, before)
        assert weights(tmp_path, 1) == trained


def test_a_bad_slide_stops_the_run_before_it_starts_or_is_skipped(
    cohort: Path, tmp_path: Path, one_thread: None
) -> None:
    rows = absolute_rows(cohort)
    (tmp_path / "torn.tif").write_bytes(b"II*\x00 torn")
    bad = {
        "path": str(tmp_path / "torn.tif"),
        "patient_id": "p",
        "label": "lesion",
        "fold": "train",
        "mpp": "0.5",
    }
    rows += [
        {"slide_id": name, **bad, "path": path}
        for name, path in (("torn", bad["path"]), ("gone", "gone.tif"))
    ]
    config = write_config(tmp_path, write_rows(tmp_path / "slides.csv", rows))
    args = [str(config), "--run.out_dir", str(tmp_path / "run"), "--evaluate.methods", '["lrmil"]']
    stopped = CliRunner().invoke(app, args)
    assert stopped.exit_code == 1
    said = " ".join(stopped.output.split())
    assert "2 of 17 slides can't be used (--skip-bad-slides goes on without them): torn: " in said
    assert " gone: " in said
    assert not (tmp_path / "run" / "embeddings.zarr").exists()
    done = CliRunner().invoke(app, [*args, "--skip-bad-slides"])
    assert done.exit_code == 0, done.output
    assert "Skipped 2 of 17 slides" in done.output
    assert set(results_of(tmp_path)) == {"lrmil", *SHORTCUTS}


@pytest.mark.parametrize(
    ("overrides", "kind", "message"),
    [
        (["--data.folds", "[0, 3]"], ConfigError, r"the table has no fold \[3\]"),
        (["--tiles.tile_px", "16"], EncoderError, r"2 x 2 tokens a tile can't tell 4 x 4 children apart"),
        (["--tiles.tile_px", "36"], EncoderError, r"36 px isn't a whole number"),
        (["--stage1.layers", "[0, 5]"], EncoderError, r"layers must ascend within 0\.\.2"),
        (["--encoder.weights", "none.safetensors"], EncoderError, r"no encoder weights at none\.safetensors"),
        (["--tiles.mpp_lr", "1.0"], ConfigError, r"0\.25 µm/px is needed"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_what_cannot_run_is_told(
    cohort: Path, tmp_path: Path, one_thread: None, overrides: list[str], kind: type[Exception], message: str
) -> None:
    write_config(tmp_path, cohort)
    with pytest.raises(kind, match=message):
        rerun(tmp_path, *overrides)


def test_slides_without_a_single_pair_are_told(cohort: Path, tmp_path: Path) -> None:
    context = prepared(tmp_path, cohort).context
    tiles = [replace(item, hr_places=item.hr_places[:1]) for item in context.tiles.values()]
    with pytest.raises(ConfigError, match=r"none of 15 slides .* 25% of the children .*stage1\.min_children"):
        pair_loader(
            tiles,
            context.config.stage1,
            context.geometry,
            context.hr_store(),
            scores=None,
            threads=1,
        )


def test_errors_are_messages_on_the_command_line(cohort: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, cohort)
    for args, said in (
        (["--mil.epoch", "3"], "unknown key 'mil.epoch'; did you mean 'mil.epochs'?"),
        (["--data.slides", str(tmp_path / "[none].csv")], "[none].csv"),
        (["--run.out_dir", str(config)], "can't be a run directory"),
        (["--run.device", "cuda:77"], "no device 'cuda:77' here"),
    ):
        done = CliRunner().invoke(app, [str(config), *args])
        assert done.exit_code == 1
        assert said in " ".join(done.output.split())
        assert "Traceback" not in done.output
