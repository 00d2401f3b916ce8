"""Results of several seeds as one table: hand-made run directories, values that can be computed by hand."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from napari_lrmil.errors import ConfigError
from training.config import load_config
from training.intervals import FoldScores, resample_aucs
from training.metrics import auc
from training.studies.attention import localisation_rows
from training.studies.results import app, auc_interval, fold_aucs, render
from training.studies.runs import read_experiment

SLIDES = {f"s{index}": (f"p{index // 2}", "lesion" if index % 2 else "benign") for index in range(12)}
"""Six patients, each with a slide of each class."""


def write_run(
    folder: Path,
    seed: int,
    scores: dict[str, dict[str, float]],
    *,
    n_folds: int = 2,
    slides: dict[str, tuple[str, str]] = SLIDES,
    training: str = "",
) -> Path:
    """Method -> slide -> probability of the lesion; patients are dealt into folds in turn. `training`: of another seed."""
    (folder / "done").mkdir(parents=True, exist_ok=True)
    config = {"run": {"seed": seed}, "tiles": {"tile_px": 64, "mpp_lr": 2.0, "ratio": 4}}
    (folder / "config.json").write_text(json.dumps(config))
    for method, by_slide in scores.items():
        for fold in range(n_folds):
            path = folder / f"fold{fold}" / training / "predictions" / f"{method}.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(["slide_id", "patient_id", "label", "p_benign", "p_lesion"])
                for name, (patient, label) in slides.items():
                    if int(patient[1:]) % n_folds == fold:
                        writer.writerow([name, patient, label, 1 - by_slide[name], by_slide[name]])
    return folder


def perfect() -> dict[str, float]:
    return {name: 0.9 if label == "lesion" else 0.1 for name, (_, label) in SLIDES.items()}


def noisy(seed: int) -> dict[str, float]:
    rng = np.random.default_rng(seed)
    return {
        name: float(np.clip(0.5 + 0.2 * (label == "lesion") + rng.normal(0, 0.2), 0.01, 0.99))
        for name, (_, label) in SLIDES.items()
    }


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return [
        write_run(
            tmp_path / f"seed{seed}",
            seed,
            {"lrmil": perfect(), "lr_scratch": noisy(seed), "rgb": dict.fromkeys(SLIDES, 0.5)},
        )
        for seed in (4, 0, 2)
    ]


# --- reading ----------------------------------------------------------------------------------------------------------


def test_seeds_and_folds_are_put_together_by_slide(runs: list[Path]) -> None:
    found = read_experiment(runs)
    assert found.seeds == (0, 2, 4)
    assert found.class_names == ("benign", "lesion")
    assert set(found.slide_ids) == set(SLIDES)
    assert list(found.probabilities) == ["lr_scratch", "lrmil", "rgb"]  # the order of the table
    assert found.probabilities["lrmil"].shape == (3, 1, 1, 12, 2)
    for place, name in enumerate(found.slide_ids):
        assert (found.patients[place], found.class_names[found.labels[place]]) == SLIDES[name]
        assert found.probabilities["lr_scratch"][1, 0, 0, place, 1] == pytest.approx(noisy(2)[name])


def test_two_runs_of_one_seed_are_its_parts(tmp_path: Path) -> None:
    """As with a split by patient: each half is tested by a run of its own."""
    halves = [
        {name: slide for name, slide in SLIDES.items() if (int(slide[0][1:]) < 3) == first}
        for first in (True, False)
    ]
    folders = [
        write_run(tmp_path / f"half{index}", 0, {"lrmil": perfect()}, n_folds=1, slides=half)
        for index, half in enumerate(halves)
    ]
    found = read_experiment(folders)
    assert found.seeds == (0,)
    assert len(found.slide_ids) == 12
    assert len(set(found.folds[0])) == 2
    with pytest.raises(ConfigError, match="tested by seed 0 before"):
        read_experiment([folders[0], write_run(tmp_path / "again", 0, {"lrmil": perfect()})])


@pytest.mark.parametrize("leftover", [False, True])
def test_whose_encoder_serves_all_folds_is_said_by_the_config_and_not_by_what_lies_there(
    tmp_path: Path, leftover: bool
) -> None:
    """One f' of unlabelled slides for all folds, but a row by attention has one a fold; a run of other config left a file."""
    scores = {"lrmil": perfect(), "paper_attention": perfect(), "lr_scratch": perfect()}
    run = write_run(tmp_path / "run", 0, scores)
    if leftover:
        (run / "shared").mkdir()
        (run / "shared" / "student_encoder.safetensors").write_bytes(b"of before")
    config = tmp_path / "config.toml"
    words = '[run]\nout_dir = "run"\n[data]\nslides = "slides.csv"\n[[compare]]\nset = "all"\n[stage1]\n'
    for slides, expected in (("unlabelled", {"lrmil"}), ("train", set())):
        config.write_text(words + f'slides = "{slides}"\n')
        (run / "config.json").write_text(load_config(config).model_dump_json())
        assert read_experiment([run]).shared == expected
    # One fold alone: its f' of unlabelled slides may as well be its own.
    assert load_config(config, ["--stage1.slides", "unlabelled"]).sharing(1) == set()


