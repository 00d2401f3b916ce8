"""The errors a user can meet. Each message says what is wrong and what cures it."""

from __future__ import annotations

import errno
import re
from pathlib import Path

from pydantic_core import ValidationError

_LONGEST_REASON = 400
_NOT_READABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


class LRMILError(Exception):
    """Base of every error that the CLI and the viewer show as a message instead of a traceback."""


def readable(text: str) -> str:
    """Return a text that every file and screen takes, with a replacement character for what they don't.

    Names of files needn't be text: bytes that are no UTF-8 are in them, and characters that move a terminal's cursor.
    """
    return _NOT_READABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def is_one_line(text: str) -> bool:
    """Whether a text is one line without characters that no file or screen takes."""
    return _NOT_READABLE.search(text) is None and not {"\n", "\t"} & set(text)


def shortened(text: str) -> str:
    """Return a text on one line, cut where it is longer than anybody reads."""
    text = " ".join(readable(text).split())
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]} ..."


def reason_of(error: BaseException) -> str:
    """Return what went wrong in words for people, on one line: also of what libraries raise.

    Parameters
    ----------
    error : BaseException
    """
    if isinstance(error, LRMILError):
        return str(error)
    if isinstance(error, MemoryError):
        return "the memory ran out"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, ValidationError):
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"]))
        return shortened(f"{place}: {fault['msg']}" if place else fault["msg"])
    if isinstance(error, OverflowError):
        return "a number in it is too large, or below what may stand there"
    if isinstance(error, KeyError) and error.args:
        return f"it has no {shortened(str(error.args[0]))}"
    # Decoders speak in paragraphs, or not at all.
    return shortened(str(error)) or "it is damaged"


def refuse_pipe(path: Path) -> None:
    """Refuse what is neither a file nor a folder: reading a named pipe waits for ever.

    Raises
    ------
    OSError
        As opening it would, if it couldn't be read.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EINVAL, "it is a pipe or a device, not a file", str(path))


class SlideError(LRMILError):
    """A slide can't be opened or read."""


class SlideChangedError(SlideError):
    """The files of a slide are no longer those that were opened."""


class SlideAwayError(SlideChangedError):
    """The files of a slide can't be reached: they were taken away, or the disk or share that they are on."""


class UnknownMppError(SlideError):
    """A slide doesn't say how many micrometres a pixel measures, and nobody else did."""


class NoTissueError(SlideError):
    """No tile of the slide holds enough tissue."""


class BundleError(LRMILError):
    """A model bundle is missing, damaged, or of a version this program can't read."""


class EncoderError(LRMILError):
    """An encoder can't be built, or doesn't fit the tiles it is given."""


class DeviceError(LRMILError):
    """The wanted compute device isn't there."""


class TableError(LRMILError):
    """A CSV can't be read, or what stands in it is wrong: every line of the file that is."""


class WorklistError(LRMILError):
    """A folder or slide table can't be listed, or a verdict can't be kept."""


class ConfigError(LRMILError):
    """A training configuration or slide table is wrong."""
