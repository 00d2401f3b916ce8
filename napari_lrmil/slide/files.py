"""What belongs to a slide on disk: how it is called, and which files hold it."""

from __future__ import annotations

import json
import math
import os
import re
import struct
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

import platformdirs

from napari_lrmil.errors import readable

SLIDE_SUFFIXES = frozenset({".svs", ".ndpi", ".vms", ".vmu", ".scn", ".mrxs", ".bif", ".svslide", ".dzi"})
"""Only slides are called so."""
TIFF_SUFFIXES = frozenset({".tif", ".tiff"})
DICOM_SUFFIX, ZARR_SUFFIX = ".dcm", ".zarr"
SHARED_SUFFIXES = TIFF_SUFFIXES | {DICOM_SUFFIX, ZARR_SUFFIX}
"""Slides and ordinary images are called so."""
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg"})
"""Ordinary images are called so; a region saved from a slide is one."""

_MIRAX_SUFFIX, DEEPZOOM_SUFFIX = ".mrxs", ".dzi"
_DEEPZOOM_FORMATS = frozenset({"jpg", "jpeg", "png"})
_MAX_DZI_BYTES, _MAX_DEEPZOOM_TILE_PX, _MAX_DEEPZOOM_PX = 2**16, 2**13, 2**24
_MAX_TILE_FILES = 2**10
"""Levels of more tiles are looked into as chunks are, see `stored_chunks`: some of them, spread evenly."""
_VMS_SUFFIXES = frozenset({".vms", ".vmu"})
_ZARR_METADATA = ("zarr.json", ".zattrs", ".zgroup", ".zarray")
_OME_TIFF = re.compile(r"\.ome\.(tiff?|tf[28]|btf)$", re.IGNORECASE)

_MAX_CHUNKS = 2**22
_MAX_METADATA_BYTES = 2**26
_MAX_NAMED = 2**12
"""Files that an index or OME-XML may name as parts of its slide."""
_MAX_INDEX_CHARS = 2**20

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


def from_home(path: str | Path) -> Path:
    """Return a path with a leading ~ as the user's home folder; a user whom nobody knows is a plain name."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


FOLDER_VARIABLES = {"cache": "LRMIL_CACHE_DIR", "data": "LRMIL_DATA_DIR"}
"""Environment variables that name another folder than the user's own."""


def user_folder(kind: Literal["cache", "data"]) -> Path:
    """Return the program's folder for what it keeps for a user, or the one that `FOLDER_VARIABLES` name.

    A user without a home gets one in which nothing can be written: what isn't kept there is told.
    """
    named = os.environ.get(FOLDER_VARIABLES[kind])
    if named:
        return from_home(named)
    ask = platformdirs.user_cache_path if kind == "cache" else platformdirs.user_data_path
    try:
        found = ask("napari-lrmil", appauthor=False)
    except RuntimeError:
        found = Path()
    return found if found.is_absolute() else Path(os.devnull, "no-home")


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
        files that it names. DeepZoom: the file and the tiles of the coarser levels. OME-Zarr: the metadata
        and the coarsest level, in which another slide differs. A folder: its files.

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
    if suffix == DEEPZOOM_SUFFIX:
        return (path, *_deepzoom_tiles(path))
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
        if suffix == DEEPZOOM_SUFFIX:
            return {_deepzoom_folder(path)}
        return set(_named_beside(path, _vms_names(path))) if suffix in _VMS_SUFFIXES else set()
    except OSError:
        return set()


def is_zarr(path: Path) -> bool:
    """Return whether a path is a zarr folder, by its name or by what lies in it."""
    try:
        if not path.is_dir():
            return False
        return path.suffix.lower() == ZARR_SUFFIX or any(
            (path / name).is_file() for name in _ZARR_METADATA[:3]
        )
    except OSError:  # what can't be looked into, such as a folder without access
        return False


def zarr_metadata(folder: Path) -> tuple[Path, ...]:
    """Return the files that describe a zarr folder, and the one image in it where it is a container."""
    images = zarr_images(folder)
    folders = [folder, *(folder / image for image in images if len(images) == 1)]
    return tuple(each / name for each in folders for name in _ZARR_METADATA if (each / name).is_file())


class Chunk(NamedTuple):
    """A file that holds one chunk of a level: where it is below `chunks_folder`, parts joined by '/'; size and time."""

    name: str
    size: int
    mtime_ns: int