def test_a_method_of_some_runs_only_is_left_out_and_named(runs: list[Path]) -> None:
    for path in runs[1].glob("fold*/predictions/rgb.csv"):
        path.unlink()
    found = read_experiment(runs)
    assert "rgb" not in found.probabilities
    text = render(found, [], title="T", notes=[], n_resamples=100)
    assert "Not in all runs, so left out: rgb." in text


def test_unfinished_and_disagreeing_runs_are_refused(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no run directory"):
        read_experiment([tmp_path])
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "config.json").write_text((runs[0] / "config.json").read_text())
    with pytest.raises(ConfigError, match="let the run finish"):
        read_experiment([tmp_path / "new"])
    other = {**SLIDES, "s0": ("p0", "lesion")}
    with pytest.raises(ConfigError, match="elsewhere"):
        read_experiment([*runs, write_run(tmp_path / "other", 9, {"lrmil": perfect()}, slides=other)])
    fewer = {name: slide for name, slide in SLIDES.items() if name != "s3"}
    with pytest.raises(ConfigError, match="All seeds must run all folds"):
        read_experiment([*runs, write_run(tmp_path / "fewer", 8, {"lrmil": perfect()}, slides=fewer)])
    with pytest.raises(ConfigError, match="once"):
        read_experiment([runs[0], runs[0]])


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_auc_is_the_mean_over_seeds_and_chance_is_half(runs: list[Path]) -> None:
    found = read_experiment(runs)
    assert auc_interval(found, "lrmil", n_resamples=200) == (1, 1, 1)
    assert auc_interval(found, "rgb", n_resamples=200) == (0.5, 0.5, 0.5)
    noisy_auc = auc_interval(found, "lr_scratch", n_resamples=200)
    by_hand = np.mean(
        [
            auc(found.labels[folds == fold], one[folds == fold])  # folds have as many pairs each
            for folds, one in zip(found.folds, found.probabilities["lr_scratch"][:, 0, 0], strict=True)
            for fold in sorted(set(folds.tolist()))
        ]
    )
    assert noisy_auc.value == pytest.approx(by_hand)
    assert noisy_auc.low < noisy_auc.value < noisy_auc.high


def test_difference_is_paired(runs: list[Path]) -> None:
    """LRMIL is perfect on every resample, so the difference's interval is 1 minus that of the other."""
    found = read_experiment(runs)
    one = auc_interval(found, "lr_scratch", n_resamples=300)
    difference = auc_interval(found, "lrmil", "lr_scratch", n_resamples=300)
    np.testing.assert_allclose(difference, (1 - one.value, 1 - one.high, 1 - one.low))
    assert auc_interval(found, "lrmil", "lrmil", n_resamples=100) == (0, 0, 0)


def test_more_seeds_are_no_more_patients(tmp_path: Path) -> None:
    """The same predictions three times over: the same interval as once."""
    folders = [write_run(tmp_path / f"seed{seed}", seed, {"lrmil": noisy(1)}) for seed in (0, 1, 2)]
    once = read_experiment(folders[:1])
    thrice = read_experiment(folders)
    np.testing.assert_allclose(
        auc_interval(once, "lrmil", n_resamples=200), auc_interval(thrice, "lrmil", n_resamples=200)
    )


