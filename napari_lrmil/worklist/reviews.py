"""The reviewer's verdicts and notes, one JSON line each, in a file beside the slides. Lines are only ever added."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Literal, NamedTuple, get_args
from weakref import WeakValueDictionary

from napari_lrmil.errors import SlideAwayError, SlideChangedError, WorklistError
from napari_lrmil.outside import parse_json, read_file
from napari_lrmil.slide.files import user_folder

REVIEW_NAME = "lrmil-review.jsonl"
FORMAT, VERSION = "lrmil-review", 1

Verdict = Literal["agree", "disagree", "unsure"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)


class Saved(StrEnum):
    """How far verdict and note of a slide are on their way to the disk."""

    YES = "saved"
    SAVING = "saving"
    NO = "not saved"
    """The last try failed; the next one brings it along."""


LOCK_WAIT_S = 5.0
"""How long a writer waits for another program to let go of the file."""
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
_NOT_OURS = (errno.ELOOP, errno.EINVAL, errno.EISDIR, errno.ENXIO)
"""What opening a link, a folder, a pipe or a device in the file's place gives."""


@dataclass(frozen=True)
class Review:
    """One line of the file.

    Attributes
    ----------
    slide : str
        Path from the worklist's folder, parts joined by '/'.
    verdict : 'agree', 'disagree', 'unsure' or None
        None takes an earlier verdict back.
    note : str
    label_shown : str or None
        The predicted label that the verdict is about; None without one, as of a slide unlike those of training.
    bundle_sha256, fingerprint : str or None
        Of the bundle's weights and of the slide, where they are known.
    reviewer : str
    time : str
        UTC, ISO 8601.
    set_shown : tuple of str, or None
        The classes that the screen said are left; None without a label, or where the model states no set.
    unsure_shown, unlike_training_shown : bool or None
        What else the screen said; None where there was no result, and in lines of earlier versions. `unsure_shown` is
        None, too, where the label was hidden.
    answer_shown : str or None
        What the verdict is about: the label, or that the slide is unlike those of training. None where there was no
        result; in lines of earlier versions `label_shown`.
    revealed_label : str or None
        The label that is not to be used, where the reviewer had it shown.
    """

    slide: str
    verdict: Verdict | None
    note: str = ""
    label_shown: str | None = None
    bundle_sha256: str | None = None
    fingerprint: str | None = None
    reviewer: str = ""
    time: str = ""
    set_shown: tuple[str, ...] | None = None
    unsure_shown: bool | None = None
    unlike_training_shown: bool | None = None
    answer_shown: str | None = None
    revealed_label: str | None = None


Check = Callable[[Review], Review]
"""Looks, before a review is written, whether its slide's file is still what it is about, and returns what to write.

Raises SlideAwayError where the file can't be reached, and SlideChangedError where it is another one. Called in whichever
thread writes.
"""


class Refused(NamedTuple):
    """A review that was not written, for its slide's file is another one by now, and why in a sentence."""

    review: Review
    reason: str


class _Waiting(NamedTuple):
    """A review in memory alone."""

    review: Review
    check: Check | None


