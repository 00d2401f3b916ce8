"""Features of CLAM and TRIDENT: read, matched to HR tiles, and stored where the run looks for them."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rich.console import Console
from run_helpers import absolute_rows, write_config, write_rows
from typer.testing import CliRunner

from napari_lrmil.model.encoder import Encoder, EncoderSpec
from training.config import load_config
from training.import_features.__main__ import app
from training.import_features.files import FeatureError, find_feature_files, read_features
from training.import_features.matching import match_features
from training.import_features.slides import embed_dim_of
from training.progress import Reporter
from training.run.prepare import prepare

TILE = (100.0, 100.0)


def write_h5(
    path: Path,
    features: NDArray[Any] | None,
    coords: NDArray[Any] | None,
    attributes: dict[str, object] | None = None,
    *,
    name: str = "features",
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        if features is not None:
            file[name] = features
        if coords is not None:
            file["coords"] = coords
            file["coords"].attrs.update(attributes or {})
    return path


def grid(n: int = 5, tile: float = 100.0, origin: tuple[float, float] = (0.0, 0.0)) -> NDArray[np.float64]:
    cols, rows = np.meshgrid(np.arange(n), np.arange(n))
    return np.stack([cols.ravel(), rows.ravel()], axis=1) * tile + origin


# --- matching --------------------------------------------------------------------------------------------------------


def test_the_same_grid_in_another_order() -> None:
    ours = grid()
    order = np.random.default_rng(0).permutation(len(ours))
    match = match_features(corners_l0_xy=ours, tile_l0_xy=TILE, coords_l0_xy=ours[order], patch_l0_xy=TILE)
    assert match.fits.all()
    assert match.missing == 0
    np.testing.assert_array_equal(order[match.nearest], np.arange(25))
    assert match.typical_offset_l0_xy == (0, 0)


@pytest.mark.parametrize(("shift", "aligned", "nearest"), [
    ((0.0, 0.0), True, True),
    ((25.0, -25.0), True, True),  # a quarter of a tile
    ((26.0, 0.0), False, True),
    ((0.0, -26.0), False, True),
    ((50.0, 50.0), False, True),  # half a tile
    ((51.0, 0.0), False, False),
])  # fmt: skip
def test_how_far_a_patch_may_be(shift: tuple[float, float], aligned: bool, nearest: bool) -> None:
    ours = np.array([[1000.0, 2000.0]])
    for allow, fits in ((False, aligned), (True, nearest)):
        match = match_features(
            corners_l0_xy=ours, tile_l0_xy=TILE, coords_l0_xy=ours + shift, patch_l0_xy=TILE, nearest=allow
        )
        assert match.fits.tolist() == [fits]
        np.testing.assert_allclose(match.offset_l0_xy, [shift])
        assert match.missing == 1 - fits


def test_axes_are_measured_in_their_own_tiles() -> None:
    """Tiles 200 wide and 100 high, where pixels aren't square: 40 px are a fifth of one, and two fifths of the other."""
    for shift, fits in (((40, 0), True), ((0, 40), False)):
        match = match_features(
            corners_l0_xy=np.zeros((1, 2)),
            tile_l0_xy=(200.0, 100.0),
            coords_l0_xy=np.array([shift]),
            patch_l0_xy=(200.0, 100.0),
        )
        assert match.fits.tolist() == [fits]


@pytest.mark.parametrize(
    ("patch", "fits"),
    [(100.0, True), (102.0, True), (98.0, True), (103.0, False), (97.0, False), (50.0, False)],
)
@pytest.mark.parametrize("nearest", [False, True])
def test_how_large_a_patch_may_be(patch: float, fits: bool, nearest: bool) -> None:
    given: dict[str, Any] = {
        "corners_l0_xy": grid(),
        "tile_l0_xy": TILE,
        "coords_l0_xy": grid(),
        "nearest": nearest,
    }
    if fits:
        assert match_features(**given, patch_l0_xy=(patch, patch)).fits.all()
    else:
        with pytest.raises(
            FeatureError, match=r"measure .* level-0 pixels, our HR tiles 100 x 100: another magnif"
        ):
            match_features(**given, patch_l0_xy=(patch, patch))
        with pytest.raises(FeatureError):
            match_features(**given, patch_l0_xy=(100.0, patch))


