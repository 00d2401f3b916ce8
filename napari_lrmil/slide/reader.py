"""A whole slide: one handle, its levels in µm, and reads that outlive no close."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.errors import SlideChangedError, SlideError, UnknownMppError, readable
from napari_lrmil.slide.backends import open_backend
from napari_lrmil.slide.backends.base import away, changed, decoder_errors
from napari_lrmil.slide.colour import SRGBTransform
from napari_lrmil.slide.damage import Place
from napari_lrmil.slide.files import chunks_folder, stored_chunks
from napari_lrmil.slide.identity import FileState, fingerprint_of, states_of
from napari_lrmil.slide.pixel_size import Evidence, PixelSize, check_given, decide
from napari_lrmil.slide.probe import note_opened, probe, unprobed


class Slide:
    """An open slide.

    It can be pickled: the copy opens the same path again, once a process however often it arrives there.

    Parameters
    ----------
    path : path-like
        A slide file, a folder of one slide's DICOM files, an OME-Zarr folder, or a PNG or JPEG region.
    mpp : float, optional
        µm per level-0 pixel, overriding what the file says. Needed where it says nothing believable.
    backend : {'auto', 'openslide', 'tiff', 'ome-zarr', 'deepzoom', 'image'}
        Which library reads the pixels; 'auto' takes the fastest that reads them right.
    icc : bool
        Convert the slide's own colours to sRGB by its ICC profile. Without a profile nothing changes.

    Raises
    ------
    SlideError
        Where the file can't be opened, its pixels can't be read, or no slide has the `mpp` that is given.
    """

    def __init__(
        self, path: str | Path, *, mpp: float | None = None, backend: str = "auto", icc: bool = False
    ) -> None:
        self.path = Path(path)
        self._mpp_override: float | None = None
        self._given_by = "the value given"
        self.mpp_override = mpp
        self._asked_backend = backend
        self._state = threading.Condition()
        self._reads_under_way = 0
        self._pixels_read: dict[int, int] = {}
        self._closed = False
        self._icc = False
        self._has_icc_profile: bool | None = None
        self._to_srgb: SRGBTransform | None = None
        before = self._main_state()
        probe(self.path, backend)
        with decoder_errors(self.path):
            self._backend = open_backend(self.path, backend)
            self._where = str(self.path.resolve())
        self._stated = decide(self._backend.evidence)
        # A slide that is dropped unclosed, as pickled copies are, still gives its handle back.
        self._release = weakref.finalize(self, self._backend.close)
        try:
            self._opened_files = self.files
            with decoder_errors(self.path):
                self._states, self._chunks = self._states_now(), self._backend.chunks
            self._state_hash = hash((self._states, self._chunks))
            if before != self._main_state():
                raise changed(self.path)
            self._probe()
            self.icc = icc
            note_opened(self.path, backend, self._opened_files, self._states)
        except BaseException:
            self._release()
            raise

    def _probe(self) -> None:
        # Some broken files open and fail at the first read. Better refused now than after the coffee.
        level = len(self.level_dimensions_xy) - 1
        width, height = self.level_dimensions_xy[level]
        scale = self.level_downsamples[level]
        left, top = max(0, width // 2 - 128), max(0, height // 2 - 128)
        try:
            self.read_region(
                (int(left * scale), int(top * scale)), level, (min(256, width), min(256, height))
            )
            if self._backend.damage.covers(level, left, top, min(256, width), min(256, height)):
                raise SlideError("the middle of its coarsest level is damaged")
        except SlideChangedError:
            raise
        except SlideError as error:
            raise SlideError(
                f"{self.path.name} opens, but its pixels can't be read: {error}. Perhaps it was cut short: copy it again"
            ) from error

    @property
    def name(self) -> str:
        """File name without its ending, as text: the slide's id where no table gives one."""
        return readable(self.path.stem)

    @property
    def cache_key(self) -> tuple[object, ...]:
        """What names the pixels of this slide in the shared cache: the file, and how it is read."""
        return (self._where, self._state_hash, self._backend.name, self._to_srgb is not None)

    @property
    def level_dimensions_xy(self) -> tuple[tuple[int, int], ...]:
        """Width and height of each level in its own pixels."""
        return self._backend.level_dimensions_xy

    @property
    def level_downsamples(self) -> tuple[float, ...]:
        """Level-0 pixels per pixel of each level."""
        return self._backend.level_downsamples

    @property
    def damaged_places(self) -> frozenset[Place]:
        """What couldn't be decoded of what was read so far: level; left, top, width, height in its pixels.

        Reads show such a place hatched in grey. The same for all handles of one file.
        """
        return self._backend.damage.places

    @property
    def pixels_read(self) -> dict[int, int]:
        """Level -> pixels that reads through this handle have returned so far, those of opening it included."""
        with self._state:
            return dict(self._pixels_read)

    @property
    def bounds_l0_xywh(self) -> tuple[int, int, int, int]:
        """The scanned area: left, top, width, height in level-0 pixels."""
        return self._backend.bounds_l0_xywh

    @property
    def mpp_override(self) -> float | None:
        """µm per level-0 pixel where it was given instead of read from the slide.

        Raises
        ------
        SlideError
            On setting it to what no slide has; nothing changes then.
        """
        return self._mpp_override

    @mpp_override.setter
    def mpp_override(self, mpp: float | None) -> None:
        if mpp is not None:
            check_given(mpp)
        self._mpp_override, self._given_by = mpp, "the value given"

    def use_remembered_mpp(self, mpp: float) -> None:
        """Set `mpp_override` to what somebody once typed for this slide, which `pixel_size` then says."""
        self.mpp_override = mpp
        self._given_by = "what was typed in the window"

    @property
    def pixel_size(self) -> PixelSize:
        """The decision on µm/px, with its source and with what speaks against it."""
        if self._mpp_override is None:
            return self._stated
        given = Evidence(self._given_by, (self._mpp_override, self._mpp_override))
        return decide([given, *self._backend.evidence])

    @property
    def has_mpp(self) -> bool:
        """Whether the pixel size is known."""
        return self._mpp_override is not None or self._stated.mpp_xy is not None

    @property
    def stated_mpp_xy(self) -> tuple[float, float] | None:
        """µm per level-0 pixel along x and y as the file says it, whatever was given; None where it says nothing."""
        return self._stated.mpp_xy

    @property
    def mpp_xy(self) -> tuple[float, float]:
        """µm per level-0 pixel along x and y.

        Raises
        ------
        UnknownMppError
        """
        if self._mpp_override is not None:
            return (self._mpp_override, self._mpp_override)
        if self._stated.mpp_xy is None:
            doubt = self._stated.doubt
            raise UnknownMppError(
                f"{self.path.name} doesn't say how many µm a pixel measures"
                + (f" in a way that can be believed: it says {doubt}. " if doubt else ". ")
                + "Give it: --mpp on the command line, the column 'mpp' in a slide table, or the field 'µm/px' in "
                "the viewer (0.25 is usual for 40x, 0.5 for 20x)."
            )
        return self._stated.mpp_xy

    @property
    def shown_image(self) -> str:
        """Which image of several in the file this is, and which others there are; empty where it is the only one."""
        return self._backend.shown_image

    @property
    def level_mpps(self) -> tuple[float, ...]:
        """µm/px of each level, of the coarser axis where they differ."""
        coarser = max(self.mpp_xy)
        return tuple(coarser * downsample for downsample in self.level_downsamples)

    @property
    def has_icc_profile(self) -> bool:
        """Whether the file carries a colour profile, so that `icc` makes a difference. Looked for once."""
        if self._has_icc_profile is None:
            self._has_icc_profile = self._icc_profile() is not None
        return self._has_icc_profile

    def _icc_profile(self) -> bytes | None:
        with decoder_errors(self.path):
            return self._backend.icc_profile

    @property
    def icc(self) -> bool:
        """Whether colours are converted to sRGB by the slide's ICC profile; reads from now on follow it.

        Raises
        ------
        SlideError
            On setting it, where the profile can't be applied.
        """
        return self._icc

    @icc.setter
    def icc(self, wanted: bool) -> None:
        profile = self._icc_profile() if wanted else None
        self._to_srgb = None if profile is None else SRGBTransform(profile)
        self._icc = wanted

    @contextmanager
    def in_colours(self, *, icc: bool) -> Iterator[Slide]:
        """The slide with its profile applied or not, whatever this handle shows meanwhile.

        A second handle is opened, and closed at the end, only where that makes a difference.
        """
        if icc == self._icc or not self.has_icc_profile:
            yield self
            return
        with Slide(self.path, mpp=self.mpp_override, backend=self._asked_backend, icc=icc) as other:
            yield other

    @property
    def metadata(self) -> dict[str, object]:
        """What may be shown and logged: no identifiers, no labels, no free text of the scanner."""
        return {
            "vendor": self._backend.vendor,
            "backend": self._backend.name,
            "backend_reason": self._backend.reason,
            "levels": len(self.level_dimensions_xy),
            "size_px": self.level_dimensions_xy[0],
            "mpp": self.mpp_xy if self.has_mpp else None,
            "mpp_source": self.pixel_size.text,
            "image": self.shown_image or "the only one",
            "objective_power": self._backend.objective_power,
            "bounds_l0_xywh": self.bounds_l0_xywh,
            "associated_images": self.associated_images,
            "icc_applied": self._to_srgb is not None,
        }

    @property
    def associated_images(self) -> tuple[str, ...]:
        """Names of the label, macro and thumbnail images that the file holds; none is loaded."""
        return self._backend.associated_images

    def fingerprint(self) -> str:
        """A hash that tells whether a path holds the same slide, whatever it is called; of the files that were opened.

        Raises
        ------
        SlideChangedError
            Where they are no longer there.
        SlideError
            Where they can't be read.
        """
        try:
            with decoder_errors(self.path):
                return fingerprint_of(
                    self._opened_files, chunks=self._chunks, chunks_in=chunks_folder(self.path)
                )
        finally:
            # Once, for it looks at every chunk; what couldn't be read because it is gone is told as such.
            self.check_unchanged()

    def check_unchanged(self) -> None:
        """Look whether the files are still those that were opened, by their sizes and times.

        What was read before is of this slide only if this passes afterwards.

        Raises
        ------
        SlideChangedError
            `SlideAwayError`, which is one, where they can't be looked at.
        """
        self._check_states()
        try:
            unchanged = tuple(stored_chunks(self.path)) == self._chunks
        except OSError as error:
            raise away(self.path, error) from error
        if not unchanged:
            raise changed(self.path)

    def _check_states(self) -> None:
        """As `check_unchanged`, without the chunks, which can be many."""
        try:
            unchanged = self._states_now() == self._states
        except OSError as error:
            raise away(self.path, error) from error
        if not unchanged:
            raise changed(self.path)

    def _main_state(self) -> tuple[FileState, ...]:
        try:
            return states_of([self.path] if self.path.is_file() else [])
        except OSError:  # opening it says why
            return ()

    def _states_now(self) -> tuple[FileState, ...]:
        return states_of(self._opened_files)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold the slide's pixels, looked for when asked."""
        with decoder_errors(self.path):
            return self._backend.files

    def read_region(
        self,
        location_l0_xy: tuple[int, int],
        level: int,
        size_xy: tuple[int, int],
        *,
        keep_tiles: bool = True,
    ) -> NDArray[np.uint8]:
        """Pixels of one level.

        Parameters
        ----------
        location_l0_xy : (int, int)
            Top left corner in level-0 pixels; may lie outside the slide.
        level : int
        size_xy : (int, int)
            Width and height in pixels of that level.
        keep_tiles : bool
            False where nobody will ask for the same tiles again, as in inference: stored tiles that lie wholly
            inside the region then stay out of the cache, where a viewer's are.

        Returns
        -------
        (height, width, 3) uint8 array
            RGB, white where nothing was scanned, hatched where a stored tile is damaged (see `damaged_places`). A location
            between two pixels of a level goes to the nearest
            (through OpenSlide, it is interpolated).

        Raises
        ------
        SlideAwayError
            Where the file can't be reached or read just now; asked again once it is back, the same handle reads.
        SlideChangedError
            Where another file is in its place.
        SlideError
            Where the slide is closed, or can't be decoded.
        """
        with self._reading():
            pixels = self._backend.read_region(location_l0_xy, level, size_xy, keep_tiles=keep_tiles)
            with self._state:
                self._pixels_read[level] = self._pixels_read.get(level, 0) + size_xy[0] * size_xy[1]
            return pixels if self._to_srgb is None else self._to_srgb(pixels)

    def read_associated(self, name: str) -> NDArray[np.uint8]:
        """Pixels of a label, macro or thumbnail image. They can show who the patient is.

        Parameters
        ----------
        name : str
            One of `associated_images`.

        Returns
        -------
        (height, width, 3) uint8 array

        Raises
        ------
        SlideError
            Where there is no such image or it can't be decoded.
        """
        if name not in self.associated_images:
            there = ", ".join(self.associated_images) or "none"
            raise SlideError(f"{self.path.name} has no associated image {name!r} (there are: {there})")
        probe(self.path, self._asked_backend, image=name)
        with self._reading():
            pixels = self._backend.read_associated(name)
        note_opened(self.path, self._asked_backend, self._opened_files, self._states, image=name)
        return pixels

    @contextmanager
    def _reading(self) -> Iterator[None]:
        with self._state:
            if self._closed:
                raise SlideError(f"{self.path.name} is closed")
            self._reads_under_way += 1
        try:
            with decoder_errors(self.path):
                yield
        except SlideChangedError:
            raise
        except SlideError:
            self._check_states()  # what failed because the files are gone, or others, is told as such
            raise
        finally:
            with self._state:
                self._reads_under_way -= 1
                self._state.notify_all()

    @property
    def closed(self) -> bool:
        """Whether reads raise SlideError by now."""
        return self._closed

    def close(self) -> None:
        """Close the file once the reads under way are done; later reads raise SlideError."""
        with self._state:
            if self._closed:
                return
            self._closed = True
            self._state.wait_for(lambda: self._reads_under_way == 0)
        self._release()

    def __reduce__(self) -> tuple[object, ...]:
        return (_reopened, (str(self.path.absolute()), self.mpp_override, self._asked_backend, self._icc))

    def __enter__(self) -> Slide:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        width, height = self.level_dimensions_xy[0]
        return f"Slide({self.path.name!r}, {width} x {height} px, {len(self.level_dimensions_xy)} levels)"


_copies: weakref.WeakValueDictionary[tuple[object, ...], Slide] = weakref.WeakValueDictionary()
_copies_lock = threading.Lock()


def _reopened(path: str, mpp: float | None, backend: str, icc: bool) -> Slide:
    """A slide out of a pickle: dask sends one with every chunk, which must not be a handle a chunk."""
    key = (path, mpp, backend, icc)
    with _copies_lock:
        slide = _copies.get(key)
        if slide is None or slide.closed:
            with unprobed():  # who pickled it has opened it
                slide = _copies[key] = Slide(path, mpp=mpp, backend=backend, icc=icc)
        return slide
