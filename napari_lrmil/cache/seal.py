"""Small JSON files with a hash, so that what a broken disk makes of them isn't taken for what was written."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from napari_lrmil.atomic import write_text
from napari_lrmil.cache.codec import JSONValue
from napari_lrmil.outside import parse_json, read_file

_MOST_BYTES = 2**20


def write_sealed(path: Path, body: JSONValue, *, subject: str) -> None:
    """Write a value with a hash of it and of what it is about.

    Raises
    ------
    OSError
    """
    write_text(path, json.dumps({"body": body, "sha256": _hash(body, subject)}) + "\n")


def read_sealed(path: Path, *, subject: str) -> JSONValue:
    """Return what `write_sealed` wrote about the same subject.

    Raises
    ------
    OSError, ValueError, LookupError, TypeError
        Where it is damaged, or about something else, too.
    """
    said = parse_json(read_file(path, most_bytes=_MOST_BYTES))
    body: JSONValue = said["body"]
    if said["sha256"] != _hash(body, subject):
        raise ValueError("damaged, or about something else")
    return body


def _hash(body: JSONValue, subject: str) -> str:
    return hashlib.sha256(json.dumps([subject, body], sort_keys=True).encode()).hexdigest()
