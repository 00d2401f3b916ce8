"""Which backend reads a path."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from napari_lrmil.errors import SlideError
from napari_lrmil.slide.backends.base import Backend
from napari_lrmil.slide.files import DEEPZOOM_SUFFIX, SLIDE_SUFFIXES, dicom_files_in, is_zarr, is_zipped_zarr
from napari_lrmil.slide.tiff_directories import (
    HEAD_BYTES,
    MAX_ENTRIES,
    SUBIFDS,
    DirectoryFormat,
    directory_format,
)

if TYPE_CHECKING:
    from napari_lrmil.slide.backends.openslide_backend import OpenSlideBackend

BACKENDS = ("auto", "openslide", "tiff", "ome-zarr", "deepzoom", "image")

_TIFF_MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_ZIP_MAGIC = b"PK\3\4"
_IMAGE_MAGICS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")

_MAX_NESTED = 8

_DIRECT_VENDORS = ("aperio", "generic-tiff", "philips", "trestle")
"""Whose levels are plain grids of tiles. The others' overlap, are shifted, or are strips of one JPEG."""


def open_backend(path: Path, backend: str = "auto") -> Backend:
    """Open `path` with the backend that reads it, or with the one named.

    OpenSlide is the reference and reads what it knows. From a TIFF whose levels are plain grids of tiles,
    the stored tiles are decoded directly, which is several times faster; OpenSlide then still says what
    the levels are and draws the tiles that the file leaves out.

    Colours are proven: what is decoded directly has to agree with OpenSlide on a piece of each level that both have. What
    OpenSlide can't open is decoded by tifffile's own rules for colours (photometric tag, codec, palettes refused), the ones
    that `tifffile.imread` follows. What a TIFF's directories say that it holds is judged once, for all backends: OpenSlide
    shows 16 bits, planes of a stack and turned tiles without a word.

    Raises
    ------
    SlideError
        In one sentence, where no backend can.
    """
    if backend not in BACKENDS:
        raise SlideError(f"there is no slide backend {backend!r}; there are {', '.join(BACKENDS)}")
    if path.is_symlink() and not path.exists():
        raise SlideError(f"{path.name} is a link that leads nowhere, or to itself")
    if not path.exists():
        raise SlideError(f"no such slide: {path}")
    if not (path.is_file() or path.is_dir()):  # reading from a pipe would wait for ever
        raise SlideError(f"{path.name} is neither a file nor a folder")
    # Each library is loaded only where a slide needs it.
    if backend == "ome-zarr" or (backend == "auto" and is_zarr(path)):
        from napari_lrmil.slide.backends.zarr_backend import ZarrBackend

        return ZarrBackend(path)
    if path.is_dir():
        return _open_dicom_folder(path)
    if backend == "deepzoom" or (backend == "auto" and path.suffix.lower() == DEEPZOOM_SUFFIX):
        from napari_lrmil.slide.backends.deepzoom_backend import DeepZoomBackend

        return DeepZoomBackend(path)
    magic = _magic(path)
    if is_zipped_zarr(path) and magic.startswith(_ZIP_MAGIC):
        raise SlideError(f"{path.name} is a zipped OME-Zarr: unpack it and open the folder in it")
    # A MIRAX slide's own file is a small JPEG of it.
    is_image = magic.startswith(_IMAGE_MAGICS) and path.suffix.lower() not in SLIDE_SUFFIXES
    if backend == "image" or (backend == "auto" and is_image):
        from napari_lrmil.slide.backends.image_backend import ImageBackend

        return ImageBackend(path)
    if magic[:4] in _TIFF_MAGICS:
        _refuse_loop(path)
    if backend == "openslide" or (backend == "auto" and magic[:4] not in _TIFF_MAGICS):
        return _openslide(path)
    return _open_tiff(path, wanted=backend == "tiff")


def _open_dicom_folder(folder: Path) -> OpenSlideBackend:
    files = dicom_files_in(folder)
    if not files:
        raise SlideError(f"{folder.name} is a folder that holds neither DICOM files nor an OME-Zarr image")
    slide = _openslide(files[0])
    strangers = set(files) - set(slide.files)
    if strangers:
        slide.close()
        raise SlideError(
            f"{folder.name} holds more than one DICOM slide ({len(strangers)} of its {len(files)} files are of "
            "another series). Open a file of the one you want."
        )
    return slide


