"""Stage 1's pairs: which children a tile has, also shifted, turned and flipped; and how they are loaded."""

from __future__ import annotations

import itertools
import os
import threading
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_lrmil.slide import Slide, choose_level, read_tile
from napari_lrmil.slide.geometry import children_of
from training.data import pairs as pairs_module
from training.data.bags import Bags, parents_in_bag, read_ahead
from training.data.pairs import PairBatch, PairLoader, SlidePairs, turn
from training.data.store import EmbeddingStore
from training.data.table import SlideRow, read_table
from training.data.tile_index import SlideTiles, TileGeometry, index_slides
from training.progress import Reporter

GEOMETRY = TileGeometry(tile_px=32, mpp_lr=2.0, ratio=4, min_tissue=0.25, default_mpp=None)


def slide_tiles(hr: np.ndarray, ratio: int, lr: np.ndarray | None = None) -> SlideTiles:
    """From boolean maps of tissue in both grids."""
    shape = (hr.shape[0] // ratio, hr.shape[1] // ratio)
    lr = np.ones(shape, bool) if lr is None else lr
    return SlideTiles(SlideRow("s", Path("s.tif"), "p", "a"), shape, np.argwhere(lr), np.argwhere(hr))


# --- which children --------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    ratio=st.integers(2, 4),
    rows=st.integers(1, 3),
    cols=st.integers(1, 3),
    shifted=st.booleans(),
    min_children=st.sampled_from([0.01, 0.25, 0.5, 1.0]),
    seed=st.integers(0, 1000),
)
def test_pairs_against_brute_force(
    ratio: int, rows: int, cols: int, shifted: bool, min_children: float, seed: int
) -> None:
    hr = np.random.default_rng(seed).random((rows * ratio, cols * ratio)) < 0.6
    tiles = slide_tiles(hr, ratio)
    index = {(int(y), int(x)): number for number, (y, x) in enumerate(tiles.hr_places)}
    expected = {}
    step = 1 if shifted else ratio
    for top in range(0, rows * ratio - ratio + 1, step):
        for left in range(0, cols * ratio - ratio + 1, step):
            children = [index.get((top + y, left + x), -1) for y in range(ratio) for x in range(ratio)]
            if sum(child >= 0 for child in children) >= min_children * ratio**2:
                expected[top, left] = children
    found = SlidePairs(tiles, ratio=ratio, shifted=shifted, min_children=min_children)
    assert len(found) == len(expected)
    assert {
        tuple(p): c for p, c in zip(found.places_hr.tolist(), found.children.tolist(), strict=True)
    } == expected


def test_unshifted_children_are_the_geometrys() -> None:
    tiles = slide_tiles(np.ones((8, 12), bool), 4)
    found = SlidePairs(tiles, ratio=4, shifted=False, min_children=1.0)
    assert found.places_hr.tolist() == [[0, 0], [0, 4], [0, 8], [4, 0], [4, 4], [4, 8]]
    lr = found.places_hr // 4
    for places, children in zip(children_of(lr[:, 0], lr[:, 1], 4), found.children, strict=True):
        np.testing.assert_array_equal(tiles.hr_places[children], places)


def test_shifts_give_over_ten_times_the_pairs() -> None:
    tiles = slide_tiles(np.ones((64, 64), bool), 4)
    plain = SlidePairs(tiles, ratio=4, shifted=False, min_children=0.25)
    assert len(SlidePairs(tiles, ratio=4, shifted=True, min_children=0.25)) > 14 * len(plain)


@pytest.mark.parametrize("how", range(8))
@pytest.mark.parametrize("ratio", [2, 4])
def test_turned_tiles_still_show_their_children_where_they_are(ratio: int, how: int) -> None:
    """Each child's block of pixels holds the child's number: after the turn, block k must hold children[k]."""
    numbers = np.arange(ratio * ratio).reshape(ratio, ratio)
    pixels = np.kron(numbers, np.ones((3, 3), int)).astype(np.uint8)
    tile, children = turn(np.repeat(pixels[..., None], 3, axis=2), np.arange(ratio * ratio), ratio, how)
    assert tile.shape == (3 * ratio, 3 * ratio, 3)
    for k, child in enumerate(children):
        row, col = divmod(k, ratio)
        block = tile[3 * row : 3 * row + 3, 3 * col : 3 * col + 3]
        assert (block == child).all()


def test_the_eight_turns_differ() -> None:
    tile = np.random.default_rng(0).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    seen = {turn(tile, np.arange(4), 2, how)[0].tobytes() for how in range(8)}
    assert len(seen) == 8


