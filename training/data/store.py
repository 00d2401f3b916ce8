"""Embeddings on disk: one sharded zarr store, one group a slide, written whole, read in part.

A store belongs to one encoder and one tile spec: its folder's name carries the hash of both, so that embeddings of
two encoders never mix. A slide's group holds a manifest with the sizes and hashes of its files: what a full disk or a
lost machine left in half is seen, and embedded anew.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import overload

import numpy as np
import zarr
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec

from napari_lrmil.atomic import fitting_name, remove_stale_scratch, replacing_folder, write_text
from napari_lrmil.errors import LRMILError
from napari_lrmil.outside import parse_json, read_file
from training.hashing import file_hash

CHUNK_TILES = 1024
"""Tiles that are read at once: 1.5 MB of 768 dimensions."""
SHARD_TILES = 16 * CHUNK_TILES
"""Tiles of a file."""
_SCRATCH_SECONDS = 3600
_SLOTS = 1024


class StoreError(LRMILError):
    """Embeddings can't be stored, or what is stored is damaged."""


@dataclass(frozen=True)
class EmbeddingStore:
    """A folder of embeddings.

    Each slide has ``embedding`` (N, D) and, where layers were tapped, ``layer_class_tokens`` (L, N, D), float16 in the
    order of the slide's tile places. Where stage 1 turns tiles it has the means over the 8 turns of a tile instead of the
    latter, and beside the former: ``turned_layer_class_tokens`` and ``turned_embedding``.
    """

    root: Path
    spec: Mapping[str, object] = field(default_factory=dict)
    """What the hash in its name stands for; written beside the slides."""
    known_as: str = ""
    """Its key, where that isn't its name: it holds more than it is asked for."""

    def has(self, slide_id: str, stamp: str | None = None) -> bool:
        """Whether a slide is there, whole, and made of what `stamp` says.

        Parameters
        ----------
        slide_id : str
        stamp : str, optional
            As given to `write`; None accepts any.
        """
        place = self._place(slide_id)
        try:
            manifest = parse_json(read_file(place / "manifest.json"))
            whole = all((place / name).stat().st_size == size for name, size in manifest["files"].items())
            # The arrays hold checksums of their own; what describes them doesn't, and a wrong shape reads as zeros.
            described = manifest.get("sha256")
            if described is not None:
                whole &= described.keys() == manifest["files"].keys()
                whole &= all(
                    file_hash(place / name) == value
                    for name, value in described.items()
                    if name.endswith(".json")
                )
            whole &= all(  # of earlier versions
                zlib.crc32((place / name).read_bytes()) == value
                for name, value in manifest.get("checksums", {}).items()
            )
            return whole and (stamp is None or manifest["stamp"] == stamp)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False

    def write(self, slide_id: str, *, stamp: str = "", **arrays: NDArray[np.floating]) -> None:
        """Store a slide's arrays; an interrupted write leaves nothing that `has` sees.

        Parameters
        ----------
        slide_id : str
        stamp : str
            Identifies the slide file and its tiles.
        **arrays : (..., N, D) arrays

        Raises
        ------
        StoreError
            Where a value doesn't fit float16.
        """
        with self.writer(slide_id, stamp=stamp) as open_array:
            for name, values in arrays.items():
                array = open_array(name, values.shape)
                array.add(values)
                array.finish()

    @contextmanager
    def writer(
        self, slide_id: str, *, stamp: str = ""
    ) -> Iterator[Callable[[str, tuple[int, ...]], ArrayWriter]]:
        """Store a slide's arrays from blocks, for slides that don't fit into memory.

        Yields a function that makes an array of a name and a shape.

        Raises
        ------
        StoreError
        """
        with replacing_folder(self._place(slide_id)) as scratch:
            group = zarr.open_group(scratch, mode="w")
            yield lambda name, shape: ArrayWriter(group, scratch, slide_id, name, shape)
            files = {
                str(path.relative_to(scratch)): path.stat().st_size
                for path in sorted(scratch.rglob("*"))
                if path.is_file()
            }
            hashes = {name: file_hash(scratch / name) for name in files}
            manifest = {"stamp": stamp, "files": files, "sha256": hashes}
            write_text(scratch / "manifest.json", json.dumps(manifest, indent=1) + "\n")

    @overload
    def read(
        self, slide_id: str, name: str = ..., *, dtype: type[np.float32] = ...
    ) -> NDArray[np.float32]: ...
    @overload
    def read(self, slide_id: str, name: str = ..., *, dtype: type[np.float16]) -> NDArray[np.float16]: ...
    def read(
        self,
        slide_id: str,
        name: str = "embedding",
        *,
        dtype: type[np.float32] | type[np.float16] = np.float32,
    ) -> NDArray[np.float32] | NDArray[np.float16]:
        """Return one array of a slide.

        Raises
        ------
        StoreError
            Where it is damaged; it is forgotten then, so that the next run embeds it anew.
        """
        with self._forgotten_if_damaged(slide_id):
            if not self.has(slide_id):
                raise ValueError("files are missing or not as they were written")
            _check_arrays(self._place(slide_id))
            array = zarr.open_group(self._place(slide_id), mode="r")[name]
            halves = np.asarray(array[...], np.float16)
            return halves if dtype is np.float16 else halves.astype(np.float32)

    def rows(self, slide_id: str, name: str = "embedding", *, check: bool = True) -> StoredRows:
        """Return an array of a slide to take rows of where they lie, without reading the others.

        Parameters
        ----------
        slide_id : str
        name : str
        check : bool
            Whether to compare the hashes of the slide's files first, once a process: they are read as a whole for it.

        Raises
        ------
        StoreError
            As `read`.
        """
        place = self._place(slide_id)
        with self._forgotten_if_damaged(slide_id):
            if not self.has(slide_id):
                raise ValueError("files are missing or not as they were written")
            if check:
                _check_arrays(place)
            return StoredRows(place / name, slide_id)

    @contextmanager
    def _forgotten_if_damaged(self, slide_id: str) -> Iterator[None]:
        try:
            yield
        except (ValueError, KeyError, RuntimeError, OSError) as error:  # a checksum, a shard's index, a file
            (self._place(slide_id) / "manifest.json").unlink(missing_ok=True)
            raise StoreError(
                f"the stored embeddings of {slide_id} are damaged ({error}). Run again: that slide will be embedded anew."
            ) from error

    @contextmanager
    def at_slide(self, slide_id: str, *, wait: bool) -> Iterator[bool]:
        """Hold a slide that is to be embedded, within the block.

        Parameters
        ----------
        slide_id : str
        wait : bool
            For another process that holds it; else the block is told False.
        """
        # Not hidden, as such are swept out when they are old; a file for some slides each.
        path = self.root / "locks" / f"{zlib.crc32(slide_id.encode()) % _SLOTS}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=-1 if wait else 0, poll_interval=0.5)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    @property
    def key(self) -> str:
        """What it is asked for, encoder and tiles, as a hash."""
        return self.known_as or self.root.name

    def instances(self, slide_id: str) -> NDArray[np.float16]:
        """Return the bag of a slide, (N, D)."""
        return self.read(slide_id, dtype=np.float16)

    def n_tiles(self, slide_id: str) -> int:
        """Return the number of tiles of a slide."""
        array = zarr.open_group(self._place(slide_id), mode="r")["embedding"]
        return int(array.shape[0])

    def prepare(self) -> None:
        """Make the folder, say in it what its name's hash stands for, and sweep out what killed processes left."""
        place = self.root / "store.json"
        if not place.exists():
            write_text(place, json.dumps(dict(self.spec), indent=2) + "\n")
        # Another run may be writing there: only what nobody has touched for long is given up.
        remove_stale_scratch(self.root, older_than_s=_SCRATCH_SECONDS)

    def _place(self, slide_id: str) -> Path:
        return self.root / f"{fitting_name(slide_id)}.zarr"


