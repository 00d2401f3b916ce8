"""A whole cohort: which slides, in which fold, drawn by several processes, written once."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

import numpy as np

from napari_lrmil.atomic import write_csv, write_text
from napari_lrmil.errors import ConfigError
from training.cohort.config import CLASS_NAMES, FOLDS, MASK_DOWNSAMPLE, MPP_L0, CohortConfig, Fold
from training.cohort.slide import generate_slide
from training.cohort.truth import truth_of, write_truth
from training.cohort.writer import write_mask, write_slide

GENERATOR_VERSION = 2
"""Raise when the same seed draws other slides: older files are then not mixed with newer ones."""

SLIDES_CSV = "slides.csv"
COHORT_JSON = "cohort.json"
COLUMNS = ("slide_id", "path", "patient_id", "label", "fold", "mpp")


class PlannedSlide(NamedTuple):
    """A slide of the cohort before it's drawn."""

    fold: Fold
    number: int
    label: str
    """What it shows; the CSV keeps it back for unlabelled slides."""

    @property
    def slide_id(self) -> str:
        return f"{self.fold}-{self.number:03d}"

    @property
    def slide_path(self) -> str:
        return f"slides/{self.slide_id}.tif"

    @property
    def mask_path(self) -> str:
        return f"masks/{self.slide_id}.png"

    @property
    def truth_path(self) -> str:
        return f"truth/{self.slide_id}.safetensors"

    @property
    def paths(self) -> tuple[str, str, str]:
        """Files of the slide, relative to the cohort's folder."""
        return self.slide_path, self.mask_path, self.truth_path

    def seed_sequence(self, seed: int) -> np.random.SeedSequence:
        """Depends on the seed, the fold and the number alone: a larger cohort begins with a smaller one's slides."""
        return np.random.SeedSequence(seed, spawn_key=(FOLDS.index(self.fold), self.number))


