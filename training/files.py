"""Small files of a run, each written whole or not at all: JSON, and tensors without pickle."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

import torch
from safetensors.torch import load, save

from napari_lrmil.atomic import replacing, write_text
from napari_lrmil.outside import parse_json, read_file
from training.hashing import content_hash

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"

_NUMBERS, _SHA256 = "lrmil", "sha256"
"""Keys of the header in which `save_state` puts JSON values, and the hash of the file."""
_SEALED = re.compile(rb'"sha256":"([0-9a-f]{64})"')
_UNSEALED = "0" * 64
"""What stands in the hash's place when it is taken."""
_MOST_BYTES = 2**37
"""Of a state: a model, its best weights and two moments each, of any encoder."""


def allow_open_files(n: int) -> None:
    """Let this process have so many files open, or as many as its system lets it; many systems begin with 1,024."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = n if hard == resource.RLIM_INFINITY else min(n, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def write_json(path: Path, value: object) -> None:
    """Write a JSON file."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json_object(path: Path) -> dict[str, Json] | None:
    """Return what a JSON file holds; None where it is missing, damaged or no object."""
    try:
        value = parse_json(read_file(path))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def remembered(path: Path, key: str, make: Callable[[], Mapping[str, Json]]) -> dict[str, Json]:
    """Return the values that `make` gave when the file was written, or make and write them.

    Parameters
    ----------
    path : Path
        JSON file of the values, with the key and a hash of both beside them.
    key : str
        Hash of what they are made from: those of another key are made anew, and those that aren't as they were written.
    make : callable
    """
    saved = read_json_object(path) or {}
    seal = saved.pop(_SHA256, None)
    if saved.pop("key", None) == key and seal == _seal(key, saved):
        return saved
    values = dict(make())
    write_text(path, json.dumps({"key": key, _SHA256: _seal(key, values)} | values) + "\n")
    return values


def _seal(key: str, values: Mapping[str, Json]) -> str:
    return content_hash(key, json.dumps(values))


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a safetensors file."""
    _write_tensors(path, tensors, None)


def parse_tensors(content: bytes) -> dict[str, torch.Tensor]:
    """Return the tensors in the content of a safetensors file.

    Raises
    ------
    SafetensorError
        Where it is something else.
    """
    return load(content)


def save_state(path: Path, tensors: Mapping[str, torch.Tensor], numbers: Mapping[str, object]) -> None:
    """Write a safetensors file with JSON values and its own SHA-256 in the header."""
    _write_tensors(path, tensors, {_NUMBERS: json.dumps(numbers), _SHA256: _UNSEALED})


def load_state(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Json]]:
    """Return the tensors and JSON values that `save_state` wrote.

    Files of earlier versions have no hash.

    Raises
    ------
    OSError
        Where it can't be read.
    ValueError
        Where it isn't as it was written.
    SafetensorError
        Where it is something else.
    """
    content = read_file(path, most_bytes=_MOST_BYTES)
    header = _header(content)
    found = _SEALED.search(header)
    if found is not None:
        unsealed = _with_seal(content, found[1].decode(), _UNSEALED)
        if hashlib.sha256(unsealed).hexdigest().encode() != found[1]:
            raise ValueError("its SHA-256 is another")
    values = parse_json(header).get("__metadata__", {}).get(_NUMBERS, "{}")
    numbers: dict[str, Json] = parse_json(values)
    return load(content), numbers


def _write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None) -> None:
    # Through bytes: Python's own write says that a disk is full, where the library's says something of its own.
    content = save({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, metadata)
    if metadata is not None and _SHA256 in metadata:
        content = _with_seal(content, _UNSEALED, hashlib.sha256(content).hexdigest())
    with replacing(path) as scratch:
        scratch.write_bytes(content)


def _header(content: bytes) -> bytes:
    size = int.from_bytes(content[:8], "little")
    if size > len(content):
        raise ValueError("it is cut off")
    return content[8 : 8 + size]


def _with_seal(content: bytes, old: str, new: str) -> bytes:
    """Put one hash in another's place: the first such text is in the header."""
    return content.replace(f'"{_SHA256}":"{old}"'.encode(), f'"{_SHA256}":"{new}"'.encode(), 1)
