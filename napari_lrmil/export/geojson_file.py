"""The JSON of a GeoJSON file, plain or packed, with errors a user can act on."""

from __future__ import annotations

import gzip
import json
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

from napari_lrmil.export.errors import GeoJSONError

MAX_FILE_BYTES = 512 * 2**20


def read_document(path: Path, max_bytes: int) -> Any:
    """The JSON value of a file, plain or within .gz or .zip.

    Raises
    ------
    GeoJSONError
    """
    try:
        if path.suffix.lower() == ".zip":
            with zipfile.ZipFile(path) as archive:
                names = [name for name in archive.namelist() if name.lower().endswith((".geojson", ".json"))]
                if len(names) != 1:
                    raise GeoJSONError(
                        f"{path.name} holds {len(names)} GeoJSON files instead of one. Unpack it, and open one."
                    )
                with archive.open(names[0]) as file:
                    data = _at_most(file, max_bytes, path.name)
        elif path.suffix.lower() == ".gz":
            with gzip.open(path) as file:
                data = _at_most(file, max_bytes, path.name)
        else:
            with path.open("rb") as file:
                data = _at_most(file, max_bytes, path.name)
    except OSError as error:
        raise GeoJSONError(f"{path.name} can't be read: {error.strerror or error}") from error
    except (zipfile.BadZipFile, EOFError, zlib.error, RuntimeError) as error:
        raise GeoJSONError(f"{path.name} can't be unpacked: {error}") from error
    return parse_document(data)


def _at_most(file: IO[bytes] | gzip.GzipFile, max_bytes: int, name: str) -> bytes:
    data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise GeoJSONError(
            f"{name} holds more than {max_bytes / 2**20:.0f} MiB. Export fewer objects, such as "
            "the annotations without the detections."
        )
    return data


def parse_document(data: str | bytes) -> Any:
    """The JSON value of a text.

    Raises
    ------
    GeoJSONError
    """
    try:
        return json.loads(data)
    except UnicodeDecodeError as error:
        raise GeoJSONError("this is not JSON: it isn't UTF-8 text. Export it from QuPath again.") from error
    except json.JSONDecodeError as error:
        raise GeoJSONError(
            f"this is not JSON: line {error.lineno}, column {error.colno}: {error.msg}. A file cut short "
            "says so too: export it again."
        ) from error
    except RecursionError as error:
        raise GeoJSONError("this is no GeoJSON of annotations: it is nested too deeply") from error
    except ValueError as error:  # a number of thousands of digits
        raise GeoJSONError(f"this is not JSON that can be read: {error}") from error
