"""What belongs to a slide on disk: how it is called, which files hold it, and whether they are still the same."""

from __future__ import annotations

import hashlib
import json
import re
import struct
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from pathlib import Path

from napari_lrmil.errors import readable

SLIDE_SUFFIXES = frozenset({".svs", ".ndpi", ".vms", ".vmu", ".scn", ".mrxs", ".bif", ".svslide"})
"""Only slides are called so."""
TIFF_SUFFIXES = frozenset({".tif", ".tiff"})
DICOM_SUFFIX, ZARR_SUFFIX = ".dcm", ".zarr"
SHARED_SUFFIXES = TIFF_SUFFIXES | {DICOM_SUFFIX, ZARR_SUFFIX}
"""Slides and ordinary images are called so."""
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg"})
"""Ordinary images are called so; a region saved from a slide is one."""

_MIRAX_SUFFIX = ".mrxs"
_VMS_SUFFIXES = frozenset({".vms", ".vmu"})
_ZARR_METADATA = ("zarr.json", ".zattrs", ".zgroup", ".zarray")
_OME_TIFF = re.compile(r"\.ome\.(tiff?|tf[28]|btf)$", re.IGNORECASE)

_END_BYTES = 2**20

_DICOM_PREAMBLE = 128
_DICOM_HEADER_BYTES = 2**16
"""What is read of a DICOM file: its UIDs stand before the pixels, and before a frame table of thousands of entries."""
_SLIDE_CLASS = b"1.2.840.10008.5.1.4.1.1.77.1.6"
_SERIES_UID = re.compile(rb"\x20\x00\x0e\x00(?:UI..|..\x00\x00)([0-9.]+)", re.DOTALL)
"""Series instance UID, with its type spelled out or not."""


def slide_id_of(path: Path) -> str:
    """Return the id of a slide where no table gives one: its name without the ending. A plain folder keeps its dots."""
    known = SLIDE_SUFFIXES | SHARED_SUFFIXES | IMAGE_SUFFIXES
    return readable(path.stem if path.suffix.lower() in known else path.name)


# ---- which files hold a slide


def pixel_files(path: Path, *, series_uid: str | None = None) -> tuple[Path, ...]:
    """Return the files that hold the pixels of a slide, as many as tell it from another one; no pixels are read.

    Parameters
    ----------
    path : Path
        What is opened: a file, a folder of DICOM files, or an OME-Zarr folder.
    series_uid : str, optional
        Of a DICOM slide, which an open one knows: its files are those beside `path` (itself included) that carry it.
        Without, every DICOM file beside one counts, for none is looked into.

    Returns
    -------
    tuple of Path
        One for most formats. MIRAX: the file and what lies in the folder of its name. VMS and VMU: the index and the
        files that it names. OME-Zarr: the metadata and the coarsest level, in which another slide differs. A folder:
        its files.

    Raises
    ------
    OSError
        Where a file or folder can't be read.
    """
    if series_uid:
        return _series_beside(path, series_uid)
    if is_zarr(path):
        return _zarr_files(path)
    if path.is_dir():
        return _files_in(path)
    suffix = path.suffix.lower()
    if suffix == DICOM_SUFFIX:
        return tuple(file for file in _files_in(path.parent) if file.suffix.lower() == DICOM_SUFFIX)
    if suffix == _MIRAX_SUFFIX and path.with_suffix("").is_dir():
        return (path, *_files_in(path.with_suffix("")))
    if suffix in _VMS_SUFFIXES:
        return (path, *_named_beside(path, _vms_names(path)))
    return (path,)


def parts_of(path: Path) -> tuple[Path, ...]:
    """Return `pixel_files`, and what else belongs to the slide.

    An OME-TIFF, known by its name, has the files with other planes of its images, and the one that describes them.
    They aren't part of what is read: each such file is opened as a slide of its own.

    Raises
    ------
    OSError
    """
    if _OME_TIFF.search(path.name) and path.is_file():
        return (path, *_named_beside(path, _ome_tiff_names(path)))
    return pixel_files(path)


def parts_beside(path: Path) -> set[Path]:
    """Return files and folders beside a slide that are no slides but parts of it; what can't be read has none."""
    suffix = path.suffix.lower()
    try:
        if suffix == _MIRAX_SUFFIX and path.with_suffix("").is_dir():
            return {path.with_suffix("")}
        return set(_named_beside(path, _vms_names(path))) if suffix in _VMS_SUFFIXES else set()
    except OSError:
        return set()


def is_zarr(path: Path) -> bool:
    """Return whether a path is a zarr folder, by its name or by what lies in it."""
    if not path.is_dir():
        return False
    return path.suffix.lower() == ZARR_SUFFIX or any((path / name).is_file() for name in _ZARR_METADATA[:3])


def zarr_metadata(folder: Path) -> tuple[Path, ...]:
    """Return the files that describe a zarr folder."""
    return tuple(folder / name for name in _ZARR_METADATA if (folder / name).is_file())


def dicom_files_in(folder: Path) -> tuple[Path, ...]:
    """Return the DICOM files of a folder, whatever they are called, by name."""
    return tuple(path for path in _files_in(folder) if _dicom_header(path) is not None)


def dicom_slides(files: Iterable[Path]) -> list[list[Path]]:
    """Return the whole-slide images among DICOM files: the files of each series, by name.

    What can't be read is left out.
    """
    series: dict[bytes, list[Path]] = {}
    for path in sorted(files):
        try:
            header = _dicom_header(path)
        except OSError:
            continue
        if header is not None and _SLIDE_CLASS in header:
            match = _SERIES_UID.search(header)
            series.setdefault(match[1] if match else path.name.encode(), []).append(path)
    return list(series.values())


