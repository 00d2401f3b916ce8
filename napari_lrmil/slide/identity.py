"""Whether two slides are the same, and whether one has changed. No pixels are decoded.

The fingerprint says what a slide holds: it survives renaming and moving, and costs a bounded number of bytes however
large the slide is. State and stamp say whether its files were touched: no file is opened for them.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, TypeVar

from napari_lrmil.slide.files import DICOM_SUFFIX, Chunk, parts_of, stored_chunks
from napari_lrmil.slide.tiff_directories import HEAD_BYTES, MAX_ENTRIES, SUBIFDS, TYPE_BYTES, directory_format

T = TypeVar("T")
FileState = tuple[str, int, int]
"""Name, size, and time of change in ns."""

_VERSION = b"lrmil-fingerprint-2"
_EARLIER_DIGITS = 24
"""How much of the fingerprint that versions before made of a slide stands at the end of today's."""

_END_BYTES = 2**20
_ALL_ENDS_BYTES = 2**22
"""Read of the beginnings of all files, and as much of their ends."""
_BLOCK_BYTES = 2**12
_MAX_BLOCKS = 2**8
"""Blocks in the interior of all files, spread evenly."""
_MAX_FILES = 2**8
"""Files that are looked into, spread evenly where there are more; the sizes of all count."""
_MAX_TABLE_BYTES = 2**22
"""Read of TIFF directories and their tables: where each tile lies, and how long it is."""
_MAX_DIRECTORIES = 2**6


