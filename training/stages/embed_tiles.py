"""Steps 1 and 4: embed HR tiles with the teacher encoder, LR tiles with teacher or student encoder."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from napari_lrmil.errors import SlideError
from napari_lrmil.model.device import resolve_device
from napari_lrmil.model.encoder import Encoder, EncoderSpec, load_weights
from napari_lrmil.predict import embed_tiles
from napari_lrmil.slide import Slide, TileGrid, TileSet, choose_level, iter_tiles
from napari_lrmil.slide.identity import stamp_of
from napari_lrmil.slide.tiles import check_damage, parents_in
from training.data.store import EmbeddingStore
from training.data.tile_index import Reading, SlideTiles, TileGeometry
from training.hashing import content_hash
from training.progress import Reporter
from training.runtime import Precision, Runtime, autocast


@dataclass(frozen=True)
class EmbedJob:
    """One slide to embed; can be sent to another process.

    Attributes
    ----------
    tiles : SlideTiles
    geometry : TileGeometry
    store : EmbeddingStore
    reading : Reading
        Which tiles, and of which pixels.
    layers : tuple of int
        Blocks whose class token is stored too.
    turned : bool
        Whether the means over the 8 turns and flips of a tile are stored too, and of the layers these alone.
    batch_size, threads : int
    precision : Precision
        Of all but LR tiles, which are embedded at 32 bits, as they will be at inference.
    alike : EmbedJob, optional
        Of tiles many of which are the same, by the same encoder: what it has stored isn't embedded again.
    """

    tiles: SlideTiles
    geometry: TileGeometry
    store: EmbeddingStore
    reading: Reading
    layers: tuple[int, ...]
    batch_size: int
    threads: int
    precision: Precision
    turned: bool = False
    alike: EmbedJob | None = None

    @property
    def places(self) -> NDArray[np.int64]:
        """(N, 2) places of the tiles in their grid."""
        return self.tiles.places_of(self.reading, self.geometry.ratio)

    def places_alike(self) -> NDArray[np.int64]:
        """Return for each tile its index among those of `alike`, (N,); -1 where it isn't one of them."""
        if self.alike is None:
            return np.full(len(self.places), -1, np.int64)
        theirs = self.alike.places
        rows, cols = (np.concatenate([self.places, theirs]).max(axis=0) + 1).tolist()
        return parents_in(self.places, theirs, (rows, cols), 1)

    @property
    def stamp(self) -> str:
        """Identifies the slide file, its pixel size and its tiles."""
        row = self.tiles.row
        return content_hash(
            stamp_of(row.path), row.mpp, self.geometry.default_mpp, self.places.tobytes().hex()
        )

    @property
    def is_done(self) -> bool:
        """Whether the store holds this slide, whole and of these tiles."""
        return self.store.has(self.tiles.row.slide_id, self.stamp)


@dataclass(frozen=True)
class EncoderSource:
    """Where another process finds an encoder: its weights as a file that both can read."""

    spec_json: str
    """`EncoderSpec`; as text, a worker can tell whether it holds this encoder already."""
    weights: Path
    weights_hash: str
    device: str
    """As in the config: auto is the worker's own fastest."""


def embed_slides(
    jobs: Sequence[EmbedJob], encoder: Encoder, runtime: Runtime, reporter: Reporter, description: str
) -> None:
    """Embed in this process what isn't done, this process's share of it, beside other processes with the same store.

    Parameters
    ----------
    jobs : sequence of EmbedJob
    encoder : Encoder
        In eval mode, on the runtime's device.
    runtime : Runtime
    reporter : Reporter
    description : str
        For the bar.

    Raises
    ------
    SlideError
        Naming all slides that couldn't be read, or have changed meanwhile; the others are embedded and kept.
    """
    if jobs:
        jobs[0].store.prepare()
    failed: dict[str, SlideError] = {}
    todo = [job for job in jobs if not job.is_done]
    runtime.wait()  # all must have looked before one of them changes what there is to see
    todo = runtime.share(todo, size=lambda job: len(job.places))  # slides differ tenfold in their tiles
    if todo:
        with reporter.bar(description, sum(len(job.places) for job in todo)) as advance:
            # What another process is at is passed over; at the end it is waited for, and done here if that was killed.
            for wait in (False, True):
                left = []
                for job in todo:
                    with job.store.at_slide(job.tiles.row.slide_id, wait=wait) as mine:
                        if not mine:
                            left.append(job)
                            continue
                        try:
                            embed_slide(job, encoder, runtime.device, advance=advance)
                        except SlideError as error:
                            failed[job.tiles.row.slide_id] = error
                todo = left
    refuse_failed(failed)
    runtime.wait()


