"""Evidence of any head: without attention, with one a class, exact or estimated; and how each is kept and said."""

from __future__ import annotations

import copy
import csv
import json
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
import zarr
from torch import nn

from napari_lrmil._viewer.docks.classify.evidence import evidence_panel
from napari_lrmil._viewer.docks.tiles.panel import tiles_panel
from napari_lrmil.cache.codec import flatten, restore
from napari_lrmil.evidence import LEAST_EXACT, LEAST_RANDOM, Evidence, explain, log_odds, softmax
from napari_lrmil.export.errors import ResultFileError
from napari_lrmil.export.geojson import heatmap_to_geojson
from napari_lrmil.export.images import write_heatmap_png, write_heatmap_zarr
from napari_lrmil.export.result import read_document, read_prediction, write_prediction
from napari_lrmil.export.slide_report import write_slide_report
from napari_lrmil.heatmap import (
    ATTENTION,
    HeatmapLook,
    channel_titles,
    channel_values,
    channels_of,
    fitting_look,
    tile_text,
)
from napari_lrmil.model.bundle import ModelBundle, load_bundle, save_bundle
from napari_lrmil.model.calibration import VectorScaling
from napari_lrmil.model.mil import AnyBag, MILModel, MILOutput, build_mil
from napari_lrmil.model.mil.base import one_bag
from napari_lrmil.model.mil.max import MaxMIL
from napari_lrmil.model.mil.mean import MeanMIL, MeanSpec
from napari_lrmil.model.mil.work import ELEMENT, OPERATION, WorkCounter
from napari_lrmil.predict import SlidePrediction, predict_slide, run_to_end
from napari_lrmil.slide import Slide
from napari_lrmil.wording import evidence_notes

CPU = torch.device("cpu")
PLAIN = VectorScaling.of_temperature(1.0, 3)


class ClassAttention(MILModel):
    """One attention a class, each class reading its own bag; no short way to leave tiles out."""

    def __init__(self, dim: int = 6, classes: int = 3) -> None:
        super().__init__()
        self.score, self.classifier = nn.Linear(dim, classes), nn.Linear(dim, classes)

    def forward(self, bag: AnyBag) -> MILOutput:
        instances = one_bag(bag).embeddings
        logits = torch.tanh(self.score(instances)).T * 3  # (C, N)
        pooled = torch.softmax(logits, dim=1) @ instances  # (C, D)
        bag_logits = (pooled * self.classifier.weight).sum(dim=1) * 4 + self.classifier.bias
        return MILOutput(bag_logits, attention_logits=logits)


def by_class(seed: int = 0) -> ClassAttention:
    torch.manual_seed(seed)
    return ClassAttention().eval()


