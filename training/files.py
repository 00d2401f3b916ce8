"""Small files of a run, each written whole or not at all: JSON, and tensors without pickle."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save

from napari_lrmil.atomic import replacing, write_text
from napari_lrmil.outside import parse_json

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"

_NUMBERS = "lrmil"
"""Key of the header in which `save_tensors` puts JSON values."""


def write_json(path: Path, value: object) -> None:
    """Write a JSON file."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json_object(path: Path) -> dict[str, Json] | None:
    """Return what a JSON file holds; None where it is missing, damaged or no object."""
    try:
        value = parse_json(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def remembered(path: Path, key: str, make: Callable[[], Mapping[str, Json]]) -> dict[str, Json]:
    """Return the values that `make` gave when the file was written, or make and write them.

    Parameters
    ----------
    path : Path
        JSON file of the values, with the key beside them.
    key : str
        Hash of what they are made from: those of another key are made anew.
    make : callable
    """
    saved = read_json_object(path) or {}
    if saved.pop("key", None) == key:
        return saved
    values = dict(make())
    write_text(path, json.dumps({"key": key} | values) + "\n")
    return values


def save_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], numbers: Mapping[str, object] | None = None
) -> None:
    """Write a safetensors file, with JSON values in its header where there are some."""
    metadata = None if numbers is None else {_NUMBERS: json.dumps(numbers)}
    # Through bytes: Python's own write says that a disk is full, where the library's says something of its own.
    content = save({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, metadata)
    with replacing(path) as scratch:
        scratch.write_bytes(content)


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a safetensors file."""
    return load_file(path)


def load_numbers(path: Path) -> dict[str, Json]:
    """Return the JSON values that `save_tensors` put into the header."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    values: dict[str, Json] = parse_json(metadata.get(_NUMBERS, "{}"))
    return values