class StoredRows:
    """Rows of an array (..., N, D) of halves as `ArrayWriter` stores them: chunks uncompressed in the files of its shards.

    They are read from the open files, not mapped: mapped pages of a whole store count as this process's memory, and one that
    can't be read kills it. To be closed; several threads may take rows at once.

    Parameters
    ----------
    place : Path
        Folder of the array.
    slide_id : str
        For errors.

    Raises
    ------
    ValueError
        Where it is stored in another way.
    """

    def __init__(self, place: Path, slide_id: str = "a slide") -> None:
        self._slide_id = slide_id
        told = parse_json(read_file(place / "zarr.json"))
        try:
            (sharding,) = told["codecs"]
            inner, self._shard = (
                sharding["configuration"],
                told["chunk_grid"]["configuration"]["chunk_shape"][-2],
            )
            codecs = [one["name"] for one in (*inner["codecs"], *inner["index_codecs"])]
            *outer, n, self._dim = told["shape"]
            self._chunk = inner["chunk_shape"][-2]
            plain = (
                told["data_type"] == "float16"
                and codecs == ["bytes", "crc32c"] * 2
                and inner.get("index_location", "end") == "end"
                and all(
                    one["configuration"]["endian"] == "little"
                    for one in (inner["codecs"][0], inner["index_codecs"][0])
                )
                and len(outer) <= 1
            )
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ValueError(f"{place.name} is no array of this version") from error
        if not plain:
            raise ValueError(f"{place.name} is stored in another way than this version does")
        self._n_outer, self.n_rows = (outer or [1])[0], n
        self._has_outer = bool(outer)
        n_chunks = self._shard // self._chunk
        middle = ["0"] if outer else []
        self._starts = np.full((-(-n // self._shard), self._n_outer, n_chunks), -1, np.int64)
        self._files: list[FileIO | None] = []
        try:
            for number in range(len(self._starts)):
                path = place.joinpath("c", *middle, str(number), "0")
                # Where there is none, nothing but zeros.
                file = path.open("rb", buffering=0) if path.exists() else None
                self._files.append(file)
                if file is not None:
                    self._starts[number] = self._index(file, n_chunks)
        except BaseException:
            self.close()
            raise

    def _index(self, file: FileIO, n_chunks: int) -> NDArray[np.int64]:
        """Return where a shard's chunks begin, (L, chunks); -1 for one of zeros, which isn't there."""
        size = os.fstat(file.fileno()).st_size
        n_index = 16 * self._n_outer * n_chunks
        end = size - n_index - 4
        if end < 0:
            raise ValueError("a shard is cut off")
        index = np.frombuffer(_read_at(file, n_index, end), "<u8").reshape(-1, 2)
        starts, sizes = index.astype(np.int64).T
        known = starts >= 0
        if (sizes[known] != 2 * self._chunk * self._dim + 4).any():
            raise ValueError("an array is stored in another way than this version does")
        if ((starts + sizes)[known] > end).any():
            raise ValueError("a shard's index is damaged")
        return np.where(known, starts, -1).reshape(self._n_outer, n_chunks)

    def __enter__(self) -> StoredRows:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            if file is not None:
                file.close()

    def take(self, index: NDArray[np.int64], outer: tuple[int, ...] | None = None) -> NDArray[np.float16]:
        """Return some rows in their order; neighbours are read at once.

        Parameters
        ----------
        index : (K,) array
            From 0 to N.
        outer : tuple of int, optional
            Of an array (L, N, D), which of L; by default all.

        Returns
        -------
        (..., K, D) array

        Raises
        ------
        StoreError
            Where a file can't be read any more.
        """
        layers = np.arange(self._n_outer) if outer is None else np.asarray(outer, np.int64)
        row_bytes = 2 * self._dim
        shards, within = np.divmod(index, self._shard)
        chunks, rows = np.divmod(within, self._chunk)
        begins = self._starts[shards[None], layers[:, None], chunks[None]]  # (L, K)
        starts = np.where(begins < 0, -1, begins + rows * row_bytes).reshape(-1)
        of_shards = np.broadcast_to(shards, begins.shape).reshape(-1)
        found = np.zeros((len(starts), self._dim), np.float16)
        apart = (np.diff(starts) != row_bytes) | (np.diff(of_shards) != 0)
        edges = [0, *(np.flatnonzero(apart) + 1).tolist(), len(starts)]
        try:
            for first, last in itertools.pairwise(edges):
                file = self._files[of_shards[first]] if first < last else None
                if file is not None and starts[first] >= 0:
                    data = _read_at(file, (last - first) * row_bytes, int(starts[first]))
                    found[first:last] = np.frombuffer(data, "<f2").reshape(-1, self._dim)
        except (OSError, ValueError) as error:
            raise StoreError(
                f"the stored embeddings of {self._slide_id} can't be read any more ({error}). Run again: what is damaged "
                "will be embedded anew."
            ) from error
        found = found.reshape(*begins.shape, self._dim)
        return found if self._has_outer else found[0]


def _read_at(file: FileIO, n_bytes: int, start: int) -> bytes:
    if sys.platform == "win32":
        with _seeking:
            file.seek(start)
            data = file.read(n_bytes)
    else:
        data = os.pread(file.fileno(), n_bytes, start)
    if data is None or len(data) != n_bytes:
        raise ValueError("a file is cut off")
    return data


_seeking = threading.Lock()


def _check_arrays(place: Path) -> None:
    """Check the hashes of a slide's arrays, once a process: the checksums of a chunk are right in another one's place.

    Raises
    ------
    ValueError
    """
    hashes = parse_json((place / "manifest.json").read_bytes()).get("sha256", {})
    for name, value in hashes.items():
        path = place / name
        state = path.stat()
        seen = (str(path), state.st_ino, state.st_size, state.st_mtime_ns)
        if name.endswith(".json") or seen in _checked:
            continue
        if file_hash(path) != value:
            raise ValueError("files are not as they were written")
        _checked.add(seen)


_checked: set[tuple[str, int, int, int]] = set()
"""Files of arrays that were found as they were written, and their state then."""


class ArrayWriter:
    """Writes one array block by block, a shard at a time."""

    def __init__(
        self, group: zarr.Group, scratch: Path, slide_id: str, name: str, shape: tuple[int, ...]
    ) -> None:
        *outer, n_tiles, dim = shape
        chunk = max(1, min(n_tiles, CHUNK_TILES))
        self._shard = -(-min(max(n_tiles, 1), SHARD_TILES) // chunk) * chunk
        self._array = group.create_array(
            name,
            shape=shape,
            dtype=np.float16,
            chunks=(*(1 for _ in outer), chunk, dim),
            shards=(*outer, self._shard, dim),
            compressors=(Crc32cCodec(),),  # embeddings hardly compress; a flipped bit should be seen
        )
        self._scratch, self._slide_id, self._name = scratch, slide_id, name
        self._waiting: list[NDArray[np.float16]] = []
        self._start = self._held = 0

    def add(self, block: NDArray[np.floating]) -> None:
        """Add the next tiles, along the last axis but one.

        Raises
        ------
        StoreError
        """
        with np.errstate(over="ignore"):
            half = block.astype(np.float16)
        if not np.isfinite(half).all():
            raise StoreError(
                f"{self._slide_id}: {self._name} holds values that aren't finite in float16; the encoder gives "
                f"{np.abs(block).max():.3g} there"
            )
        os.utime(self._scratch)  # somebody is at work here, see `prepare`
        self._waiting.append(half)
        self._held += half.shape[-2]
        if self._held >= self._shard:
            self._write(self._held // self._shard * self._shard)

    def finish(self) -> None:
        """Write what waits for a shard to fill.

        Raises
        ------
        StoreError
            Where tiles are missing.
        """
        if self._held:
            self._write(self._held)
        if self._start != self._array.shape[-2]:
            raise StoreError(
                f"{self._slide_id}: {self._start} of {self._array.shape[-2]} tiles were embedded"
            )

    def _write(self, cut: int) -> None:
        whole = np.concatenate(self._waiting, axis=-2)
        self._array[..., self._start : self._start + cut, :] = whole[..., :cut, :]
        self._start, self._held, self._waiting = self._start + cut, self._held - cut, [whole[..., cut:, :]]