def exactly(head: MILModel, instances: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Contributions in probability and in log-odds, without anything of the module under test."""
    head = head.double()
    with torch.no_grad():
        whole = head(instances.double()).bag_logits.numpy()
        rows = [
            head(torch.cat([instances[:tile], instances[tile + 1 :]]).double()).bag_logits.numpy()
            for tile in range(len(instances))
        ]
    left = np.stack(rows)
    return softmax(whole) - softmax(left), log_odds(whole) - log_odds(left)


# --- evidence


@pytest.mark.parametrize("kind", [MeanMIL, MaxMIL])
def test_a_head_without_attention_has_exact_contributions_and_no_attention(
    kind: type[MeanMIL] | type[MaxMIL],
) -> None:
    torch.manual_seed(1)
    head, instances = kind(embed_dim=6, n_classes=3).eval(), torch.randn(9, 6)
    found = explain(head, instances, scaling=PLAIN)
    assert found.attention_scores is None
    assert found.attention_logits is None
    assert found.class_attention is None
    assert found.exact_tiles is None
    points, odds = exactly(head, instances)
    np.testing.assert_allclose(found.class_contributions, points, atol=1e-9)
    np.testing.assert_allclose(found.log_odds_contributions, odds, atol=1e-9)


def test_attention_of_a_class_is_that_of_the_called_one_and_of_each() -> None:
    head, instances = by_class(), torch.randn(9, 6)
    found = explain(head, instances, scaling=PLAIN)
    with torch.no_grad():
        scores = head.double()(instances.double()).attention_scores
    assert scores is not None
    assert found.class_attention is not None
    np.testing.assert_allclose(found.class_attention, scores.numpy(), atol=1e-12)
    called = int(found.class_probabilities.argmax())
    np.testing.assert_allclose(found.attention_scores, scores[called].numpy(), atol=1e-12)


def work_of_one(head: MILModel, instances: torch.Tensor) -> float:
    """What one tile more that is left out is counted as."""
    head, kept = copy.deepcopy(head).double(), ~torch.eye(len(instances), dtype=torch.bool)
    counted = []
    for parts in (kept[:1], kept[:3]):
        with torch.inference_mode(), WorkCounter() as work:
            head.subset_logits(instances.double(), parts)
        counted.append(work.done)
    return (counted[1] - counted[0]) / 2


def estimated(head: MILModel, instances: torch.Tensor, *, exact: int) -> Evidence:
    """Evidence of which only so many tiles are paid for, and what they have in common, which is less than a half of one."""
    return explain(head, instances, scaling=PLAIN, most_work=(exact + 0.9) * work_of_one(head, instances))


def test_what_can_be_paid_is_exact_and_the_rest_is_called_an_estimate() -> None:
    head, instances = by_class(), torch.randn(120, 6, generator=torch.Generator().manual_seed(3))
    points, odds = exactly(by_class(), instances)
    paid = estimated(head, instances, exact=120)
    assert paid.exact_tiles is None
    np.testing.assert_allclose(paid.class_contributions, points, atol=1e-9)
    found = estimated(by_class(), instances, exact=40)
    assert found.exact_tiles is not None
    assert found.exact_tiles.sum() == 40
    exact = found.exact_tiles
    np.testing.assert_allclose(found.class_contributions[exact], points[exact], atol=1e-9)
    np.testing.assert_allclose(found.log_odds_contributions[exact], odds[exact], atol=1e-9)
    assert not np.allclose(found.log_odds_contributions[~exact], odds[~exact], atol=1e-9)
    # The gradient finds the tiles that matter, and the others are estimated nearer to the truth than by nothing.
    called = int(found.class_probabilities.argmax())
    strongest = np.argsort(-np.abs(odds[:, called]))[:10]
    assert exact[strongest].mean() >= 0.9
    off = found.log_odds_contributions[~exact] - odds[~exact]
    assert (off**2).sum() < 0.5 * (odds[~exact] ** 2).sum()
    assert found.class_probabilities == pytest.approx(paid.class_probabilities, abs=1e-12)
    assert found.deletion.by_evidence[0] == pytest.approx(found.class_probabilities[called], abs=1e-12)


def test_however_slow_a_head_some_tiles_are_exact_and_its_weights_stay_trainable() -> None:
    head, instances = by_class(), torch.randn(50, 6)
    found = explain(head, instances, scaling=PLAIN, most_work=0)
    assert found.exact_tiles is not None
    assert found.exact_tiles.sum() == LEAST_EXACT
    assert np.isfinite(found.class_contributions).all()
    assert all(weights.requires_grad and weights.dtype == torch.float32 for weights in head.parameters())


def test_a_head_with_a_short_way_is_never_estimated() -> None:
    head = MeanMIL(embed_dim=6, n_classes=3).eval()
    assert explain(head, torch.randn(3000, 6), scaling=PLAIN, most_work=0, n_random=2).exact_tiles is None


def test_estimates_do_not_depend_on_the_order_of_the_tiles() -> None:
    instances, order = torch.randn(60, 6), torch.randperm(60)
    one, other = (estimated(by_class(), bag, exact=20) for bag in (instances, instances[order]))
    np.testing.assert_allclose(other.class_contributions, one.class_contributions[order], atol=1e-9)


def test_work_is_counted_as_it_is() -> None:
    """A product of (2, 3) and (3, 4) is 48 FLOPs, one call, 8 numbers; attention of 5 over 7 is two products."""
    left, right = torch.ones(2, 3), torch.ones(3, 4)
    with torch.inference_mode(), WorkCounter() as work:
        left @ right
    assert work.done == 48 + OPERATION + 8 * ELEMENT
    linear = nn.Linear(3, 4, bias=False)
    with torch.inference_mode(), WorkCounter() as within:
        linear(left)
    assert within.done - 48 == pytest.approx(work.done - 48, abs=2 * OPERATION)  # it turns the weights first
    query, key = torch.ones(1, 2, 5, 16), torch.ones(1, 2, 7, 16)
    counted = []
    for length in (7, 14):
        with torch.inference_mode(), WorkCounter() as attention:
            nn.functional.scaled_dot_product_attention(
                query, key.repeat(1, 1, length // 7, 1), key.repeat(1, 1, length // 7, 1)
            )
        counted.append(attention.done)
    assert counted[1] - counted[0] >= 2 * 2 * 2 * 5 * 7 * 16
    with torch.inference_mode(), WorkCounter() as nothing:
        pass
    assert nothing.done == 0


@pytest.mark.parametrize(
    "work",
    [
        lambda: torch.ones(2, 3).mm(torch.ones(3, 4)),
        lambda: torch.addmm(torch.ones(4), torch.ones(2, 3), torch.ones(3, 4)),
        lambda: torch.ones(5, 2, 3).bmm(torch.ones(5, 3, 4)),
        lambda: torch.baddbmm(torch.ones(5, 2, 4), torch.ones(5, 2, 3), torch.ones(5, 3, 4)),
        lambda: torch.ones(5, 7, 2, 3) @ torch.ones(7, 3, 4),
        lambda: nn.functional.linear(torch.ones(2, 5, 3), torch.ones(4, 3), torch.ones(4)),
        lambda: nn.functional.conv2d(torch.ones(2, 6, 9, 8), torch.ones(4, 3, 3, 3), groups=2),
        lambda: nn.functional.conv1d(torch.ones(2, 6, 9), torch.ones(4, 6, 3), torch.ones(4)),
    ],
)
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_products_and_convolutions_are_counted_as_torch_counts_them(
    work: Callable[[], torch.Tensor],
    mode: Callable[[], AbstractContextManager[None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Torch's table imports Triton, which no window bears: ours says the same."""
    from torch.utils.flop_counter import FlopCounterMode

    for name in ("OPERATION", "ELEMENT"):
        monkeypatch.setattr(f"napari_lrmil.model.mil.work.{name}", 0)
    with FlopCounterMode(display=False) as torchs:
        work()
    with mode(), WorkCounter() as ours:
        work()
    assert ours.done == torchs.get_total_flops() > 0


def test_the_same_bag_has_the_same_evidence_however_busy_the_machine() -> None:
    """The budget counts operations: two runs give the same numbers, the second beside another thread that runs the head."""
    head, instances = by_class(), torch.randn(60, 6)
    budget = 20.5 * work_of_one(head, instances)
    quiet = explain(head, instances, scaling=PLAIN, most_work=budget)
    stop = threading.Event()

    def busy() -> None:
        while not stop.is_set():
            head(instances)

    thread = threading.Thread(target=busy)
    thread.start()
    try:
        beside = explain(head, instances, scaling=PLAIN, most_work=budget)
    finally:
        stop.set()
        thread.join()
    np.testing.assert_array_equal(quiet.exact_tiles, beside.exact_tiles)
    np.testing.assert_array_equal(quiet.class_contributions, beside.class_contributions)
    np.testing.assert_array_equal(quiet.log_odds_alone, beside.log_odds_alone)
    np.testing.assert_array_equal(quiet.deletion.random_mean, beside.deletion.random_mean)


def test_the_budget_is_of_tiles_alone_and_of_random_orders_too() -> None:
    class Counted(ClassAttention):
        bags: ClassVar[list[int]] = []

        def forward(self, bag: AnyBag) -> MILOutput:
            self.bags.append(len(one_bag(bag)))
            return super().forward(bag)

    torch.manual_seed(0)
    head, instances = Counted().eval(), torch.randn(120, 6, generator=torch.Generator().manual_seed(3))
    found = explain(head, instances, scaling=PLAIN, most_work=0)
    assert found.exact_tiles is not None
    exact = found.exact_tiles
    assert head.bags.count(1) <= LEAST_EXACT + 4  # four are counted first
    # The whole bag, its gradient, those without a tile, and the steps of one order by evidence and of the fewest at random.
    others = [size for size in head.bags if size > 1]
    assert len(others) <= 2 + LEAST_EXACT + (1 + LEAST_RANDOM) * 9
    with torch.no_grad():
        alone = log_odds(
            np.stack([head.double()(one[None].double()).bag_logits.numpy() for one in instances])
        )
    np.testing.assert_allclose(found.log_odds_alone[exact], alone[exact], atol=1e-9)
    off = found.log_odds_alone[~exact] - alone[~exact]
    assert (off**2).mean() < 0.8 * alone[~exact].var()  # nearer than their mean, from 8 tiles
    paid = explain(head, instances, scaling=PLAIN, most_work=1e15)
    np.testing.assert_allclose(paid.log_odds_alone, alone, atol=1e-9)
    assert paid.exact_tiles is None


# --- how it is shown and kept


@pytest.fixture(scope="module")
def mean_bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    """A bundle with mean pooling."""
    model = load_bundle(tiny_bundle)
    spec = MeanSpec(embed_dim=model.info.mil.embed_dim, n_classes=2)
    folder = tmp_path_factory.mktemp("mean")
    info = model.info.model_copy(update={"mil": spec})
    torch.manual_seed(0)
    save_bundle(folder, info=info, encoder=model.encoder, mil=build_mil(spec))
    return load_bundle(folder)


@pytest.fixture(scope="module")
def plain_prediction(generated_slide: Path, mean_bundle: ModelBundle) -> SlidePrediction:
    """Of mean pooling."""
    with Slide(generated_slide) as slide:
        return run_to_end(predict_slide(slide, mean_bundle, device=CPU))


@pytest.fixture(scope="module")
def attended(plain_prediction: SlidePrediction) -> SlidePrediction:
    """The same with an attention a class, and contributions of which all but two are estimates."""
    n = len(plain_prediction.tiles)
    logits = np.random.default_rng(0).normal(size=(2, n))
    scores = softmax(logits)
    exact = np.zeros(n, bool)
    exact[[1, 3]] = True
    called = plain_prediction.called_index
    return replace(
        plain_prediction,
        attention_scores=scores[called],
        attention_logits=logits[called],
        class_attention=scores,
        exact_tiles=exact,
    )


@pytest.mark.parametrize("name", ["plain_prediction", "attended"])
def test_a_result_is_read_back_as_it_was(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    prediction: SlidePrediction = request.getfixturevalue(name)
    json_path, csv_path = write_prediction(prediction, tmp_path)
    again = read_prediction(json_path)
    arrays: dict[str, np.ndarray] = {}
    from_cache = restore(SlidePrediction, flatten(prediction, arrays), arrays)
    for found in (again, from_cache):
        assert isinstance(found, SlidePrediction)
        for field in (
            "attention_scores",
            "attention_logits",
            "class_attention",
            "exact_tiles",
            "class_contributions",
        ):
            expected = getattr(prediction, field)
            assert (getattr(found, field) is None) is (expected is None), field
            if expected is not None:
                np.testing.assert_array_equal(getattr(found, field), expected)
                assert getattr(found, field).dtype == expected.dtype
    document = read_document(json_path)
    with csv_path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if name == "attended":
        assert (document.attention, document.exact_tiles) == ("by class", 2)
        assert [row["exact"] for row in rows][:4] == ["0.0", "1.0", "0.0", "1.0"]
        assert float(rows[0]["attention_score_benign"]) == prediction.class_attention[0, 0]
    else:
        assert (document.attention, document.exact_tiles) == ("none", None)
        assert {row["attention_score"] + row["attention_logit"] for row in rows} == {""}
        changed = json.loads(json_path.read_text()) | {"attention": "of all"}
        json_path.write_text(json.dumps(changed))
        with pytest.raises(ResultFileError, match="damaged"):
            read_prediction(json_path)


def test_channels_are_what_the_model_has(
    plain_prediction: SlidePrediction, attended: SlidePrediction
) -> None:
    called, other = attended.called, next(n for n in attended.class_names if n != attended.called)
    assert channels_of(plain_prediction) == plain_prediction.class_names
    assert channels_of(attended) == (ATTENTION, f"attention for {other}", *attended.class_names)
    assert channel_titles(attended)[:2] == (f"Attention for {called}", f"Attention for {other}")
    assert attended.class_attention is not None
    np.testing.assert_allclose(
        channel_values(attended, f"attention for {other}"),
        attended.class_attention[attended.class_names.index(other)] * len(attended.tiles),
    )
    with pytest.raises(ValueError, match="no attention"):
        channel_values(plain_prediction, ATTENTION)
    # What was looked at on another slide stays where this model has it, else gives way to what it has.
    assert fitting_look(plain_prediction, HeatmapLook()).channel == called
    assert fitting_look(plain_prediction, HeatmapLook(channel=f"attention for {other}")).channel == called
    look = HeatmapLook(channel=f"attention for {other}")
    assert fitting_look(attended, look) == look
    assert not look.signed
    assert fitting_look(replace(attended, class_attention=None), look).channel == ATTENTION
    assert f"attention for {other} " in tile_text(attended, 0)
    assert "attention" not in tile_text(plain_prediction, 0)
    assert "(estimated)" in tile_text(attended, 0)
    assert "(estimated)" not in tile_text(attended, 1)


def test_the_window_offers_what_the_model_has_and_says_what_is_estimated(
    plain_prediction: SlidePrediction, attended: SlidePrediction, generated_slide: Path
) -> None:
    panel = evidence_panel(plain_prediction, fitting_look(plain_prediction, HeatmapLook()))
    assert panel.channels == tuple(f"Contribution to {name}" for name in plain_prediction.class_names)
    assert "worked out exactly by leaving each one out" in panel.legend
    other = next(n for n in attended.class_names if n != attended.called)
    panel = evidence_panel(attended, HeatmapLook(channel=f"attention for {other}"))
    assert panel.channels[panel.channel_index] == f"Attention for {other}"
    note = f"Contributions are exact for 2 of {len(attended.tiles)} tiles"
    assert note in panel.notes
    assert note in " ".join(evidence_notes(attended))
    panel = evidence_panel(attended, HeatmapLook(channel=other))
    assert "exactly" not in panel.legend
    with Slide(generated_slide) as slide:
        ranked = tiles_panel(slide, plain_prediction, plain_prediction.called, 3)
        assert ranked.channels == tuple(f"Contribution to {name}" for name in plain_prediction.class_names)
        ranked = tiles_panel(slide, attended, f"attention for {other}", 3)
        assert attended.class_attention is not None
        assert ranked.top[0].n == int(attended.class_attention[attended.class_names.index(other)].argmax())


@pytest.mark.parametrize("name", ["plain_prediction", "attended"])
def test_exports_hold_what_the_model_has(
    name: str, request: pytest.FixtureRequest, generated_slide: Path, mean_bundle: ModelBundle, tmp_path: Path
) -> None:
    prediction: SlidePrediction = request.getfixturevalue(name)
    group = zarr.open_group(write_heatmap_zarr(tmp_path / "heat.ome.zarr", prediction), mode="r")
    assert group["0"].shape[0] == len(channels_of(prediction)) + 2 * len(prediction.class_names)
    assert write_heatmap_png(tmp_path / "heat.png", prediction).stat().st_size > 100
    features = heatmap_to_geojson(prediction, bounds_l0_xywh=(0, 0, 10, 10))["features"]
    assert isinstance(features, list)
    measured = features[0]["properties"]["measurements"]
    with Slide(generated_slide) as slide:
        info = mean_bundle.info
        run_to_end(
            write_slide_report(
                prediction, slide, info, html=tmp_path / "report.html", pdf=tmp_path / "report.pdf"
            )
        )
    assert (tmp_path / "report.pdf").stat().st_size > 1000
    text = (tmp_path / "report.html").read_text()
    if name == "attended":
        assert {"Attention score for benign", "Attention score for lesion"} <= set(measured)
        assert "exact where it isn&#39;t estimated" in text or "exact where it isn't estimated" in text
        assert f"Contributions are exact for 2 of {len(prediction.tiles)} tiles" in text
        assert "Attention shows what the model looked at" in text
    else:
        assert not any("ttention" in key for key in measured)
        first = [
            one["properties"]["measurements"][f"Contribution to log-odds({prediction.called})"]
            for one in features
        ]
        assert first == sorted(first, reverse=True)
        assert "ttention" not in text.replace("your attention", "")