def test_parents_in_bag_by_hand() -> None:
    hr = np.ones((4, 4), bool)
    hr[0, 0] = False
    lr = np.array([[True, False], [True, True]])
    parents = parents_in_bag(slide_tiles(hr, 2, lr), 2)
    #        row 0: -, 0 | -1, -1      row 1: 0, 0 | -1, -1      row 2, 3: 1, 1 | 2, 2
    assert parents.tolist() == [0, -1, -1, 0, 0, -1, -1, 1, 1, 2, 2, 1, 1, 2, 2]


# --- loading ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def indexed(cohort: Path) -> list[SlideTiles]:
    return index_slides(read_table(cohort)[:5], GEOMETRY, skip_bad=False, reporter=Reporter(), threads=2)


@pytest.fixture(scope="module")
def store(indexed: list[SlideTiles], tmp_path_factory: pytest.TempPathFactory) -> EmbeddingStore:
    """Embeddings that say of which slide and tile they are: (slide, tile) and (slide, tile, layer)."""
    store = EmbeddingStore(tmp_path_factory.mktemp("store"))
    for number, tiles in enumerate(indexed):
        n = len(tiles.hr_places)
        one = np.stack([np.full(n, number), np.arange(n)], axis=1).astype(float)
        layers = np.stack([np.column_stack([one, np.full(n, layer)]) for layer in range(2)])
        store.write(tiles.row.slide_id, embedding=one, layer_class_tokens=layers)
    return store


def loader_of(
    indexed: list[SlideTiles],
    store: EmbeddingStore,
    *,
    batch_size: int = 7,
    scored: bool = False,
    **options: Any,
) -> PairLoader:
    pairs = [SlidePairs(tiles, ratio=4, shifted=True, min_children=0.25) for tiles in indexed]
    lengths = {tiles.row.slide_id: len(tiles.hr_places) for tiles in indexed}

    def scores(name: str) -> np.ndarray:
        return np.arange(lengths[name], dtype=np.float32) + 1

    return PairLoader(
        pairs,
        GEOMETRY,
        store,
        scores=scores if scored else None,
        batch_size=batch_size,
        threads=2,
        **options,
    )


def drawn(
    loader: PairLoader, seed: int, *, limit: int | None = None, turned: bool = False
) -> list[PairBatch]:
    return list(loader.batches(np.random.default_rng(seed), limit=limit, turned=turned))


def keys_of(batches: list[PairBatch]) -> list[tuple[int, ...]]:
    """What identifies each pair: its slide, and its children whatever their order."""
    keys = []
    for batch in batches:
        for embeddings, valid in zip(batch.child_embeddings, batch.valid, strict=True):
            children = embeddings[valid].long()
            keys.append((int(children[0, 0]), *sorted(children[:, 1].tolist())))
    return keys


def test_batches_have_the_shapes_that_they_say(indexed: list[SlideTiles], store: EmbeddingStore) -> None:
    batch = drawn(loader_of(indexed, store), 0)[0]
    assert batch.tiles.shape == (7, 32, 32, 3)
    assert batch.child_embeddings.shape == (7, 16, 2)
    assert batch.child_layer_tokens.shape == (2, 7, 16, 3)
    assert batch.child_scores.shape == batch.valid.shape == (7, 16)
    assert (batch.child_scores == 0).all()
    assert len(batch.slide_ids) == 7
    assert batch.weight == 1
    assert {getattr(batch, name).dtype for name in ("child_embeddings", "child_layer_tokens")} == {
        torch.float32
    }


def test_pairs_name_their_slides(indexed: list[SlideTiles], store: EmbeddingStore) -> None:
    names = [tiles.row.slide_id for tiles in indexed]
    for batch in drawn(loader_of(indexed, store), 0, turned=True):
        assert list(batch.slide_ids) == [names[key[0]] for key in keys_of([batch])]


def test_without_layers_none_are_read(indexed: list[SlideTiles], tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path)
    for tiles in indexed:
        store.write(tiles.row.slide_id, embedding=np.ones((len(tiles.hr_places), 2)))
    batch = drawn(loader_of(indexed, store, layer_tokens=None), 0)[0]
    assert batch.child_layer_tokens.shape == (0, 7, 16, 2)
    assert batch.child_embeddings.shape == (7, 16, 2)