def fingerprint_of(
    files: Sequence[Path], *, chunks: Sequence[Chunk] = (), chunks_in: Path | None = None
) -> str:
    """Return 64 hexadecimal digits that tell a slide from others; names stay out, so a renamed copy is the same slide.

    What counts: the sizes of all files; the beginning and the end of each, and blocks spread evenly between them; the
    directories of a TIFF with the tables of where its tiles lie; of OME-Zarr and DeepZoom, the names and sizes of all
    chunks, and what stands in some of them, spread evenly. At most 16 MiB are read. Two slides that differ only between
    what is read, and in nothing that moves or resizes a tile, are taken for one.

    The last 24 digits are the first 24 of what earlier versions took for the fingerprint, see `same_slide`.

    Parameters
    ----------
    files : sequence of Path
        See `pixel_files`.
    chunks, chunks_in : sequence of Chunk, Path
        Of a slide with a file a chunk, of which `files` are only some: all of them by name, see `stored_chunks`, and
        the folder that they are in, see `chunks_folder`.

    Raises
    ------
    OSError
    """
    sized = sorted(((file.stat().st_size, file) for file in files), key=lambda pair: (-pair[0], pair[1].name))
    digest = hashlib.sha256(_VERSION)
    digest.update(json.dumps([size for size, _ in sized]).encode())
    digest.update(json.dumps([(name, size) for name, size, _ in chunks]).encode())
    whole = _evenly(sized, _MAX_FILES)
    single = [(chunk.size, Path(chunks_in or "", chunk.name)) for chunk in _evenly(chunks, _MAX_FILES)]
    total = max(1, sum(size for size, _ in [*whole, *single]))
    n_files = len(whole) + len(single)

    def sample(size: int, file: Path) -> bytes:
        return _sample(
            file,
            size,
            end_bytes=min(_END_BYTES, max(_BLOCK_BYTES, _ALL_ENDS_BYTES // n_files)),
            n_blocks=_MAX_BLOCKS * size // total,
            table_bytes=_MAX_TABLE_BYTES // n_files,
        )

    # Sorted, for files of one size are told apart by nothing but their names, which stay out. A chunk's name is its place.
    digest.update(b"".join(sorted(sample(*part) for part in whole)))
    digest.update(b"".join(sample(*part) for part in single))
    return digest.hexdigest()[: 64 - _EARLIER_DIGITS] + _earlier_fingerprint(sized)[:_EARLIER_DIGITS]


def same_slide(known: str, now: str) -> bool:
    """Return whether a fingerprint that was written down, perhaps by an earlier version, is that of a slide now."""
    return known == now or known[:_EARLIER_DIGITS] == earlier_digits(now)


def earlier_digits(fingerprint: str) -> str:
    """Return the first digits of what earlier versions took for the fingerprint of the same slide."""
    return fingerprint[-_EARLIER_DIGITS:]


def state_of(path: Path) -> str | None:
    """Return a hash of where a slide is and of the sizes and times of its files; None where it is absent.

    It changes whenever the slide may have; looking takes no reading of pixels. The path can't be got back
    from it. Of OME-Zarr and DeepZoom, all chunks count.
    """
    try:
        where = path.resolve()
        files = [where, *sorted(set(parts_of(where)) - {where})]
        states = (*states_of(files), *stored_chunks(where))
    except (OSError, RuntimeError):  # a link to itself is a RuntimeError
        return None
    return hashlib.sha256(json.dumps([str(where), states]).encode()).hexdigest()


def stamp_of(path: Path) -> str:
    """Return sizes and times of a slide's files, wherever it is: other files at the same path are another slide.

    Of a DICOM slide, those of `path` alone: the files beside it may be of other slides.

    Raises
    ------
    OSError
        Where it is absent.
    """
    stat = path.stat()
    stamp = f"{stat.st_size}-{stat.st_mtime_ns}"
    parts = [] if path.suffix.lower() == DICOM_SUFFIX else sorted(set(parts_of(path)) - {path})
    if not parts:
        return stamp
    states = (*states_of(parts), *stored_chunks(path))
    return f"{stamp}-{hashlib.sha256(json.dumps(states).encode()).hexdigest()[:16]}"


def states_of(files: Sequence[Path]) -> tuple[FileState, ...]:
    """Return the sizes and times of files, in their order.

    Raises
    ------
    OSError
    """
    return tuple((file.name, stat.st_size, stat.st_mtime_ns) for file in files for stat in [file.stat()])


def _earlier_fingerprint(sized: Sequence[tuple[int, Path]]) -> str:
    """What earlier versions took for the fingerprint: all sizes, and the ends of the largest file."""
    digest = hashlib.sha256(",".join(str(size) for size, _ in sized).encode())
    size, largest = sized[0]
    with largest.open("rb") as file:
        digest.update(file.read(_END_BYTES))
        file.seek(max(0, size - _END_BYTES))
        digest.update(file.read(_END_BYTES))
    return digest.hexdigest()


def _sample(path: Path, size: int, *, end_bytes: int, n_blocks: int, table_bytes: int) -> bytes:
    """A digest of what is read of one file."""
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        if size <= 2 * end_bytes + _BLOCK_BYTES:
            digest.update(file.read(size))
            return digest.digest()
        head = file.read(end_bytes)
        digest.update(head)
        inside = size - 2 * end_bytes - _BLOCK_BYTES
        for number in range(n_blocks):
            file.seek(end_bytes + inside * number // max(1, n_blocks - 1))
            digest.update(file.read(_BLOCK_BYTES))
        for table in _tiff_tables(file, head[:HEAD_BYTES], size, max_bytes=table_bytes):
            digest.update(table)
        file.seek(size - end_bytes)
        digest.update(file.read(end_bytes))
    return digest.digest()


def _tiff_tables(file: BinaryIO, head: bytes, size: int, *, max_bytes: int) -> Iterator[bytes]:
    """The directories of a TIFF, and the values that they point at; nothing of another file.

    Damage ends it; a loop, or too much, too.
    """
    form = directory_format(head)
    if form is None:
        return
    inline = form.offset.size
    left = max_bytes
    waiting, seen = [form.first], set[int]()
    while waiting and len(seen) < _MAX_DIRECTORIES:
        at = waiting.pop()
        if not 0 < at < size or at in seen:
            continue
        seen.add(at)
        file.seek(at)
        start = file.read(form.count.size)
        if len(start) < form.count.size:
            return
        n_entries = min(int(form.count.unpack(start)[0]), MAX_ENTRIES)
        end = n_entries * form.entry.size
        table = file.read(end + inline)
        left -= len(table)
        if len(table) < end + inline or left < 0:
            return
        yield table
        waiting.append(int(form.offset.unpack_from(table, end)[0]))
        for tag, kind, count, value in form.entry.iter_unpack(table[:end]):
            n_bytes = TYPE_BYTES.get(kind, 0) * count
            if n_bytes > inline:
                file.seek(min(size, int(form.offset.unpack(value)[0])))
                value = file.read(min(n_bytes, left))
                left -= len(value)
                yield value
            if tag == SUBIFDS and kind in (4, 13, 16, 18):
                each = {4: "I", 13: "I", 16: "Q", 18: "Q"}[kind]
                n_there = min(count, _MAX_DIRECTORIES, len(value) // struct.calcsize(f"{form.order}{each}"))
                waiting += struct.unpack_from(f"{form.order}{n_there}{each}", value)


def _evenly(items: Sequence[T], n_most: int) -> Sequence[T]:
    """All, or `n_most` of them, the first and the last included."""
    if len(items) <= n_most:
        return items
    return [items[(len(items) - 1) * number // (n_most - 1)] for number in range(n_most)]