def chunks_folder(path: Path) -> Path | None:
    """Return the folder below which a slide has a file a chunk: OME-Zarr, or the tiles of DeepZoom; else None."""
    if path.suffix.lower() == DEEPZOOM_SUFFIX:
        return _deepzoom_folder(path)
    return path if is_zarr(path) else None


def stored_chunks(path: Path) -> list[Chunk]:
    """Return the chunks of all levels of a slide that has a file for each, by name; nothing for any other slide.

    Raises
    ------
    OSError
        Where a folder can't be read, or there are more than 4 million.
    """
    folder = chunks_folder(path)
    if folder is None:
        return []
    levels = dict.fromkeys(zarr_levels(folder)) if folder == path else [""]
    found: list[Chunk] = []
    for level in levels:
        found += _chunks_below(folder, level, _MAX_CHUNKS - len(found))
    found.sort()
    return found


def zarr_levels(folder: Path) -> tuple[str, ...]:
    """Return where OME-Zarr's metadata (0.5, else 0.4) say the levels are; none where it isn't such an image.

    Levels outside of the folder are left out: they are no part of the slide.
    """
    return tuple(level for level in _named_levels(folder) if is_inside(folder, level))


def is_zipped_zarr(path: Path) -> bool:
    """Return whether a file is called as a zipped OME-Zarr is."""
    return path.name.lower().endswith((".zarr.zip", ".ozx"))


def is_inside(folder: Path, name: str) -> bool:
    """Return whether a name in a zarr's metadata leads to something in its folder, links followed."""
    parts = PurePosixPath(name).parts
    if not parts or name.startswith(("/", "\\")) or ".." in parts or ":" in parts[0]:
        return False
    try:
        return (folder / name).resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):  # a link to itself; a name that no file can have
        return False


def _chunks_below(root: Path, level: str, n_most: int) -> list[Chunk]:
    """Files in a folder and the folders in it; links to folders aren't followed.

    Raises
    ------
    OSError
        Where there are more than `n_most`, too.
    """
    found: list[Chunk] = []
    waiting = [(str(root / level), f"{level}/" if level else "")]
    while waiting:
        folder, name = waiting.pop()
        try:
            entries = os.scandir(folder)
        except (FileNotFoundError, NotADirectoryError):
            continue
        with entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append((entry.path, f"{name}{entry.name}/"))
                elif (
                    entry.is_file() or entry.is_dir()
                ):  # not a device, from which a reader would read for ever
                    stat = entry.stat()
                    found.append(Chunk(name + entry.name, stat.st_size, stat.st_mtime_ns))
        if len(found) > n_most:
            raise OSError(f"more than {_MAX_CHUNKS:,} chunks in {root.name}")
    return found


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
    # One UID may begin as another does: where this one ends and begins, no digit and no dot follows or comes before.
    mark = re.compile(rb"(?<![0-9.])" + re.escape(series_uid.encode("ascii")) + rb"(?![0-9.])")
    found = []
    for file in _files_in(path.parent):
        header = _dicom_header(file)
        if header is not None and (file == path or mark.search(header)):
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
    coarsest = _named_levels(folder)[-1:]
    chunks = [
        chunk
        for level in coarsest
        if is_inside(folder, level)
        for chunk in _chunks_below(folder, level, _MAX_CHUNKS)
    ]
    return (*zarr_metadata(folder), *(folder / chunk.name for chunk in sorted(chunks)))


def zarr_images(folder: Path) -> tuple[str, ...]:
    """Return where in a container, as bioformats2raw writes it (layout 3), the images lie; none for anything else."""
    attributes = _zarr_attributes(folder)
    if "bioformats2raw.layout" not in attributes or "multiscales" in attributes:
        return ()
    series = _zarr_attributes(folder / "OME").get("series")
    if isinstance(series, list):
        names = [str(name) for name in series]
    else:  # then they are numbered
        names = sorted((path.name for path in folder.iterdir() if path.name.isdecimal()), key=int)
    return tuple(name for name in names if is_inside(folder, name))


def _named_levels(folder: Path) -> list[str]:
    images = zarr_images(folder)
    if len(images) > 1:
        return []
    inner = "".join(f"{image}/" for image in images)
    try:
        datasets = _zarr_attributes(folder / inner)["multiscales"][0]["datasets"]
        return [f"{inner}{dataset['path']}" for dataset in datasets]
    except (LookupError, TypeError):
        return []