def test_an_epoch_holds_every_pair_once(indexed: list[SlideTiles], store: EmbeddingStore) -> None:
    loader = loader_of(indexed, store)
    batches = drawn(loader, 0, turned=True)
    expected = []
    for number, tiles in enumerate(indexed):
        children = SlidePairs(tiles, ratio=4, shifted=True, min_children=0.25).children
        expected += [(number, *sorted(row[row >= 0].tolist())) for row in children]
    assert sorted(keys_of(batches)) == sorted(expected)
    assert len(expected) == loader.n_pairs
    assert len(batches) == loader.steps(None)
    slides = [key[0] for key in keys_of(batches)]
    assert len(set(slides[:40])) > 2  # mixed over slides, not one after another


def test_layers_scores_and_embeddings_are_of_the_same_child(
    indexed: list[SlideTiles], store: EmbeddingStore
) -> None:
    for batch in drawn(loader_of(indexed, store, scored=True), 0, turned=True):
        valid = batch.valid
        for layer in range(2):
            tokens = batch.child_layer_tokens[layer]
            assert (tokens[..., :2][valid] == batch.child_embeddings[valid]).all()
            assert (tokens[..., 2] == layer).all()
        assert (batch.child_scores[valid] == batch.child_embeddings[..., 1][valid] + 1).all()


def test_a_pairs_pixels_are_those_over_its_children(indexed: list[SlideTiles], store: EmbeddingStore) -> None:
    """Pixels read anew at the place that the children say, against the loader's, with shifts but unturned."""
    batches = drawn(loader_of(indexed, store), 3)
    opened = [Slide(tiles.row.path) for tiles in indexed]
    try:
        checked = 0
        for batch in batches[:4]:
            for tile, children, valid in zip(batch.tiles, batch.child_embeddings, batch.valid, strict=True):
                k = int(valid.nonzero()[0])
                number, child = (int(value) for value in children[k])
                y, x = indexed[number].hr_places[child] - np.divmod(k, 4)
                grid = GEOMETRY.lr_grid(opened[number])
                level = choose_level(opened[number].level_mpps, 2.0)
                expected = read_tile(opened[number], grid, level, y / 4, x / 4)
                np.testing.assert_array_equal(tile.numpy(), expected)
                # Level 1 has 2 µm/px and a HR tile is 8 of its pixels: the same crop by hand.
                plain = opened[number].read_region((int(x) * 32, int(y) * 32), 1, (32, 32))
                np.testing.assert_array_equal(tile.numpy(), plain)
                checked += 1
        assert checked == 28
    finally:
        for slide in opened:
            slide.close()


def test_the_seed_decides_the_batches(indexed: list[SlideTiles], store: EmbeddingStore) -> None:
    loader = loader_of(indexed, store)
    one, same, other = (drawn(loader, seed, turned=True) for seed in (1, 1, 2))
    for first, second in zip(one, same, strict=True):
        for a, b in zip(first, second, strict=True):
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    assert keys_of(one) != keys_of(other)


@pytest.mark.parametrize("mixed", [1, 2, 64])
@pytest.mark.parametrize("limit", [None, 1, 50, 10**6])
def test_limits_and_slides_that_are_open_at_once(
    indexed: list[SlideTiles],
    store: EmbeddingStore,
    mixed: int,
    limit: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pairs_module, "MIXED_SLIDES", mixed)
    loader = loader_of(indexed, store, batch_size=16)
    batches = drawn(loader, 0, limit=limit)
    keys = keys_of(batches)
    assert len(keys) == min(limit or 10**6, loader.n_pairs)
    assert len(batches) == loader.steps(limit)
    assert all(len(batch.tiles) == 16 for batch in batches[:-1])
    if limit is None:
        assert len(set(keys)) == len({*keys_of(drawn(loader, 5))})
    slides = [key[0] for key in keys]
    if mixed == 1:  # one slide after the other
        assert sum(a != b for a, b in itertools.pairwise(slides)) == len(set(slides)) - 1


def test_a_drawn_part_is_of_all_slides_by_their_pairs(
    indexed: list[SlideTiles], store: EmbeddingStore
) -> None:
    loader = loader_of(indexed, store)
    wanted, lengths = loader.n_pairs // 3, [0] * len(indexed)
    for number, tiles in enumerate(indexed):
        lengths[number] = len(SlidePairs(tiles, ratio=4, shifted=True, min_children=0.25))
    counts = np.zeros(len(indexed))
    for seed in range(20):
        which, inner, _ = loader._drawn(np.random.default_rng(seed), wanted, False)
        assert len({*zip(which.tolist(), inner.tolist(), strict=True)}) == wanted  # none twice
        counts += np.bincount(which, minlength=len(indexed)) / 20
    expected = np.asarray(lengths) * wanted / loader.n_pairs
    np.testing.assert_allclose(counts, expected, rtol=0.25)