def test_nearest_compares_centres() -> None:
    """A patch 2 px larger with its corner 1 px up and left has the same centre."""
    match = match_features(
        corners_l0_xy=grid(),
        tile_l0_xy=TILE,
        coords_l0_xy=grid() - 1,
        patch_l0_xy=(102.0, 102.0),
        nearest=True,
    )
    np.testing.assert_allclose(match.offset_l0_xy, 0)


def test_a_shifted_grid_is_told_by_its_typical_offset() -> None:
    ours = grid(6)
    # The grid is off by 40, 30; one far patch is no part of it.
    theirs = np.concatenate([grid(6, origin=(40.0, 30.0)), [[5000.0, 5000.0]]])
    match = match_features(corners_l0_xy=ours, tile_l0_xy=TILE, coords_l0_xy=theirs, patch_l0_xy=TILE)
    assert match.missing == 1
    assert match.typical_offset_l0_xy == pytest.approx((40, 30))


def test_tissue_that_was_not_imported_is_missing() -> None:
    ours = grid(4)
    match = match_features(corners_l0_xy=ours, tile_l0_xy=TILE, coords_l0_xy=ours[:12], patch_l0_xy=TILE)
    assert match.fits.tolist() == [True] * 12 + [False] * 4
    assert match.missing == pytest.approx(0.25)


def test_rounded_pixels_drift_apart_along_a_row() -> None:
    """Ours are 256.513 px (256 at 0.5 µm on 0.499 µm), theirs 257: after 132 tiles the corners are 64 px apart."""
    tile = 256.513
    cols = np.arange(200)
    ours = np.stack([cols * tile, np.zeros(200)], axis=1)
    theirs = np.stack([cols * 257.0, np.zeros(200)], axis=1)
    match = match_features(
        corners_l0_xy=ours, tile_l0_xy=(tile, tile), coords_l0_xy=theirs, patch_l0_xy=(257.0, 257.0)
    )
    limit = int(tile / 4 / (257 - tile))
    assert match.fits[: limit + 1].all()
    assert not match.fits[limit + 1]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 800), st.integers(0, 800)), min_size=1, max_size=30),
    st.lists(st.tuples(st.integers(0, 800), st.integers(0, 800)), min_size=1, max_size=30),
    st.booleans(),
)
def test_matching_agrees_with_looking_at_every_pair(
    ours: list[tuple[int, int]], theirs: list[tuple[int, int]], nearest: bool
) -> None:
    one, other = np.array(ours, float), np.array(theirs, float)
    match = match_features(
        corners_l0_xy=one, tile_l0_xy=TILE, coords_l0_xy=other, patch_l0_xy=TILE, nearest=nearest
    )
    distance = np.abs(one[:, None] - other[None]).max(axis=-1)
    chosen = distance[np.arange(len(one)), match.nearest]
    np.testing.assert_allclose(chosen, distance.min(axis=1))
    np.testing.assert_array_equal(match.fits, distance.min(axis=1) <= (50 if nearest else 25))
    np.testing.assert_allclose(match.offset_l0_xy, other[match.nearest] - one)


def test_matching_a_large_slide_is_quick() -> None:
    ours = grid(400)
    match = match_features(corners_l0_xy=ours, tile_l0_xy=TILE, coords_l0_xy=ours[::-1] + 3, patch_l0_xy=TILE)
    assert match.fits.all()


# --- reading ---------------------------------------------------------------------------------------------------------

