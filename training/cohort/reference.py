"""How hard a generated cohort is, in three numbers, before any distillation.

Colour alone should say nothing, the teacher nearly everything, and an encoder that is shown the lesion masks must be
able to see them at low resolution: where it can't, no student can.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.table import Table
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional as F

from napari_lrmil.errors import ConfigError
from napari_lrmil.model.encoder import Encoder
from napari_lrmil.slide import choose_level, iter_tiles
from training.checkpoint import Files
from training.cohort import MASK_DOWNSAMPLE
from training.cohort.localisation import tile_lesion_fractions
from training.config import load_config
from training.data.splits import Split
from training.data.table import SlideRow
from training.loop import Recipe, Session, Task, fit
from training.methods import TEACHER
from training.metrics import Interval, auc, bootstrap_over_patients
from training.progress import Reporter
from training.run.context import Context
from training.run.pipeline import Embedded, Head, evaluate_head, train_teacher
from training.run.prepare import Prepared, prepare
from training.stages.embed_tiles import embed_slides

CONFIG = Path(__file__).parents[1] / "configs" / "demo.toml"
LR_EPOCHS = 24
_BATCH = 32


class LowTiles(NamedTuple):
    """LR tiles of one slide: (N, T, T, 3) uint8, and the share of each that is lesion, (N,)."""

    row: SlideRow
    tiles: NDArray[np.uint8]
    lesion_fraction: NDArray[np.float64]


def measure(cohort_dir: Path, reporter: Reporter) -> dict[str, Interval]:
    """Measure and print the reference points of a generated cohort, with the demo's config.

    Parameters
    ----------
    cohort_dir : Path
        As `training.cohort` wrote it.
    reporter : Reporter

    Returns
    -------
    dict
        Name -> AUC on the test slides with its 95 % interval, patients resampled.

    Raises
    ------
    ConfigError
        Where the cohort is too small for it.
    """
    config = load_config(
        CONFIG,
        ["--data.slides", str(cohort_dir / "slides.csv"), "--run.out_dir", str(cohort_dir / "reference")],
    )
    prepared = prepare(config, skip_bad=False, reporter=reporter)
    context, split = prepared.context, prepared.splits[0]
    low = {
        row.slide_id: _low_tiles(context, cohort_dir, row) for row in (*split.train, *split.val, *split.test)
    }
    for part in ("train", "val", "test"):  # before the minutes that the teacher takes
        check_enough_tiles(part, [low[row.slide_id] for row in getattr(split, part)])
    results = {
        "colour only, mean RGB (slide)": _colour(context, split, low, with_std=False),
        "colour and contrast, mean and std of RGB (slide)": _colour(context, split, low, with_std=True),
        "HR teacher (slide)": _teacher(prepared),
        "LR ceiling, trained on lesion masks (tile)": _ceiling(context, split, low),
    }
    table = Table("reference point", "AUC [95 % CI]", "wanted")
    wanted = ("near 0.5", "for comparison", "at least 0.93", "at least 0.85")
    for (name, interval), aim in zip(results.items(), wanted, strict=True):
        table.add_row(name, f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]", aim)
    reporter.console.print(table)
    return results


def check_enough_tiles(part: str, slides: list[LowTiles]) -> None:
    """Refuse a part of the split whose tiles can't train or test the ceiling.

    Raises
    ------
    ConfigError
        Where it has too few tiles that are clear, or none of a class.
    """
    _, labels, _ = _clear_tiles(slides)
    n_lesion = int((labels == 1).sum())
    if not 0 < n_lesion < len(labels) or len(labels) < _BATCH:
        raise ConfigError(
            f"too few tiles to measure how hard the cohort is: the {len(slides)} {part} slides have {len(labels)} clear "
            f"LR tiles, {n_lesion} of them lesion. Generate more slides (--slides) or larger ones (--size)"
        )


def _low_tiles(context: Context, cohort_dir: Path, row: SlideRow) -> LowTiles:
    tiles = context.tiles[row.slide_id]
    with context.geometry.open(row) as slide:
        grid = context.geometry.lr_grid(slide)
        places = [(float(r), float(c)) for r, c in tiles.lr_places]
        level = choose_level(slide.level_mpps, grid.spec.mpp)
        pixels = np.concatenate(list(iter_tiles(slide, grid, level, places, batch_size=64)))
    mask = np.asarray(Image.open(cohort_dir / "masks" / f"{row.slide_id}.png")) > 0
    fractions = tile_lesion_fractions(mask, tiles.lr_places, grid.tile_l0_xy[0] / MASK_DOWNSAMPLE)
    return LowTiles(row, pixels, fractions)


def _colour(context: Context, split: Split, low: dict[str, LowTiles], *, with_std: bool) -> Interval:
    """Measure logistic regression on mean, spread, least and largest of the colours of a bag's tiles."""

    def bag(row: SlideRow) -> NDArray[np.float64]:
        pixels = low[row.slide_id].tiles.astype(np.float64)
        colours = pixels.mean(axis=(1, 2))
        if with_std:
            colours = np.concatenate([colours, pixels.std(axis=(1, 2))], axis=1)
        return np.concatenate(
            [colours.mean(axis=0), colours.std(axis=0), colours.min(axis=0), colours.max(axis=0)]
        )

    train = [*split.train, *split.val]
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
    model.fit([bag(row) for row in train], [context.class_names.index(row.label or "") for row in train])
    scores = model.predict_proba([bag(row) for row in split.test])
    labels = np.asarray([context.class_names.index(row.label or "") for row in split.test], np.int64)
    return auc_interval(labels, scores[:, 1], [row.patient_id for row in split.test])


