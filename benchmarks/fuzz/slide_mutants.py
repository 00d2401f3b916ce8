"""Ways to break a slide: of any file, and of each format what its readers trust."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numcodecs
import zarr

from napari_lrmil.slide.tiff_directories import SUBIFDS, TYPE_BYTES

Change = Callable[[random.Random, Path], str]
"""Breaks the slide at a path, in place, and says how."""

HUGE = (0, 1, 2, 3, 255, 256, 65_535, 2**24 + 1, 2**31 - 1, 2**31, 2**32 - 1, 2**33, 2**63 - 1, 2**64 - 1)
_TEXTS = (
    b"", b"0", b"-1", b"1e308", b"nan", b"inf", b"99999999999999999999", b"2147483647", b"4294967296", b"\xff\xfe", b"\0",
    b"A" * 5000, b"../../../../etc/passwd", b"/etc/passwd", b"/dev/zero", b"%s%n", b"0x7fffffff", b"1,5", b"&#0;",
)  # fmt: skip


def break_slide(family: str, path: Path, rng: random.Random) -> str:
    """Break a slide in place.

    Parameters
    ----------
    family : str
        See `family_of`.
    path : Path
        What is opened; its parts beside it are its own.
    rng : random.Random

    Returns
    -------
    str
        What was done.
    """
    return rng.choice(_CHANGES[family])(rng, path)


def family_of(path: Path) -> str:
    """Return which kind of changes fit a slide."""
    if path.is_dir():
        return "zarr" if path.suffix == ".zarr" else "dicom"
    kinds = {
        ".mrxs": "index",
        ".vms": "index",
        ".dzi": "deepzoom",
        ".dcm": "dicom",
        ".png": "png",
        ".jpg": "jpeg",
    }
    return kinds.get(path.suffix.lower(), "tiff")


def _files_of(path: Path) -> list[Path]:
    """Every file of a slide that lies in a folder of its own."""
    folder = path if path.is_dir() else path.parent
    return sorted(file for file in folder.rglob("*") if file.is_file())


# ---- any file


def broken_bytes(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Return a file with one fault, and which."""
    out, size = bytearray(data), len(data)
    at = rng.randrange(size + 1)
    near = rng.randrange(min(size, 1024) + 1)
    length = rng.choice((1, 2, 4, 16, 300, 5000))
    match rng.choice(
        (
            "cut",
            "cut near the end",
            "bits",
            "bits in the head",
            "zeros",
            "ones",
            "noise",
            "more",
            "less",
            "twice",
        )
    ):
        case "cut":
            return f"cut at {at}", bytes(out[:at])
        case "cut near the end":
            return f"{length} bytes short", bytes(out[: max(0, size - length)])
        case "bits":
            return "bits", _with_bits(out, rng, 0, size)
        case "bits in the head":
            return "bits in the head", _with_bits(out, rng, 0, min(size, 512))
        case "zeros":
            out[at : at + length] = bytes(min(length, size - at))
            return f"{length} zeros at {at}", bytes(out)
        case "ones":
            out[near : near + length] = b"\xff" * min(length, size - near)
            return f"{length} x ff at {near}", bytes(out)
        case "noise":
            out[at : at + length] = rng.randbytes(min(length, size - at))
            return f"{length} of noise at {at}", bytes(out)
        case "more":
            out[at:at] = rng.randbytes(length)
            return f"{length} more at {at}", bytes(out)
        case "less":
            del out[at : at + length]
            return f"{length} fewer at {at}", bytes(out)
        case _:
            return "twice", bytes(out + out)


def _with_bits(out: bytearray, rng: random.Random, start: int, end: int) -> bytes:
    for _ in range(rng.choice((1, 1, 3, 10, 100))):
        if end > start:
            out[rng.randrange(start, end)] ^= 1 << rng.randrange(8)
    return bytes(out)


def _any_file(rng: random.Random, path: Path) -> str:
    file = rng.choice(_files_of(path))
    said, data = broken_bytes(file.read_bytes(), rng)
    file.write_bytes(data)
    return f"{file.name}: {said}"