class ReviewFile:
    """The reviews of a folder.

    Where the folder can't be written, a file in the user's data folder takes its place, found again by the
    folder's path; `where` says which. Programs may share the file.

    A review is noted (`add`, memory alone, at once) and then written (`write_waiting`, up to seconds where another
    program holds the file). Any thread may do either while others read: `latest` has a review from the moment it is
    noted, and no order of calls loses one. Until `write_waiting` has returned it is in memory alone: call it once
    more before the program ends.

    Within a program take `of`, so that what waits to be written is known wherever the folder is looked at.

    Parameters
    ----------
    folder : Path
        Where the slides' paths start.
    """

    @classmethod
    def of(cls, folder: Path) -> ReviewFile:
        """The one of this program for a folder, with what waits in it; what the disk holds is read again.

        Raises
        ------
        WorklistError
            Where a file beside the slides is there that can't be read.
        """
        with _open_lock:
            file = _open_files.get(folder)
            if file is None:
                file = _open_files[folder] = cls(folder)
                return file
        file.reload()
        return file

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.beside = folder / REVIEW_NAME
        self.fallback = _fallback(folder)
        self.where = self.beside
        self.problems: list[str] = []
        self._memory = threading.Lock()
        """Held for a look or a change, never while a disk works."""
        self._writing = threading.Lock()
        """Held while lines are written, so that they come in the order in which they were noted."""
        self._kept: dict[str, Review] = {}
        self._written: list[Review] = []
        self._waiting: deque[_Waiting] = deque()
        self._refused: list[Refused] = []
        self._n_refused = 0
        """How many of those that wait, the first ones, could not be written at the last try."""
        self._elsewhere_because = ""
        self.reload()

    def reload(self) -> None:
        """Read what is there, lines of other programs too; `problems` then names the lines left out.

        Raises
        ------
        WorklistError
            Where a file beside the slides is there that can't be read.
        """
        with self._memory:
            n_written = len(self._written)
        problems: list[str] = []
        found: dict[str, Review] = {}
        for path in (self.beside, self.fallback):
            # Within a file the last line counts, whatever the clocks said; between files, the later time.
            try:
                last = {review.slide: review for review in _read(path, problems)}
            except WorklistError as error:
                if path == self.beside:
                    raise
                problems.append(f"{error}: verdicts that may be kept there are not shown.")
                continue
            for slide, review in last.items():
                if slide not in found or review.time >= found[slide].time:
                    found[slide] = review
        with self._memory:
            # Lines that came while the files were read.
            found |= {review.slide: review for review in self._written[n_written:]}
            self._kept, self.problems = found, problems

    def latest(self, slide_path: Path) -> Review | None:
        """The latest review of a slide, one that waits to be written included."""
        slide = self.relative(slide_path)
        with self._memory:
            waiting = (each.review for each in reversed(self._waiting) if each.review.slide == slide)
            return next(waiting, self._kept.get(slide))

    def saved(self, slide_path: Path) -> Saved:
        """How far the latest review of a slide is."""
        slide = self.relative(slide_path)
        with self._memory:
            refused = [each.review.slide == slide for each in self._waiting]
        if not any(refused):
            return Saved.YES
        return Saved.NO if any(refused[: self._n_refused]) else Saved.SAVING

    @property
    def waiting(self) -> tuple[Review, ...]:
        """Reviews that are in memory alone."""
        with self._memory:
            return tuple(each.review for each in self._waiting)

    def take_refused(self) -> tuple[Refused, ...]:
        """Reviews that `write_waiting` has left out because their slides' files are others by now; each is told once."""
        with self._memory:
            refused, self._refused = tuple(self._refused), []
        return refused

    def relative(self, slide_path: Path) -> str:
        """How the file names a slide: it stays right when slides and file move together."""
        try:
            relative = os.path.relpath(slide_path.absolute(), self.folder.absolute())
        except ValueError:  # another drive
            return slide_path.absolute().as_posix()
        return Path(relative).as_posix()

    def add(self, review: Review, check: Check | None = None) -> None:
        """Note a review, to be written by the next `write_waiting` if `check` still allows it. Touches no disk."""
        with self._memory:
            self._waiting.append(_Waiting(review, check))

    def write_waiting(self, *, last_chance: bool = False) -> None:
        """Write what was noted, in that order; when this returns it is on the disk.

        For a thread of its own: another program may hold the file for up to 5 s. Threads that call it at once write
        each review once.

        Parameters
        ----------
        last_chance : bool
            Use the user's data folder whatever keeps the file beside the slides from being written: the program ends. A
            slide that can't be reached isn't waited for: what is written says which file was judged.

        Raises
        ------
        WorklistError
            At the first review that could not be kept. It and those after it wait for the next call.
        """
        with self._writing:
            while True:
                with self._memory:
                    if not self._waiting:
                        return
                    waiting = self._waiting[0]
                try:
                    review = _checked(waiting, last_chance=last_chance)
                    written: Review | None = self._append(review, last_chance=last_chance)
                except SlideChangedError as error:
                    written = None
                    with self._memory:
                        self._refused.append(Refused(waiting.review, str(error)))
                except WorklistError:
                    with self._memory:
                        self._n_refused = len(self._waiting)
                    raise
                with self._memory:
                    self._waiting.popleft()
                    self._n_refused = max(0, self._n_refused - 1)
                    if written is not None:
                        self._written.append(written)
                        self._kept[written.slide] = written

    def _append(self, review: Review, *, last_chance: bool) -> Review:
        """Add a line to the file; the review with the time that it has there.

        Raises
        ------
        WorklistError
        """
        with self._memory:
            before = self._kept.get(review.slide)
        written = replace(review, time=_now(after=before.time if before is not None else ""))
        text = json.dumps({"format": FORMAT, "version": VERSION} | asdict(written), ensure_ascii=False)
        # Names of files need not be text; the reader takes them back this way.
        line = text.encode("utf-8", "surrogatepass") + b"\n"
        try:
            _append_line(self.beside, line)
            self.where = self.beside
        except OSError as error:
            read_only, not_ours = error.errno in _READ_ONLY, error.errno in _NOT_OURS
            if not (read_only or not_ours or last_chance):
                raise _unkept(review.slide, self.beside, error) from error
            try:
                self.fallback.parent.mkdir(parents=True, exist_ok=True)
                _append_line(self.fallback, line)
            except OSError as also:
                raise _unkept(review.slide, self.fallback, also) from error
            self.where = self.fallback
            if not_ours:
                self._elsewhere_because = (
                    f"has a link or something else that is no file by the name {REVIEW_NAME}"
                )
            else:
                self._elsewhere_because = (
                    "is read-only" if read_only else f"could not be written to ({_reason(error)})"
                )
        return written

    @property
    def note(self) -> str:
        """What the reviewer should know of where the verdicts are and what could not be read; else empty."""
        notes = list(self.problems)
        if self.where == self.fallback:
            notes.insert(
                0,
                f"{self.folder} {self._elsewhere_because}: verdicts are kept in {self.fallback} instead, on this "
                "computer and for this user alone.",
            )
        return " ".join(notes)