def test_the_spread_between_seeds_is_in_the_interval(tmp_path: Path) -> None:
    """Two seeds right about every slide, two wrong: no patient makes a difference, the seeds that are drawn do."""
    wrong = {name: 1 - value for name, value in perfect().items()}
    scores = (perfect(), wrong, perfect(), wrong)
    folders = [write_run(tmp_path / f"seed{seed}", seed, {"lrmil": one}) for seed, one in enumerate(scores)]
    found = auc_interval(read_experiment(folders), "lrmil", n_resamples=400)
    assert found.value == pytest.approx(0.5)
    assert (found.low, found.high) == (0.0, 1.0)  # all of one kind has a chance of 1 in 16, at either end
    assert auc_interval(read_experiment(folders[:1]), "lrmil", n_resamples=100) == (1, 1, 1)


def several_trainings(folder: Path, seed: int = 0) -> Path:
    """LRMIL of two encoders with two heads each, LR from scratch of two heads, a baseline of which there is one."""
    wrong = {name: 1 - value for name, value in perfect().items()}
    write_run(folder, seed, {"lrmil": perfect(), "lr_scratch": perfect(), "rgb": noisy(3)})
    write_run(folder, seed, {"lrmil": perfect(), "lr_scratch": wrong}, training="seed10")
    write_run(folder, seed, {"lrmil": noisy(5)}, training="encoder7")
    return write_run(folder, seed, {"lrmil": noisy(6)}, training="encoder7/seed10")


def test_all_seeds_of_a_run_are_read(tmp_path: Path) -> None:
    """Not its first one alone; and which training is drawn is part of the interval."""
    found = read_experiment([several_trainings(tmp_path / "run")])
    shapes = {method: one.shape[:3] for method, one in found.probabilities.items()}
    assert shapes == {"lr_scratch": (1, 1, 2), "lrmil": (1, 2, 2), "rgb": (1, 1, 1)}
    lesions = [found.slide_ids.index(name) for name in ("s1", "s3")]
    scores = [perfect(), perfect(), noisy(5), noisy(6)]
    np.testing.assert_allclose(
        found.probabilities["lrmil"][0, ..., lesions, 1].reshape(2, 4).T,
        [[one["s1"], one["s3"]] for one in scores],
    )
    scratch = auc_interval(found, "lr_scratch", n_resamples=400)
    assert scratch.value == 0.5  # heads: one right about every slide, one wrong
    assert (scratch.low, scratch.high) == (0, 1)
    ours = auc_interval(found, "lrmil", n_resamples=200)
    assert ours.value == pytest.approx(np.mean(fold_aucs(found, "lrmil")))
    assert len(fold_aucs(found, "lrmil")) == 8
    text = render(found, [], title="T", notes=[], n_resamples=100)
    assert "seed 0, in each 2 heads a method and 2 encoders f'." in text
    assert "| 1.000, 0.000 |" in text


def test_many_trainings_are_summed_up(tmp_path: Path) -> None:
    for seed in range(9):
        write_run(tmp_path / "run", 0, {"lrmil": noisy(seed)}, training="" if seed == 0 else f"seed{seed}")
    found = read_experiment([tmp_path / "run"])
    values = np.asarray(fold_aucs(found, "lrmil")).reshape(9, 2).mean(axis=1)
    text = render(found, [], title="T", notes=[], n_resamples=100)
    assert f"| {values.min():.3f} to {values.max():.3f} (9) |" in text


def test_runs_of_unlike_seeds_are_refused(tmp_path: Path) -> None:
    several = several_trainings(tmp_path / "several")
    with pytest.raises(ConfigError, match="different numbers of encoders and heads"):
        read_experiment([several, write_run(tmp_path / "one", 1, {"lrmil": perfect()})])
    for path in several.glob("fold*/encoder7/predictions/lrmil.csv"):
        path.unlink()
    with pytest.raises(ConfigError, match="no predictions of encoder7"):
        read_experiment([several])


