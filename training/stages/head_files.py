"""Files that a head starts from: a published ABMIL head (``mil.init``), and the texts of FOCUS (``mil.texts``)."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from torch import Tensor

from napari_lrmil.errors import ConfigError, reason_of, refuse_pipe, shortened
from napari_lrmil.model.mil import ABMIL, MILModel
from napari_lrmil.model.mil.focus import FOCUS
from napari_lrmil.model.mil.pretrained import PretrainedHeadError, read_pretrained, start_from
from napari_lrmil.model.tensors import not_finite, read_tensors
from training.hashing import file_hash


def hash_of(path: Path, key: str) -> str:
    """Return the SHA-256 of a file that a config names.

    Raises
    ------
    ConfigError
        Where it can't be read, naming the key.
    """
    try:
        refuse_pipe(path)
        return file_hash(path)
    except OSError as error:
        raise ConfigError(f"{key}: {path} can't be read: {reason_of(error)}") from error


def texts_shape(path: Path) -> tuple[int, int]:
    """Return how many texts a file has for all classes together, and their width.

    Raises
    ------
    ConfigError
        As `read_texts`.
    """
    texts = read_texts(path)
    return sum(len(rows) for rows in texts.values()), next(iter(texts.values())).shape[1]


def read_texts(path: Path) -> dict[str, Tensor]:
    """Return the embeddings of the texts of each class by its name, (K, W) each; K may differ.

    Raises
    ------
    ConfigError
        Where the file isn't a safetensors file of one matrix (or one vector) a class, all of one width, of finite numbers and
        without a text of zeros.
    """
    return _read_texts(path, hash_of(path, "mil.texts"))


@functools.lru_cache(maxsize=8)
def _read_texts(path: Path, sha256: str) -> dict[str, Tensor]:
    try:
        tensors = read_tensors(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"mil.texts: {path} isn't a safetensors file: {error}") from error
    texts = {name: value[None] if value.ndim == 1 else value for name, value in tensors.items()}
    for name, rows in texts.items():
        what = shortened(name)
        if rows.ndim != 2 or 0 in rows.shape or not rows.is_floating_point():
            raise ConfigError(f"mil.texts: {path}: {what!r} isn't a matrix of numbers, a row a text")
        if not_finite({name: rows}) or bool((rows == 0).all(dim=1).any()):
            raise ConfigError(
                f"mil.texts: {path}: {what!r} holds numbers that aren't finite, or a text of zeros only"
            )
    if len({rows.shape[1] for rows in texts.values()}) != 1:
        found = ", ".join(f"{shortened(name)} {rows.shape[1]}" for name, rows in list(texts.items())[:6])
        raise ConfigError(f"mil.texts: {path}: all texts must have one width; it has {found or 'no texts'}")
    return texts


def give_start(
    model: MILModel, class_names: tuple[str, ...], *, init: Path | None, classifier: bool, texts: Path | None
) -> MILModel:
    """Return a fresh head after giving it what the files hold.

    Parameters
    ----------
    model : MILModel
    class_names : tuple of str
    init : Path, optional
        Of a published ABMIL head.
    classifier : bool
        Whether to take its classifier too.
    texts : Path, optional
        Of FOCUS.

    Raises
    ------
    ConfigError
        Where a file is missing, can't be read or doesn't fit.
    """
    if init is not None:
        assert isinstance(model, ABMIL)
        try:
            start_from(model, read_pretrained(init), classifier=classifier)
        except PretrainedHeadError as error:
            raise ConfigError(f"mil.init: {error}") from error
        except OSError as error:
            raise ConfigError(f"mil.init: {init} can't be read: {reason_of(error)}") from error
    if isinstance(model, FOCUS):
        if texts is None:
            raise ConfigError(
                "head 'focus' reads texts of its classes: name their embeddings, a safetensors file with a matrix a class, in "
                "mil.texts (docs/heads.md)"
            )
        rows = read_texts(texts)
        if set(rows) != set(class_names):
            raise ConfigError(
                f"mil.texts: {texts} has texts of {', '.join(sorted(map(shortened, rows)))}; the classes are "
                f"{', '.join(class_names)}"
            )
        model.set_text(torch.cat([rows[name] for name in class_names]))
    return model
