"""From a slide to a label: only what the student may see is read, and everything lands where it belongs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from tiny_models import tiny_spec, write_bundle

from napari_lrmil import __version__
from napari_lrmil.errors import NoTissueError, SlideError, UnknownMppError
from napari_lrmil.heatmap import attention_heatmap
from napari_lrmil.model.bundle import ModelBundle, load_bundle
from napari_lrmil.model.encoder import EncoderSpec
from napari_lrmil.model.trust import ConformalInfo, OODInfo, TileGaussian, Trust, TrustInfo
from napari_lrmil.predict import (
    PredictProgress,
    SlidePrediction,
    embed_tiles,
    predict_slide,
    run_to_end,
    student_tiles,
)
from napari_lrmil.slide import Slide
from training.data.table import SlideRow
from training.data.tile_index import TileGeometry, index_slides
from training.progress import Reporter

CPU = torch.device("cpu")
REAL = ("slides_real/CMU-1-Small-Region.svs", "slides_repacked/cmu_aperio_pyramid.svs")


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> ModelBundle:
    return load_bundle(tiny_bundle)


def predict(path: Path, bundle: ModelBundle, **options: Any) -> SlidePrediction:
    with Slide(path) as slide:
        return run_to_end(predict_slide(slide, bundle, device=CPU, **options))


def tile_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("lrmil-tiles")]


def white_slide(path: Path, *, mpp: float | None = 0.5) -> Path:
    options: dict[str, Any] = {"tile": (128, 128), "photometric": "rgb"}
    if mpp is not None:
        options |= {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, np.full((512, 512, 3), 244, np.uint8), metadata=None, **options)
    return path


def test_generated_slide(generated_slide: Path, bundle: ModelBundle) -> None:
    result = predict(generated_slide, bundle)
    n = len(result.tiles)
    assert n > 20
    assert result.class_probabilities.shape == (2,)
    assert result.class_probabilities.sum() == pytest.approx(1, abs=1e-12)
    assert result.attention_scores.shape == result.attention_logits.shape == (n,)
    assert result.attention_scores.sum() == pytest.approx(1, abs=1e-5)
    assert result.label == result.class_names[int(result.class_probabilities.argmax())]
    assert result.mpp_xy == pytest.approx((0.5, 0.5))
    assert (result.level, result.level_mpp) == (1, pytest.approx(2.0))
    assert result.bundle_sha256 == bundle.info.sha256
    assert result.weights_sha256 == bundle.info.weights_sha256
    assert result.demonstration
    assert result.version == __version__
    with Slide(generated_slide) as slide:
        assert result.slide_fingerprint == slide.fingerprint()
    # This bundle states nothing to be sure by.
    assert (result.prediction_set, result.coverage, result.ood_score, result.ood_threshold) == (None,) * 4
    assert not result.unsure
    assert not result.out_of_distribution


def test_it_is_the_encoder_and_the_head_on_the_levels_own_pixels(
    generated_slide: Path, bundle: ModelBundle
) -> None:
    """Without iter_tiles and read_area: level 1 has 2 µm/px, so tiles are plain crops of it."""
    result = predict(generated_slide, bundle)
    with Slide(generated_slide) as slide:
        width, height = slide.level_dimensions_xy[1]
        level = slide.read_region((0, 0), 1, (width, height))
    places = list(zip(result.tiles.rows, result.tiles.cols, strict=True))
    crops = np.stack([level[32 * r : 32 * r + 32, 32 * c : 32 * c + 32] for r, c in places])
    with torch.no_grad():
        embeddings = bundle.encoder(bundle.encoder.preprocess(torch.from_numpy(crops))).embedding
        output = bundle.mil(embeddings.half().float())  # the halves that training stores
        probabilities = torch.softmax(output.bag_logits, 0)
    np.testing.assert_allclose(result.class_probabilities, probabilities.numpy(), atol=1e-5)
    np.testing.assert_allclose(result.attention_logits, output.attention_logits[0].numpy(), atol=1e-5)


def test_progress_rises_to_the_number_of_tiles(generated_slide: Path, bundle: ModelBundle) -> None:
    with Slide(generated_slide) as slide:
        steps = list(predict_slide(slide, bundle, device=CPU, batch_size=7))
    total = steps[0].tiles_total
    assert [step.tiles_done for step in steps] == [*range(0, total, 7), total]
    assert {step.tiles_total for step in steps} == {total}
    assert all(one.seconds <= other.seconds for one, other in pairwise(steps))
    assert steps[0].seconds_left is None
    assert steps[-1].seconds_left == 0
    assert PredictProgress(10, 40, 5.0).seconds_left == pytest.approx(15.0)


def test_cancelled_midway_it_leaves_no_thread_and_no_lock(generated_slide: Path, bundle: ModelBundle) -> None:
    with Slide(generated_slide) as slide:
        steps = predict_slide(slide, bundle, device=CPU, batch_size=2, threads=3)
        next(steps)
        next(steps)
        assert tile_threads()
        steps.close()
        assert not tile_threads()
        # The slide can still be read, and a second prediction runs.
        assert len(run_to_end(predict_slide(slide, bundle, device=CPU)).attention_scores) > 20
    assert not tile_threads()


def test_between_steps_the_caller_is_not_in_inference_mode(
    generated_slide: Path, bundle: ModelBundle
) -> None:
    with Slide(generated_slide) as slide:
        for _ in predict_slide(slide, bundle, device=CPU, batch_size=16):
            assert not torch.is_inference_mode_enabled()
        tiles = student_tiles(slide, bundle.info)
        for _ in embed_tiles(
            bundle.encoder, slide, tiles.grid, tiles.level, [(1.0, 1.0)], device=CPU, batch_size=4
        ):
            assert not torch.is_inference_mode_enabled()


def test_batches_and_threads_change_nothing(generated_slide: Path, bundle: ModelBundle) -> None:
    whole = predict(generated_slide, bundle, batch_size=1000, threads=1)
    for batch_size, threads in ((1, 1), (5, 4), (32, 2)):
        other = predict(generated_slide, bundle, batch_size=batch_size, threads=threads)
        np.testing.assert_array_equal(other.tiles.rows, whole.tiles.rows)
        np.testing.assert_allclose(other.class_probabilities, whole.class_probabilities, atol=1e-5)
        np.testing.assert_allclose(other.attention_logits, whole.attention_logits, atol=1e-4)


@pytest.mark.parametrize("error", [
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("MPS backend out of memory"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
    MemoryError(),
])  # fmt: skip
def test_memory_that_takes_fewer_tiles_makes_batches_smaller(
    error: Exception, generated_slide: Path, bundle: ModelBundle
) -> None:
    sizes: list[int] = []

    def refuse(_: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        sizes.append(len(args[0]))
        if len(args[0]) > 5:
            raise error

    whole = predict(generated_slide, bundle)
    hook = bundle.encoder.register_forward_pre_hook(refuse)
    notes: list[str] = []
    try:
        with Slide(generated_slide) as slide:
            steps = predict_slide(slide, bundle, device=CPU, batch_size=32)
            while True:
                try:
                    notes.append(next(steps).note)
                except StopIteration as stop:
                    found: SlidePrediction = stop.value
                    break
    finally:
        hook.remove()
    np.testing.assert_allclose(found.class_probabilities, whole.class_probabilities, atol=1e-5)
    np.testing.assert_array_equal(found.tiles.rows, whole.tiles.rows)
    # Found once, then kept to.
    n_first = min(32, len(whole.tiles))
    assert sizes[0] == n_first
    assert sum(size > 5 for size in sizes) <= 4
    assert notes[-1] == f"The memory doesn't take as many tiles at once: going on with {max(sizes[4:])}."
    assert max(sizes[4:]) >= 3


def test_memory_that_takes_no_tile_and_other_errors_are_raised(
    generated_slide: Path, bundle: ModelBundle
) -> None:
    for error, n_calls in ((MemoryError("none left"), 6), (RuntimeError("shapes differ"), 1)):
        calls: list[int] = []

        def refuse(
            _: torch.nn.Module,
            args: tuple[torch.Tensor, ...],
            calls: list[int] = calls,
            error: Exception = error,
        ) -> None:
            calls.append(len(args[0]))
            raise error

        hook = bundle.encoder.register_forward_pre_hook(refuse)
        try:
            with pytest.raises(type(error), match=str(error)):
                predict(generated_slide, bundle, batch_size=32)
        finally:
            hook.remove()
        assert calls == [32, 16, 8, 4, 2, 1][:n_calls]
    assert not tile_threads()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_no_result(
    value: float, generated_slide: Path, bundle: ModelBundle
) -> None:
    hook = bundle.encoder.register_forward_hook(
        lambda _, __, output: output._replace(embedding=output.embedding * value)
    )
    try:
        with pytest.raises(SlideError, match=r"has no result: Tiny gave numbers that aren't finite"):
            predict(generated_slide, bundle)
    finally:
        hook.remove()


def test_the_bundle_says_whether_the_colour_profile_is_applied(
    generated_slide: Path, bundle: ModelBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted: list[bool] = []
    original = Slide.in_colours

    def recording(self: Slide, *, icc: bool) -> Any:
        wanted.append(icc)
        return original(self, icc=icc)

    monkeypatch.setattr(Slide, "in_colours", recording)
    for apply_icc in (False, True):
        tiles = bundle.info.tiles.model_copy(update={"apply_icc": apply_icc})
        predict(generated_slide, replace(bundle, info=bundle.info.model_copy(update={"tiles": tiles})))
    assert wanted == [False, True]


def test_temperature_divides_the_logits(generated_slide: Path, bundle: ModelBundle, tmp_path: Path) -> None:
    warm = load_bundle(write_bundle(tmp_path / "warm", tiny_spec(), tile_px=32, temperature=4.0))
    one, other = predict(generated_slide, bundle), predict(generated_slide, warm)
    odds = np.log(one.class_probabilities[1] / one.class_probabilities[0])
    warm_odds = np.log(other.class_probabilities[1] / other.class_probabilities[0])
    assert abs(odds) > 1e-3
    assert warm_odds == pytest.approx(odds / 4, rel=1e-4)
    np.testing.assert_allclose(one.attention_scores, other.attention_scores)  # not those of the attention


def recording_reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    levels: list[int] = []
    original = Slide.read_region

    def spy(self: Slide, location: Any, level: int, size: Any, **options: Any) -> Any:
        levels.append(level)
        return original(self, location, level, size, **options)

    monkeypatch.setattr(Slide, "read_region", spy)
    return levels


@pytest.mark.parametrize("source", ["generated", *REAL])
def test_nothing_finer_than_the_students_level_is_read(
    source: str,
    request: pytest.FixtureRequest,
    shared_file: Callable[[str], Path],
    bundle: ModelBundle,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = request.getfixturevalue("generated_slide") if source == "generated" else shared_file(source)
    levels = recording_reads(monkeypatch)
    with Slide(path) as slide:
        n_levels = len(slide.level_dimensions_xy)
        # The coarsest level that still gives 2 µm/px, found here anew.
        allowed = max(level for level in range(n_levels) if slide.level_mpps[level] <= 2.0 * 1.02)
        result = run_to_end(predict_slide(slide, bundle, device=CPU))
    assert min(levels) >= allowed
    assert result.level == allowed
    if n_levels > 1:
        assert allowed >= 1


@pytest.mark.parametrize("name", REAL)
def test_heatmap_of_a_real_slide_lies_on_its_tiles(
    name: str, shared_file: Callable[[str], Path], bundle: ModelBundle
) -> None:
    with Slide(shared_file(name)) as slide:
        result = run_to_end(predict_slide(slide, bundle, device=CPU))
        bounds = slide.bounds_l0_xywh
        heatmap = attention_heatmap(result)
        tiles, n = result.tiles, len(result.tiles)
        seen = ~np.isnan(heatmap.values)
        assert seen.sum() == n
        assert float(np.nansum(heatmap.values)) == pytest.approx(n, rel=1e-4)
        darker = []
        for index in (0, n // 2, n - 1):
            row, col = int(tiles.rows[index]), int(tiles.cols[index])
            assert heatmap.values[row, col] == pytest.approx(result.attention_scores[index] * n, rel=1e-5)
            # A pixel of the heatmap, in level-0 µm, is the tile's corner in level-0 pixels times the mpp.
            for axis, place in ((0, col), (1, row)):
                world_um = heatmap.corner_um_xy[axis] + place * heatmap.pixel_um_xy[axis]
                corner_l0 = bounds[axis] + place * 32 * 2.0 / slide.mpp_xy[axis]
                assert abs(world_um / slide.mpp_xy[axis] - corner_l0) < 1e-6
                assert tiles.corners_l0_xy[index][axis] == pytest.approx(corner_l0)
            # There is tissue under it.
            x, y = (round(value) for value in tiles.corners_l0_xy[index])
            edge = round(64 / slide.mpp_xy[0])
            darker.append(slide.read_region((x, y), 0, (edge, edge))[..., 1].mean())
    assert heatmap.pixel_um_xy == pytest.approx((64.0, 64.0))
    assert max(darker) < 235


def test_heatmap_of_even_attention_is_one_everywhere(generated_slide: Path, tmp_path: Path) -> None:
    flat = load_bundle(write_bundle(tmp_path / "flat", tiny_spec(), tile_px=32, attention_scale=0.0))
    heatmap = attention_heatmap(predict(generated_slide, flat))
    assert heatmap.values[~np.isnan(heatmap.values)] == pytest.approx(1.0, abs=1e-5)
    assert heatmap.corner_um_xy == (0.0, 0.0)


def test_heatmap_scale_does_not_shrink_with_the_slide(generated_slide: Path, bundle: ModelBundle) -> None:
    result = predict(generated_slide, bundle)
    mean = np.nanmean(attention_heatmap(result).values)
    assert mean == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("tile_px", [32, 36, 40])
def test_training_and_inference_read_the_same_tiles(
    shared_file: Callable[[str], Path], tile_px: int, tmp_path: Path
) -> None:
    """Tiles of 36 and 40 px aren't a multiple of the mask's pixels times the ratio: two masks differ there."""
    path = shared_file(REAL[0])
    spec = EncoderSpec(
        architecture="vit_tiny_patch16_224",
        options={"patch_size": 4, "img_size": 32, "embed_dim": 12, "depth": 1, "num_heads": 2},
    )
    info = load_bundle(write_bundle(tmp_path / "b", spec, tile_px=tile_px, min_tissue=0.6)).info
    geometry = TileGeometry(tile_px=tile_px, mpp_lr=2.0, ratio=4, min_tissue=0.6, default_mpp=None)
    (trained,) = index_slides(
        [SlideRow("a", path, "p", "x")], geometry, skip_bad=False, reporter=Reporter(), threads=1
    )
    with Slide(path) as slide:
        served = student_tiles(slide, info)
    np.testing.assert_array_equal(trained.lr_places, np.stack([served.rows, served.cols], axis=1))
    assert trained.lr_shape_yx == served.grid.shape_yx


def test_a_slide_without_tissue_says_so(tmp_path: Path, bundle: ModelBundle) -> None:
    path = white_slide(tmp_path / "white.tif")
    with pytest.raises(NoTissueError, match=r"white\.tif: no tissue found"):
        predict(path, bundle)
    assert not tile_threads()


def test_unknown_mpp_names_the_cure(tmp_path: Path, bundle: ModelBundle) -> None:
    path = white_slide(tmp_path / "nompp.tif", mpp=None)
    with pytest.raises(UnknownMppError, match="--mpp"):
        predict(path, bundle)


def test_a_slide_coarser_than_the_model_is_refused(tmp_path: Path, bundle: ModelBundle) -> None:
    path = white_slide(tmp_path / "coarse.tif", mpp=4.0)
    with pytest.raises(SlideError, match="2 µm/px is needed"):
        predict(path, bundle)


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_real_slide_with_the_real_vit(name: str, shared_file: Callable[[str], Path], tmp_path: Path) -> None:
    weights = shared_file("encoder_dinov2_vits14/vit_small_patch14_dinov2_fp16.safetensors")
    spec = EncoderSpec(architecture="vit_small_patch14_dinov2", options={"img_size": 518})
    bundle = load_bundle(write_bundle(tmp_path / "vit", spec, tile_px=112, weights=weights))
    result = predict(shared_file(name), bundle, batch_size=8)
    assert len(result.tiles) >= 4
    assert np.isfinite(result.class_probabilities).all()
    assert result.class_probabilities.sum() == pytest.approx(1)
    spread = np.ptp(result.attention_logits)
    assert np.isfinite(spread)
    assert spread > 1e-3  # tiles differ


# --- evidence and trust ----------------------------------------------------------------------------------------------


def embeddings_of(path: Path, bundle: ModelBundle) -> torch.Tensor:
    with Slide(path) as slide:
        tiles = student_tiles(slide, bundle.info)
        batches = embed_tiles(
            bundle.encoder, slide, tiles.grid, tiles.level, tiles.places, device=CPU, batch_size=32
        )
        return torch.cat(list(batches))


def test_contributions_are_those_of_the_tiles_left_out(generated_slide: Path, bundle: ModelBundle) -> None:
    warm = replace(bundle, info=bundle.info.model_copy(update={"temperature": 3.0}))
    result = predict(generated_slide, warm)
    instances = embeddings_of(generated_slide, bundle)
    n = len(instances)
    assert result.class_contributions.shape == (n, 2)
    for tile in (0, n // 2, n - 1):
        rest = torch.cat([instances[:tile], instances[tile + 1 :]])
        with torch.no_grad():
            without = torch.softmax(bundle.mil(rest).bag_logits / 3.0, 0).numpy()
        np.testing.assert_allclose(
            result.class_contributions[tile], result.class_probabilities - without, atol=1e-6
        )
    curve = result.deletion
    assert {len(values) for values in curve[:5]} == {11}
    assert result.class_names[curve.class_index] == result.label
    assert curve.by_evidence[0] == result.class_probabilities.max()
    assert curve.by_evidence[-1] == pytest.approx(0.5)


def trusting(
    bundle: ModelBundle, tiles: torch.Tensor, *, quantile: float | None, threshold: float
) -> ModelBundle:
    """The bundle with a trust part around the mean of some embeddings."""
    info = TrustInfo(
        conformal=ConformalInfo(coverage=0.9, n_calibration=20, quantile=quantile),
        ood=OODInfo(
            rank=0, threshold=threshold, false_alarm_rate=0.05, n_calibration=20, n_training_tiles=len(tiles)
        ),
    )
    dim = tiles.shape[1]
    around = tiles.double()
    spread = TileGaussian(
        around.mean(dim=0), torch.zeros(0, dim).double(), around.var(dim=0, correction=0).mean()[None]
    )
    return replace(bundle, trust=Trust(info, spread))


def test_what_a_trust_part_says_of_a_slide(generated_slide: Path, bundle: ModelBundle) -> None:
    tiles = embeddings_of(generated_slide, bundle)
    plain = predict(generated_slide, bundle)
    low, high = sorted(plain.class_probabilities)
    for quantile, expected in (
        (None, ("benign", "lesion")),
        (1 - low, ("benign", "lesion")),
        (1 - (low + high) / 2, (plain.label,)),
        ((1 - high) / 2, ()),
    ):
        result = predict(generated_slide, trusting(bundle, tiles, quantile=quantile, threshold=1.01))
        assert result.prediction_set == expected
        assert result.unsure == (len(expected) != 1)
        assert result.coverage == 0.9
        # The mean squared distance to one's own mean, in units of one's own variance.
        assert result.ood_score == pytest.approx(1, rel=1e-4)
        assert result.ood_threshold == 1.01
        assert not result.out_of_distribution
    strange = predict(generated_slide, trusting(bundle, tiles + 5, quantile=0.5, threshold=1.01))
    assert strange.out_of_distribution
    assert replace(strange, ood_score=float("nan")).out_of_distribution


@pytest.mark.parametrize("name", REAL)
def test_a_real_slide_is_strange_to_what_learnt_from_generated_ones(
    name: str, shared_file: Callable[[str], Path], generated_slide: Path, bundle: ModelBundle
) -> None:
    tiles = embeddings_of(generated_slide, bundle)
    taught = trusting(bundle, tiles, quantile=None, threshold=1.5)
    assert not predict(generated_slide, taught).out_of_distribution
    assert predict(shared_file(name), taught).out_of_distribution