@pytest.mark.parametrize("start", [0, 1, 3, 10**6])
def test_an_epoch_goes_on_in_its_middle_without_reading_what_was_before(
    indexed: list[SlideTiles], store: EmbeddingStore, start: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = loader_of(indexed, store, batch_size=16)
    whole = drawn(loader, 7, limit=100, turned=True)
    read: list[int] = []
    load = pairs_module._load
    monkeypatch.setattr(pairs_module, "_load", lambda *args: read.append(1) or load(*args))
    rng = np.random.default_rng(7)
    rest = list(loader.batches(rng, limit=100, turned=True, start=start))
    assert len(read) == max(0, 100 - 16 * start)
    for first, second in zip(whole[start:], rest, strict=True):
        for a, b in zip(first, second, strict=True):
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_no_more_slides_are_open_than_are_mixed(
    indexed: list[SlideTiles], store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairs_module, "MIXED_SLIDES", 1)
    opened: list[Slide] = []
    most = 0
    of = TileGeometry.open

    def counting(self: TileGeometry, row: SlideRow) -> Slide:
        opened.append(of(self, row))
        return opened[-1]

    close = Slide.close
    monkeypatch.setattr(TileGeometry, "open", counting)
    monkeypatch.setattr(Slide, "close", lambda self: (close(self), opened.remove(self)))
    for _ in loader_of(indexed, store, batch_size=1).batches(
        np.random.default_rng(0), limit=None, turned=False
    ):
        most = max(most, len(opened))
    assert not opened
    assert most <= 1 + 4


# --- shared over processes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2, 3, 9])
@pytest.mark.parametrize("limit", [None, 50])
def test_processes_share_every_batch(
    indexed: list[SlideTiles], store: EmbeddingStore, world: int, limit: int | None
) -> None:
    """What they hold together is the batch of one process; their weighted means average to its mean."""

    def of(rank: int, world: int) -> list[PairBatch]:
        loader = loader_of(indexed, store, batch_size=7, scored=True, rank=rank, world=world)
        return drawn(loader, 4, limit=limit, turned=True)

    def value(tiles: torch.Tensor) -> torch.Tensor:  # some loss of each pair
        return tiles.double().square().mean(dim=(1, 2, 3)).sqrt()

    whole, shares = of(0, 1), [of(rank, world) for rank in range(world)]
    for batch, *parts in zip_longest(whole, *shares):  # None, where one has fewer: they would wait for ever
        assert all(len(part.tiles) for part in parts)
        mean = sum(part.weight * float(value(part.tiles).mean()) for part in parts) / world
        assert mean == pytest.approx(float(value(batch.tiles).mean()), rel=1e-9)
        counted = [part for part in parts if part.weight]
        assert sorted(keys_of(counted)) == sorted(keys_of([batch]))
        assert sum(part.weight for part in parts) == pytest.approx(world)
        assert {part.n_pairs for part in parts} == {len(batch.tiles)}
        assert sorted(name for part in counted for name in part.slide_ids) == sorted(batch.slide_ids)
    together = [key for share in shares for key in keys_of([batch for batch in share if batch.weight])]
    assert sorted(together) == sorted(keys_of(whole))


def open_files() -> int:
    return len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0


def loader_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("lrmil-pairs")]


def test_slides_and_threads_end_with_the_epoch(indexed: list[SlideTiles], store: EmbeddingStore) -> None:
    loader = loader_of(indexed, store)
    drawn(loader, 0)  # what is opened once a process, is
    before = open_files()
    for seed in range(3):
        drawn(loader, seed)
    unfinished = loader.batches(np.random.default_rng(0), limit=None, turned=True)
    next(unfinished)
    assert loader_threads()
    unfinished.close()
    assert open_files() <= before
    assert not loader_threads()


def test_slides_without_a_pair_are_left_out(indexed: list[SlideTiles], store: EmbeddingStore) -> None:
    bare = SlideTiles(indexed[0].row, (4, 4), np.zeros((1, 2), int), np.zeros((1, 2), int))
    pairs = [SlidePairs(tiles, ratio=4, shifted=True, min_children=0.5) for tiles in (bare, indexed[1])]
    loader = PairLoader(pairs, GEOMETRY, store, scores=None, batch_size=8, threads=1)
    assert loader.n_pairs == len(pairs[1])


# --- bags ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def bagged(tmp_path: Path) -> tuple[EmbeddingStore, list[SlideRow]]:
    """Five slides of 10 to 50 tiles of 4 dimensions, each its number everywhere."""
    store = EmbeddingStore(tmp_path)
    rows = [SlideRow(f"s{number}", Path(), f"p{number}", "ab"[number % 2]) for number in range(5)]
    for number, row in enumerate(rows):
        store.write(row.slide_id, embedding=np.full((10 * (number + 1), 4), number))
    return store, rows