def refuse_failed(failed: Mapping[str, SlideError]) -> None:
    """Stop where slides failed that could be opened when the run began: its folds count on them.

    Raises
    ------
    SlideError
    """
    if failed:
        listing = "\n  ".join(f"{slide_id}: {error}" for slide_id, error in failed.items())
        raise SlideError(
            f"{len(failed)} {'slide' if len(failed) == 1 else 'slides'} can't be embedded; the others are, and are kept. "
            "Copy what is damaged again, or take it out of the table, and give the same command again:\n  "
            f"{listing}"
        )


def embed_slide(
    job: EmbedJob,
    encoder: Encoder,
    device: torch.device,
    *,
    advance: Callable[[int], object] | None = None,
) -> int:
    """Embed one slide into its store; the number of its tiles. Nothing is done twice."""
    if job.is_done:
        if advance is not None:
            advance(len(job.places))
        return len(job.places)
    n, dim, row = len(job.places), encoder.embed_dim, job.tiles.row
    with job.store.writer(row.slide_id, stamp=job.stamp) as open_array:
        arrays = {"embedding": open_array("embedding", (n, dim))}
        if job.turned:
            arrays["turned_embedding"] = open_array("turned_embedding", (n, dim))
        if job.layers:
            name = "turned_layer_class_tokens" if job.turned else "layer_class_tokens"
            arrays[name] = open_array(name, (len(job.layers), n, dim))
        for batch in _with_known(job, encoder, device):
            for name, array in arrays.items():
                array.add(batch[name])
            if advance is not None:
                advance(len(batch["embedding"]))
        for array in arrays.values():
            array.finish()
    return n


