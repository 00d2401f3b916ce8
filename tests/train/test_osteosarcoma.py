"""Real tissue as slides: names, folds, geometry, and mosaics that hold no region of another fold."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from napari_lrmil.errors import ConfigError
from napari_lrmil.slide import Slide, TileSpec, make_tile_grid
from training.cohort.localisation import tile_lesion_fractions
from training.config import load_config
from training.data.splits import make_splits
from training.data.table import read_table
from training.progress import Reporter
from training.studies import kfold_table
from training.studies.mosaics import SIDE, Cell, compose, plan_mosaics, viable_mask
from training.studies.osteosarcoma import By, app, build
from training.studies.regions import (
    Region,
    confound_note,
    deal_blocks,
    deal_patients,
    find_regions,
)

CONFIGS = Path(__file__).resolve().parents[2] / "training" / "configs"
KINDS = ("Viable", "Non-Tumor", "Non-Viable-Tumor")


def names() -> list[str]:
    """30 regions in the pattern of the real ones: 3 patients, viable tumour in two of them."""
    found = []
    for patient, blocks in (
        ("Case-48-P5", ("C14", "C15", "C16", "C20")),
        ("Case-4", ("C21", "C22", "C27", "C9")),
        ("P9", ("B6", "B12")),
    ):
        for block in blocks:
            for number in range(3):
                kind = KINDS[1 + number % 2] if patient == "P9" or number else KINDS[0]
                found.append(f"{kind}___{patient}-{block}-{1000 + number}-2{number}_{100 + number}.jpg")
    return found


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of regions, each of one colour of its own with a bright corner."""
    folder = tmp_path_factory.mktemp("regions")
    for index, name in enumerate(names()):
        pixels = np.full((1024, 1024, 3), (180 + index, 120 + 2 * index, 160 + index), np.uint8)
        pixels[:128, :256] = 250
        Image.fromarray(pixels).save(folder / name, quality=95)
    return folder


