"""Hashes of values and files: what is made from the same inputs isn't made twice."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pydantic import BaseModel


def content_hash(*values: object) -> str:
    """Return the SHA-256 over values of which each has one text: models as JSON, the rest by `repr`."""
    digest = hashlib.sha256()
    for value in values:
        text = value.model_dump_json() if isinstance(value, BaseModel) else repr(value)
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file: another file at the same path is another encoder."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
