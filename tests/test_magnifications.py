"""A head of several magnifications: which tiles are read, at which level, and what a result says of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from napari_lrmil._viewer.docks.classify.panel import bundle_facts
from napari_lrmil.errors import SlideError
from napari_lrmil.evidence import explain
from napari_lrmil.model.bundle import ModelBundle, load_bundle, save_bundle
from napari_lrmil.model.calibration import VectorScaling
from napari_lrmil.model.mil import HEADS, AnyBag, Bag, MILModel, MILOutput, MILSpec
from napari_lrmil.model.mil.focus import FOCUS
from napari_lrmil.model.speed import measured_speed
from napari_lrmil.predict import bundle_tiles, parents_of, predict_slide, run_to_end
from napari_lrmil.slide import Slide, TileGrid, iter_tiles

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore:Pydantic serializer")
"""The head of these tests is none of the registry's."""


class ThreeSpec(MILSpec):
    """Of a head that looks closer at some tiles."""

    name: str = "three"
    wanted: int = 2

    @property
    def factors(self) -> tuple[int, ...]:
        return (4, 2, 1)

    def build(self) -> Three:
        return Three(self)


class Three(MILModel):
    """Sum of the magnifications' means; the children of the last `wanted` tiles are read."""

    magnifications = 3

    def __init__(self, spec: ThreeSpec) -> None:
        super().__init__()
        self.wanted, self.seen = spec.wanted, []
        self.classifier = torch.nn.Linear(spec.embed_dim, spec.n_classes)

    def children_to_read(self, read: Sequence[Bag]) -> Tensor:
        self.seen.append([len(one) for one in read])
        return torch.arange(len(read[-1]))[-self.wanted :] if self.wanted else torch.arange(0)

    def forward(self, bag: AnyBag) -> MILOutput:
        assert isinstance(bag, tuple)
        for coarse, fine in pairwise(bag):
            assert coarse.places is not None
            assert fine.places is not None
            assert fine.parents is not None
            assert bool((fine.places // 2 == coarse.places[fine.parents]).all())
        return MILOutput(self.classifier(torch.stack([one.embeddings.mean(dim=0) for one in bag]).sum(dim=0)))


def made(tiny_bundle: Path, *, mpp: float, **options: Any) -> tuple[ModelBundle, Three]:
    plain = load_bundle(tiny_bundle)
    spec = ThreeSpec(embed_dim=plain.info.mil.embed_dim, n_classes=2, **options)
    torch.manual_seed(0)
    head = spec.build().eval()
    tiles = plain.info.tiles.model_copy(update={"mpp": mpp})
    info = plain.info.model_copy(update={"mil": spec, "tiles": tiles})
    return replace(plain, info=info, mil=head), head


def test_all_magnifications_lie_on_one_grid_and_each_tile_knows_its_parent(
    generated_slide: Path, tiny_bundle: Path
) -> None:
    bundle, _ = made(tiny_bundle, mpp=1.0)
    assert bundle.info.mpps == (4.0, 2.0, 1.0)
    with Slide(generated_slide) as slide:
        sets = bundle_tiles(slide, bundle.info)
    assert [one.grid.spec.mpp for one in sets] == [4.0, 2.0, 1.0]
    for coarse, fine in pairwise(sets):
        assert fine.grid.origin_l0_xy == coarse.grid.origin_l0_xy
        parents = parents_of(fine, coarse)
        by_hand = {(int(r), int(c)): n for n, (r, c) in enumerate(zip(coarse.rows, coarse.cols, strict=True))}
        expected = [by_hand.get((r // 2, c // 2), -1) for r, c in zip(fine.rows, fine.cols, strict=True)]
        assert parents.tolist() == expected
        assert (parents >= 0).any()


def test_only_the_children_that_the_head_asks_for_are_read(generated_slide: Path, tiny_bundle: Path) -> None:
    bundle, head = made(tiny_bundle, mpp=1.0)
    with Slide(generated_slide) as slide:
        sets = bundle_tiles(slide, bundle.info)
    with Slide(generated_slide) as slide:
        before = dict(slide.pixels_read)
        result = run_to_end(predict_slide(slide, bundle, device=CPU))
        read = {level: n - before.get(level, 0) for level, n in slide.pixels_read.items()}
        finest = min(slide.level_mpps[level] for level, n in read.items() if n)
        level_of = {tiles.grid.spec.mpp: tiles.level for tiles in sets}
    assert finest == slide.level_mpps[level_of[1.0]]
    first, second = head.seen
    assert first == [len(sets[0])]
    assert second[0] == len(sets[0])
    children = parents_of(sets[1], sets[0])
    assert second[1] == int(np.isin(children, [len(sets[0]) - 2, len(sets[0]) - 1]).sum())
    assert 0 < len(result.tiles) <= 8
    assert len(result.tiles) < len(sets[2])
    assert result.level_mpp <= 1.0 + 1e-6
    assert result.attention_scores is None
    assert result.class_contributions.shape == (len(result.tiles), 2)


def test_nothing_finer_than_the_declaration_is_read(generated_slide: Path, tiny_bundle: Path) -> None:
    """The same head on tiles of 2 µm/px: 8, 4 and 2; the slide's finer levels are left alone."""
    bundle, _ = made(tiny_bundle, mpp=2.0, wanted=100)
    with Slide(generated_slide) as slide:
        result = run_to_end(predict_slide(slide, bundle, device=CPU))
        read = {slide.level_mpps[level] for level, n in slide.pixels_read.items() if n}
        allowed = max(mpp for mpp in slide.level_mpps if mpp <= 2.0 * 1.1)
    assert min(read) >= allowed - 1e-9
    assert min(slide.level_mpps) < allowed
    assert len(result.tiles) > 2


SMALL: dict[str, dict[str, Any]] = {
    "transmil": {"dim": 16, "heads": 2, "landmarks": 4},
    "focus": {"text_dim": 16, "heads": 2},
    "zoommil": {"zoom": (2, 2), "k": 2, "projection_dim": 8, "hidden_dim": 8},
    "hdmil": {"zoom": 4, "projection_dim": 8, "hidden_dim": 8, "light_dim": 8},
}


@pytest.mark.parametrize("name", HEADS)
def test_what_is_read_is_what_the_head_declares(
    name: str, generated_slide: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a bundle that was saved with each head: its magnifications, no level finer than theirs, the children it chose."""
    plain = load_bundle(tiny_bundle)
    spec = HEADS[name](embed_dim=plain.info.mil.embed_dim, n_classes=2, **SMALL.get(name, {}))
    torch.manual_seed(0)
    head = spec.build().eval()
    if isinstance(head, FOCUS):
        head.set_text(torch.randn(2, 16))
    tiles = plain.info.tiles.model_copy(update={"mpp": 1.0})
    save_bundle(
        tmp_path / "bundle",
        info=plain.info.model_copy(update={"mil": spec, "tiles": tiles}),
        encoder=plain.encoder,
        mil=head,
    )
    bundle = load_bundle(tmp_path / "bundle")
    assert bundle.info.mpps == tuple(factor * 1.0 for factor in spec.factors)

    read: list[tuple[float, set[tuple[float, float]]]] = []

    def recorded(slide: Slide, grid: TileGrid, level: int, places: Any, **options: Any) -> Any:
        read.append((grid.spec.mpp, set(places)))
        return iter_tiles(slide, grid, level, places, **options)

    chosen: list[list[int]] = []
    choose = bundle.mil.children_to_read

    def asked(bags: Sequence[Bag]) -> Tensor:
        found = choose(bags)
        chosen.append(found.tolist())
        return found

    monkeypatch.setattr("napari_lrmil.predict.iter_tiles", recorded)
    monkeypatch.setattr(bundle.mil, "children_to_read", asked)
    with Slide(generated_slide) as slide:
        sets = bundle_tiles(slide, bundle.info)
    with Slide(generated_slide) as slide:
        result = run_to_end(predict_slide(slide, bundle, device=CPU))
        levels = {level for level, n in slide.pixels_read.items() if n}
        assert min(levels) == min(one.level for one in sets)
        assert min(slide.level_mpps[level] for level in levels) >= slide.level_mpps[sets[-1].level]
    assert [mpp for mpp, _ in read] == list(bundle.info.mpps)
    assert len(chosen) == len(sets) - 1
    assert read[0][1] == set(sets[0].places)
    for (_, coarse), (_, fine), wanted, (coarse_set, fine_set) in zip(
        read[:-1], read[1:], chosen, pairwise(sets), strict=True
    ):
        # The head's indices are of what it had read: in the order of the grid.
        had = [place for place in coarse_set.places if place in coarse]
        parents = {had[index] for index in wanted}
        ratio = round(coarse_set.grid.spec.mpp / fine_set.grid.spec.mpp)
        assert fine == {(r, c) for r, c in fine_set.places if (r // ratio, c // ratio) in parents}
    assert len(result.tiles) == len(read[-1][1])
    if name == "zoommil":
        assert all(len(wanted) <= 2 for wanted in chosen)
        assert len(read[-1][1]) < len(sets[-1].places)
    card = (tmp_path / "bundle" / "README.md").read_text()
    for mpp in bundle.info.mpps:
        assert f"{mpp:g} µm/px" in card
        assert f"{mpp:g} µm/px" in bundle_facts(bundle.info).splitlines()[1]
    speed = measured_speed(bundle, torch.device("cpu"))
    # All tiles of all magnifications, of 100 mm²: those that the head leaves aside make it faster, never slower.
    edges_mm = [bundle.info.tiles.tile_px * mpp / 1000 for mpp in bundle.info.mpps]
    assert speed.tiles == pytest.approx(sum(100 / edge**2 for edge in edges_mm), abs=1)
    assert speed.seconds > 0
    assert bundle_facts(bundle.info, speed).splitlines()[2].startswith("1 cm² of tissue: ")


def test_a_head_that_asks_for_tiles_without_tissue_says_so(generated_slide: Path, tiny_bundle: Path) -> None:
    bundle, _ = made(tiny_bundle, mpp=1.0, wanted=0)
    with Slide(generated_slide) as slide, pytest.raises(SlideError, match="wants to look closer at tiles"):
        run_to_end(predict_slide(slide, bundle, device=CPU))


def test_evidence_is_of_the_finest_tiles_with_the_coarser_as_they_are() -> None:
    head = ThreeSpec(embed_dim=4, n_classes=2).build().eval()
    parents = torch.tensor([0, 0, 1])
    places = [torch.tensor([[0, 0], [1, 0]]), torch.tensor([[0, 0], [1, 0], [2, 0]])]
    coarse = Bag(torch.randn(2, 4), places=places[0])
    middle = Bag(torch.randn(3, 4), places=places[1], parents=parents)
    fine = Bag(torch.randn(3, 4), places=places[1] * 2, parents=torch.tensor([0, 1, 2]))
    bags = (coarse, middle, fine)
    found = explain(head, bags, scaling=VectorScaling.of_temperature(1.0, 2))

    def probability(kept: list[int]) -> np.ndarray:
        with torch.no_grad():
            logits = head.double()(
                tuple(one.on("cpu", torch.float64) for one in (coarse, middle, fine.part(torch.tensor(kept))))
            )
        return torch.softmax(logits.bag_logits, 0).numpy()

    whole = probability([0, 1, 2])
    np.testing.assert_allclose(found.class_probabilities, whole, atol=1e-9)
    for tile, rest in enumerate(([1, 2], [0, 2], [0, 1])):
        np.testing.assert_allclose(found.class_contributions[tile], whole - probability(rest), atol=1e-9)
    torch.testing.assert_close(
        head.alone_logits(tuple(one.on("cpu", torch.float64) for one in bags))[1],
        head(
            tuple(one.on("cpu", torch.float64) for one in (coarse, middle, fine.part(torch.tensor([1]))))
        ).bag_logits,
    )
