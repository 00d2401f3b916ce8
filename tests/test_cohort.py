"""The generated cohort: real files, the same bytes from the same seed, and no class told by anything but nuclei."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import openslide
import pytest
from PIL import Image
from pydantic import ValidationError
from scipy.stats import ks_2samp
from typer.testing import CliRunner

from napari_lrmil.errors import ConfigError
from training.cohort import (
    CLASS_NAMES,
    FOLDS,
    KIND_NAMES,
    MASK_DOWNSAMPLE,
    MPP_L0,
    TILE_ATTRIBUTES,
    CohortConfig,
    GeneratedSlide,
    generate_cohort,
    generate_slide,
    read_truth,
    tile_truth,
    truth_of,
)
from training.cohort.__main__ import app
from training.cohort.generate import is_complete, plan_slides
from training.cohort.nuclei import LESION, LYMPHOCYTE, ORDINARY

SMALL = CohortConfig(n_unlabelled=2, n_train=2, n_val=0, n_test=1, width_px=1024, height_px=768)
N_PAIRS = 6


def column(name: str) -> int:
    return TILE_ATTRIBUTES.index(name)


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def cohort_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cohort")
    generate_cohort(folder, SMALL, seed=5, workers=1)
    return folder


@pytest.fixture(scope="module")
def pairs() -> list[tuple[GeneratedSlide, GeneratedSlide]]:
    """The same slides without and with lesions."""
    config = CohortConfig(width_px=1024, height_px=1024, aggregates_max=2)
    return [
        (
            generate_slide(config, seed_sequence=np.random.SeedSequence(3, spawn_key=(i,)), label="benign"),
            generate_slide(config, seed_sequence=np.random.SeedSequence(3, spawn_key=(i,)), label="lesion"),
        )
        for i in range(N_PAIRS)
    ]


def cell_means(slide: GeneratedSlide) -> np.ndarray:
    """Mean RGB of each pixel of the lesion mask, (H / 16, W / 16, 3)."""
    height, width = slide.lesion_mask.shape
    blocks = slide.rgb.reshape(height, MASK_DOWNSAMPLE, width, MASK_DOWNSAMPLE, 3)
    return blocks.mean(axis=(1, 3))


# Files


def test_same_seed_gives_the_same_bytes_with_any_number_of_workers(cohort_dir: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    generate_cohort(
        tmp_path, SMALL, seed=5, workers=2, progress=lambda done, total: seen.append((done, total))
    )
    assert files_of(tmp_path) == files_of(cohort_dir)
    assert seen == [(done, 5) for done in range(6)]


def test_another_seed_gives_another_slide(cohort_dir: Path, tmp_path: Path) -> None:
    generate_cohort(tmp_path, SMALL.model_copy(update={"n_train": 0, "n_test": 0}), seed=6, workers=1)
    name = "slides/unlabelled-000.tif"
    assert (tmp_path / name).read_bytes() != (cohort_dir / name).read_bytes()


def test_a_larger_cohort_begins_with_the_smaller_ones_slides() -> None:
    small, large = CohortConfig(n_train=3, n_test=2), CohortConfig(n_train=9, n_test=8)
    assert set(plan_slides(small, 11)) <= set(plan_slides(large, 11))
    first, second = plan_slides(small, 11)[:2]
    assert (
        first.seed_sequence(11).generate_state(4).tolist()
        != second.seed_sequence(11).generate_state(4).tolist()
    )


def test_openslide_reads_size_mpp_levels_and_pixels(cohort_dir: Path) -> None:
    slide = generate_slide(
        SMALL,
        seed_sequence=plan_slides(SMALL, 5)[0].seed_sequence(5),
        label=plan_slides(SMALL, 5)[0].label,
    )
    with openslide.OpenSlide(str(cohort_dir / "slides/unlabelled-000.tif")) as opened:
        assert opened.dimensions == (1024, 768)
        assert float(opened.properties["openslide.mpp-x"]) == MPP_L0
        assert float(opened.properties["openslide.mpp-y"]) == MPP_L0
        assert opened.level_dimensions == ((1024, 768), (256, 192), (64, 48))
        assert opened.level_downsamples == (1.0, 4.0, 16.0)
        for level, downsample in enumerate((1, 4, 16)):
            width, height = opened.level_dimensions[level]
            read = np.asarray(opened.read_region((0, 0), level, (width, height)).convert("RGB"), np.float64)
            blocks = slide.rgb.reshape(height, downsample, width, downsample, 3)
            drawn = blocks.mean(axis=(1, 3))
            # Another JPEG codec, same quality and colour subsampling, says how far off the pixels may be.
            buffer = io.BytesIO()
            level_image = Image.fromarray(np.rint(drawn).astype(np.uint8))
            level_image.save(buffer, "JPEG", quality=SMALL.jpeg_quality, subsampling=2)
            with Image.open(buffer) as image:
                jpeg_error = np.abs(np.asarray(image, np.float64) - drawn).mean()
            assert np.abs(read - drawn).mean() < 1.1 * jpeg_error
            assert np.abs(read[:, 1:] - drawn[:, :-1]).mean() > 1.3 * jpeg_error  # a shift would show
            assert np.abs((read - drawn).mean(axis=(0, 1))).max() < 0.6


def test_the_table_names_every_slide_and_keeps_back_the_label_of_the_unlabelled(cohort_dir: Path) -> None:
    with (cohort_dir / "slides.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["slide_id", "path", "patient_id", "label", "fold", "mpp"]
    assert len({row["patient_id"] for row in rows}) == len(rows) == 5
    for row in rows:
        assert (cohort_dir / row["path"]).is_file()
        assert float(row["mpp"]) == MPP_L0
        assert row["fold"] in FOLDS
        assert row["label"] == "" if row["fold"] == "unlabelled" else row["label"] in CLASS_NAMES
    assert [row["fold"] for row in rows] == ["unlabelled", "unlabelled", "train", "train", "test"]


def test_labels_are_balanced_in_every_fold_and_their_order_is_not_fixed() -> None:
    slides = plan_slides(CohortConfig(), 1)
    for fold in FOLDS:
        labels = [slide.label for slide in slides if slide.fold == fold]
        assert labels.count("lesion") == labels.count("benign") == len(labels) / 2
        assert len({tuple(labels[i : i + 2]) for i in range(0, len(labels), 2)}) == 2


def test_masks_are_8_bit_and_empty_on_benign_slides(cohort_dir: Path) -> None:
    for planned in plan_slides(SMALL, 5):
        with Image.open(cohort_dir / planned.mask_path) as image:
            assert image.mode == "L"
            mask = np.asarray(image)
        assert mask.shape == (48, 64)
        assert set(np.unique(mask)) == ({0, 255} if planned.label == "lesion" else {0})


def test_saved_truth_is_small_and_equals_the_slides(cohort_dir: Path) -> None:
    planned = plan_slides(SMALL, 5)[0]
    slide = generate_slide(SMALL, seed_sequence=planned.seed_sequence(5), label=planned.label)
    saved = read_truth(cohort_dir / planned.truth_path)
    assert (cohort_dir / planned.truth_path).stat().st_size < 100_000
    np.testing.assert_array_equal(saved.nuclei.kind, slide.nuclei.kind)
    np.testing.assert_array_equal(saved.nuclei.x_um, slide.nuclei.x_um)
    np.testing.assert_allclose(saved.nuclei.radius_um, slide.nuclei.radius_um, rtol=1e-3)
    np.testing.assert_allclose(saved.tissue_fraction, slide.tissue_fraction, atol=0.003)


def test_damaged_truth_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"no tensors")
    with pytest.raises(ConfigError, match="Generate the cohort anew"):
        read_truth(path)


# Running again


def test_a_second_run_draws_only_what_is_missing(cohort_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cohort"
    shutil.copytree(cohort_dir, folder)
    before = files_of(folder)
    kept = (folder / "slides/train-000.tif").stat().st_mtime_ns
    (folder / "slides/test-000.tif").unlink()
    seen: list[tuple[int, int]] = []
    generate_cohort(folder, SMALL, seed=5, workers=1, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(4, 5), (5, 5)]
    assert files_of(folder) == before
    assert (folder / "slides/train-000.tif").stat().st_mtime_ns == kept
    generate_cohort(folder, SMALL, seed=5, workers=1, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(4, 5), (5, 5), (5, 5)]


def test_a_cohort_may_grow(cohort_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cohort"
    shutil.copytree(cohort_dir, folder)
    csv_path = generate_cohort(folder, SMALL.model_copy(update={"n_test": 2}), seed=5, workers=1)
    assert len(csv_path.read_text(encoding="utf-8").splitlines()) == 1 + 6
    assert (folder / "slides/test-001.tif").is_file()


def test_another_cohorts_folder_is_left_alone_unless_told(cohort_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cohort"
    shutil.copytree(cohort_dir, folder)
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    one = SMALL.model_copy(update={"n_unlabelled": 0, "n_train": 1, "n_test": 0})
    with pytest.raises(ConfigError, match="another seed"):
        generate_cohort(folder, one, seed=6, workers=1)
    generate_cohort(folder, one, seed=6, workers=1, overwrite=True)
    assert sorted(files_of(folder)) == [
        "cohort.json",
        "masks/train-000.png",
        "notes.txt",
        "slides.csv",
        "slides/train-000.tif",
        "truth/train-000.safetensors",
    ]
    assert json.loads((folder / "cohort.json").read_text(encoding="utf-8"))["seed"] == 6


def test_a_record_from_before_a_parameter_was_there_counts_with_its_default(
    cohort_dir: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "c"
    shutil.copytree(cohort_dir, folder)
    record = json.loads((folder / "cohort.json").read_text())
    del record["look"]["signal"]
    (folder / "cohort.json").write_text(json.dumps(record))
    assert is_complete(folder, SMALL, seed=5)
    with pytest.raises(ConfigError, match="other parameters"):
        is_complete(folder, SMALL.model_copy(update={"signal": "detail"}), seed=5)


def test_files_of_an_unknown_cohort_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "slides").mkdir()
    with pytest.raises(ConfigError, match=r"no cohort\.json"):
        generate_cohort(tmp_path, SMALL, seed=5, workers=1)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"seed": -1}, "seed is -1"),
        ({}, {"workers": 0}, "workers is 0"),
        ({"n_unlabelled": 0, "n_train": 0, "n_test": 0}, {}, "no slides"),
    ],
)
def test_bad_arguments_are_clear_errors(
    tmp_path: Path, change: dict[str, int], options: dict[str, int], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        generate_cohort(tmp_path, SMALL.model_copy(update=change), **{"seed": 5, "workers": 1, **options})


def test_config_is_strict_and_frozen() -> None:
    with pytest.raises(ValidationError, match="lesion_size"):
        CohortConfig(lesion_size=3)
    with pytest.raises(ValidationError, match="multiple of 64"):
        CohortConfig(width_px=1000)
    with pytest.raises(ValidationError, match="above lesion_fraction_max"):
        CohortConfig(lesion_fraction_min=0.2)
    with pytest.raises(ValidationError, match="frozen"):
        CohortConfig().n_test = 3


# What the slides show


def test_an_unknown_label_is_an_error() -> None:
    with pytest.raises(ValueError, match="benign, lesion"):
        generate_slide(SMALL, seed_sequence=np.random.SeedSequence(0), label="tumour")


def test_lesions_cover_the_asked_share_of_the_tissue() -> None:
    config = CohortConfig(width_px=768, height_px=768, lesion_fraction_min=0.1, lesion_fraction_max=0.1)
    slide = generate_slide(config, seed_sequence=np.random.SeedSequence(8), label="lesion")
    covered = slide.lesion_mask.mean() / slide.tissue_fraction.mean()
    # The mask's share is of whole layout pixels, the tissue fraction is of the smooth outline.
    assert covered == pytest.approx(0.1, abs=0.01)


def test_lesion_nuclei_lie_in_the_mask_and_ordinary_ones_outside(
    pairs: list[tuple[GeneratedSlide, GeneratedSlide]],
) -> None:
    for benign, lesion in pairs:
        px_um = MASK_DOWNSAMPLE * MPP_L0
        row = (lesion.nuclei.y_um / px_um).astype(int)
        col = (lesion.nuclei.x_um / px_um).astype(int)
        inside = lesion.lesion_mask[row, col]
        assert inside[lesion.nuclei.kind == LESION].all()
        assert not inside[lesion.nuclei.kind == ORDINARY].any()
        assert (lesion.nuclei.kind == LESION).sum() > 20
        assert not (benign.nuclei.kind == LESION).any()
        assert not benign.lesion_mask.any()


def test_lesion_nuclei_are_larger_richer_and_fewer_by_the_ratios(
    pairs: list[tuple[GeneratedSlide, GeneratedSlide]],
) -> None:
    radius, chromatin, per_area = [], [], []
    for benign, lesion in pairs:
        px_um = MASK_DOWNSAMPLE * MPP_L0
        inside = lesion.lesion_mask[
            (benign.nuclei.y_um / px_um).astype(int), (benign.nuclei.x_um / px_um).astype(int)
        ]
        replaced = (benign.nuclei.kind == ORDINARY) & inside
        atypical = lesion.nuclei.kind == LESION
        radius.append(lesion.nuclei.radius_um[atypical].mean() / benign.nuclei.radius_um[replaced].mean())
        chromatin.append(lesion.nuclei.chromatin[atypical].mean() / benign.nuclei.chromatin[replaced].mean())
        per_area.append(lesion.nuclei.chromatin[atypical].sum() / benign.nuclei.chromatin[replaced].sum())
    assert np.mean(radius) == pytest.approx(1.6, rel=0.03)
    assert np.mean(chromatin) == pytest.approx(1.9, rel=0.06)
    # Some 50 nuclei a slide: the number's own noise is about 10 % a slide.
    assert np.mean(per_area) == pytest.approx(1.0, abs=3 * 0.1 / np.sqrt(N_PAIRS))


def test_a_slide_with_lesions_is_the_same_slide_outside_them(
    pairs: list[tuple[GeneratedSlide, GeneratedSlide]],
) -> None:
    for benign, lesion in pairs:
        same = (benign.rgb == lesion.rgb).all(axis=2)
        height, width = lesion.lesion_mask.shape
        same_cell = same.reshape(height, MASK_DOWNSAMPLE, width, MASK_DOWNSAMPLE).all(axis=(1, 3))
        # A nucleus reaches over the mask's border by less than two of its pixels.
        far = np.ones_like(lesion.lesion_mask)
        for row, col in np.argwhere(lesion.lesion_mask):
            far[max(row - 2, 0) : row + 3, max(col - 2, 0) : col + 3] = False
        assert same_cell[far].all()
        assert not same_cell[lesion.lesion_mask].all()


def test_lesions_have_the_mean_colour_of_the_tissue_they_replace(
    pairs: list[tuple[GeneratedSlide, GeneratedSlide]],
) -> None:
    differences, noise = [], []
    for benign, lesion in pairs:
        mask = lesion.lesion_mask
        without, with_lesion = cell_means(benign), cell_means(lesion)
        differences.append((with_lesion[mask] - without[mask]).mean(axis=0))
        # How much the mean of as much other tissue of the slide varies, taken in compact blocks like a lesion.
        tissue = np.kron(benign.tissue_fraction, np.ones((2, 2))) > 0.95
        side = max(4, round(np.sqrt(mask.sum())))
        regions = [
            without[row : row + side, col : col + side][tissue[row : row + side, col : col + side]].mean(
                axis=0
            )
            for row in range(0, mask.shape[0] - side + 1, side // 2)
            for col in range(0, mask.shape[1] - side + 1, side // 2)
            if tissue[row : row + side, col : col + side].mean() > 0.7
        ]
        noise.append(np.std(regions, axis=0))
    between_regions = np.sqrt(np.mean(np.square(noise), axis=0))
    standard_error = between_regions / np.sqrt(N_PAIRS)
    assert (np.abs(np.mean(differences, axis=0)) < 2 * standard_error).all()
    assert (np.abs(np.mean(differences, axis=0)) < 1.5).all()


def signal_pairs(**look: object) -> list[tuple[GeneratedSlide, GeneratedSlide]]:
    config = CohortConfig(**{"width_px": 1024, "height_px": 1024, "aggregates_max": 0, **look})
    return [
        (
            generate_slide(config, seed_sequence=np.random.SeedSequence(8, spawn_key=(i,)), label="benign"),
            generate_slide(config, seed_sequence=np.random.SeedSequence(8, spawn_key=(i,)), label="lesion"),
        )
        for i in range(N_PAIRS)
    ]


def test_a_lesion_of_detail_has_the_same_nuclei_and_nearly_the_same_picture_at_5x() -> None:
    at_full, at_quarter = [], []
    for benign, lesion in signal_pairs(signal="detail", lesion_grain=0.6):
        for name in ("x_um", "y_um", "radius_um"):
            np.testing.assert_array_equal(getattr(benign.nuclei, name), getattr(lesion.nuclei, name))
        np.testing.assert_allclose(benign.nuclei.chromatin, lesion.nuclei.chromatin)
        coarse = lesion.nuclei.kind == LESION
        assert coarse.any()
        assert (benign.nuclei.kind[coarse] == ORDINARY).all()
        mask = np.kron(lesion.lesion_mask, np.ones((MASK_DOWNSAMPLE, MASK_DOWNSAMPLE))) > 0
        full = [slide.rgb.astype(float) for slide in (benign, lesion)]
        quarter = [rgb.reshape(256, 4, 256, 4, 3).mean(axis=(1, 3)) for rgb in full]
        at_full.append(np.square(full[1] - full[0])[mask].mean())
        at_quarter.append(np.square(quarter[1] - quarter[0])[mask[::4, ::4]].mean())
    assert np.mean(at_quarter) < np.mean(at_full) / 8


def test_an_architecture_tells_nothing_in_one_square_and_something_in_sixteen() -> None:
    """Nuclei of squares of 32 µm (HR tiles) and of 128 µm (LR tiles) that the tissue fills."""
    squares: dict[bool, list[int]] = {False: [], True: []}
    patches: dict[bool, list[int]] = {False: [], True: []}
    for benign, lesion in signal_pairs(
        signal="architecture",
        width_px=2048,
        height_px=2048,
        nuclei_per_mm2=10_000,
        lesion_fraction_min=0.9,
        lesion_fraction_max=0.9,
    ):
        for slide in (benign, lesion):
            nuclei = slide.nuclei
            assert not (nuclei.kind == LESION).any()
            ordinary = nuclei.kind == ORDINARY
            # The lesions are of whole patches, so that a mask's corner tells what the patch is.
            for found, um, cells in ((squares, 32, 4), (patches, 128, 16)):
                n = 1024 // um
                counts, _, _ = np.histogram2d(
                    nuclei.y_um[ordinary], nuclei.x_um[ordinary], bins=n, range=((0, 1024), (0, 1024))
                )
                full = slide.tissue_fraction.reshape(n, cells // 2, n, cells // 2).min(axis=(1, 3)) > 0.9
                atypical = slide.lesion_mask.reshape(n, cells, n, cells).all(axis=(1, 3))
                if slide.label == "lesion":
                    found[True].extend(counts[full & atypical].astype(int))
                else:
                    found[False].extend(counts[full].astype(int))
    one = ks_2samp(squares[False], squares[True])
    sixteen = ks_2samp(patches[False], patches[True])
    assert one.pvalue > 0.01
    assert sixteen.statistic > 0.3
    assert sixteen.pvalue < 1e-6
    assert np.std(patches[False]) > 1.5 * np.std(patches[True])


def test_nuisances_are_the_same_in_both_classes() -> None:
    config = CohortConfig(width_px=512, height_px=512)
    n_pen, n_aggregates = 0, 0
    for i in range(10):
        benign, lesion = (
            generate_slide(config, seed_sequence=np.random.SeedSequence(21, spawn_key=(i,)), label=label)
            for label in CLASS_NAMES
        )
        np.testing.assert_array_equal(benign.pen_fraction, lesion.pen_fraction)
        np.testing.assert_array_equal(benign.tissue_fraction, lesion.tissue_fraction)
        lymphocytes = [(slide.nuclei.kind == LYMPHOCYTE).sum() for slide in (benign, lesion)]
        assert lymphocytes[0] == lymphocytes[1]
        n_pen += int(benign.pen_fraction.max() > 0.2)
        n_aggregates += int(lymphocytes[0] > 60)
    assert 1 <= n_pen <= 7
    assert n_aggregates >= 1


def test_background_is_white_and_tissue_leaves_some_of_it(
    pairs: list[tuple[GeneratedSlide, GeneratedSlide]],
) -> None:
    for benign, _ in pairs:
        assert 0.3 < benign.tissue_fraction.mean() < 0.92
        glass = np.kron((benign.tissue_fraction == 0) & (benign.pen_fraction == 0), np.ones((32, 32), bool))
        assert benign.rgb[glass].mean() > 235
        tissue = np.kron((benign.tissue_fraction == 1) & (benign.pen_fraction == 0), np.ones((32, 32), bool))
        red, green, blue = benign.rgb[tissue].mean(axis=0)
        assert green < blue < 230
        assert green < red


# Truth of tiles


def test_tile_truth_counts_what_the_tile_holds(pairs: list[tuple[GeneratedSlide, GeneratedSlide]]) -> None:
    slide = pairs[0][1]
    truth = truth_of(slide)
    grid = np.array([(x, y) for y in range(0, 1024, 128) for x in range(0, 1024, 128)])
    attributes = tile_truth(truth, origins_l0_xy=grid, tile_l0_px=128)
    assert attributes.shape == (64, len(TILE_ATTRIBUTES))
    n_all = sum(
        attributes[:, column(name)].sum() for name in ("nuclei_count", "lymphocyte_count", "spindle_count")
    )
    assert n_all == len(slide.nuclei.kind)

    x_px, y_px = slide.nuclei.x_um / MPP_L0, slide.nuclei.y_um / MPP_L0
    k = int(attributes[:, column("nuclei_count")].argmax())
    held = (x_px >= grid[k, 0]) & (x_px < grid[k, 0] + 128) & (y_px >= grid[k, 1]) & (y_px < grid[k, 1] + 128)
    round_cell = held & np.isin(slide.nuclei.kind, (ORDINARY, LESION))
    assert attributes[k, column("nuclei_count")] == round_cell.sum()
    assert attributes[k, column("radius_mean_um")] == pytest.approx(slide.nuclei.radius_um[round_cell].mean())
    assert attributes[k, column("chromatin_sum")] == pytest.approx(
        slide.nuclei.chromatin[held].sum(), rel=1e-5
    )

    row, col = grid[k, 1] // 32, grid[k, 0] // 32
    expected = slide.tissue_fraction[row : row + 4, col : col + 4].mean()
    assert attributes[k, column("tissue_fraction")] == pytest.approx(expected, rel=1e-5)


def test_tile_truth_is_nan_where_there_is_nothing_to_average(
    pairs: list[tuple[GeneratedSlide, GeneratedSlide]],
) -> None:
    truth = truth_of(pairs[0][0])
    empty = tile_truth(truth, origins_l0_xy=np.array([[-512, -512]]), tile_l0_px=128)[0]
    assert empty[column("nuclei_count")] == 0
    assert np.isnan(empty[column("radius_mean_um")])
    assert tile_truth(truth, origins_l0_xy=np.zeros((0, 2)), tile_l0_px=128).shape == (
        0,
        len(TILE_ATTRIBUTES),
    )


def test_kinds_are_named_in_order() -> None:
    assert (KIND_NAMES[ORDINARY], KIND_NAMES[LESION], KIND_NAMES[LYMPHOCYTE]) == (
        "ordinary",
        "lesion",
        "lymphocyte",
    )


# Command


def test_the_command_draws_a_cohort_and_says_when_it_is_there(tmp_path: Path) -> None:
    options = [
        str(tmp_path / "c"),
        "--seed",
        "3",
        "--slides",
        "0/1/0/0",
        "--size",
        "512x576",
        "--workers",
        "1",
    ]
    first = CliRunner().invoke(app, options)
    assert first.exit_code == 0, first.output
    assert (tmp_path / "c/slides/train-000.tif").is_file()
    second = CliRunner().invoke(app, options)
    assert "complete already" in second.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--slides", "3/4"], "UNLABELLED/TRAIN/VAL/TEST"),
        (["--size", "1000x1000"], "width_px"),
        (["--slides", "0/0/0/0"], "no slides"),
        (["--look", "signal"], "NAME=VALUE"),
        (["--look", "n_train=3"], "NAME=VALUE"),
        (["--look", "signal=colour"], "'both', 'detail' or 'architecture'"),
        (["--look", "nuclei=3"], "nuclei"),
    ],
)
def test_the_command_explains_bad_options(tmp_path: Path, options: list[str], message: str) -> None:
    result = CliRunner().invoke(app, [str(tmp_path / "c"), "--workers", "1", *options])
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output


def test_importing_the_generator_loads_no_torch() -> None:
    code = "import sys, training.cohort; sys.exit(any(n in sys.modules for n in ('torch', 'napari', 'qtpy')))"
    root = Path(__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
