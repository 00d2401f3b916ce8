"""Memory of training on a large table: 1,000 slides of 10,000 HR tiles, synthetic embeddings.

    python -m benchmarks.training_memory [--slides 1000] [--tiles 10000] [--dim 768]

One slide's embeddings are written once and hard-linked to the others: the store is as large as it says for whoever
reads it, and small on disk. Measured is the peak resident memory of this process over an epoch of the teacher MIL on
all bags, what it says of every training slide, and stage 1's pairs with layer tokens, drawn over all slides. Target: under 4 GB.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.memory import peak_bytes
from napari_lrmil.memory import give_large_blocks_back
from training.checkpoint import Files
from training.data.bags import Bags
from training.data.pairs import PairLoader, SlidePairs
from training.data.store import EmbeddingStore
from training.data.table import SlideRow
from training.data.tile_index import SlideTiles, TileGeometry
from training.loop import Session
from training.progress import Reporter
from training.runtime import Runtime
from training.stages.heads import MILSection, bag_outputs, fit_head

LAYERS = 3
RATIO = 4
TILE_PX = 8
"""Small, so that one small image file can stand for every slide."""


def peak_gb() -> float:
    """Return the peak resident memory so far."""
    return peak_bytes() / 1e9


def synthetic_store(root: Path, names: list[str], n_tiles: int, dim: int) -> EmbeddingStore:
    """Make a store of one slide's random embeddings under many names."""
    store = EmbeddingStore(root)
    rng = np.random.default_rng(0)
    with store.writer(names[0], stamp="x") as open_array:
        embedding = open_array("embedding", (n_tiles, dim))
        tokens = open_array("layer_class_tokens", (LAYERS, n_tiles, dim))
        for start in range(0, n_tiles, 1024):
            n = min(1024, n_tiles - start)
            embedding.add(rng.standard_normal((n, dim), dtype=np.float32))
            tokens.add(rng.standard_normal((LAYERS, n, dim), dtype=np.float32))
        embedding.finish()
        tokens.finish()
    for name in names[1:]:
        shutil.copytree(root / f"{names[0]}.zarr", root / f"{name}.zarr", copy_function=os.link)
    return store


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slides", type=int, default=1000)
    parser.add_argument("--tiles", type=int, default=10_000, help="HR tiles a slide")
    parser.add_argument("--epochs", type=int, default=2, help="of the teacher MIL")
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument(
        "--pairs", type=int, default=4000, help="stage-1 pairs to load, drawn over all slides"
    )
    parser.add_argument("--cache-gib", type=float, default=1.0, help="data.cache_gib")
    options = parser.parse_args()
    edge = int(np.ceil(np.sqrt(options.tiles) / RATIO))
    names = [f"s{index:04d}" for index in range(options.slides)]
    give_large_blocks_back()  # as a run does
    runtime = Runtime("cpu")
    print(f"{options.slides} slides x {options.tiles:,} HR tiles x {options.dim} d; start {peak_gb():.2f} GB")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        store = synthetic_store(root / "hr", names, options.tiles, options.dim)
        stored = options.slides * options.tiles * options.dim * 2 * (1 + LAYERS) / 1e9
        print(f"store: {stored:.0f} GB as read; peak {peak_gb():.2f} GB")
        image = root / "slide.png"
        Image.new("RGB", (edge * TILE_PX * RATIO, edge * TILE_PX * RATIO), (200, 120, 160)).save(image)
        rows = [SlideRow(name, image, name, "ab"[index % 2], mpp=0.5) for index, name in enumerate(names)]
        cut = options.slides * 4 // 5
        share = options.cache_gib * 2**30

        started = time.perf_counter()
        train = Bags(store, rows[:cut], ("a", "b"), cache_bytes=0.75 * share)
        val = Bags(store, rows[cut:], ("a", "b"), cache_bytes=0.25 * share)
        files = Files(root / "m.csv", checkpoint=root / "m.safetensors", checkpoint_seconds=0)
        model, _ = fit_head(
            train,
            val,
            MILSection(epochs=options.epochs, restarts=0),
            Session(runtime.head_fabric, files, Reporter(), "Teacher MIL"),
            embed_dim=options.dim,
            n_classes=2,
            seed=0,
        )
        said = [output.attention_scores for output in bag_outputs(model, train, runtime.device)]
        print(
            f"teacher MIL, {options.epochs} epoch(s), and {len(said)} slides' attention: {time.perf_counter() - started:.0f} s; "
            f"peak {peak_gb():.2f} GB"
        )
        del train, val, said

        started = time.perf_counter()
        places = np.argwhere(np.ones((edge * RATIO, edge * RATIO), bool))[: options.tiles]
        lr_places = np.argwhere(np.ones((edge, edge), bool))
        tiles = [SlideTiles(row, (edge, edge), lr_places, places) for row in rows[:cut]]
        loader = PairLoader(
            [SlidePairs(item, ratio=RATIO, shifted=True, min_children=0.25) for item in tiles],
            TileGeometry(TILE_PX, 2.0, RATIO, 0.0, None),
            store,
            scores=None,
            batch_size=32,
            threads=2,
        )
        n_batches = 0
        for batch in loader.batches(np.random.default_rng(0), limit=options.pairs, turned=True):
            n_batches += 1
            assert torch.isfinite(batch.child_embeddings).all()
        print(
            f"stage 1, {options.pairs:,} of {loader.n_pairs:,} pairs in {n_batches} batches over all slides: "
            f"{time.perf_counter() - started:.0f} s; peak {peak_gb():.2f} GB"
        )
    print(f"peak resident memory {peak_gb():.2f} GB, target under 4 GB")


if __name__ == "__main__":
    main()