FEATURES = np.arange(12, dtype=np.float32).reshape(3, 4)
COORDS = np.array([[0, 0], [512, 0], [0, 512]])


@pytest.mark.parametrize(("attributes", "extent"), [
    ({"patch_size_level0": 512, "patch_size": 256, "level0_magnification": 40, "target_magnification": 20}, 512),
    ({"patch_size": 256, "level0_magnification": 40, "target_magnification": 20}, 512),
    ({"patch_size": 256, "patch_level": 0}, 256),
    ({"patch_size": 256, "patch_level": 1, "downsample": (4.0, 4.0)}, 1024),
    ({"patch_size": np.array([256, 256]), "patch_level": 1}, 1025.024),  # the slide's downsample of level 1
])  # fmt: skip
@pytest.mark.parametrize("batched", [False, True])
def test_how_large_patches_are_in_files_of_trident_and_clam(
    tmp_path: Path, attributes: dict[str, object], extent: float, batched: bool
) -> None:
    features = FEATURES[None] if batched else FEATURES
    path = write_h5(tmp_path / "s.h5", features.astype(np.float16), COORDS, attributes)
    file = read_features(path, level_downsamples=(1.0, 4.004))
    np.testing.assert_array_equal(file.features, FEATURES)
    assert file.features.dtype == np.float32
    np.testing.assert_array_equal(file.coords_l0_xy, COORDS)
    assert file.patch_l0_xy == pytest.approx((extent, extent))


def test_clam_says_the_patch_size_in_its_patch_file(tmp_path: Path) -> None:
    """CLAM's feature files carry features and coords without attributes."""
    path = write_h5(tmp_path / "h5_files" / "s.h5", FEATURES, COORDS)
    patches = write_h5(tmp_path / "patches" / "s.h5", None, COORDS, {"patch_size": 256, "patch_level": 0})
    with pytest.raises(FeatureError, match="doesn't say how large a patch is: give CLAM's folder"):
        read_features(path)
    assert read_features(path, coords_path=patches).patch_l0_xy == (256, 256)
    assert read_features(path, patch_px_l0=512).patch_l0_xy == (512, 512)


@pytest.mark.parametrize(("features", "coords", "attributes", "message"), [
    (FEATURES, None, {}, "holds no dataset 'coords': without them nobody knows which feature belongs to which tile"),
    (None, COORDS, {}, "holds no dataset 'features', only 'coords'"),
    (FEATURES[:2], COORDS, {}, r"2 features, but coords of shape \(3, 2\)"),
    (FEATURES[0], COORDS, {}, r"shape \(4,\)"),
    (FEATURES * np.nan, COORDS, {}, "aren't finite"),
    (FEATURES, COORDS, {"patch_size": 256, "patch_level": 7}, "of level 7, which the slide doesn't have"),
    (FEATURES, COORDS, {"unit": "um", "tile_size_um": 256}, "in µm; expected are level-0 pixels"),
    (FEATURES[:0], COORDS[:0], {}, "holds no features"),
    (FEATURES, COORDS, {"patch_size_level0": "large"}, "its patch_size_level0 is 'large', not a number"),
    (FEATURES, COORDS, {"patch_size_level0": h5py.Empty("f4")}, "its patch_size_level0 is .*, not a number"),
    (FEATURES, COORDS, {"patch_size_level0": 0}, "its patch_size_level0 is .*: no number of pixels above 0"),
    (FEATURES, COORDS, {"patch_size_level0": np.nan}, "no number of pixels above 0"),
    (FEATURES, COORDS, {"patch_size": 256, "patch_level": "x"}, "its patch_level is 'x', not a number"),
    (FEATURES, COORDS, {"patch_size": 256, "level0_magnification": 40, "target_magnification": 0}, "target_magnification"),
])  # fmt: skip
def test_files_that_cannot_be_used(
    tmp_path: Path, features: Any, coords: Any, attributes: dict[str, object], message: str
) -> None:
    with pytest.raises(FeatureError, match=message):
        read_features(write_h5(tmp_path / "s.h5", features, coords, attributes), patch_px_l0=512)