def turned_means(encoder: Encoder, pixels: torch.Tensor, layers: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Return the store's arrays of a batch whose targets are means over the 8 turns and flips of a tile.

    Parameters
    ----------
    encoder : Encoder
    pixels : (B, 3, T, T) tensor
        Normalised.
    layers : tuple of int
        Blocks to tap.
    """
    as_it_is: torch.Tensor | None = None
    embedding, tokens = torch.zeros(()), torch.zeros(())
    for how in range(8):
        turned = torch.rot90(pixels, how % 4, (2, 3))
        output = encoder(turned.flip(3) if how >= 4 else turned, layers)
        as_it_is = output.embedding if as_it_is is None else as_it_is
        embedding = embedding.to(output.embedding.device) + output.embedding.float() / 8
        tokens = tokens.to(output.embedding.device) + output.layer_class_tokens.float() / 8
    assert as_it_is is not None
    return {"embedding": as_it_is, "turned_embedding": embedding, "turned_layer_class_tokens": tokens}


def embed_elsewhere(job: EmbedJob, source: EncoderSource) -> int:
    """Do as `embed_slide` in a worker that has neither encoder nor context."""
    return embed_slide(job, _encoder(source), resolve_device(source.device))


@functools.lru_cache(maxsize=2)
def _encoder(source: EncoderSource) -> Encoder:
    encoder = Encoder(EncoderSpec.model_validate_json(source.spec_json))
    load_weights(encoder, str(source.weights))
    return encoder.requires_grad_(False).to(resolve_device(source.device)).eval()


def _with_known(
    job: EmbedJob, encoder: Encoder, device: torch.device
) -> Iterator[dict[str, NDArray[np.float32]]]:
    """Yield the embeddings of a job's tiles in their order; what another one has of them is taken from there."""
    if job.alike is None or not job.alike.is_done:
        yield from _batches(job, encoder, device, job.places)
        return
    index = job.places_alike()
    there = index >= 0
    values = np.empty((len(index), encoder.embed_dim), np.float32)
    values[there] = job.alike.store.read(job.tiles.row.slide_id)[index[there]]
    if not there.all():
        parts = [one["embedding"] for one in _batches(job, encoder, device, job.places[~there])]
        values[~there] = np.concatenate(parts)
    yield {"embedding": values}


def _batches(
    job: EmbedJob, encoder: Encoder, device: torch.device, of: NDArray[np.int64]
) -> Iterator[dict[str, NDArray[np.float32]]]:
    places = [(row, col) for row, col in of.tolist()]
    with job.geometry.open(job.tiles.row) as slide:
        grid, enlarged = job.geometry.grid(slide, job.reading), job.reading.enlarged
        exact = job.reading.is_of_several and job.precision == "32-true"
        if (job.reading.factor == 1 and not enlarged) or exact:  # through the same function as at inference
            level = choose_level(slide.level_mpps, grid.spec.mpp)
            for embeddings in embed_tiles(
                encoder,
                slide,
                grid,
                level,
                places,
                device=device,
                batch_size=job.batch_size,
                threads=job.threads,
            ):
                yield {"embedding": embeddings.float().cpu().numpy()}
            _check_what_was_read(slide, grid, level, job.places)
            return
        level = choose_level(slide.level_mpps, grid.spec.mpp)
        if enlarged:
            read, batches = (
                np.unique(job.places // job.reading.factor, axis=0),
                _enlarged(job, slide, grid, level),
            )
        else:
            read = job.places
            batches = iter_tiles(slide, grid, level, places, batch_size=job.batch_size, threads=job.threads)
        for tiles in batches:
            with torch.inference_mode(), autocast(device, job.precision):
                pixels = encoder.preprocess(torch.from_numpy(tiles).to(device))
                if job.turned:
                    arrays = turned_means(encoder, pixels, job.layers)
                else:
                    output = encoder(pixels, job.layers)
                    arrays = {
                        "embedding": output.embedding,
                        "layer_class_tokens": output.layer_class_tokens,
                    }
            yield {name: values.float().cpu().numpy() for name, values in arrays.items()}
        _check_what_was_read(slide, grid, level, read)


def _enlarged(job: EmbedJob, slide: Slide, grid: TileGrid, level: int) -> Iterator[NDArray[np.uint8]]:
    """Yield batches of tiles that are parts of LR tiles, enlarged, in the order of the job's places."""
    factor, tile_px = job.reading.factor, grid.spec.tile_px
    for row in np.unique(job.places[:, 0] // factor).tolist():
        places = job.places[job.places[:, 0] // factor == row]
        cols = np.unique(places[:, 1] // factor)
        whole = [(float(row), float(col)) for col in cols.tolist()]
        of_row = np.concatenate(
            list(iter_tiles(slide, grid, level, whole, batch_size=job.batch_size, threads=job.threads))
        )
        for start in range(0, len(places), job.batch_size):
            wanted = places[start : start + job.batch_size]
            used, index = np.unique(np.searchsorted(cols, wanted[:, 1] // factor), return_inverse=True)
            large = enlarge(of_row[used], factor)
            corners = wanted % factor * tile_px
            yield np.stack(
                [
                    large[which, top : top + tile_px, left : left + tile_px]
                    for which, (top, left) in zip(index.tolist(), corners.tolist(), strict=True)
                ]
            )


def enlarge(tiles: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Return tiles (B, T, T, 3) enlarged to (B, factor T, factor T, 3), bicubic, each by itself."""
    pixels = torch.from_numpy(tiles).permute(0, 3, 1, 2).float()
    # With `antialias` the cubic is that of Pillow and of most image libraries (a = -0.5).
    large = F.interpolate(pixels, scale_factor=factor, mode="bicubic", antialias=True)
    whole: NDArray[np.uint8] = large.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return whole


def _check_what_was_read(slide: Slide, grid: TileGrid, level: int, places: NDArray[np.int64]) -> None:
    """Raise SlideError where the file is another one by now, or more is damaged than inference would allow."""
    slide.check_unchanged()
    rows, cols = places.T
    check_damage(slide, TileSet(grid, level, rows, cols, np.zeros(grid.shape_yx, np.float32)))