def _series_beside(path: Path, series_uid: str) -> tuple[Path, ...]:
    mark = series_uid.encode("ascii")
    found = []
    for file in _files_in(path.parent):
        header = _dicom_header(file)
        if header is not None and (file == path or mark in header):
            found.append(file)
    return tuple(found)


def _dicom_header(path: Path) -> bytes | None:
    """The beginning of a file that carries DICOM's mark."""
    with path.open("rb") as file:
        header = file.read(_DICOM_PREAMBLE + 4)
        if not header.endswith(b"DICM") or len(header) != _DICOM_PREAMBLE + 4:
            return None
        return header + file.read(_DICOM_HEADER_BYTES - len(header))


def _zarr_files(folder: Path) -> tuple[Path, ...]:
    metadata = zarr_metadata(folder)
    coarsest = _coarsest_level(folder)
    chunks = sorted((folder / coarsest).rglob("*")) if coarsest else []
    return (*metadata, *(file for file in chunks if file.is_file()))


def _coarsest_level(folder: Path) -> str | None:
    """The path of the last level in OME-Zarr's metadata (0.5, else 0.4); None where it isn't such an image."""
    for name in ("zarr.json", ".zattrs"):
        try:
            attributes = json.loads((folder / name).read_text(encoding="utf-8"))
            if name == "zarr.json":
                attributes = attributes["attributes"]
            return str(attributes.get("ome", attributes)["multiscales"][0]["datasets"][-1]["path"])
        except FileNotFoundError:
            continue
        except (ValueError, LookupError, TypeError, AttributeError):
            return None
    return None


def _vms_names(path: Path) -> set[str]:
    """The values of a Hamamatsu index, file names among them.

    A value goes from the first '=' to the end of its line: names hold spaces and '=' too.
    """
    values = (line.partition("=")[2].strip() for line in path.read_text("latin-1").splitlines())
    return {value for value in values if value}


def _ome_tiff_names(path: Path) -> set[str]:
    """Names of the other files that hold planes of the images of which this OME-TIFF holds some, or describe them.

    The UUID says which file a plane is in, so that a renamed copy of a single file has no other part.
    """
    root = _parsed(_ome_xml(path))
    names: set[str] = set()
    own_uuid = root.get("UUID")
    elsewhere = root.find("{*}BinaryOnly")
    if elsewhere is not None:  # described in a companion file
        own_uuid = elsewhere.get("UUID")
        companion = elsewhere.get("MetadataFile", "")
        names = {companion} - {""}
        if _is_plain_name(companion) and (path.parent / companion).is_file():
            root = _parsed((path.parent / companion).read_bytes())
    for image in root.iterfind("{*}Image"):
        planes = image.findall("{*}Pixels/{*}TiffData")
        files = {
            (uuid.get("FileName", ""), uuid.text) for plane in planes for uuid in plane.iterfind("{*}UUID")
        }
        own = {(name, uuid) for name, uuid in files if (uuid == own_uuid if own_uuid else name == path.name)}
        # A plane that names no file is in this one.
        if own or any(plane.find("{*}UUID") is None for plane in planes):
            names |= {name for name, _ in files - own}
    return names - {"", path.name}


def _ome_xml(path: Path) -> str:
    import tifffile  # some formats don't need it

    try:
        with tifffile.TiffFile(path) as tif:
            return tif.ome_metadata or ""
    except (tifffile.TiffFileError, ValueError, struct.error):  # no TIFF: nothing is named
        return ""


def _parsed(xml: str | bytes) -> ET.Element:
    try:
        return ET.fromstring(xml)
    except ET.ParseError:
        return ET.Element("OME")


def _named_beside(path: Path, names: Iterable[str]) -> list[Path]:
    """Files in the folder of `path` among what it names; names that lead elsewhere are left alone."""
    files = {path.parent / name for name in names if _is_plain_name(name)}
    return sorted(file for file in files if file.is_file() and file != path)


def _is_plain_name(name: str) -> bool:
    return bool(name) and "/" not in name and "\\" not in name


def _files_in(folder: Path) -> tuple[Path, ...]:
    return tuple(sorted(file for file in folder.iterdir() if file.is_file()))


# ---- whether they are the same


def fingerprint_of(files: Sequence[Path]) -> str:
    """Return the SHA-256 of the sizes of a slide's files and of the first and last MiB of the largest.

    The names stay out, so a renamed copy is the same slide.

    Parameters
    ----------
    files : sequence of Path
        See `pixel_files`.
    """
    sizes = sorted(((file.stat().st_size, file) for file in files), key=lambda pair: (-pair[0], pair[1].name))
    digest = hashlib.sha256(",".join(str(size) for size, _ in sizes).encode())
    size, largest = sizes[0]
    with largest.open("rb") as file:
        digest.update(file.read(_END_BYTES))
        file.seek(max(0, size - _END_BYTES))
        digest.update(file.read())
    return digest.hexdigest()


def state_of(path: Path) -> str | None:
    """Return a hash of where a slide is and of the sizes and times of its files; None where it is absent.

    It changes whenever the slide may have; looking takes no reading of pixels. The path can't be got back
    from it.
    """
    try:
        where = path.resolve()
        files = [where, *sorted(set(parts_of(where)) - {where})]
        states = [(file.name, stat.st_size, stat.st_mtime_ns) for file in files for stat in [file.stat()]]
    except OSError:
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
    states = [(part.name, part.stat().st_size, part.stat().st_mtime_ns) for part in parts]
    return f"{stamp}-{hashlib.sha256(json.dumps(states).encode()).hexdigest()[:16]}"