def _a_part_is_gone_or_another(rng: random.Random, path: Path) -> str:
    files = [file for file in _files_of(path) if file != path] or [path]
    file = rng.choice(files)
    what = rng.choice(("gone", "empty", "/dev/zero", "/dev/full", "nowhere", "itself", "folder"))
    data = file.read_bytes()
    file.unlink()
    match what:
        case "gone":
            pass
        case "empty":
            file.write_bytes(b"")
        case "folder":
            file.mkdir()
        case "itself":
            file.symlink_to(file.name)
        case _:
            file.symlink_to(what)
    return f"{file.name} ({len(data)} bytes) is {what}"


# ---- TIFF

_WHOLE = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
_OFFSETS, _COUNTS, _DESCRIPTION, _XMP = (273, 324), (279, 325), 270, 700
_SIZES = (256, 257, 258, 277, 278, 322, 323, 32997, 32998)
_MEANINGS = (254, 259, 262, 274, 284, 296, 317, 338, 339, 347, 530)


class _Entry(NamedTuple):
    at: int
    tag: int
    kind: int
    n_values: int
    value_at: int


class _Directory(NamedTuple):
    at: int
    entries: list[_Entry]
    next_at: int


class _Tiff:
    """The bytes of a TIFF, and where its directories lie in them."""

    def __init__(self, data: bytes) -> None:
        self.data = bytearray(data)
        self.order = ">" if data[:2] == b"MM" else "<"
        self.big = self.number("H", 2) == 43
        self.offset = "Q" if self.big else "I"
        self.directories: list[_Directory] = []
        waiting, seen = [self.number(self.offset, 8 if self.big else 4)], set[int]()
        while waiting and len(self.directories) < 40:
            at = waiting.pop(0)
            if at in seen or not 0 < at < len(data) - 8:
                continue
            seen.add(at)
            directory = self._directory(at)
            self.directories.append(directory)
            waiting.append(self.number(self.offset, directory.next_at))
            for entry in directory.entries:
                if entry.tag == SUBIFDS and entry.kind in _WHOLE:
                    waiting += self.values(entry)[:8]

    def number(self, code: str, at: int) -> int:
        """Read one."""
        return int(struct.unpack_from(self.order + code, self.data, at)[0])

    def put(self, code: str, at: int, value: int) -> None:
        """Write one, cut to its size."""
        size = struct.calcsize(code)
        struct.pack_into(self.order + code, self.data, at, value % 2 ** (8 * size))

    def _directory(self, at: int) -> _Directory:
        count = self.number("Q" if self.big else "H", at)
        first, step, inline = (at + 8, 20, 8) if self.big else (at + 2, 12, 4)
        entries = []
        for number in range(min(count, 200)):
            entry = first + number * step
            kind, n_values = self.number("H", entry + 2), self.number(self.offset, entry + 4)
            field = entry + 4 + inline
            inside = TYPE_BYTES.get(kind, 1) * n_values <= inline
            entries.append(
                _Entry(
                    entry,
                    self.number("H", entry),
                    kind,
                    n_values,
                    field if inside else self.number(self.offset, field),
                )
            )
        return _Directory(at, entries, first + count * step)

    def values(self, entry: _Entry) -> list[int]:
        """All whole numbers of an entry."""
        code = f"{self.order}{min(entry.n_values, 10_000)}{_WHOLE[entry.kind]}"
        return list(struct.unpack_from(code, self.data, entry.value_at))

    def set_value(self, entry: _Entry, value: int, number: int = 0) -> None:
        """Change one of an entry's values."""
        code = _WHOLE.get(entry.kind, "B")
        self.put(code, entry.value_at + number * struct.calcsize(code), value)

    def append(self, entry: _Entry, data: bytes) -> None:
        """Give an entry other bytes, at the end of the file."""
        at = len(self.data) + len(self.data) % 2
        self.data += b"\0" * (at - len(self.data)) + data
        self.put(self.offset, entry.at + 4, len(data))
        self.put(self.offset, entry.at + 4 + (8 if self.big else 4), at)


