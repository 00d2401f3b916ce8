"""What a method says of the test slides: probabilities as a table, and the attention on their tiles."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load

from napari_lrmil.atomic import write_csv
from napari_lrmil.errors import shortened
from napari_lrmil.model.calibration import called_class
from napari_lrmil.table import as_it_was
from training.files import save_tensors


class Predictions(NamedTuple):
    """One method on the test slides of one fold, or of all: N slides, C classes."""

    class_names: tuple[str, ...]
    slide_ids: tuple[str, ...]
    patients: tuple[str, ...]
    labels: NDArray[np.int64]
    """(N,) classes"""
    probabilities: NDArray[np.float64]
    """(N, C)"""
    called: NDArray[np.int64]
    """(N,) the class that is called, by the operating point of its fold"""


class SlideAttention(NamedTuple):
    """The attention of one method on one slide."""

    scores: NDArray[np.float64]
    """(N,) they sum to 1"""
    places: NDArray[np.int64]
    """(N, 2) (row, col) of the tiles in their grid: the HR grid for the teacher, else the LR grid"""


def pool(parts: Sequence[Predictions]) -> Predictions:
    """Return folds one after the other."""
    return Predictions(
        class_names=parts[0].class_names,
        slide_ids=tuple(name for part in parts for name in part.slide_ids),
        patients=tuple(name for part in parts for name in part.patients),
        labels=np.concatenate([part.labels for part in parts]),
        probabilities=np.concatenate([part.probabilities for part in parts]),
        called=np.concatenate([part.called for part in parts]),
    )


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write a CSV file with a row a slide: slide_id, patient_id, label, p_<class> for each class, called.

    Names that a spreadsheet would run as a formula get an apostrophe in front, which `parse_predictions` takes away.
    """
    names = predictions.class_names
    rows = zip(
        predictions.slide_ids,
        predictions.patients,
        predictions.labels.tolist(),
        predictions.probabilities.tolist(),
        predictions.called.tolist(),
        strict=True,
    )
    write_csv(
        path,
        ["slide_id", "patient_id", "label", *(f"p_{name}" for name in names), "called"],
        # Every digit: what is read back after an interruption is what was found.
        (
            [
                *(slide, patient, names[label]),
                *map(repr, values),
                names[called],
            ]
            for slide, patient, label, values, called in rows
        ),
    )


def parse_predictions(content: bytes) -> Predictions:
    """Return what `write_predictions` wrote.

    Raises
    ------
    ValueError
        Where it is no table of predictions; the text says what is wrong.
    """
    try:
        reader = csv.DictReader(io.StringIO(content.decode(), newline=""))
        columns = list(reader.fieldnames or [])
        records = [
            {name: as_it_was(cell) if isinstance(cell, str) else cell for name, cell in record.items()}
            for record in reader
        ]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"it is no CSV file ({error})") from error
    names = tuple(name.removeprefix("p_") for name in columns[3:] if name.startswith("p_"))
    if columns[:3] != ["slide_id", "patient_id", "label"] or len(names) < 2:
        raise ValueError(f"the columns are {shortened(', '.join(columns))}, not those of predictions")
    if not records:
        raise ValueError("it has no rows")
    odd = next((record for record in records if record["label"] not in names), None)
    if odd is not None:
        raise ValueError(f"{odd['slide_id']} is labelled {odd['label']!r}, not {' or '.join(names)}")
    try:
        probabilities = np.array(
            [[float(record[f"p_{name}"]) for name in names] for record in records], np.float64
        )
        return Predictions(
            class_names=names,
            slide_ids=tuple(record["slide_id"] for record in records),
            patients=tuple(record["patient_id"] for record in records),
            labels=np.array([names.index(record["label"]) for record in records], np.int64),
            probabilities=probabilities,
            # Earlier versions called the most probable class, and their tables don't say so.
            called=np.array([names.index(record["called"]) for record in records], np.int64)
            if "called" in columns
            else called_class(probabilities, None),
        )
    except (ValueError, TypeError) as error:  # a cut line
        raise ValueError(f"it is damaged ({error})") from error


def write_attention(path: Path, slides: Mapping[str, SlideAttention]) -> None:
    """Write a safetensors file: of each slide ``<id>/attention_scores`` (N,) and ``<id>/places`` (N, 2)."""
    tensors = {}
    for name, one in slides.items():
        tensors[f"{name}/attention_scores"] = torch.from_numpy(one.scores.astype(np.float32))
        tensors[f"{name}/places"] = torch.from_numpy(one.places.astype(np.int64))
    save_tensors(path, tensors)


def parse_attention(content: bytes) -> dict[str, SlideAttention]:
    """Return what `write_attention` wrote, by slide.

    Raises
    ------
    ValueError
        Where it is something else.
    """
    try:
        tensors = load(content)
        names = [
            key.removesuffix("/attention_scores") for key in tensors if key.endswith("/attention_scores")
        ]
        return {
            name: SlideAttention(
                tensors[f"{name}/attention_scores"].astype(np.float64),
                tensors[f"{name}/places"].astype(np.int64),
            )
            for name in names
        }
    except KeyError as error:
        raise ValueError(f"it has no {error.args[0]}") from error
    except SafetensorError as error:
        raise ValueError(str(error)) from error