def test_the_interval_of_one_run_is_that_of_its_own_table(tmp_path: Path) -> None:
    """A run's table draws patients fold by fold; with one fold both draw the same kind of thing."""
    run = tmp_path / "run"
    for training, seed in (("", 1), ("seed2", 2), ("seed3", 3)):
        write_run(run, 0, {"lrmil": noisy(seed)}, n_folds=1, training=training)
    found = read_experiment([run])
    fold = FoldScores(found.labels, found.patients, found.probabilities["lrmil"][0])
    own = resample_aucs({"lrmil": [fold]}, n_resamples=4000, seed=1)["lrmil"].interval()
    np.testing.assert_allclose(auc_interval(found, "lrmil", n_resamples=4000), own, atol=0.02)


def test_fold_aucs_by_hand(tmp_path: Path) -> None:
    """Fold 0 perfect, fold 1 reversed: pooled 0.5, folds 1 and 0."""
    scores = {
        name: 0.9 if (label == "lesion") == (int(patient[1:]) % 2 == 0) else 0.1
        for name, (patient, label) in SLIDES.items()
    }
    found = read_experiment([write_run(tmp_path / "run", 0, {"lrmil": scores})])
    assert fold_aucs(found, "lrmil") == [1.0, 0.0]
    assert auc_interval(found, "lrmil", n_resamples=100).value == 0.5


def test_one_class_alone_is_a_clear_error(tmp_path: Path) -> None:
    benign = {name: (patient, "benign") for name, (patient, _) in SLIDES.items()}
    found = read_experiment([write_run(tmp_path / "run", 0, {"lrmil": perfect()}, slides=benign)])
    with pytest.raises(ConfigError, match="no fold has slides with and without class"):
        auc_interval(found, "lrmil", n_resamples=100)


# --- attention --------------------------------------------------------------------------------------------------------


def write_attention(run: Path, masks: Path, training: str = "") -> None:
    """Slides of 2 x 2 LR tiles, 128 µm each: 32 x 32 px of a mask of 8 µm. The lesion is tile (1, 1) of s1 and s3."""
    masks.mkdir(exist_ok=True)
    lr = np.argwhere(np.ones((2, 2), bool)).astype(np.int64)
    hr = np.argwhere(np.ones((8, 8), bool)).astype(np.int64)
    for name, (patient, _) in SLIDES.items():
        mask = np.zeros((32, 32), np.uint8)
        if name in ("s1", "s3"):
            mask[16:, 16:] = 255
        Image.fromarray(mask).save(masks / f"{name}.png")
        folder = run / f"fold{int(patient[1:]) % 2}" / training / "test_attention"
        folder.mkdir(exist_ok=True)
        # LRMIL finds it in s1, and ranks it third in s3; the teacher looks at one child of it, or at another tile.
        student = np.asarray([0.1, 0.1, 0.1, 0.7] if name == "s1" else [0.4, 0.3, 0.1, 0.2], np.float32)
        teacher = np.zeros(64, np.float32)
        teacher[63 if name == "s1" else 0] = 1
        for method, scores, places in (("lrmil", student, lr), ("teacher_hr", teacher, hr)):
            path = folder / f"{method}.safetensors"
            kept = {} if not path.exists() else load_file(path)
            save_file({**kept, f"{name}/attention_scores": scores, f"{name}/places": places.copy()}, path)


def test_attention_against_masks_by_hand(runs: list[Path], tmp_path: Path) -> None:
    for run in runs:
        write_attention(run, tmp_path / "masks")
    rows = localisation_rows(read_experiment(runs), tmp_path / "masks", n_resamples=200)
    found = {(row.method, row.grid): row.localisation for row in rows}
    assert list(found) == [
        ("teacher_hr", "HR tiles"),
        ("teacher_hr", "LR tiles"),
        ("lrmil", "LR tiles"),
    ]
    student = found["lrmil", "LR tiles"]
    assert student.n_slides == 2
    assert student.prevalence == 0.25
    assert student.hit.value == 0.5
    assert student.auprc.value == pytest.approx((1 + 1 / 3) / 2)
    assert (student.auprc.low, student.auprc.high) == (pytest.approx(1 / 3), 1)
    # On LR tiles: first in s1; in s3 it shares the last place of four with two others, where precision is chance.
    assert found["teacher_hr", "LR tiles"].auprc.value == pytest.approx((1 + 0.25) / 2)
    # On HR tiles, 16 of 64 are lesion; in s1 the first is one, and the other 15 tie with the rest.
    one = 1 / 16 + 15 / 16 * 16 / 64
    none = 16 / 64
    assert found["teacher_hr", "HR tiles"].auprc.value == pytest.approx((one + none) / 2)
    assert found["teacher_hr", "HR tiles"].prevalence == 0.25