def _checked(waiting: _Waiting, *, last_chance: bool) -> Review:
    """What to write of a review.

    Raises
    ------
    SlideChangedError
        Where its slide's file is another one.
    WorklistError
        Where that can't be looked at now.
    """
    review, check = waiting
    if check is None:
        return review
    try:
        return check(review)
    except SlideAwayError as error:
        if last_chance:
            return review
        raise WorklistError(f"the verdict on {review.slide} is not kept yet: {error}") from error


def _now(*, after: str) -> str:
    """The time, in UTC; where the clock has been set back, 1 ms after another one, for between files the later counts."""
    now = _written_time(datetime.now(UTC))
    if now <= after:
        with suppress(ValueError, OverflowError):  # whatever stands in a line
            now = _written_time(datetime.fromisoformat(after).astimezone(UTC) + timedelta(milliseconds=1))
    return now


def _written_time(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _read(path: Path, problems: list[str]) -> Iterator[Review]:
    """The lines of a file; those left out are named in `problems`."""
    try:
        lines = read_file(path).split(b"\n")
    except (FileNotFoundError, NotADirectoryError):  # also for want of a home
        return
    except OSError as error:
        raise WorklistError(f"{path} can't be read ({error.strerror})") from error
    for number, raw in enumerate(lines, start=1):
        if not raw.strip():
            continue
        try:
            yield _parsed(raw)
        except (ValueError, LookupError, TypeError) as error:
            torn = "was cut off" if number == len(lines) else "can't be read"
            reason = str(error) if isinstance(error, _NewerLineError) else torn
            problems.append(f"{path.name}: line {number} {reason} and is left out.")


class _NewerLineError(ValueError):
    """A line of a version that isn't known yet."""


def _parsed(raw: bytes) -> Review:
    line: dict[str, object] = parse_json(raw)
    if line["format"] != FORMAT:
        raise ValueError("something else")
    version = line["version"]
    if not isinstance(version, int):
        raise TypeError("no version")
    if version > VERSION:
        raise _NewerLineError(f"has version {version}, newer than this program's {VERSION},")
    verdict = next((known for known in VERDICTS if known == line["verdict"]), None)
    if verdict is None and line["verdict"] is not None:
        raise ValueError("no verdict")
    return Review(
        slide=_text(line["slide"]),
        verdict=verdict,
        note=_text(line.get("note", "")),
        label_shown=_text_or_none(line.get("label_shown")),
        bundle_sha256=_text_or_none(line.get("bundle_sha256")),
        fingerprint=_text_or_none(line.get("fingerprint")),
        reviewer=_text(line.get("reviewer", "")),
        time=_text(line.get("time", "")),
        set_shown=_texts_or_none(line.get("set_shown")),
        unsure_shown=_bool_or_none(line.get("unsure_shown")),
        unlike_training_shown=_bool_or_none(line.get("unlike_training_shown")),
        answer_shown=_text_or_none(line.get("answer_shown", line.get("label_shown"))),
        revealed_label=_text_or_none(line.get("revealed_label")),
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("no text")
    return value


def _text_or_none(value: object) -> str | None:
    return None if value is None else _text(value)


def _texts_or_none(value: object) -> tuple[str, ...] | None:
    if value is not None and not isinstance(value, list):
        raise TypeError("no list")
    return None if value is None else tuple(_text(each) for each in value)


def _bool_or_none(value: object) -> bool | None:
    if value is not None and not isinstance(value, bool):
        raise TypeError("neither true nor false")
    return value


def _append_line(path: Path, line: bytes) -> None:
    """Add a line in one write under a lock, and wait for the disk."""
    new = not path.exists()
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
    # A folder from somebody else may hold a link by this name that leads to a file of the user's; a pipe would wait.
    handle = os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o666)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "it is no file", str(path))
        with _locked(handle):
            end = os.lseek(handle, 0, os.SEEK_END)
            if end:
                # A program killed while it wrote may have left half a line.
                os.lseek(handle, end - 1, os.SEEK_SET)
                if os.read(handle, 1) != b"\n":
                    line = b"\n" + line
            written = os.write(handle, line)
            if written != len(line):
                os.ftruncate(handle, end)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(handle)
    finally:
        os.close(handle)
    if new and os.name == "posix":
        # The name of a new file is on the disk only once its folder is.
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextmanager
def _locked(handle: int) -> Iterator[None]:
    """The file for this program alone; some network drives know no locks, there one write must do."""
    until = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            held = _lock(handle)
            break
        except BlockingIOError as error:
            if time.monotonic() > until:
                raise OSError(errno.EBUSY, "another program holds it") from error
            time.sleep(0.01)
    try:
        yield
    finally:
        if held:
            _unlock(handle)


if sys.platform == "win32":
    import msvcrt

    _LOCKED_BYTE = 2**30

    def _lock(handle: int) -> bool:
        os.lseek(handle, _LOCKED_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except PermissionError as error:
            raise BlockingIOError from error
        return True

    def _unlock(handle: int) -> None:
        os.lseek(handle, _LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(handle, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _lock(handle: int) -> bool:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
                return False
            raise
        return True

    def _unlock(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_UN)


def _fallback(folder: Path) -> Path:
    root = user_folder("data")
    key = hashlib.sha256(str(folder.resolve()).encode("utf-8", "surrogateescape")).hexdigest()
    return root / "reviews" / f"{key[:32]}.jsonl"


def _unkept(slide: str, path: Path, error: OSError) -> WorklistError:
    cure = (
        "Close the other program."
        if error.errno == errno.EBUSY
        else "Free some space or make the folder writable."
    )
    return WorklistError(f"the verdict on {slide} could not be kept in {path} ({_reason(error)}). {cure}")


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


_open_files: WeakValueDictionary[Path, ReviewFile] = WeakValueDictionary()
_open_lock = threading.Lock()
