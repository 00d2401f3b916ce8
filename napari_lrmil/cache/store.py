"""Results on disk, found again by what the slide and the bundle hold, not by what they are called."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from napari_lrmil import RESULT_VERSION
from napari_lrmil.atomic import remove_folder, replacing, replacing_folder
from napari_lrmil.cache.codec import Arrays, JSONValue, flatten, restore
from napari_lrmil.cache.limit import JSON_NAME, RESULTS, THUMBNAILS, SizeLimit, entries, is_result, mark_used
from napari_lrmil.cache.pixel_sizes import typed_mpp
from napari_lrmil.cache.seal import read_sealed, write_sealed
from napari_lrmil.cache.summary import ResultSummary, summarise
from napari_lrmil.errors import LRMILError, SlideChangedError
from napari_lrmil.outside import parse_json, read_file
from napari_lrmil.slide.files import FOLDER_VARIABLES, user_folder
from napari_lrmil.slide.identity import state_of

if TYPE_CHECKING:
    from napari_lrmil.model.bundle import BundleInfo
    from napari_lrmil.predict import SlidePrediction

RESULT_FORMAT = 3
"""Raised whenever results are stored in another way: older ones then count as absent."""
CACHE_DIR_VARIABLE = FOLDER_VARIABLES["cache"]

ARRAYS_NAME = "arrays.safetensors"
_KNOWN_SLIDES = "seen"
"""Folder of what is known of slides that were here before, by the state of their files."""
_FORMAT = "lrmil-result"
_SEAL_BYTES = 32
"""At the end of a thumbnail: a hash of its name and of its bytes."""

MppXY = tuple[float, float]
"""µm per level-0 pixel along x and y."""

IDENTIFIERS = ("slide_name",)
"""Fields of a prediction that can name a patient. They stay out of the cache; whoever asks knows them."""


class CacheError(LRMILError):
    """A result can't be kept."""


class CacheSize(NamedTuple):
    """What a cache holds."""

    n_results: int
    n_thumbnails: int
    total_bytes: int
    limit_bytes: int


class OpenSlide(Protocol):
    """What the cache asks of a slide; `Slide` is one."""

    @property
    def path(self) -> Path:
        """What was opened."""
        ...

    @property
    def stated_mpp_xy(self) -> MppXY | None:
        """As the slide says it."""
        ...

    def fingerprint(self) -> str:
        """Return what tells it from other slides."""
        ...

    def check_unchanged(self) -> None:
        """Raise SlideChangedError where its files aren't those that were opened."""
        ...


class KnownSlide(NamedTuple):
    """What is kept of a slide in a certain state, so that it isn't opened again.

    Attributes
    ----------
    fingerprint : str
    stated_mpp_xy : (float, float) or None
        As the slide says it.
    """

    fingerprint: str
    stated_mpp_xy: MppXY | None

    def mpp_in_use(self, given: float | None) -> MppXY | None:
        """What counts: the value that is given, else the slide's own."""
        return self.stated_mpp_xy if given is None else (given, given)


def default_cache_root() -> Path:
    """The folder named by LRMIL_CACHE_DIR, else the user's cache folder."""
    return user_folder("cache")