def _in_tiff(change: Callable[[random.Random, _Tiff], str]) -> Change:
    def apply(rng: random.Random, path: Path) -> str:
        tiff = _Tiff(path.read_bytes())
        said = change(rng, tiff)
        path.write_bytes(bytes(tiff.data))
        return said

    return apply


def _entries(tiff: _Tiff, tags: Sequence[int] | None = None) -> list[tuple[_Directory, _Entry]]:
    found = [
        (each, entry)
        for each in tiff.directories
        for entry in each.entries
        if tags is None or entry.tag in tags
    ]
    return found or [(each, entry) for each in tiff.directories for entry in each.entries]


def _tiff_value(tags: Sequence[int] | None, values: Sequence[int]) -> Change:
    def change(rng: random.Random, tiff: _Tiff) -> str:
        _, entry = rng.choice(_entries(tiff, tags))
        value = rng.choice(values)
        everywhere = rng.random() < 0.3
        for _, other in _entries(tiff, [entry.tag]) if everywhere else [(None, entry)]:
            tiff.set_value(other, value)
        return f"tag {entry.tag} = {value}{' everywhere' if everywhere else ''}"

    return _in_tiff(change)


def _tiff_entry(rng: random.Random, tiff: _Tiff) -> str:
    _, entry = rng.choice(_entries(tiff))
    what, value = rng.choice(("tag", "type", "count", "place")), rng.choice(HUGE)
    match what:
        case "tag":
            tiff.put("H", entry.at, rng.choice((254, 256, 259, 270, 273, 324, 330, 347, 34675, 65420, value)))
        case "type":
            tiff.put("H", entry.at + 2, rng.choice((*range(19), value)))
        case "count":
            tiff.put(tiff.offset, entry.at + 4, value)
        case _:
            tiff.put(
                tiff.offset, entry.at + 4 + (8 if tiff.big else 4), rng.choice((value, len(tiff.data) - 1))
            )
    return f"{what} of tag {entry.tag}: {value}"


def _tiff_loop(rng: random.Random, tiff: _Tiff) -> str:
    directory, to = rng.choice(tiff.directories), rng.choice(tiff.directories)
    if rng.random() < 0.5:
        tiff.put(tiff.offset, directory.next_at, to.at)
        return f"after the directory at {directory.at} the one at {to.at}"
    subs = [entry for entry in directory.entries if entry.tag == SUBIFDS]
    entry = subs[0] if subs else rng.choice(directory.entries)
    tiff.put("H", entry.at, SUBIFDS)
    tiff.put("H", entry.at + 2, 16 if tiff.big else 4)
    tiff.put(tiff.offset, entry.at + 4, 1)
    tiff.put(tiff.offset, entry.at + 4 + (8 if tiff.big else 4), to.at)
    return f"in the directory at {directory.at} the one at {to.at}"


def _tiff_chain(rng: random.Random, tiff: _Tiff) -> str:
    directory, value = rng.choice(tiff.directories), rng.choice((*HUGE, len(tiff.data) - 1))
    if rng.random() < 0.5:
        tiff.put("Q" if tiff.big else "H", directory.at, value)
        return f"{value} entries in the directory at {directory.at}"
    tiff.put(tiff.offset, directory.next_at, value)
    return f"next directory at {value}"


def _tiff_tile(rng: random.Random, tiff: _Tiff) -> str:
    """Bits, zeros or noise in the bytes of some tiles."""
    spans = []
    for directory in tiff.directories:
        by_tag = {entry.tag: entry for entry in directory.entries if entry.kind in _WHOLE}
        for offsets, counts in zip(_OFFSETS, _COUNTS, strict=True):
            if offsets in by_tag and counts in by_tag:
                spans += list(zip(tiff.values(by_tag[offsets]), tiff.values(by_tag[counts]), strict=False))
    spans = [(at, count) for at, count in spans if count and at + count <= len(tiff.data)]
    if not spans:
        return "no tiles"
    chosen = rng.sample(spans, min(len(spans), rng.choice((1, 3, 20))))
    for at, count in chosen:
        said, data = broken_bytes(bytes(tiff.data[at : at + count]), rng)
        tiff.data[at : at + count] = (data + bytes(count))[:count]
    return f"{len(chosen)} tiles: {said}"


