"""Steps 1 and 4: embed HR tiles with the teacher encoder, LR tiles with teacher or student encoder."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from napari_lrmil.model.encoder import Encoder
from napari_lrmil.predict import embed_tiles
from napari_lrmil.slide import Slide, TileGrid, choose_level, iter_tiles
from training.data.tile_index import SlideTiles
from training.stages.context import Context


def embed_hr(
    context: Context, slides: Sequence[SlideTiles], encoder: Encoder, *, layers: tuple[int, ...]
) -> None:
    """Embeddings of HR tiles with the class token after each of `layers`, into the store ``hr``."""
    store = context.store("hr")
    todo = [tiles for tiles in slides if not store.has(tiles.row.slide_id)]
    with context.reporter.bar("Embedding HR tiles", sum(len(tiles.hr_places) for tiles in todo)) as advance:
        for tiles in todo:
            embeddings, tokens = [], []
            with context.geometry.open(tiles.row) as slide:
                grid = context.geometry.lr_grid(slide).subdivide(context.geometry.ratio)
                batches = iter_tiles(
                    slide,
                    grid,
                    choose_level(slide.level_mpps, grid.spec.mpp),
                    _places(tiles.hr_places),
                    batch_size=context.config.encoder.batch_size,
                    threads=context.config.run.threads,
                )
                for batch in batches:
                    with torch.inference_mode():
                        pixels = encoder.preprocess(torch.from_numpy(batch).to(context.device))
                        output = encoder(pixels, layers)
                    embeddings.append(output.embedding.float().cpu().numpy())
                    tokens.append(output.layer_class_tokens.float().cpu().numpy())
                    advance(len(batch))
            store.write(
                tiles.row.slide_id,
                embedding=np.concatenate(embeddings),
                layer_class_tokens=np.concatenate(tokens, axis=1),
            )


def embed_lr(context: Context, slides: Sequence[SlideTiles], encoder: Encoder, *, kind: str) -> None:
    """Embeddings of LR tiles into the store `kind`, through the same function as at inference."""
    store = context.store(kind)
    todo = [tiles for tiles in slides if not store.has(tiles.row.slide_id)]
    total = sum(len(tiles.lr_places) for tiles in todo)
    with context.reporter.bar(f"Embedding LR tiles ({kind.split('-')[-1]})", total) as advance:
        for tiles in todo:
            with context.geometry.open(tiles.row) as slide:
                grid, level = _lr(context, slide)
                embeddings = []
                for batch in embed_tiles(
                    encoder,
                    slide,
                    grid,
                    level,
                    _places(tiles.lr_places),
                    device=context.device,
                    batch_size=context.config.encoder.batch_size,
                    threads=context.config.run.threads,
                ):
                    embeddings.append(batch.float().cpu().numpy())
                    advance(len(batch))
            store.write(tiles.row.slide_id, embedding=np.concatenate(embeddings))


def _lr(context: Context, slide: Slide) -> tuple[TileGrid, int]:
    grid = context.geometry.lr_grid(slide)
    return grid, choose_level(slide.level_mpps, grid.spec.mpp)


def _places(places: NDArray[np.int64]) -> list[tuple[float, float]]:
    return [(row, col) for row, col in places.tolist()]