def test_bags_keep_order_and_labels(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path)
    rows = [SlideRow(name, Path(), f"p{name}", label) for name, label in (("x", "b"), ("y", "a"))]
    for number, item in enumerate(rows):
        store.write(item.slide_id, embedding=np.full((3, 2), number))
    bags = Bags(store, rows, ("a", "b"))
    assert [(bag.name, bag.label, float(bag.instance_embeddings[0, 0])) for bag in bags] == [
        ("x", 1, 0.0),
        ("y", 0, 1.0),
    ]
    assert bags.labels.tolist() == [1, 0]
    assert len(bags) == 2
    assert [bag.name for bag in bags[1:]] == ["y"]
    with pytest.raises(ValueError, match="z has no label"):
        Bags(store, [SlideRow("z", Path(), "p", None)], ("a", "b"))


@pytest.mark.parametrize("cache_bytes", [0, 10 * 4 * 2, 300, 2**30])
def test_bags_come_in_the_order_asked_for_whatever_is_kept(
    bagged: tuple[EmbeddingStore, list[SlideRow]], cache_bytes: float
) -> None:
    bags = Bags(*bagged, ("a", "b"), cache_bytes=cache_bytes)
    for order in ([3, 0, 4, 1, 2], [0, 1, 2, 3, 4], [2, 2], []):
        found = list(bags.in_order(order))
        assert [bag.name for bag in found] == [f"s{index}" for index in order]
        for bag, index in zip(found, order, strict=True):
            assert bag.instance_embeddings.shape == (10 * (index + 1), 4)
            assert bag.instance_embeddings.dtype == torch.float32
            assert (bag.instance_embeddings == index).all()
            assert bag.label == index % 2


def test_a_bag_beyond_the_budget_is_read_again_and_is_the_same(
    bagged: tuple[EmbeddingStore, list[SlideRow]], monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    read = EmbeddingStore.read

    def counted(self: EmbeddingStore, slide_id: str, *args: Any, **options: Any) -> Any:
        reads.append(slide_id)
        return read(self, slide_id, *args, **options)

    monkeypatch.setattr(EmbeddingStore, "read", counted)
    bags = Bags(*bagged, ("a", "b"), cache_bytes=10 * 4 * 2 + 20 * 4 * 2)  # the first two, as halves
    first = list(bags)
    assert reads == ["s0", "s1", "s2", "s3", "s4"]
    reads.clear()
    again = list(bags)
    assert reads == ["s2", "s3", "s4"]
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one.instance_embeddings, other.instance_embeddings)
    reads.clear()
    again[0].instance_embeddings.zero_()
    again[1].instance_embeddings.fill_(7)
    assert (bags[1].instance_embeddings == 1).all()  # what is kept is nobody's to change
    assert reads == []


def test_small_bags_in_memory_come_without_a_thread(
    bagged: tuple[EmbeddingStore, list[SlideRow]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def readers() -> list[str]:
        return [one.name for one in threading.enumerate() if one.name.startswith("lrmil-read-ahead")]

    bags = Bags(*bagged, ("a", "b"))
    first = bags.in_order(range(5))
    next(first)
    assert readers()
    list(first)
    again = bags.in_order(range(5))
    next(again)
    assert not readers()
    monkeypatch.setattr("training.data.bags._SMALL", 10 * 4 * 2)  # the first alone is as small
    again = bags.in_order(range(5))
    next(again)
    assert readers()
    list(again)


def test_one_item_is_read_ahead_and_no_more() -> None:
    started = [threading.Event() for _ in range(4)]

    def read(index: int) -> int:
        started[index].set()
        return index * 10

    items = read_ahead(read, range(4))
    assert next(items) == 0
    assert started[1].wait(10)  # while the first is in use
    assert not started[2].is_set()
    assert list(items) == [10, 20, 30]


def test_what_fails_while_read_ahead_is_raised_where_it_is_asked_for() -> None:
    def read(index: int) -> int:
        if index == 1:
            raise OSError("torn")
        return index

    items = read_ahead(read, range(3))
    assert next(items) == 0
    with pytest.raises(OSError, match="torn"):
        next(items)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("lrmil-read-ahead")]


def test_reading_ahead_ends_with_its_reader() -> None:
    items = read_ahead(lambda index: index, range(10**6))
    next(items)
    items.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("lrmil-read-ahead")]
