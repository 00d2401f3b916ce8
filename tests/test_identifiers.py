"""The short form of `benchmarks/fuzz/identifiers.py`, and a check of what it finds things with."""

from __future__ import annotations

import base64
import gzip
import io
import json
import logging
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import zarr
from PIL import Image, PngImagePlugin

from benchmarks.formats import FORMATS
from benchmarks.fuzz.identifiers import (
    attack_meaning,
    attack_metadata,
    attack_training,
    planted_word,
    search,
    words_in,
)

WORD = planted_word("a field")
TEXT = f"before {WORD} after, and more than a few letters".encode()


def _zip() -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("name", TEXT)
    return data.getvalue()


def _png() -> bytes:
    data, info = io.BytesIO(), PngImagePlugin.PngInfo()
    info.add_text("k", TEXT.decode(), zip=True)
    Image.new("L", (2, 2)).save(data, "PNG", pnginfo=info)
    return data.getvalue()


PACKED = {
    "plain": TEXT,
    "lower case": TEXT.lower(),
    "UTF-16": TEXT.decode().encode("utf-16"),
    "gzip": b"..." + gzip.compress(TEXT),
    "zlib in something": b"..." + zlib.compress(TEXT) + b"...",
    "zip": _zip(),
    "zstd": b"..." + bytes(imagecodecs.zstd_encode(TEXT)),
    "blosc": bytes(imagecodecs.blosc_encode(TEXT * 9)),
    "base64": b"data:;base64," + base64.b64encode(TEXT) + b'"',
    "a PNG in base64": base64.b64encode(_png()),
    "PNG zTXt": _png(),
    "hexadecimal": b"<" + TEXT.hex().encode() + b">",
    "gzip in gzip": gzip.compress(gzip.compress(TEXT)),
}


@pytest.mark.parametrize("how", sorted(PACKED))
def test_a_planted_word_is_found_however_it_is_packed(how: str) -> None:
    assert words_in(PACKED[how], [WORD, "QX00000000"]) == {WORD}


def test_a_planted_word_is_found_in_a_chunk_and_in_a_name(tmp_path: Path) -> None:
    text = np.frombuffer(TEXT * 40, np.uint8)
    zarr.create_array(tmp_path / "a.zarr", data=text, chunks=text.shape)
    (tmp_path / f"{WORD}.txt").write_text("nothing")
    found = search(tmp_path, {WORD: "a field"})
    assert {leak.place.split("/")[0] for leak in found.leaks} == {"a.zarr", f"{WORD}.txt"}


@pytest.mark.parametrize(
    "formats",
    [("aperio", "jpeg", "ome-zarr"), pytest.param(tuple(FORMATS), marks=pytest.mark.slow)],
    ids=["some", "all"],
)
def test_no_identifier_is_in_anything_that_is_made(
    tmp_path: Path, tiny_bundle: Path, formats: tuple[str, ...]
) -> None:
    found = attack_metadata(tmp_path, formats=formats, bundle=str(tiny_bundle), side_px=512)
    assert found.leaks == []
    assert found.files > 10 * len(formats)


@pytest.mark.slow
def test_no_identifier_is_in_what_training_makes_but_where_the_documentation_says(tmp_path: Path) -> None:
    """No metadata of a slide anywhere; of the table's ids none in bundle, model card, report, results and logs."""
    formats = ("aperio", "jpeg", "ome-zarr", "dicom", "ome-tiff", "philips")
    found = attack_training(tmp_path, formats=formats, side_px=512)
    assert found.leaks == []
    assert found.files > 50


def test_what_stands_where_a_value_is_meant_is_not_repeated(tmp_path: Path) -> None:
    found, n_slides = attack_meaning(tmp_path, formats=("aperio", "ome-tiff", "philips", "ome-zarr"))
    assert found.leaks == []
    assert n_slides > 15


def test_logs_of_decoders_are_there_for_who_asks() -> None:
    code = """
import json, logging
logging.getLogger("PIL").setLevel(logging.DEBUG)
logging.basicConfig(level=logging.DEBUG)
import napari_lrmil.slide
print(json.dumps({n: logging.getLogger(n).getEffectiveLevel() for n in ("PIL.TiffImagePlugin", "zarr", "tifffile")}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {
        "PIL.TiffImagePlugin": logging.DEBUG,
        "zarr": logging.WARNING,
        "tifffile": logging.CRITICAL,
    }