def plan_slides(config: CohortConfig, seed: int) -> list[PlannedSlide]:
    """Return the slides of a cohort, labels balanced in every fold: each pair has one of each, in drawn order."""
    slides = []
    for fold in FOLDS:
        for index in range(config.n_slides(fold)):
            pair = np.random.SeedSequence(seed, spawn_key=(len(FOLDS) + FOLDS.index(fold), index // 2))
            swapped = int(np.random.default_rng(pair).integers(2))
            slides.append(PlannedSlide(fold, index, CLASS_NAMES[(index + swapped) % 2]))
    return slides


def missing_slides(out_dir: Path, slides: list[PlannedSlide]) -> list[PlannedSlide]:
    """Return those of which a file is missing."""
    return [slide for slide in slides if not all((out_dir / path).is_file() for path in slide.paths)]


def is_complete(out_dir: Path, config: CohortConfig, *, seed: int) -> bool:
    """Return whether the folder holds exactly this cohort already, with all its files.

    Raises
    ------
    ConfigError
        If it holds another one.
    """
    return _holds_this_cohort(out_dir, config, seed) and not missing_slides(
        out_dir, plan_slides(config, seed)
    )


def generate_cohort(
    out_dir: Path,
    config: CohortConfig,
    *,
    seed: int,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
    overwrite: bool = False,
) -> Path:
    """Draw a cohort and write it.

    `out_dir` then holds `slides.csv` and `cohort.json`, and of each slide `slides/ID.tif` (pyramid, 0.5 µm/px),
    `masks/ID.png` (lesions at 1/16 of level 0; 8-bit, 0 or 255, all 0 in a benign slide) and `truth/ID.safetensors`
    (nuclei and maps, see `read_truth`). Slides that are there already are kept if they're of the same cohort; a cohort
    that was interrupted goes on.

    Parameters
    ----------
    out_dir
        Made if missing.
    seed
        Same seed, same bytes, whatever the number of workers.
    workers
        Processes; 1 draws in this one.
    progress
        Called with the slides done and the slides in all, at first and after each.
    overwrite
        Remove what another or the same cohort left in the folder, and draw everything.

    Returns
    -------
    Path of `slides.csv`: one slide a patient, columns slide_id, path (relative to the CSV), patient_id, label (empty
    for unlabelled slides), fold, mpp.

    Raises
    ------
    ConfigError
        If the folder holds another cohort or can't be written, or the seed or the workers are out of range.
    """
    if seed < 0:
        raise ConfigError(f"The seed is {seed}; it must be 0 or more.")
    if workers < 1:
        raise ConfigError(f"The number of workers is {workers}; it must be 1 or more.")
    slides = plan_slides(config, seed)
    if not slides:
        raise ConfigError("The cohort has no slides: all four numbers of slides are 0.")
    csv_path = out_dir / SLIDES_CSV
    try:
        if overwrite:
            _remove_cohort(out_dir)
        elif is_complete(out_dir, config, seed=seed):
            if progress is not None:
                progress(len(slides), len(slides))
            return csv_path
        for folder in ("slides", "masks", "truth"):
            (out_dir / folder).mkdir(parents=True, exist_ok=True)
        # A table of another size would make an interrupted run look complete.
        csv_path.unlink(missing_ok=True)
        # First, so that an interrupted run finds which cohort the finished slides are of.
        write_text(out_dir / COHORT_JSON, _cohort_json(config, seed))
        missing = missing_slides(out_dir, slides)
        done = len(slides) - len(missing)
        if progress is not None:
            progress(done, len(slides))
        for _ in _draw_all(missing, out_dir, config, seed, workers):
            done += 1
            if progress is not None:
                progress(done, len(slides))
        # Last: while it's missing, the cohort isn't complete.
        write_csv(csv_path, COLUMNS, map(_table_row, slides))
    except BrokenProcessPool as error:
        raise ConfigError(
            "A process that draws slides ended before its time. Out of memory: use fewer workers. In a script of your "
            'own: call generate_cohort under `if __name__ == "__main__":`, or with workers=1. Finished slides are kept.'
        ) from error
    except OSError as error:
        raise ConfigError(f"The cohort can't be written to {out_dir}: {error}") from error
    return csv_path


def _draw_all(
    slides: list[PlannedSlide], out_dir: Path, config: CohortConfig, seed: int, workers: int
) -> Iterator[str]:
    """Draw slides, in this process or in several; gives the id of each when it's written."""
    if workers == 1 or len(slides) < 2:
        for slide in slides:
            yield _draw_one(slide, out_dir, config, seed)
        return
    # Spawned, not forked: the caller may hold threads (torch, Qt) that a fork would copy half-alive.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(slides)), mp_context=context) as pool:
        futures = [pool.submit(_draw_one, slide, out_dir, config, seed) for slide in slides]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            # After an error or an interrupt the slides in the queue are dropped, not drawn in vain.
            pool.shutdown(wait=True, cancel_futures=True)


def _draw_one(planned: PlannedSlide, out_dir: Path, config: CohortConfig, seed: int) -> str:
    slide = generate_slide(config, seed_sequence=planned.seed_sequence(seed), label=planned.label)
    write_mask(out_dir / planned.mask_path, slide.lesion_mask)
    write_truth(out_dir / planned.truth_path, truth_of(slide))
    write_slide(out_dir / planned.slide_path, slide.rgb, jpeg_quality=config.jpeg_quality)
    return planned.slide_id


def _table_row(slide: PlannedSlide) -> tuple[object, ...]:
    label = "" if slide.fold == "unlabelled" else slide.label
    return slide.slide_id, slide.slide_path, f"patient-{slide.slide_id}", label, slide.fold, MPP_L0


def _cohort_json(config: CohortConfig, seed: int) -> str:
    record = {
        **_identity(config, seed),
        "n_slides": {fold: config.n_slides(fold) for fold in FOLDS},
        "class_names": list(CLASS_NAMES),
        "mask_downsample": MASK_DOWNSAMPLE,
        "versions": _versions(),
    }
    return json.dumps(record, indent=2) + "\n"


def _versions() -> dict[str, str]:
    # Recorded, not compared: another JPEG library may write other bytes, but the slides show the same.
    from importlib.metadata import version

    return {name: version(name) for name in ("napari-lrmil", "numpy", "pillow", "tifffile", "imagecodecs")}


def _look(config: CohortConfig) -> dict[str, object]:
    return config.model_dump(mode="json", exclude={"n_unlabelled", "n_train", "n_val", "n_test"})


def _identity(config: CohortConfig, seed: int) -> dict[str, object]:
    """Return what decides a slide's content. The numbers of slides don't: a cohort may grow."""
    return {"generator_version": GENERATOR_VERSION, "seed": seed, "look": _look(config)}


def _read_record(out_dir: Path) -> dict[str, object] | None:
    path = out_dir / COHORT_JSON
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is damaged ({error}). Use --overwrite, or another folder.") from error
    if not isinstance(record, dict):
        raise ConfigError(f"{path} isn't the record of a cohort. Use --overwrite, or another folder.")
    return record


def _holds_this_cohort(out_dir: Path, config: CohortConfig, seed: int) -> bool:
    record = _read_record(out_dir)
    if record is None:
        present = [name for name in ("slides", "masks", "truth", SLIDES_CSV) if (out_dir / name).exists()]
        if present:
            raise ConfigError(
                f"{out_dir} holds {', '.join(present)} but no {COHORT_JSON}: it isn't known which cohort they're of. "
                "Use another folder."
            )
        return False
    look = record.get("look")
    if isinstance(look, dict):  # parameters that came later have their defaults
        record["look"] = _look(CohortConfig()) | look
    identity = _identity(config, seed)
    if any(record.get(key) != value for key, value in identity.items()):
        raise ConfigError(
            f"{out_dir} holds a cohort of another seed, other parameters or another version of the generator. "
            "Use --overwrite to replace it, or another folder."
        )
    same_size = record.get("n_slides") == {fold: config.n_slides(fold) for fold in FOLDS}
    return same_size and (out_dir / SLIDES_CSV).is_file()


def _remove_cohort(out_dir: Path) -> None:
    """Remove the files a cohort wrote, found by their names; anything else in the folder stays."""
    (out_dir / SLIDES_CSV).unlink(missing_ok=True)
    for folder, suffix in (("slides", "tif"), ("masks", "png"), ("truth", "safetensors")):
        for fold in FOLDS:
            for path in (out_dir / folder).glob(f"{fold}-*.{suffix}"):
                path.unlink()
    (out_dir / COHORT_JSON).unlink(missing_ok=True)