@pytest.mark.parametrize("text", ["None", b"None", "nan", ""])
def test_a_patch_size_that_is_none_is_not_said(tmp_path: Path, text: object) -> None:
    """Written where the magnification was unknown."""
    path = write_h5(tmp_path / "s.h5", FEATURES, COORDS, {"patch_size_level0": text})
    with pytest.raises(FeatureError, match=r"doesn't say how large a patch is: .* --patch-px-l0"):
        read_features(path)
    assert read_features(path, patch_px_l0=512).patch_l0_xy == (512, 512)


def test_hdf5_that_promises_too_much_or_is_odd(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "huge.h5", "w") as file:
        file.create_dataset("features", shape=(10**9, 10**4), dtype="f2", chunks=(1024, 1024))
    with pytest.raises(FeatureError, match="more than 8 GiB is no slide's"):
        read_features(tmp_path / "huge.h5")
    with h5py.File(tmp_path / "group.h5", "w") as file:
        file.create_group("features")
    with pytest.raises(FeatureError, match="'features' is no dataset"):
        read_features(tmp_path / "group.h5")
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["features"] = h5py.SoftLink("/nowhere")
    with pytest.raises(FeatureError):
        read_features(tmp_path / "link.h5")


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([
            "patch_size_level0", "patch_size", "patch_level", "downsample", "level0_magnification", "target_magnification", "unit"
        ]),
        st.none() | st.text("None0123.-", max_size=4) | st.integers(-3, 2**40) | st.floats() | st.lists(st.floats(), max_size=3)
        | st.binary(min_size=1, max_size=3).filter(lambda text: 0 not in text),
    )
)  # fmt: skip
def test_whatever_its_attributes_a_file_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, attributes: dict[str, Any]
) -> None:
    given = {name: h5py.Empty("f4") if value is None else value for name, value in attributes.items()}
    path = write_h5(tmp_path_factory.getbasetemp() / "any.h5", FEATURES, COORDS, given)
    try:
        file = read_features(path, level_downsamples=(1.0, 4.0))
    except FeatureError:
        return
    assert all(0 < edge < float("inf") for edge in file.patch_l0_xy)


def test_what_is_no_hdf5(tmp_path: Path) -> None:
    (tmp_path / "s.h5").write_bytes(b"PK no")
    with pytest.raises(FeatureError, match="can't be read as HDF5"):
        read_features(tmp_path / "s.h5")
    with pytest.raises(FeatureError, match="can't be read as HDF5"):
        read_features(tmp_path / "none.h5")


def test_feature_files_are_found_by_slide(tmp_path: Path) -> None:
    with pytest.raises(FeatureError, match=r"no \.h5 files are below"):
        find_feature_files(tmp_path)
    for name in ("20x/a.h5", "20x/b_patches.h5", "20x/TCGA-1.uuid.h5"):
        write_h5(tmp_path / name, FEATURES, COORDS)
    assert sorted(find_feature_files(tmp_path)) == ["TCGA-1.uuid", "a", "b"]
    write_h5(tmp_path / "10x" / "a.h5", FEATURES, COORDS)
    with pytest.raises(FeatureError, match="are both of slide a"):
        find_feature_files(tmp_path)


