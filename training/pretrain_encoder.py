"""``python -m training.pretrain_encoder OUT``: the demo's teacher encoder, from nothing.

A real project starts from a published pathology encoder. The demo can't download one, so it makes its own: a small
ViT learns to read nuclear attributes (how many nuclei, how large, how dark, how many lymphocytes, ...) from tiles of
generated slides, at 0.5 µm/px unless told otherwise.
No slide label and no lesion mask takes part, and the slides have a seed of their own.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.markup import escape
from torch import Tensor, nn

from napari_lrmil.model.encoder import Encoder, EncoderSpec
from napari_lrmil.slide import Slide, TileSpec, find_tiles, iter_tiles
from napari_lrmil.terminal import Commands, errors_as_messages
from training.checkpoint import Files
from training.cohort import TILE_ATTRIBUTES, CohortConfig, generate_cohort, read_truth, tile_truth
from training.files import save_tensors
from training.loop import Recipe, Session, Task, fit
from training.progress import Reporter
from training.runtime import Runtime

PRETRAINING_SEED = 900_001
"""Of the slides. No cohort of the demo, of the tests or of the results has it."""

_LEFT_OUT = ("fibre_cos2", "fibre_sin2")
"""Directions: tiles are turned and flipped, which changes them."""

app = Commands(add_completion=False, pretty_exceptions_enable=False)


class Examples(NamedTuple):
    """Tiles (N, T, T, 3) uint8 with standardised attributes (N, A), NaN where one isn't defined."""

    tiles: NDArray[np.uint8]
    attributes: NDArray[np.float32]


def load_examples(
    slide_paths: list[Path], spec: TileSpec, reporter: Reporter, *, most: int | None = None
) -> Examples:
    """Read tissue tiles of generated slides, all or `most` of each, with their attributes, not standardised yet."""
    keep = [index for index, name in enumerate(TILE_ATTRIBUTES) if name not in _LEFT_OUT]
    tiles: list[NDArray[np.uint8]] = []
    attributes: list[NDArray[np.float32]] = []
    for path in reporter.track(slide_paths, "Reading tiles", len(slide_paths)):
        with Slide(path) as slide:
            found = find_tiles(slide, spec, min_tissue=0.25)
            # Of the slide's own name, so that a slide's tiles are the same in any cohort that has it.
            rng = np.random.default_rng(zlib.crc32(path.stem.encode()))
            drawn = np.sort(rng.permutation(len(found.places))[:most])
            places = [found.places[index] for index in drawn]
            tiles.extend(iter_tiles(slide, found.grid, found.level, places, batch_size=256))
        truth = read_truth(path.parents[1] / "truth" / f"{path.stem}.safetensors")
        origins = found.corners_l0_xy[drawn]
        values = tile_truth(truth, origins_l0_xy=origins, tile_l0_px=found.grid.tile_l0_xy[0])
        attributes.append(values[:, keep])
    return Examples(np.concatenate(tiles), np.concatenate(attributes))


def standardise(train: Examples, val: Examples) -> tuple[Examples, Examples]:
    """Return both with attributes in units of the spread of the first."""
    mean = np.nanmean(train.attributes, axis=0)
    std = np.nanstd(train.attributes, axis=0) + 1e-6
    first, second = ((part.attributes - mean) / std for part in (train, val))
    return train._replace(attributes=first), val._replace(attributes=second)