def _tiff_place_of_tile(rng: random.Random, tiff: _Tiff) -> str:
    _, entry = rng.choice(_entries(tiff, (*_OFFSETS, *_COUNTS)))
    value = rng.choice((*HUGE, len(tiff.data) - 1, len(tiff.data), 8))
    if entry.kind in _WHOLE:
        for number in {0, entry.n_values // 2, entry.n_values - 1}:
            tiff.set_value(entry, value, number)
    return f"tag {entry.tag}: {value} for some"


def _tiff_text(rng: random.Random, tiff: _Tiff) -> str:
    _, entry = rng.choice(_entries(tiff, (_DESCRIPTION, _XMP)))
    text = bytes(tiff.data[entry.value_at : entry.value_at + min(entry.n_values, 100_000)])
    said, changed = broken_text(text, rng)
    tiff.append(entry, changed)
    return f"tag {entry.tag}: {said}"


# ---- texts: XML, ini, lines of names and values

_HEAD = b'<?xml version="1.0"?>'


def _bombs() -> dict[str, bytes]:
    laughs = b"".join(b'<!ENTITY a%d "%s">' % (n, b"&a%d;" % (n - 1) * 10) for n in range(1, 10))
    ome = b'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">%s</OME>'
    return {
        "a billion laughs": _HEAD
        + b'<!DOCTYPE OME [<!ENTITY a0 "ha">%s]>' % laughs
        + ome % b"<Image>&a9;</Image>",
        "one long entity, often": _HEAD
        + b'<!DOCTYPE OME [<!ENTITY a "%s">]>' % (b"A" * 50_000)
        + ome % (b"&a;" * 20_000),
        "a file as entity": _HEAD
        + b'<!DOCTYPE OME [<!ENTITY a SYSTEM "file:///etc/passwd">]>'
        + ome % b"&a;",
        "deep": _HEAD + ome % (b"<a>" * 100_000 + b"</a>" * 100_000),
        "wide": _HEAD + ome % (b'<Image ID="Image:0"/>' * 100_000),
        "many planes": _HEAD
        + ome % (b"<Image><Pixels>%s</Pixels></Image>" % (b'<TiffData IFD="0"/>' * 100_000)),
        "planes elsewhere": _HEAD
        + ome
        % (
            b'<Image><Pixels DimensionOrder="XYCZT" Type="uint8" SizeX="768" SizeY="512" SizeC="3" SizeZ="1" SizeT="1">'
            + b'<TiffData IFD="0"><UUID FileName="../../../etc/passwd">urn:uuid:1</UUID></TiffData></Pixels></Image>'
        ),
        "only its beginning": _HEAD + b"<OME",
    }


def broken_text(text: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Return a text of which one quoted value, one number or more is another; or something else altogether."""
    way = rng.choice(("number", "number", "quoted", "value", "bytes", "bomb", "cut"))
    if way == "bomb":
        name, bomb = rng.choice(sorted(_bombs().items()))
        return name, bomb
    if way == "bytes":
        return broken_bytes(text, rng)
    if way == "cut":
        at = rng.randrange(len(text) + 1)
        return f"cut at {at}", text[:at]
    spans = list(_spans(text, way))
    if not spans:
        return broken_bytes(text, rng)
    start, end = rng.choice(spans)
    new = rng.choice(_TEXTS)
    return f"{text[start:end][:20]!r} -> {new[:20]!r}", text[:start] + new + text[end:]


def _spans(text: bytes, way: str) -> Iterator[tuple[int, int]]:
    """Where numbers, quoted values, or values behind an equals sign stand."""
    import re

    pattern = {"number": rb"[0-9][0-9.]*", "quoted": rb'"([^"]*)"', "value": rb"=[ \t]*([^\r\n|\"]+)"}[way]
    for match in re.finditer(pattern, text):
        yield match.span(match.lastindex or 0)


def _index(rng: random.Random, path: Path) -> str:
    """The text that describes a slide of several files."""
    texts = [file for file in _files_of(path) if file.suffix in (".ini", ".vms", ".dzi")]
    file = rng.choice(texts)
    said, data = broken_text(file.read_bytes(), rng)
    file.write_bytes(data)
    return f"{file.name}: {said}"


def _numbers_of_index(rng: random.Random, path: Path) -> str:
    """A number of 4 bytes in MIRAX's binary index; elsewhere the text."""
    file = path.with_suffix("") / "Index.dat"
    if not file.is_file():
        return _index(rng, path)
    data = bytearray(file.read_bytes())
    at = rng.randrange(37, len(data) - 4)
    value = rng.choice((*HUGE, rng.randrange(len(data))))
    struct.pack_into("<I", data, at, value % 2**32)
    file.write_bytes(data)
    return f"Index.dat at {at}: {value}"


# ---- zarr

_WEIRD: tuple[Any, ...] = (
    None, 0, -1, 1, 2**20, 2**31, 2**40, 2**63, 10**30, 0.5, float("nan"), 1e308, "", "x", "..", "../..", "/etc", "/", ".",
    "0/..", "\0", "C:\\x", "0" * 5000, [], {}, [[]], [{}], True, [3, 2**40, 2**40], [0, 0, 0], [3, 1, 1], [3, -1, 1],
    [2**31, 64, 64], ["x"] * 5, ["y", "x"], "uint16", "float64", "|O", "object", "NaN", {"id": "pickle"}, {"id": "lz4"},
    {"name": "x"},
)  # fmt: skip


def _zarr_json(rng: random.Random, path: Path) -> str:
    file = rng.choice(
        [file for file in _files_of(path) if file.name in ("zarr.json", ".zarray", ".zattrs", ".zgroup")]
    )
    value = json.loads(file.read_text(encoding="utf-8"))
    place = rng.choice(list(_places(value)) or [()])
    new = rng.choice(_WEIRD)
    holder: Any = {"": value}
    keys = ("", *place)
    for key in keys[:-1]:
        holder = holder[key]
    whole = holder
    whole[keys[-1]] = new
    file.write_text(json.dumps(value if place else new), encoding="utf-8")
    return f"{file.relative_to(path)} {place} = {str(new)[:30]}"


def _places(value: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield (*here, key)
        yield from _places(part, (*here, key))


def _zarr_arrays(rng: random.Random, path: Path) -> str:
    """Shape, chunks, type, fill value or codecs of a level, as absurd as JSON allows."""
    level = rng.choice(("0", "1", "2"))
    file = path / level / "zarr.json"
    new_format = file.is_file()
    file = file if new_format else path / level / ".zarray"
    value = json.loads(file.read_text(encoding="utf-8"))
    chunks = value["chunk_grid"]["configuration"] if new_format else value
    big = rng.choice((10**5, 2**20, 2**24, 2**31, 2**40, 10**18))
    match rng.choice(("shape", "one edge", "chunks", "type", "fill", "codecs")):
        case "shape":
            value["shape"] = [3, big, big]
            said: Any = value["shape"]
        case "one edge":
            value["shape"] = [3, *rng.choice(((1, big), (big, 1), (1, 1), (0, 5), (768, 0)))]
            said = value["shape"]
        case "chunks":
            said = rng.choice(
                ([3, 1, 1], [3, 8192, 8192], [1, 2, 2], [3, big, big], [2**31, 64, 64], [0, 0, 0], [1], None)
            )
            chunks["chunk_shape" if new_format else "chunks"] = said
        case "type":
            said = rng.choice(("uint16", "float64", "<f8", "|S10", "|V100", "bool", None))
            value["data_type" if new_format else "dtype"] = said
        case "fill":
            said = value["fill_value"] = rng.choice((None, "NaN", -1, 300, {}, 1e99))
        case _:
            said = rng.choice(([], [{"name": "bytes"}] * 500, [{"name": "numcodecs.pickle"}], {"id": "pickle"}, {"id": "blosc"},
                               [{"name": "transpose", "configuration": {"order": [9, 9, 9]}}, {"name": "bytes"}]))  # fmt: skip
            value["codecs" if new_format else "compressor"] = said
    file.write_text(json.dumps(value), encoding="utf-8")
    return f"level {level}: {str(said)[:60]}"


def _zarr_text(rng: random.Random, path: Path) -> str:
    file = rng.choice([file for file in _files_of(path) if file.name in ("zarr.json", ".zarray", ".zattrs")])
    text = rng.choice(
        ("[" * 100_000, "[]", "null", "", '{"a', "1" * 10_000, "\0" * 100, '{"a":' * 50_000, '"\\ud800"')
    )
    file.write_text(text, encoding="utf-8")
    return f"{file.relative_to(path)}: {text[:20]!r}"


def _zarr_bomb(rng: random.Random, path: Path) -> str:
    """A chunk of a few kB that its codec unpacks to 256 MB or 1 GB, or one that is so large itself."""
    chunks = [
        file for file in _files_of(path) if file.name not in ("zarr.json", ".zarray", ".zattrs", ".zgroup")
    ]
    file = rng.choice(chunks)
    codec = zarr.open_array(path / "0", mode="r").compressors[-1]
    how, content = rng.choice(
        (("zlib", bytes(2**28)), ("own codec", bytes(2**28)), ("own codec", bytes(2**30)), ("plain", b""))
    )
    if how == "plain":
        with file.open("r+b") as stream:
            stream.truncate(2**31)
    elif how == "zlib":
        file.write_bytes(zlib.compress(content, 9))
    else:
        packer = numcodecs.Zstd() if "Zstd" in type(codec).__name__ else numcodecs.Blosc()
        file.write_bytes(packer.encode(content))
    return f"{file.relative_to(path)} is a bomb ({how}, {len(content)} bytes)"


# ---- DICOM

_DICOM_TAGS = {
    "rows": (0x28, 0x10), "columns": (0x28, 0x11), "frames": (0x28, 8), "total columns": (0x48, 6), "total rows": (0x48, 7),
    "bits": (0x28, 0x100), "samples": (0x28, 2), "photometric": (0x28, 4), "pixels": (0x7FE0, 0x10), "spacing": (0x28, 0x30),
    "syntax": (2, 0x10), "class": (8, 0x16), "type": (8, 8), "series": (0x20, 0xE), "organisation": (0x20, 0x9311),
    "functional groups": (0x5200, 0x9229), "meta length": (2, 0),
}  # fmt: skip


def _dicom_element(rng: random.Random, path: Path) -> str:
    file = rng.choice([file for file in _files_of(path) if file.suffix == ".dcm"])
    data = bytearray(file.read_bytes())
    name, (group, number) = rng.choice(sorted(_DICOM_TAGS.items()))
    at = data.find(struct.pack("<HH", group, number), 128)
    if at < 0:
        return _any_file(rng, path)
    what = rng.choice(("value", "length", "type", "tag", "twice"))
    match what:
        case "value":
            data[at + 8 : at + 12] = rng.choice(
                (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\1\0\0\0", b"\xff\x7f\xff\x7f", b"9999", b"-1\\2")
            )
        case "length":
            data[at + 6 : at + 8] = rng.choice((b"\0\0", b"\xff\xff", b"\1\0", b"\xfe\x7f"))
        case "type":
            data[at + 4 : at + 6] = rng.choice((b"SQ", b"UN", b"OB", b"XX", b"UL", b"LO"))
        case "tag":
            data[at : at + 4] = rng.randbytes(4)
        case _:
            data[at:at] = data[at : at + 40]
    file.write_bytes(data)
    return f"{file.name}: {what} of {name}"


def _dicom_frames(rng: random.Random, path: Path) -> str:
    """Bits in the frames, the lengths of their items among them."""
    file = rng.choice([file for file in _files_of(path) if file.suffix == ".dcm"])
    data = bytearray(file.read_bytes())
    start = max(128, data.find(struct.pack("<HH", 0x7FE0, 0x10), 128))
    file.write_bytes(_with_bits(data, rng, start, len(data)))
    return f"{file.name}: bits in the frames"


# ---- PNG and JPEG


def _png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _png(rng: random.Random, path: Path) -> str:
    width, height = rng.choice(
        ((60_000, 60_000), (8192, 8192), (2**31 - 1, 1), (1, 2**26), (0, 0), (65_536, 1024), (64, 64))
    )
    depth, colour = rng.choice(((1, 0), (8, 2), (8, 6), (16, 6), (16, 2), (8, 3), (3, 9)))
    rows = zlib.compress(bytes(2**26), 9)
    extra = {
        "none": b"",
        "a text bomb": _png_chunk(b"zTXt", b"a\0\0" + rows),
        "text bombs": _png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**19))) * 500,
        "a profile bomb": _png_chunk(b"iCCP", b"a\0\0" + rows),
        "empty chunks": _png_chunk(b"IDAT", b"") * 100_000,
        "a palette": _png_chunk(b"PLTE", b"\1\2\3"),
    }
    name, before = rng.choice(sorted(extra.items()))
    lace = rng.randrange(2)
    head = _png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, lace))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + head + before + _png_chunk(b"IDAT", rows) + _png_chunk(b"IEND", b"")
    )
    return f"{width} x {height} px, {depth} bits, colour {colour}, laced {lace}, {name}"