def _zarr_attributes(folder: Path) -> dict[str, Any]:
    """What OME-Zarr's metadata (0.5, else 0.4) say of a folder; nothing where there are none."""
    for name in ("zarr.json", ".zattrs"):
        try:
            attributes = json.loads(_text_of(folder / name))
            if name == "zarr.json":
                attributes = attributes["attributes"]
            found = attributes.get("ome", attributes)
        except FileNotFoundError:
            continue
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}
    return {}


def _text_of(file: Path) -> str:
    """A file of metadata: text of a plain file, of which no more is read than metadata can be."""
    if file.exists() and not file.is_file():
        raise ValueError(f"{file.name} is no plain file")
    with file.open("rb") as stream:
        return stream.read(_MAX_METADATA_BYTES).decode("utf-8")


class DeepZoom(NamedTuple):
    """What a `.dzi` file says, and where its tiles are."""

    folder: Path
    tile_px: int
    """Edge of a tile without what it repeats of its neighbours."""
    overlap_px: int
    """Repeated along each inner edge."""
    suffix: str
    sizes_xy: tuple[tuple[int, int], ...]
    """Of the levels that are read, finest first."""

    def tile_file(self, level: int, col: int, row: int) -> Path:
        """Where a tile of one of those levels is. The format counts levels from a single pixel."""
        finest = math.ceil(math.log2(max(self.sizes_xy[0])))
        return self.folder / str(finest - level) / f"{col}_{row}.{self.suffix}"


def deepzoom_of(path: Path) -> DeepZoom | None:
    """Return what a `.dzi` file says; None where it says no image that can be read.

    Raises
    ------
    OSError
        Where it can't be read.
    """
    with path.open("rb") as file:
        root = _parsed(file.read(_MAX_DZI_BYTES))
    size = root.find("{*}Size")
    try:
        tile_px, overlap_px = int(root.get("TileSize", "")), int(root.get("Overlap", "0"))
        width, height = (int(size.get(side, "")) if size is not None else 0 for side in ("Width", "Height"))
    except ValueError:
        return None
    suffix = root.get("Format", "")
    in_bounds = (
        1 <= tile_px <= _MAX_DEEPZOOM_TILE_PX
        and 0 <= overlap_px <= tile_px
        and min(width, height) >= 1
        and max(width, height) <= _MAX_DEEPZOOM_PX
    )
    if not in_bounds or suffix.lower() not in _DEEPZOOM_FORMATS:
        return None
    sizes = [(width, height)]
    while max(sizes[-1]) > tile_px:
        w, h = sizes[-1]
        sizes.append((-(-w // 2), -(-h // 2)))
    return DeepZoom(_deepzoom_folder(path), tile_px, overlap_px, suffix, tuple(sizes))


def _deepzoom_folder(path: Path) -> Path:
    return path.with_name(f"{path.stem}_files")


def _deepzoom_tiles(path: Path) -> list[Path]:
    found = deepzoom_of(path)
    if found is None:
        return []
    tiles = []
    for level, (width, height) in enumerate(found.sizes_xy):
        across, down = -(-width // found.tile_px), -(-height // found.tile_px)
        if across * down <= _MAX_TILE_FILES:
            tiles += [found.tile_file(level, col, row) for row in range(down) for col in range(across)]
    return [tile for tile in tiles if tile.is_file()]


def _vms_names(path: Path) -> set[str]:
    """The values of a Hamamatsu index, file names among them.

    A value goes from the first '=' to the end of its line: names hold spaces and '=' too.
    """
    with path.open(encoding="latin-1") as file:
        text = file.read(_MAX_INDEX_CHARS + 1)
    if len(text) > _MAX_INDEX_CHARS:
        raise OSError(f"an index of more than {_MAX_INDEX_CHARS:,} characters")
    values = (line.partition("=")[2].strip() for line in text.splitlines())
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
    if len(files) > _MAX_NAMED:
        raise OSError(f"it names more than {_MAX_NAMED:,} files")
    return sorted(file for file in files if file.is_file() and file != path)


def _is_plain_name(name: str) -> bool:
    return bool(name) and "/" not in name and "\\" not in name


def _files_in(folder: Path) -> tuple[Path, ...]:
    return tuple(sorted(file for file in folder.iterdir() if file.is_file()))