def _teacher(prepared: Prepared) -> Interval:
    context, split, steps = prepared.context, prepared.splits[0], prepared.steps
    encoder, store = context.teacher_encoder(), context.hr_store()
    jobs = context.jobs(split.labelled, store, hr=True)
    embed_slides(jobs, encoder, context.runtime, context.reporter, "Embedding HR tiles")
    head = Head(split, TEACHER, Embedded(encoder, store), context.head_seeds[0])
    train_teacher(context, head, steps)
    test = evaluate_head(context, steps, head)
    return auc_interval(test.labels, test.probabilities[:, 1], list(test.patients))


def _ceiling(context: Context, split: Split, low: dict[str, LowTiles]) -> Interval:
    """Train a fresh encoder that is told where the lesions are; tiles that are partly lesion are left out."""
    tiles, labels, _ = _clear_tiles([low[row.slide_id] for row in split.train])
    val_tiles, val_labels, _ = _clear_tiles([low[row.slide_id] for row in split.val])
    test_tiles, test_labels, patients = _clear_tiles([low[row.slide_id] for row in split.test])
    torch.manual_seed(context.config.run.seed)
    encoder = Encoder(context.config.encoder.spec)
    head = nn.Linear(encoder.embed_dim, 2)
    model = nn.ModuleList([encoder, head]).to(context.device)
    weight = torch.tensor(
        [1.0, float((labels == 0).sum() / max(1, (labels == 1).sum()))], device=context.device
    )

    def logits(pixels: NDArray[np.uint8]) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(pixels)).to(context.device)
        scores: Tensor = head(encoder(encoder.preprocess(tensor)).embedding)
        return scores

    def batches(epoch: int) -> Iterator[tuple[NDArray[np.uint8], Tensor]]:
        rng = np.random.default_rng((context.config.run.seed, epoch))
        order = rng.permutation(len(tiles))
        for start in range(0, len(order) - _BATCH + 1, _BATCH):
            part = order[start : start + _BATCH]
            turned = np.rot90(tiles[part], int(rng.integers(4)), axes=(1, 2))
            yield (turned[:, ::-1] if rng.integers(2) else turned), torch.from_numpy(labels[part])

    def scores(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        with torch.inference_mode():
            parts = [torch.softmax(logits(part), dim=1)[:, 1].cpu() for part in np.array_split(pixels, 8)]
        return torch.cat(parts).double().numpy()

    task = Task(
        batches=batches,
        steps_per_epoch=len(tiles) // _BATCH,
        losses=lambda _, batch: {
            "loss": F.cross_entropy(logits(batch[0]), batch[1].to(context.device), weight=weight)
        },
        validate=lambda: {"val_auc": _tile_auc(val_labels, scores(val_tiles))},
        score=lambda metrics: (metrics["val_auc"],),
        names=lambda batch, losses: "a batch of LR tiles",
    )
    recipe = Recipe(
        epochs=LR_EPOCHS, learning_rate=1e-3, weight_decay=0.02, seed=context.config.run.seed, warmup=True
    )
    files = Files(metrics_csv=context.run_dir.root / "ceiling.csv")
    fit(model, task, recipe, Session(context.runtime.head_fabric, files, context.reporter, "LR ceiling"))
    return auc_interval(test_labels, scores(test_tiles), patients)


def _clear_tiles(slides: list[LowTiles]) -> tuple[NDArray[np.uint8], NDArray[np.int64], list[str]]:
    tiles, labels, patients = [], [], []
    for slide in slides:
        clear = (slide.lesion_fraction == 0) | (slide.lesion_fraction > 0.5)
        tiles.append(slide.tiles[clear])
        labels.append((slide.lesion_fraction[clear] > 0.5).astype(np.int64))
        patients += [slide.row.patient_id] * int(clear.sum())
    return np.concatenate(tiles), np.concatenate(labels), patients


def _tile_auc(labels: NDArray[np.int64], scores: NDArray[np.float64]) -> float:
    return auc(labels, np.stack([1 - scores, scores], axis=1))


def auc_interval(labels: NDArray[np.int64], scores: NDArray[np.float64], patients: list[str]) -> Interval:
    """Return the AUC of scores for class 1 with its interval, patients resampled.

    Raises
    ------
    ConfigError
        Where the slides are too few for it.
    """
    try:
        return bootstrap_over_patients(
            lambda drawn: _tile_auc(labels[drawn], scores[drawn]),
            patients,
            n_resamples=1000,
            rng=np.random.default_rng(0),
        )
    except ValueError as error:
        raise ConfigError(
            f"the test slides are too few for an interval ({error}): generate more (--slides)"
        ) from error