def _magic(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(8)
    except OSError as error:
        raise SlideError(f"{path.name} can't be read ({error.strerror})") from error


def _openslide(path: Path) -> OpenSlideBackend:
    from napari_lrmil.slide.backends.openslide_backend import OpenSlideBackend

    return OpenSlideBackend(path)


def _refuse_loop(path: Path) -> None:
    """Refuse a TIFF whose directories lead back to one that led there: decoders would follow them for ever."""
    with path.open("rb") as file:
        form = directory_format(file.read(HEAD_BYTES))
        if form is None:
            return  # cut short: the decoders say so
        try:
            loops = _Directories(file, form).lead_back(form.first)
        except (struct.error, OSError, OverflowError, ValueError):
            return  # cut short, too
    if loops:
        raise SlideError(f"{path.name} is damaged: its directories lead back to an earlier one")


class _Directories:
    """The directories of a TIFF: each names the next one, and some name others below it (SubIFDs)."""

    def __init__(self, file: BinaryIO, form: DirectoryFormat) -> None:
        self._file, self._form = file, form
        self._led_here: set[int] = set()
        self._done: set[int] = set()

    def lead_back(self, at: int, *, deep: int = 0) -> bool:
        """Whether a directory, those after it or those below them lead back to one that led there.

        Raises
        ------
        struct.error, OSError, OverflowError, ValueError
            Where the file ends before that is known.
        """
        chain: dict[int, list[int]] = {}
        while at and at not in self._done:
            if at in chain or at in self._led_here:
                return True
            chain[at], at = self._read(at)
        for place, below in chain.items():
            self._led_here.add(place)
            if deep < _MAX_NESTED and any(self.lead_back(each, deep=deep + 1) for each in below):
                return True
        self._led_here -= chain.keys()
        self._done |= chain.keys()
        return False

    def _read(self, at: int) -> tuple[list[int], int]:
        """The directories below one, and the next one."""
        form = self._form
        self._file.seek(at)
        (n_entries,) = form.count.unpack(self._file.read(form.count.size))
        if n_entries > MAX_ENTRIES:  # rubbish; where the next one is, is said behind them all the same
            self._file.seek(n_entries * form.entry.size, os.SEEK_CUR)
            return [], int(form.offset.unpack(self._file.read(form.offset.size))[0])
        table = self._file.read(n_entries * form.entry.size)
        (following,) = form.offset.unpack(self._file.read(form.offset.size))
        below: list[int] = []
        for tag, kind, n_values, value in form.entry.iter_unpack(table):
            if tag == SUBIFDS:
                number = struct.Struct(form.order + ("Q" if kind in (16, 18) else "I"))
                n_bytes = min(n_values, MAX_ENTRIES) * number.size
                if n_bytes > len(value):
                    self._file.seek(form.offset.unpack(value)[0])
                    value = self._file.read(n_bytes)
                below += [
                    each for (each,) in number.iter_unpack(value[: n_bytes // number.size * number.size])
                ]
        return below, int(following)


def _open_tiff(path: Path, *, wanted: bool) -> Backend:
    """A TIFF: directly where its layout is understood, else through OpenSlide unless `wanted`."""
    from napari_lrmil.slide.backends.tiff_backend import TiffBackend
    from napari_lrmil.slide.backends.tiff_layout import UnfitImageError, read_layout

    try:
        reference = _openslide(path)
    except UnfitImageError:
        raise
    except SlideError as no_openslide:
        # Not tiled, or not one of OpenSlide's vendors: tifffile may still know it.
        try:
            return TiffBackend(path, read_layout(path), reason="OpenSlide can't read it")
        except UnfitImageError:
            raise
        except SlideError as no_tifffile:
            raise SlideError(f"{no_openslide}, nor one tifffile can: {no_tifffile}") from no_tifffile
    if reference.vendor not in _DIRECT_VENDORS:
        if wanted:
            reference.close()
            raise SlideError(
                f"{path.name}: {reference.vendor} slides aren't plain grids of tiles. Use the backend "
                "'openslide'."
            )
        return reference
    try:
        layout = read_layout(path)
        # What isn't from a scanner: OpenSlide takes the first image for the slide, which may be the macro.
        several = layout.is_ome or reference.vendor == "generic-tiff"
        if several and layout.refusal and layout.largest_xy not in (None, *reference.level_dimensions_xy):
            raise UnfitImageError(str(layout.refusal))  # OpenSlide would show another image of the file
        if layout.refusal and isinstance(layout.refusal, UnfitImageError):
            raise layout.refusal
        if several and layout.levels:
            # Of OME-TIFF, it sees no level in a SubIFD.
            same = layout.levels[0].size_xy == reference.level_dimensions_xy[0]
            if not same or (layout.is_ome and len(layout.levels) > len(reference.level_dimensions_xy)):
                reason = (
                    "OpenSlide doesn't see its pyramid" if same else "OpenSlide shows a smaller image of it"
                )
                direct = TiffBackend(path, layout, reason=reason)
                try:
                    if same:
                        direct.compare_with(reference)
                except SlideError:
                    direct.close()
                    raise
                reference.close()
                return direct
            reference.evidence, reference.shown_image = layout.evidence, layout.shown_image
        return TiffBackend.with_reference(path, layout, reference)
    except SlideError as error:
        if wanted or isinstance(error, UnfitImageError):
            reference.close()
            raise
        reference.reason = str(error)
        return reference