def test_real_features_of_a_tcga_slide(shared_file: Callable[[str], Path]) -> None:
    """Its patches lie on a grid of 512 px, which a grid of ours with tiles of that size meets exactly."""
    path = shared_file("wsi_features_mopadi/TCGA-AD-6964-01Z-00-DX1.h5")
    with pytest.raises(FeatureError, match="doesn't say how large a patch is"):
        read_features(path)
    file = read_features(path, patch_px_l0=512)
    assert file.features.shape == (777, 512)
    ours = grid(80, 512.0)
    match = match_features(
        corners_l0_xy=ours,
        tile_l0_xy=(512.0, 512.0),
        coords_l0_xy=file.coords_l0_xy,
        patch_l0_xy=file.patch_l0_xy,
    )
    assert match.fits.sum() == 777
    np.testing.assert_array_equal(file.coords_l0_xy[match.nearest][match.fits], ours[match.fits])
    with pytest.raises(FeatureError, match="holds no dataset 'coords'"):
        read_features(shared_file("wsi_features_mopadi/TCGA-3X-AAVA-01Z-00-DX1.h5"))


def test_the_width_of_an_encoder_without_its_weights() -> None:
    for spec in (
        EncoderSpec(options={"image_px": 32, "embed_dim": 48, "depth": 1}),
        EncoderSpec(architecture="vit_small_patch16_224"),
    ):
        assert embed_dim_of(spec) == Encoder(spec).embed_dim


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def setting(tmp_path: Path, cohort: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config of a tiny run whose encoder has 24 dimensions, with a weights file to stand for it."""
    write_config(tmp_path, cohort)
    (tmp_path / "weights.safetensors").write_bytes(b"stands for the encoder")
    monkeypatch.chdir(tmp_path)
    return tmp_path


SETTINGS = ["--encoder.weights", "weights.safetensors", "--stage1.layers", "[]"]


def jobs_of(folder: Path, *words: str) -> list[Any]:
    config = load_config(folder / "config.toml", [*SETTINGS, *words])
    quiet = Reporter(Console(file=io.StringIO()))
    context = prepare(config, skip_bad=False, reporter=quiet).context
    # Where they are imported to: the tokens of other layers, which a run stores beside, aren't known.
    return context.jobs(context.rows, context.hr_store(context.stored_layers), hr=True)


def write_features(
    job: Any, folder: Path, *, shift: float = 0, keep: int | None = None, dim: int = 24
) -> NDArray[Any]:
    """A TRIDENT file of the slide's whole grid or its first tiles; the features by tile of our order."""
    geometry, row = job.geometry, job.tiles.row
    with geometry.open(row) as slide:
        tiles = geometry.lr_grid(slide).subdivide(geometry.ratio)
    places = job.tiles.hr_places
    corners = tiles.corners_l0_xy(places[:, 0], places[:, 1])
    features = np.random.default_rng(len(row.slide_id)).normal(size=(len(corners), dim)).astype(np.float16)
    order = np.random.default_rng(1).permutation(len(corners))[:keep]
    size = round(tiles.tile_l0_xy[0])
    write_h5(
        folder / f"{row.slide_id}.h5",
        features[order],
        np.round(corners[order] + shift).astype(np.int64),
        {"patch_size_level0": size, "patch_size": size},
    )
    return features


def run(*words: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def test_imported_features_are_the_embeddings_of_the_run(setting: Path) -> None:
    jobs = jobs_of(setting)
    expected = [write_features(job, setting / "features") for job in jobs]
    said = run("config.toml", "features", *SETTINGS)
    assert f"Imported {len(jobs)} slides." in said
    for job, features in zip(jobs, expected, strict=True):
        assert job.is_done  # of this slide file and these tiles: the run won't embed it again
        np.testing.assert_array_equal(job.store.read(job.tiles.row.slide_id), features.astype(np.float32))
    quiet = Reporter(Console(file=io.StringIO()))
    context = prepare(load_config(setting / "config.toml", SETTINGS), skip_bad=False, reporter=quiet).context
    assert context.hr_store().root == jobs[0].store.root  # where the run looks for them
    assert f"{len(jobs)} slides had embeddings already. Imported 0 slides." in run(
        "config.toml", "features", *SETTINGS
    )


def test_slides_that_do_not_fit_are_listed_and_not_written(setting: Path) -> None:
    jobs = jobs_of(setting)
    write_features(jobs[0], setting / "features")
    write_features(jobs[1], setting / "features", keep=-2)
    write_features(jobs[2], setting / "features", shift=13)
    write_features(jobs[3], setting / "features", dim=20)
    write_features(jobs[5], setting / "features")
    names = [job.tiles.row.slide_id for job in jobs]
    with h5py.File(setting / "features" / f"{names[5]}.h5", "a") as file:
        file["coords"].attrs["patch_size_level0"] = "None"
        del file["coords"].attrs["patch_size"]
    said = run("config.toml", "features", *SETTINGS)
    n = len(jobs[1].places)
    assert f"Not imported, {len(jobs) - 1} slides, which the run will embed itself" in said
    assert (
        f"{names[1]}: {2 / n:.1%} of our {n} HR tiles have no patch (its corner within a quarter of a tile)"
        in said
    )
    assert f"{names[2]}: 100.0% of our" in said
    assert (
        "typically lie +13, +13 px off (x, y; a tile is 32 px, a patch 32 px): another grid; --nearest takes"
        in said
    )
    assert f"{names[3]}: its features have 20 numbers, the encoder's embeddings 24" in said
    assert f"{names[4]}: no file {names[4]}.h5" in said
    assert f"{names[5]}: it doesn't say how large a patch is" in said
    assert [job.is_done for job in jobs[:6]] == [True, False, False, False, False, False]

    said = run("config.toml", "features", *SETTINGS, "--nearest", "--max-missing", "0.2")
    assert "Imported 2 slides (by nearest patch: an approximation)" in said
    assert "2 tiles without a patch got the features of the nearest one" in said
    assert [job.is_done for job in jobs[:5]] == [True, True, True, False, False]


def test_a_grid_of_nominal_magnification_is_met_by_a_nominal_mpp(setting: Path, cohort: Path) -> None:
    """TRIDENT takes every 40x scan for 0.25 µm/px. Here: patches of 32.6 px, where the file's 0.5 µm/px makes 32."""
    names = [job.tiles.row.slide_id for job in jobs_of(setting)]
    coords = grid(16, 32.6)
    for name in names:
        features = np.tile(np.arange(256, dtype=np.float32)[:, None], 24)
        write_h5(setting / "features" / f"{name}.h5", features, coords, {"patch_size_level0": 32.6})
    said = run("config.toml", "features", *SETTINGS, code=1)
    assert (
        "a tile is 32 px, a patch 32.6 px): the grids drift apart; 0.4908 in the column mpp of the slide"
        in said
    )
    rows = [line | {"mpp": str(16 / 32.6)} for line in absolute_rows(cohort)]
    write_rows(setting / "nominal.csv", rows)
    said = run("config.toml", "features", *SETTINGS, "--data.slides", "nominal.csv")
    assert f"Imported {len(names)} slides." in said
    for job in jobs_of(setting, "--data.slides", "nominal.csv"):
        place = job.tiles.hr_places
        np.testing.assert_array_equal(
            job.store.read(job.tiles.row.slide_id)[:, 0], place[:, 0] * 16 + place[:, 1]
        )


@pytest.mark.parametrize(("words", "message"), [
    (["--encoder.weights", "weights.safetensors"], "imported features hold the last embedding only"),
    (["--stage1.layers", "[]"], "encoder.weights must name the weights file"),
    (["--stage1.layers", "[]", "--encoder.weights", "no.safetensors"], "there is no no.safetensors"),
])  # fmt: skip
def test_runs_that_cannot_take_features(setting: Path, words: list[str], message: str) -> None:
    (setting / "features").mkdir()
    assert message in run("config.toml", "features", *words, code=1)
    assert not (setting / "run").exists()
    assert "no such folder of features" in run("config.toml", "nothing", *SETTINGS, code=1)
    assert "no .h5 files are below" in run("config.toml", "features", *SETTINGS, code=1)