def balanced(scales: list[Examples]) -> Examples:
    """Return examples of several scales in one, coarse ones repeated: a slide has 16 times fewer at 4 times the µm/px."""
    most = max(len(one.tiles) for one in scales)
    repeats = [max(1, min(8, most // max(1, len(one.tiles)))) for one in scales]
    return Examples(
        *(
            np.concatenate(
                [np.repeat(getattr(one, name), n, axis=0) for one, n in zip(scales, repeats, strict=True)]
            )
            for name in Examples._fields
        )
    )


def pretrain(
    train: Examples,
    val: Examples,
    *,
    spec: EncoderSpec,
    epochs: int,
    batch_size: int,
    seed: int,
    reporter: Reporter,
    metrics_csv: Path,
) -> Encoder:
    """Train an encoder whose class token predicts the attributes by one linear layer."""
    torch.manual_seed(seed)
    encoder = Encoder(spec)
    model = nn.ModuleDict(
        {"encoder": encoder, "head": nn.Linear(encoder.embed_dim, train.attributes.shape[1])}
    )

    def loss_of(_: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        tiles, wanted = batch
        error = model["head"](encoder(encoder.preprocess(tiles)).embedding) - wanted.nan_to_num()
        defined = ~wanted.isnan()
        huber = nn.functional.huber_loss(error, torch.zeros_like(error), reduction="none")
        return {"loss": (huber * defined).sum() / defined.sum()}

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        rng = np.random.default_rng((seed, epoch))
        order = rng.permutation(len(train.tiles))
        for start in range(0, len(order) - batch_size + 1, batch_size):
            part = order[start : start + batch_size]
            tiles = np.rot90(train.tiles[part], int(rng.integers(4)), axes=(1, 2))
            tiles = tiles[:, :, ::-1] if rng.integers(2) else tiles
            yield torch.from_numpy(np.ascontiguousarray(tiles)), torch.from_numpy(train.attributes[part])

    def validate() -> dict[str, float]:
        with torch.inference_mode():
            losses = [
                float(loss_of(model, (torch.from_numpy(tiles), torch.from_numpy(wanted)))["loss"])
                for tiles, wanted in zip(
                    np.array_split(val.tiles, 16), np.array_split(val.attributes, 16), strict=True
                )
            ]
        return {"val_loss": float(np.mean(losses))}

    task = Task(
        batches=batches,
        steps_per_epoch=len(train.tiles) // batch_size,
        losses=loss_of,
        validate=validate,
        score=lambda metrics: (-metrics["val_loss"],),
        names=lambda batch, losses: "a batch of generated tiles",
    )
    recipe = Recipe(epochs=epochs, learning_rate=1e-3, weight_decay=0.05, seed=seed, warmup=True)
    session = Session(Runtime("cpu").head_fabric, Files(metrics_csv=metrics_csv), reporter, "Pretraining")
    fit(model, task, recipe, session)
    return encoder


def save_encoder(path: Path, encoder: Encoder) -> None:
    """Write an encoder's weights in float16, as `encoder.weights` of a config takes them."""
    state = encoder.vit.state_dict()
    save_tensors(
        path, {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    )


@app.command()
def main(
    out: Annotated[Path, typer.Argument(help="Safetensors file to write.", show_default=False)],
    work_dir: Annotated[Path, typer.Option(help="Folder for the generated slides.")] = Path(
        "demo/pretraining"
    ),
    slides: Annotated[int, typer.Option(min=8, help="Generated slides; an eighth validates.")] = 96,
    tiles_per_slide: Annotated[
        int | None,
        typer.Option(
            min=1,
            show_default=False,
            help="At most, drawn at random, at each scale; all without it. A slide has 16 times fewer tiles at 4 times the "
            "µm/px: many slides and few tiles of each show an encoder of several scales as much of either.",
        ),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1)] = 4,
    tile_px: Annotated[int, typer.Option(help="Edge of a tile.")] = 64,
    mpp: Annotated[
        list[float],
        typer.Option(help="µm/px of the tiles; several make an encoder that knows several scales."),
    ] = [0.5],  # noqa: B006  # typer reads the default and changes nothing
    batch_size: Annotated[int, typer.Option(min=1)] = 64,
    seed: Annotated[int, typer.Option(help="Of weights and order.")] = 0,
) -> None:
    """Train the demo's teacher encoder on generated slides and write its weights (float16)."""
    reporter = Reporter()
    with errors_as_messages():
        config = CohortConfig(n_unlabelled=slides, n_train=0, n_val=0, n_test=0)
        with reporter.bar("Generating slides", slides) as advance:
            done = 0

            def progress(n: int, total: int) -> None:
                nonlocal done
                advance(n - done)
                done = n

            table = generate_cohort(
                work_dir, config, seed=PRETRAINING_SEED, workers=os.cpu_count() or 1, progress=progress
            )
        paths = sorted((table.parent / "slides").glob("*.tif"))
        held_out = max(1, len(paths) // 8)
        scales = []
        for one in mpp:  # each in units of its own spread: a larger tile holds more of everything
            spec = TileSpec(tile_px, one)
            parts = (paths[held_out:], paths[:held_out])
            scales.append(
                standardise(*(load_examples(part, spec, reporter, most=tiles_per_slide) for part in parts))
            )
        train, val = balanced([one[0] for one in scales]), balanced([one[1] for one in scales])
        encoder = pretrain(
            train,
            val,
            spec=EncoderSpec(options={"image_px": tile_px}),
            epochs=epochs,
            batch_size=batch_size,
            seed=seed,
            reporter=reporter,
            metrics_csv=work_dir / "pretraining.csv",
        )
        save_encoder(out, encoder)
        reporter.say(f"Encoder: {escape(str(out))}")


if __name__ == "__main__":
    app(prog_name="python -m training.pretrain_encoder")