@pytest.fixture(scope="module")
def built(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the builder makes of them, 4 mosaics a fold."""
    out = tmp_path_factory.mktemp("built")
    build(source, out, by=By.BLOCK, mosaics=4, seed=3, reporter=silent())
    return out


def silent() -> Reporter:
    return Reporter(Console(file=io.StringIO()))


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def regions_of(kinds_by_block: dict[str, str]) -> list[Region]:
    """V viable, N not: {"Case-1-A": "VNN"}."""
    return [
        Region(
            Path(f"{block}-{index}.jpg"),
            "Viable" if letter == "V" else "Non-Tumor",
            block,
            block.rsplit("-", 1)[0],
        )
        for block, letters in kinds_by_block.items()
        for index, letter in enumerate(letters)
    ]


# --- names ------------------------------------------------------------------------------------------------------------


def test_names_tell_class_block_and_patient(tmp_path: Path) -> None:
    for name in (
        "Viable___Case-48-P5-C18-17610-25605_104.jpg",
        "Non-Viable-Tumor___Case-3-A7-18669-5101_118.jpg",
        "Non-Tumor___P9-B12-15791-34183_103.jpg",
    ):
        (tmp_path / name).touch()
    found = {region.kind: region for region in find_regions(tmp_path)}
    assert [(found[kind].block, found[kind].patient, found[kind].label) for kind in sorted(found)] == [
        ("P9-B12", "P9", "other"),
        ("Case-3-A7", "Case-3", "other"),
        ("Case-48-P5-C18", "Case-48", "viable"),
    ]


def test_other_names_and_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no JPEG"):
        find_regions(tmp_path)
    (tmp_path / "slide_12.jpg").touch()
    with pytest.raises(ConfigError, match=r"slide_12.jpg isn't named as a region"):
        find_regions(tmp_path)


# --- folds ------------------------------------------------------------------------------------------------------------


def test_no_block_is_in_two_folds_and_every_fold_has_both_classes(built: Path) -> None:
    rows = rows_of(built / "regions" / "slides.csv")
    fold_of: dict[str, set[str]] = {}
    for row in rows:
        fold_of.setdefault(row["patient_id"], set()).add(row["fold"])
    assert all(len(folds) == 1 for folds in fold_of.values())
    assert {row["site"] for row in rows} == {"Case-48", "Case-4", "P9"}
    splits = make_splits(read_table(built / "regions" / "slides.csv"), n_folds=5, seed=0)
    assert [split.fold for split in splits] == [0, 1, 2, 3, 4]


def test_dealing_is_even_where_it_can_be() -> None:
    regions = regions_of({f"Case-{index}-A": "VN" for index in range(10)})
    folds = deal_blocks(regions, 5, seed=0)
    assert Counter(folds) == dict.fromkeys(range(5), 4)


def test_dealing_follows_the_seed() -> None:
    regions = regions_of({f"Case-{index}-A": "VN" for index in range(10)})
    assert deal_blocks(regions, 5, seed=1) == deal_blocks(regions, 5, seed=1)
    assert len({tuple(deal_blocks(regions, 5, seed=seed)) for seed in range(6)}) > 1


def test_folds_that_would_lack_a_class_are_refused() -> None:
    regions = regions_of({f"Case-{index}-A": "VN" if index < 3 else "NN" for index in range(9)})
    with pytest.raises(ConfigError, match="can't be dealt into 5 folds of both classes"):
        deal_blocks(regions, 5, seed=0)


def test_by_patient_no_patient_is_trained_and_tested_and_all_are_tested_once(source: Path) -> None:
    regions = find_regions(source)
    splits = deal_patients(regions, seed=0)
    tested = []
    for parts in splits:
        by_part: dict[str, set[str]] = {}
        for region, part in zip(regions, parts, strict=True):
            by_part.setdefault(part, set()).add(region.patient)
        assert by_part.keys() == {"train", "val", "test"}
        assert not by_part["test"] & (by_part["train"] | by_part["val"])
        tested += [region.region_id for region, part in zip(regions, parts, strict=True) if part == "test"]
    assert sorted(tested) == sorted(region.region_id for region in regions)


def test_one_patient_alone_is_tested_where_both_classes_are_there(source: Path, tmp_path: Path) -> None:
    tables = build(source, tmp_path, by=By.ONE_PATIENT, mosaics=2, seed=0, reporter=silent())
    # P9 has no viable tumour.
    assert [table.name for table in tables] == ["slides_without_Case-4.csv", "slides_without_Case-48.csv"]
    for table, patient in zip(tables, ("Case-4", "Case-48"), strict=True):
        rows = rows_of(table)
        assert len(rows) == 30
        assert all((row["fold"] == "test") == (row["site"] == patient) for row in rows)
        blocks = {
            part: {row["patient_id"] for row in rows if row["fold"] == part} for part in ("train", "val")
        }
        assert not blocks["train"] & blocks["val"]
        for part in ("train", "val", "test"):
            assert {row["label"] for row in rows if row["fold"] == part} == {"other", "viable"}
    assert not list(tmp_path.glob("mosaics*"))


def test_one_patient_with_viable_tumour_cant_be_halved() -> None:
    with pytest.raises(ConfigError, match="can't be halved"):
        deal_patients(regions_of({"Case-1-A": "VN", "Case-1-B": "VN", "Case-2-A": "NN"}), seed=0)


def test_the_note_counts_the_confound() -> None:
    note = confound_note(regions_of({"Case-1-A": "VVV", "Case-2-A": "VNN", "Case-3-A": "NN"}), by_block=True)
    assert "8 regions of 3 blocks of 3 patients" in note
    assert "3 of 4 viable regions are of Case-1, and Case-3 has none" in note


# --- geometry ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "edge"), [("regions", 1), ("mosaics", 3)])
def test_a_region_is_4_low_and_64_high_resolution_tiles(built: Path, kind: str, edge: int) -> None:
    for row in read_table(built / kind / "slides.csv")[:3]:
        with Slide(row.path) as slide:
            assert slide.mpp_xy == pytest.approx((1.0, 1.0))
            assert slide.level_downsamples == (1.0, 4.0)
            grid = make_tile_grid(
                bounds_l0_xywh=slide.bounds_l0_xywh, mpp_xy=slide.mpp_xy, spec=TileSpec(112, 4.0)
            )
            assert grid.shape_yx == (2 * edge, 2 * edge)
            assert grid.subdivide(4).shape_yx == (8 * edge, 8 * edge)
            # Nothing reaches outside.
            assert grid.corner_l0_xy(*grid.shape_yx) == slide.level_dimensions_xy[0]


def test_a_region_shows_the_upper_left_of_its_image(built: Path, source: Path) -> None:
    region = find_regions(source)[4]
    with Image.open(region.path) as image:
        wanted = np.asarray(image).astype(int)[:896, :896]
    with Slide(built / "regions" / "slides" / f"{region.region_id}.tif") as slide:
        full = slide.read_region((0, 0), 0, (896, 896)).astype(int)
        low = slide.read_region((0, 0), 1, (224, 224)).astype(int)
    assert np.abs(full - wanted).mean() < 1
    averaged = wanted.reshape(224, 4, 224, 4, 3).mean(axis=(1, 3))
    assert np.abs(low - averaged).mean() < 1


# --- mosaics ----------------------------------------------------------------------------------------------------------


def test_a_mosaic_holds_regions_of_its_fold_alone(built: Path) -> None:
    fold_of_region = {row["slide_id"]: row["fold"] for row in rows_of(built / "regions" / "slides.csv")}
    slides = {row["slide_id"]: row for row in rows_of(built / "mosaics" / "slides.csv")}
    cells = rows_of(built / "mosaics" / "regions.csv")
    assert Counter(cell["slide_id"] for cell in cells) == dict.fromkeys(slides, SIDE**2)
    for cell in cells:
        assert fold_of_region[cell["region_id"]] == slides[cell["slide_id"]]["fold"]
    # The folds' mosaics share regions, so a fold is one group of the bootstrap.
    assert {(row["fold"], row["patient_id"]) for row in slides.values()} == {
        (str(fold), f"part-{fold}") for fold in range(5)
    }


def test_a_mosaic_is_positive_by_what_it_holds(built: Path) -> None:
    viable: Counter[str] = Counter()
    for cell in rows_of(built / "mosaics" / "regions.csv"):
        viable[cell["slide_id"]] += cell["kind"] == "Viable"
    labels = {row["slide_id"]: row["label"] for row in rows_of(built / "mosaics" / "slides.csv")}
    for name, label in labels.items():
        assert viable[name] in ((1, 2, 3) if label == "viable" else (0,))
    assert Counter(labels.values()) == {"viable": 10, "other": 10}


def test_the_mask_is_where_the_viable_regions_are(built: Path) -> None:
    """Tile by tile: all four LR tiles of a viable region are lesion, no other is; so are its 64 HR tiles."""
    cells = rows_of(built / "mosaics" / "regions.csv")
    for name in ("mosaic-0-01", "mosaic-4-03"):
        mask = np.asarray(Image.open(built / "mosaics" / "masks" / f"{name}.png")) > 0
        viable = {
            (int(cell["row"]), int(cell["col"]))
            for cell in cells
            if cell["slide_id"] == name and cell["kind"] == "Viable"
        }
        assert viable
        for per_edge in (2, 8):
            places = np.argwhere(np.ones((3 * per_edge, 3 * per_edge), bool))
            found = tile_lesion_fractions(mask, places, mask.shape[0] / (3 * per_edge))
            wanted = [float((row // per_edge, col // per_edge) in viable) for row, col in places.tolist()]
            assert found.tolist() == wanted


def test_a_mosaic_shows_its_regions_turned_as_the_table_says(built: Path) -> None:
    """The bright corner of each region, 256 px wide and 128 high, is found where turning and flipping put it."""
    for record in rows_of(built / "mosaics" / "regions.csv")[9:18]:
        with Slide(built / "mosaics" / "slides" / f"{record['slide_id']}.tif") as slide:
            origin = (896 * int(record["col"]), 896 * int(record["row"]))
            seen = slide.read_region(origin, 0, (896, 896))
        with Slide(built / "regions" / "slides" / f"{record['region_id']}.tif") as slide:
            region = slide.read_region((0, 0), 0, (896, 896))
        wanted = np.rot90(region, int(record["quarter_turns"]))
        wanted = np.fliplr(wanted) if record["flipped"] == "1" else wanted
        assert np.abs(seen.astype(int) - wanted).mean() < 1


def test_a_region_comes_back_only_when_its_class_is_used_up() -> None:
    regions = regions_of({"Case-1-A": "VVNNNN"})
    for mosaic in plan_mosaics(regions, part="0", n=20, seed=0):
        counts = Counter(cell.region.region_id for cell in mosaic.cells if cell.region.kind != "Viable")
        assert len(counts) == 4
        assert max(counts.values()) - min(counts.values()) <= 1


def test_positions_are_random() -> None:
    regions = regions_of({"Case-1-A": "VVV" + "N" * 12})
    masks = [
        viable_mask(mosaic.cells, 1)
        for mosaic in plan_mosaics(regions, part="0", n=400, seed=0)
        if mosaic.label == "viable"
    ]
    share = np.mean(masks, axis=0)
    assert share.sum() == pytest.approx(2, abs=0.2)  # one to three viable regions
    assert share.min() > 0.14
    assert share.max() < 0.31


def test_composing_by_hand() -> None:
    regions = regions_of({"Case-1-A": "VNNNNNNNN"})
    pixels = {region.region_id: np.full((2, 2, 3), index, np.uint8) for index, region in enumerate(regions)}
    pixels[regions[0].region_id] = np.asarray([[10, 11], [12, 13]], np.uint8)[..., None].repeat(3, axis=2)
    cells = [Cell(regions[0], 1, True), *(Cell(region, 0, False) for region in regions[1:])]
    found = compose(cells, pixels)[..., 0]
    # Turned counterclockwise: 11 13 / 10 12; mirrored: 13 11 / 12 10.
    np.testing.assert_array_equal(found[:2], [[13, 11, 1, 1, 2, 2], [12, 10, 1, 1, 2, 2]])
    np.testing.assert_array_equal(found[4:, 4:], 8)


def test_odd_numbers_and_parts_of_one_class_are_refused() -> None:
    with pytest.raises(ConfigError, match="even"):
        plan_mosaics(regions_of({"Case-1-A": "VN"}), part="0", n=3, seed=0)
    with pytest.raises(ConfigError, match="part 2: 0 viable regions and 2 others"):
        plan_mosaics(regions_of({"Case-1-A": "NN"}), part="2", n=2, seed=0)


# --- the whole --------------------------------------------------------------------------------------------------------


def test_the_same_seed_writes_the_same_bytes(built: Path, source: Path, tmp_path: Path) -> None:
    build(source, tmp_path, by=By.BLOCK, mosaics=4, seed=3, reporter=silent())
    for kind in ("regions", "mosaics"):
        files = sorted(path.relative_to(built) for path in (built / kind).rglob("*") if path.is_file())
        assert files == sorted(
            path.relative_to(tmp_path) for path in (tmp_path / kind).rglob("*") if path.is_file()
        )
        assert all((built / file).read_bytes() == (tmp_path / file).read_bytes() for file in files)


def test_command_writes_tables_that_training_accepts(source: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, [str(source), str(tmp_path), "--by", "patient", "--mosaics", "2"])
    assert done.exit_code == 0, done.output
    for table in (
        *(tmp_path / "regions" / f"slides_patient{index}.csv" for index in (0, 1)),
        *(tmp_path / f"mosaics_patient{index}" / "slides.csv" for index in (0, 1)),
    ):
        rows = read_table(table)
        assert all(row.path.is_file() for row in rows)
        (split,) = make_splits(rows, n_folds=5, seed=0)
        assert split.train
    note = (tmp_path / "regions" / "note.txt").read_text()
    assert "confounded" in note
    assert "Split by patient." in note
    assert "resample whole parts" in (tmp_path / "mosaics_patient0" / "note.txt").read_text()


def test_command_says_what_is_wrong(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, [str(tmp_path / "absent"), str(tmp_path / "out")])
    assert done.exit_code == 1
    assert "holds no JPEG" in done.output
    assert not (tmp_path / "out").exists()
    (tmp_path / "Viable___Case-1-A-1-2_3.jpg").write_bytes(b"no image")
    done = CliRunner().invoke(app, [str(tmp_path), str(tmp_path / "out")])
    assert done.exit_code == 1


def test_real_regions_are_dealt_with_both_classes_in_every_fold(shared_file: Callable[[str], Path]) -> None:
    regions = find_regions(shared_file("osteosarcoma_ut"))
    assert Counter(region.kind for region in regions) == dict.fromkeys(KINDS, 20)
    assert {region.patient for region in regions} == {"Case-3", "Case-4", "Case-48", "P9"}
    assert "Case-48-P5-C18" in {region.block for region in regions}
    for seed in range(5):
        folds = deal_blocks(regions, 5, seed=seed)
        viable = Counter(fold for fold, region in zip(folds, regions, strict=True) if region.kind == "Viable")
        # One block holds 6 of the 20; the rest leaves no fold with fewer than 3.
        assert min(viable.values()) >= 3
    assert "14 of 20 viable regions are of Case-48" in confound_note(regions, by_block=True)


# --- configs and the table for k folds --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "osteosarcoma_regions",
        "osteosarcoma_patients",
        "osteosarcoma_mosaics",
        "results_cohort",
        "atlas",
        "glas",
    ],
)
def test_configs_load(name: str) -> None:
    config = load_config(CONFIGS / f"{name}.toml")
    assert config.run.seed == 0
    assert config.export.demonstration


def test_kfold_table_has_no_fixed_parts(cohort: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cohort"
    folder.mkdir()
    (folder / "slides.csv").write_bytes(cohort.read_bytes())
    done = CliRunner().invoke(kfold_table.app, [str(folder)])
    assert done.exit_code == 0, done.output
    before, after = read_table(folder / "slides.csv"), read_table(folder / "slides_kfold.csv")
    assert [(row.slide_id, row.path, row.patient_id, row.label, row.mpp) for row in after] == [
        (row.slide_id, row.path, row.patient_id, row.label, row.mpp) for row in before
    ]
    assert all(row.fold is None for row in after)
    splits = make_splits(after, n_folds=3, seed=0)
    assert sorted(row.slide_id for split in splits for row in split.test) == sorted(
        row.slide_id for row in after if row.label is not None
    )
    assert all(len(split.extra) == 2 for split in splits)


def test_kfold_table_of_no_cohort_is_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(kfold_table.app, [str(tmp_path)])
    assert done.exit_code == 1
    assert "no such slide table" in done.output
