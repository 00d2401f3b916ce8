"""Results on disk, found again by what the slide and the bundle hold, not by what they are called."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import platformdirs

from napari_lrmil.atomic import remove_folder, replacing, replacing_folder, write_text
from napari_lrmil.cache.codec import Arrays, JSONValue, flatten, restore
from napari_lrmil.cache.limit import JSON_NAME, RESULTS, THUMBNAILS, SizeLimit, entries, is_result, mark_used
from napari_lrmil.cache.pixel_sizes import typed_mpp
from napari_lrmil.cache.summary import ResultSummary, summarise
from napari_lrmil.errors import LRMILError
from napari_lrmil.slide.files import state_of

if TYPE_CHECKING:
    from napari_lrmil.model.bundle import BundleInfo
    from napari_lrmil.predict import SlidePrediction

RESULT_FORMAT = 2
"""Raised whenever the same slide and bundle would give another result: older ones then count as absent."""
CACHE_DIR_VARIABLE = "LRMIL_CACHE_DIR"

ARRAYS_NAME = "arrays.safetensors"
_FINGERPRINTS = "seen"
"""Folder of the fingerprints of slides that were here before, by the state of their files."""
_FORMAT = "lrmil-result"

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


def default_cache_root() -> Path:
    """The folder named by LRMIL_CACHE_DIR, else the user's cache folder."""
    named = os.environ.get(CACHE_DIR_VARIABLE)
    return (
        Path(named).expanduser() if named else platformdirs.user_cache_path("napari-lrmil", appauthor=False)
    )


def result_key(info: BundleInfo, *, mpp: float | None = None) -> str:
    """A hash of what changes a result beside the slide's pixels and the bundle's weights.

    Parameters
    ----------
    info : BundleInfo
        Temperature, mpp, tissue share and all else that the bundle says.
    mpp : float, optional
        µm per level-0 pixel where it was given instead of read from the slide.
    """
    said = {"format": RESULT_FORMAT, "bundle": json.loads(info.model_dump_json()), "mpp": mpp}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


class ResultKeys:
    """`result_key` of one bundle, worked out once for each mpp."""

    def __init__(self, info: BundleInfo) -> None:
        self._info = info
        self._keys: dict[float | None, str] = {}

    def __call__(self, mpp: float | None) -> str:
        """Return `result_key` for a given mpp."""
        if mpp not in self._keys:
            self._keys[mpp] = result_key(self._info, mpp=mpp)
        return self._keys[mpp]


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
            blob = (entry / ARRAYS_NAME).read_bytes()
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
            result = restore(ResultSummary, document["summary"], {})
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

    def known_fingerprint(self, slide_path: Path) -> str | None:
        """The fingerprint of a slide that was here before and hasn't been touched since; the slide isn't opened."""
        state = state_of(slide_path)
        if state is None:
            return None
        try:
            found = self._fingerprint(state).read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            return None
        return found if len(found) == 64 else None

    def known_result(
        self,
        slide_path: Path,
        bundle_sha256: str,
        key_of: Callable[[float | None], str],
        *,
        mpp: float | None,
        slide_name: str,
    ) -> SlidePrediction | None:
        """`get` for a slide that was here before and hasn't been touched since; the slide isn't opened.

        Parameters
        ----------
        key_of : callable
            mpp that is given or was typed before -> `result_key`, such as a `ResultKeys`.
        mpp : float, optional
            The one that is given.
        """
        fingerprint = self.known_fingerprint(slide_path)
        if fingerprint is None:
            return None
        key = key_of(typed_mpp(fingerprint) if mpp is None else mpp)
        return self.get(fingerprint, bundle_sha256, key, slide_name=slide_name)

    def known_summary(
        self,
        slide_path: Path,
        bundle_sha256: str,
        key_of: Callable[[float | None], str],
        *,
        mpp: float | None,
    ) -> ResultSummary | None:
        """`summary` for a slide that was here before and hasn't been touched since; see `known_result`."""
        fingerprint = self.known_fingerprint(slide_path)
        if fingerprint is None:
            return None
        key = key_of(typed_mpp(fingerprint) if mpp is None else mpp)
        return self.summary(fingerprint, bundle_sha256, key)

    def remember_fingerprint(self, slide_path: Path, fingerprint: str) -> None:
        """Make `known_fingerprint` know a slide. A cache that can't be written forgets; that costs time only."""
        state = state_of(slide_path)
        if state is None or self.known_fingerprint(slide_path) == fingerprint:
            return
        try:
            write_text(self._fingerprint(state), fingerprint + "\n")
        except OSError:
            return

    def read_thumbnail(self, fingerprint: str, edge_px: int) -> bytes | None:
        """An encoded thumbnail that `write_thumbnail` kept."""
        path = self._thumbnail(fingerprint, edge_px)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        mark_used(path)
        return data

    def write_thumbnail(self, fingerprint: str, edge_px: int, data: bytes) -> None:
        """Keep an encoded thumbnail. A cache that can't be written keeps none; that costs time only."""
        path = self._thumbnail(fingerprint, edge_px)
        try:
            with replacing(path) as scratch:
                scratch.write_bytes(data)
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
        for name in (RESULTS, THUMBNAILS, _FINGERPRINTS):
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

    def _fingerprint(self, state: str) -> Path:
        return self.root / _FINGERPRINTS / state[:2] / state

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
        document = json.loads((entry / JSON_NAME).read_bytes())
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


def _key(fingerprint: str, bundle_sha256: str, tiles_key: str) -> dict[str, JSONValue]:
    return {"fingerprint": fingerprint, "bundle_sha256": bundle_sha256, "tiles_key": tiles_key}


def _canonical(body: Mapping[str, JSONValue]) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