def test_attention_of_all_seeds_of_a_run_counts(tmp_path: Path) -> None:
    """A second head looks at nothing but the lesion: the mean is half way up to 1."""
    run, masks = tmp_path / "run", tmp_path / "masks"
    for training in ("", "seed4"):
        write_run(run, 0, {"lrmil": perfect(), "teacher_hr": perfect()}, training=training)
        write_attention(run, masks, training)
    for path in run.glob("fold*/seed4/test_attention/lrmil.safetensors"):
        tensors = load_file(path)
        for name in ("s1", "s3"):
            if f"{name}/attention_scores" in tensors:
                tensors[f"{name}/attention_scores"] = np.asarray([0, 0, 0, 1], np.float32)
        save_file(tensors, path)
    rows = localisation_rows(read_experiment([run]), masks, n_resamples=100)
    student = next(row.localisation for row in rows if row.method == "lrmil")
    assert student.auprc.value == pytest.approx(((1 + 1 / 3) / 2 + 1) / 2)
    for path in run.glob("fold*/seed4/test_attention/lrmil.safetensors"):
        path.unlink()
    with pytest.raises(ConfigError, match="not every seed"):
        localisation_rows(read_experiment([run]), masks, n_resamples=100)


def test_attention_that_isnt_there_is_said(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't be read"):
        localisation_rows(read_experiment(runs), tmp_path / "masks", n_resamples=100)
    write_attention(runs[0], tmp_path / "masks")
    with pytest.raises(ConfigError, match="not every seed"):
        localisation_rows(read_experiment(runs), tmp_path / "masks", n_resamples=100)
    (runs[0] / "fold0" / "test_attention" / "lrmil.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ConfigError, match="as attention of test slides"):
        localisation_rows(read_experiment(runs), tmp_path / "masks", n_resamples=100)


# --- the command ------------------------------------------------------------------------------------------------------


def test_command_writes_one_section(runs: list[Path], tmp_path: Path) -> None:
    for run in runs:
        write_attention(run, tmp_path / "masks")
    (tmp_path / "note.txt").write_text("Label and patient are confounded.\n")
    words = [str(tmp_path / "out.md"), "--title", "Generated slides", "--bootstrap", "100"]
    words += [word for run in runs for word in ("--run", str(run))]
    words += ["--masks", str(tmp_path / "masks"), "--note", str(tmp_path / "note.txt")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    text = (tmp_path / "out.md").read_text(encoding="utf-8")
    assert text.startswith("## Generated slides\n")
    for words_wanted in (
        "12 test slides (6 benign, 6 lesion) of 6 patients or groups; 2 folds",
        "seeds 0, 2, 4.",
        "Label and patient are confounded.",
        "| **LRMIL** | 1.000 [1.000, 1.000] |  | 1.000, 1.000, 1.000 |",
        "| shortcut: mean and std of RGB | 0.500 [0.500, 0.500] | +0.500 [+0.500, +0.500] |",
        "| LRMIL | LR tiles | 0.667 [0.333, 1.000] | 0.500 [0.000, 1.000] | 0.250 | 2 |",
    ):
        assert words_wanted in text
    assert str(tmp_path) not in text  # no path of a machine
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in tables} == {9, 7}


def test_command_says_what_is_wrong(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, [str(tmp_path / "out.md"), "--run", str(tmp_path / "absent")])
    assert done.exit_code == 1
    assert "is no run directory" in done.output.replace("\n", " ")