def _png_chunks(rng: random.Random, path: Path) -> str:
    """A chunk's length, kind or bytes, its checksum right again or not."""
    data = path.read_bytes()
    at, chunks = 8, []
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    number = rng.randrange(len(chunks))
    kind, body = chunks[number]
    said, body = broken_bytes(body, rng)
    chunks[number] = (kind, body)
    path.write_bytes(data[:8] + b"".join(_png_chunk(*chunk) for chunk in chunks))
    return f"chunk {kind.decode()}: {said}"


def _jpeg(rng: random.Random, path: Path) -> str:
    data = path.read_bytes()
    frame = data.find(b"\xff\xc0")
    if rng.random() < 0.3:
        marker = b"\xff\xe2\x00\x10ICC_PROFILE\0\x01\xff"
        path.write_bytes(data[:2] + marker * 30_000 + data[2:])
        return "30,000 profiles"
    height, width = rng.choice(
        ((65_535, 65_535), (8000, 8000), (0, 0), (1, 65_535), (65_535, 1), (20_000, 300))
    )
    path.write_bytes(data[: frame + 5] + struct.pack(">HH", height, width) + data[frame + 9 :])
    return f"{width} x {height} px"


_TIFF: tuple[Change, ...] = (
    _any_file,
    _any_file,
    _tiff_value(_SIZES, HUGE),
    _tiff_value(
        _MEANINGS,
        (*range(10), 22, 32773, 32946, 33003, 33005, 33007, 34712, 34887, 34925, 50000, 50001, 50002, 65535),
    ),
    _tiff_value(None, HUGE),
    _in_tiff(_tiff_entry),
    _in_tiff(_tiff_loop),
    _in_tiff(_tiff_chain),
    _in_tiff(_tiff_tile),
    _in_tiff(_tiff_place_of_tile),
    _in_tiff(_tiff_text),
)
_CHANGES: dict[str, tuple[Change, ...]] = {
    "tiff": _TIFF,
    "zarr": (
        _any_file,
        _zarr_json,
        _zarr_json,
        _zarr_arrays,
        _zarr_arrays,
        _zarr_text,
        _zarr_bomb,
        _a_part_is_gone_or_another,
    ),
    "dicom": (_any_file, _dicom_element, _dicom_element, _dicom_frames, _a_part_is_gone_or_another),
    "index": (_any_file, _index, _index, _numbers_of_index, _a_part_is_gone_or_another),
    "deepzoom": (_any_file, _index, _index, _a_part_is_gone_or_another),
    "png": (_any_file, _png, _png_chunks),
    "jpeg": (_any_file, _any_file, _jpeg),
}


def copied(source: Path, folder: Path) -> Path:
    """Copy a slide that lies in a folder of its own, all of that folder; return where the copy is opened."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source.parent, folder, symlinks=True)
    for file in folder.rglob("*"):  # what is given may be read-only
        os.chmod(file, 0o755 if file.is_dir() else 0o644)
    return folder / source.name
