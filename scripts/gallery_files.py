"""What the gallery shows: generated slides, and the demonstration model with a trust part. No patient data."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import tifffile
import torch
from scipy import ndimage, spatial

from napari_lrmil._viewer.docks.annotations.store import SUFFIX
from napari_lrmil._viewer.sample_data import DEMO_BUNDLE_DIR
from napari_lrmil.evidence import softmax
from napari_lrmil.export.annotation import Annotation
from napari_lrmil.export.geojson import write_annotations
from napari_lrmil.model.bundle import ModelBundle, load_bundle, save_bundle
from napari_lrmil.model.naming import DEMO_BUNDLE
from napari_lrmil.predict import embed_tiles, student_tiles
from napari_lrmil.slide import Slide
from training.cohort import CLASS_NAMES, MASK_DOWNSAMPLE, CohortConfig, GeneratedSlide, generate_slide
from training.cohort.writer import write_slide
from training.data.bags import Bags
from training.data.store import EmbeddingStore
from training.data.table import SlideRow
from training.stages.calibrate import served_outputs
from training.stages.fit_trust import fit_trust

SEED = 77
SIZE_PX, LARGE_PX = (2048, 1536), (6144, 4608)
_N_TRAIN, _N_VAL = 10, 20
_HARD = (203, 219)
"""Validation slides with less lesion: without them every set would hold one class at most."""
_DAMAGED_BYTES = 20_000


class Files(NamedTuple):
    """Where everything is."""

    bundle: Path
    large: Path
    """Of 3 x 2.3 mm, with lesions."""
    small_lesion: Path
    """Whose result hangs on few tiles."""
    without_mpp: Path
    damaged: Path
    folder: Path
    """Eight slides, one of them damaged, one unlike those of training."""
    late: Path
    """The one that comes last, and takes longest."""
    reports: Path
    """An empty folder."""


def make_files(root: Path) -> Files:
    """Draw and write all of it below `root`."""
    folder, alone, reports = root / "monday", root / "alone", root / "reports"
    for each in (folder, alone, reports):
        each.mkdir(parents=True)
    large = _draw(4, "lesion", size_px=LARGE_PX)
    files = Files(
        bundle=make_bundle(root / "demo-with-trust"),
        large=_write(alone / "case-09.tiff", large),
        small_lesion=_write(alone / "case-10.tiff", _draw(4, "lesion", share=0.03)),
        without_mpp=alone / "case-11.tiff",
        damaged=alone / "case-12.tiff",
        folder=folder,
        late=folder / "case-08.tiff",
        reports=reports,
    )
    _draw_annotations(files.large, large)
    _write_without_mpp(files.without_mpp, _draw(11, "benign"))
    for number, label, share in (
        (1, "lesion", 0.1),
        (2, "benign", 0.1),
        (3, "lesion", 0.07),
        (4, "lesion", 0.1),
        (7, "benign", 0.1),
    ):
        _write(folder / f"case-0{number}.tiff", _draw(number, label, share=share))
    other = _draw(6, "benign")
    write_slide(folder / "case-06.tiff", np.ascontiguousarray(other.rgb[..., ::-1]), jpeg_quality=80)
    for damaged in (files.damaged, folder / "case-05.tiff"):
        damaged.write_bytes((folder / "case-01.tiff").read_bytes()[:_DAMAGED_BYTES])
    return files


def make_bundle(target: Path) -> Path:
    """Return the demonstration model; where it has no trust part, add one fitted to generated slides."""
    bundle = load_bundle(DEMO_BUNDLE_DIR)
    if bundle.trust is not None:
        return Path(DEMO_BUNDLE)
    scratch = target.with_name("trust")
    scratch.mkdir()
    train, val = (_bags(bundle, scratch, first, n) for first, n in ((100, _N_TRAIN), (200, _N_VAL)))
    logits = np.stack([output.bag_logits.numpy() for output in served_outputs(bundle.mil, val)])
    probabilities = softmax(bundle.info.vector_scaling.scaled(logits))
    trust = fit_trust(train, val, probabilities=probabilities, seed=SEED)
    info = bundle.info.model_copy(update={"format_version": 2})
    save_bundle(target, info=info, encoder=bundle.encoder, mil=bundle.mil, trust=trust)
    return target


def _bags(bundle: ModelBundle, folder: Path, first: int, n: int) -> Bags:
    """Draw slides of both classes in turn and embed them as a run does."""
    store = EmbeddingStore(folder / "embeddings")
    store.prepare()
    rows = []
    for number in range(first, first + n):
        label = CLASS_NAMES[number % 2]
        share = 0.05 if number in _HARD else 0.1
        path = _write(folder / f"{number}.tiff", _draw(number, label, share=share))
        with Slide(path) as slide:
            tiles = student_tiles(slide, bundle.info)
            batches = embed_tiles(
                bundle.encoder,
                slide,
                tiles.grid,
                tiles.level,
                tiles.places,
                device=torch.device("cpu"),
                batch_size=32,
            )
            store.write(path.stem, embedding=torch.cat(list(batches)).float().numpy())
        rows.append(SlideRow(path.stem, path, path.stem, label))
    return Bags(store, rows, CLASS_NAMES)


def _draw(
    number: int, label: str, *, share: float = 0.1, size_px: tuple[int, int] = SIZE_PX
) -> GeneratedSlide:
    config = CohortConfig(
        width_px=size_px[0],
        height_px=size_px[1],
        lesion_fraction_min=share,
        lesion_fraction_max=share + 0.002,
    )
    return generate_slide(
        config, seed_sequence=np.random.SeedSequence(SEED, spawn_key=(9, number)), label=label
    )


def _write(path: Path, slide: GeneratedSlide) -> Path:
    write_slide(path, slide.rgb, jpeg_quality=80)
    return path


def _write_without_mpp(path: Path, slide: GeneratedSlide) -> None:
    with tifffile.TiffWriter(path) as writer:
        for level, step in enumerate((1, 4, 16)):
            pixels = np.ascontiguousarray(slide.rgb[::step, ::step])
            writer.write(
                pixels,
                subfiletype=int(level > 0),
                metadata=None,
                tile=(256, 256),
                photometric="rgb",
                compression="deflate",
            )


def _draw_annotations(path: Path, slide: GeneratedSlide) -> None:
    """Write outlines round the two largest lesions, a box and two marks, named as a reviewer might."""
    regions, count = ndimage.label(ndimage.binary_dilation(slide.lesion_mask, iterations=6))
    sizes = ndimage.sum_labels(np.ones_like(regions), regions, range(1, count + 1))
    largest = np.argsort(sizes)[::-1][:2] + 1
    drawn = []
    for name, number in zip(("atypia, large nuclei", "second focus"), largest, strict=False):
        places_yx = np.argwhere(regions == number)
        hull = places_yx[spatial.ConvexHull(places_yx).vertices][:, ::-1] * float(MASK_DOWNSAMPLE)
        ring = tuple((float(x), float(y)) for x, y in hull)
        drawn.append(Annotation("polygon", (ring,), name=name, class_name="Tumor"))
    height, width = slide.rgb.shape[:2]
    left, top, right, bottom = 0.58 * width, 0.2 * height, 0.72 * width, 0.36 * height
    box = ((left, top), (right, top), (right, bottom), (left, bottom))
    drawn.append(Annotation("polygon", (box,), name="compare here", class_name="Stroma"))
    marks = ((0.35 * width, 0.6 * height), (0.4 * width, 0.66 * height))
    drawn.append(Annotation("points", (marks,), name="mitoses?", class_name="Other"))
    write_annotations(
        path.with_name(path.name + SUFFIX), drawn, bounds_l0_xywh=(0, 0, width, height), cropped=False
    )