def result_key(info: BundleInfo, *, mpp_xy: MppXY) -> str:
    """A hash of what changes a result beside the slide's pixels and the bundle's weights.

    Parameters
    ----------
    info : BundleInfo
        Temperature, mpp, tissue share, colour management and all else that the bundle says.
    mpp_xy : (float, float)
        µm per level-0 pixel in use: `SlidePrediction.mpp_xy`.
    """
    said = {
        "result_version": RESULT_VERSION,
        "bundle": json.loads(info.model_dump_json()),
        "mpp_xy": [float(mpp) for mpp in mpp_xy],
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


class ResultKeys:
    """`result_key` of one bundle, worked out once for each µm/px."""

    def __init__(self, info: BundleInfo) -> None:
        self._info = info
        self._keys: dict[MppXY, str] = {}

    def __call__(self, mpp_xy: MppXY) -> str:
        """Return `result_key` for the µm/px in use."""
        if mpp_xy not in self._keys:
            self._keys[mpp_xy] = result_key(self._info, mpp_xy=mpp_xy)
        return self._keys[mpp_xy]


class ResultCache:
    """Predictions and thumbnails below one folder, least recently used ones leaving first.

    Threads and processes may share it, on a shared file system too. What is damaged counts as absent.

    Parameters
    ----------
    root : path-like, optional
        Made where missing. Default: `default_cache_root`.
    limit_bytes : int, optional
        Default: what `set_limit` stored in the folder, else 2 GB.
    """

    def __init__(self, root: str | Path | None = None, *, limit_bytes: int | None = None) -> None:
        self.root = default_cache_root() if root is None else Path(root)
        self._limit = SizeLimit(self.root, limit_bytes)

    def set_limit(self, limit_bytes: int) -> None:
        """Store the limit with the cache, so that window and command line keep to the same one.

        Raises
        ------
        CacheError
        """
        if limit_bytes < 0:
            raise CacheError(f"a cache can't be limited to {limit_bytes} bytes")
        try:
            self._limit.set_limit(limit_bytes)
        except OSError as error:
            raise self._unwritable(error) from error

    def get(
        self, fingerprint: str, bundle_sha256: str, tiles_key: str, *, slide_name: str = ""
    ) -> SlidePrediction | None:
        """The result of a slide, or None where there is none that is whole.

        Parameters
        ----------
        fingerprint : str
            `Slide.fingerprint`.
        bundle_sha256 : str
            Of the bundle's weights.
        tiles_key : str
            `result_key`.
        slide_name : str
            Goes into the result: names aren't kept.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        from napari_lrmil.predict import SlidePrediction

        entry = self._entry(fingerprint, bundle_sha256, tiles_key)
        try:
            document = self._document(entry, fingerprint, bundle_sha256, tiles_key)
            blob = read_file(entry / ARRAYS_NAME)
            if _sha256(blob) != document["arrays_sha256"]:
                return None
            result = restore(SlidePrediction, document["prediction"], load(blob), slide_name=slide_name)
        except (OSError, ValueError, LookupError, TypeError, SafetensorError):
            return None
        mark_used(entry / JSON_NAME)
        assert isinstance(result, SlidePrediction)
        return result

    def summary(self, fingerprint: str, bundle_sha256: str, tiles_key: str) -> ResultSummary | None:
        """As `get`, without arrays and without loading torch: for lists of a thousand slides."""
        entry = self._entry(fingerprint, bundle_sha256, tiles_key)
        try:
            document = self._document(entry, fingerprint, bundle_sha256, tiles_key)
            result = restore(ResultSummary, _as_now(document["summary"]), {})
        except (OSError, ValueError, LookupError, TypeError):
            return None
        assert isinstance(result, ResultSummary)
        return result

    def put(self, prediction: SlidePrediction, tiles_key: str) -> None:
        """Keep a result, in the place of an older one.

        Raises
        ------
        CacheError
            Where it can't be written.
        """
        from safetensors.numpy import save

        arrays: Arrays = {}
        values = flatten(prediction, arrays, leave_out=IDENTIFIERS)
        blob = save(arrays)
        key = _key(prediction.slide_fingerprint, prediction.bundle_sha256, tiles_key)
        body: dict[str, JSONValue] = {
            "prediction": values,
            "summary": flatten(summarise(prediction), {}),
            "key": key,
        }
        body["arrays_sha256"] = _sha256(blob)
        head = {"format": _FORMAT, "format_version": RESULT_FORMAT, "body_sha256": _sha256(_canonical(body))}
        entry = self._entry(prediction.slide_fingerprint, prediction.bundle_sha256, tiles_key)
        try:
            with replacing_folder(entry) as scratch:
                (scratch / ARRAYS_NAME).write_bytes(blob)
                text = json.dumps(head | body, indent=1) + "\n"
                (scratch / JSON_NAME).write_text(text, encoding="utf-8", newline="\n")
        except OSError as error:
            raise self._unwritable(error) from error
        self._limit.enforce(keep=entry, added_bytes=len(blob) + len(text))

    def known_slide(self, slide_path: Path) -> KnownSlide | None:
        """What is known of a slide that was here before and hasn't been touched since; the slide isn't opened."""
        state = state_of(slide_path)
        return None if state is None else self._known(state)

    def known_fingerprint(self, slide_path: Path) -> str | None:
        """The fingerprint of a slide that was here before and hasn't been touched since; the slide isn't opened."""
        known = self.known_slide(slide_path)
        return None if known is None else known.fingerprint

    def known_result(
        self,
        slide_path: Path,
        bundle_sha256: str,
        key_of: Callable[[MppXY], str],
        *,
        mpp: float | None,
        slide_name: str,
    ) -> SlidePrediction | None:
        """`get` for a slide that was here before and hasn't been touched since; the slide isn't opened.

        Parameters
        ----------
        slide_path : Path
        bundle_sha256 : str
        key_of : callable
            µm/px in use -> `result_key`, such as a `ResultKeys`.
        mpp : float, optional
            µm per level-0 pixel where it is given, in place of what was typed for the slide and of its own.
        slide_name : str
        """
        where = self._known_entry(slide_path, key_of, mpp)
        return None if where is None else self.get(where[0], bundle_sha256, where[1], slide_name=slide_name)

    def known_summary(
        self, slide_path: Path, bundle_sha256: str, key_of: Callable[[MppXY], str], *, mpp: float | None
    ) -> ResultSummary | None:
        """`summary` for a slide that was here before, found as by `known_result`."""
        where = self._known_entry(slide_path, key_of, mpp)
        return None if where is None else self.summary(where[0], bundle_sha256, where[1])

    def _known_entry(
        self, slide_path: Path, key_of: Callable[[MppXY], str], mpp: float | None
    ) -> tuple[str, str] | None:
        """Fingerprint and key of the result that a slide would have."""
        known = self.known_slide(slide_path)
        if known is not None and mpp is None:
            mpp = typed_mpp(known.fingerprint)
        in_use = None if known is None else known.mpp_in_use(mpp)
        return None if known is None or in_use is None else (known.fingerprint, key_of(in_use))

    def _known(self, state: str) -> KnownSlide | None:
        try:
            found = restore(KnownSlide, read_sealed(self._known_file(state), subject=state), {})
        except (OSError, ValueError, LookupError, TypeError):
            return None
        assert isinstance(found, KnownSlide)
        return found if len(found.fingerprint) == 64 else None

    def fingerprint_of(self, slide: OpenSlide) -> str:
        """Return an open slide's fingerprint, made where it isn't known yet, and remember it.

        Raises
        ------
        SlideChangedError
            Where its files aren't those that were opened: what is known may be of one that has taken its place.
        SlideError
            Where they can't be read.
        """
        fingerprint = self.known_fingerprint(slide.path) or slide.fingerprint()
        slide.check_unchanged()
        self.remember_slide(slide, fingerprint)
        return fingerprint

    def remember_slide(self, slide: OpenSlide, fingerprint: str) -> None:
        """Make `known_slide` know an open slide, unless its files have changed since it was opened."""
        state = state_of(slide.path)
        try:
            slide.check_unchanged()  # so that it is the state of what was opened
        except SlideChangedError:
            return
        self._remember(state, KnownSlide(fingerprint, slide.stated_mpp_xy))

    def _remember(self, state: str | None, slide: KnownSlide) -> None:
        """A cache that can't be written forgets; that costs time only."""
        if state is None or self._known(state) == slide:
            return
        try:
            write_sealed(self._known_file(state), flatten(slide, {}), subject=state)
        except OSError:
            return

    def read_thumbnail(self, fingerprint: str, edge_px: int) -> bytes | None:
        """An encoded thumbnail that `write_thumbnail` kept."""
        path = self._thumbnail(fingerprint, edge_px)
        try:
            data = read_file(path)
        except OSError:
            return None
        picture, seal = data[:-_SEAL_BYTES], data[-_SEAL_BYTES:]
        if seal != _seal(path.name, picture):
            return None
        mark_used(path)
        return picture

    def write_thumbnail(self, fingerprint: str, edge_px: int, data: bytes) -> None:
        """Keep an encoded thumbnail. A cache that can't be written keeps none; that costs time only."""
        path = self._thumbnail(fingerprint, edge_px)
        try:
            with replacing(path) as scratch:
                # A JPEG ends where it says so: what follows is no part of the picture.
                scratch.write_bytes(data + _seal(path.name, data))
        except OSError:
            return
        self._limit.enforce(keep=path, added_bytes=len(data))

    def size(self) -> CacheSize:
        """What is kept."""
        found = list(entries(self.root))
        n_results = sum(is_result(path) for _, _, path in found)
        total = sum(n_bytes for _, n_bytes, _ in found)
        return CacheSize(n_results, len(found) - n_results, total, self._limit.limit_bytes)

    def clear(self) -> None:
        """Delete results, thumbnails and known fingerprints; the limit, and files of others, stay."""
        for name in (RESULTS, THUMBNAILS, _KNOWN_SLIDES):
            try:
                remove_folder(self.root / name)
            except OSError as error:
                raise self._unwritable(error) from error
        self._limit.measure_again()

    def _entry(self, fingerprint: str, bundle_sha256: str, tiles_key: str) -> Path:
        name = f"{fingerprint}-{bundle_sha256[:12]}-{tiles_key[:12]}"
        return self.root / RESULTS / fingerprint[:2] / name

    def _thumbnail(self, fingerprint: str, edge_px: int) -> Path:
        return self.root / THUMBNAILS / fingerprint[:2] / f"{fingerprint}-{edge_px}.jpg"

    def _known_file(self, state: str) -> Path:
        return self.root / _KNOWN_SLIDES / state[:2] / state

    def _unwritable(self, error: OSError) -> CacheError:
        return CacheError(
            f"the result cache in {self.root} can't be written ({error.strerror or error}). Free some space, or "
            f"name another folder in {CACHE_DIR_VARIABLE} or with --cache-dir."
        )

    @staticmethod
    def _document(entry: Path, fingerprint: str, bundle_sha256: str, tiles_key: str) -> dict[str, JSONValue]:
        """The JSON of an entry, checked.

        Raises
        ------
        OSError, ValueError, LookupError, TypeError
        """
        document = parse_json(read_file(entry / JSON_NAME))
        head = {name: document.pop(name) for name in ("format", "format_version", "body_sha256")}
        if (head["format"], head["format_version"]) != (_FORMAT, RESULT_FORMAT):
            raise ValueError("of another version")
        if head["body_sha256"] != _sha256(_canonical(document)):
            raise ValueError("damaged")
        # The folder's name holds parts of the hashes only.
        if document["key"] != _key(fingerprint, bundle_sha256, tiles_key):
            raise ValueError("the result of something else")
        checked: dict[str, JSONValue] = document
        return checked


def _as_now(summary: JSONValue) -> JSONValue:
    """A summary with the names of today: earlier versions kept the called class as the label, whatever the slide."""
    if isinstance(summary, dict) and "label" in summary:
        return {("called" if name == "label" else name): value for name, value in summary.items()}
    return summary


def _key(fingerprint: str, bundle_sha256: str, tiles_key: str) -> dict[str, JSONValue]:
    return {"fingerprint": fingerprint, "bundle_sha256": bundle_sha256, "tiles_key": tiles_key}


def _canonical(body: Mapping[str, JSONValue]) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()


def _seal(name: str, data: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\0" + data).digest()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
