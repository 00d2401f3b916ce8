"""A signal that asks a run to end soon: SIGTERM, or SIGUSR1 as a scheduler's notice before its time is over.

Outside of a training it ends the run at once: what is written is written whole. Within one it waits for the end of the
step, whose state is kept. Signals belong to the process, and so does what is noted here.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from napari_lrmil.terminal import handling_signals

RESUMABLE = 75
"""Exit status of a run that ended on notice: the same command goes on. (EX_TEMPFAIL of sysexits.h: try again.)"""

_SIGNALS = ("SIGTERM", "SIGUSR1")


class Noticed(KeyboardInterrupt):
    """The process was asked to end; no error, so that nothing that handles errors takes it for one."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    @property
    def name(self) -> str:
        """Of the signal."""
        return signal.Signals(self.number).name


class _Heard:
    """What has come."""

    number: int | None = None
    waits = False


_heard = _Heard()


@contextmanager
def heard() -> Iterator[None]:
    """Within the block the signals raise `Noticed`: at once, or in a `deferred` block when that asks.

    Those that the process was told to ignore, as by nohup, stay ignored; in another thread than the main one nothing changes.
    """
    listens = False
    try:
        with handling_signals(_SIGNALS, _hear, unhandled=True) as listens:
            yield
    finally:
        if listens:
            _heard.number = None


@contextmanager
def deferred() -> Iterator[None]:
    """Within the block a signal is only noted, see `came`; one that nobody has obeyed is at the end of it."""
    before, _heard.waits = _heard.waits, True
    try:
        yield
    finally:
        _heard.waits = before
    if not before:
        obey()


@contextmanager
def at_once() -> Iterator[None]:
    """Within the block, which lies in a `deferred` one, a signal ends the work as it does outside."""
    before, _heard.waits = _heard.waits, False
    try:
        obey()
        yield
    finally:
        _heard.waits = before


def came() -> bool:
    """Whether a signal has come."""
    return _heard.number is not None


def obey() -> None:
    """End the work where a signal has come.

    Raises
    ------
    Noticed
    """
    if _heard.number is not None:
        raise Noticed(_heard.number)


def obey_any() -> NoReturn:
    """End the work: a signal has come, to this process or to another one of the run.

    Raises
    ------
    Noticed
    """
    raise Noticed(signal.SIGTERM if _heard.number is None else _heard.number)


def _hear(number: int, _: FrameType | None) -> None:
    _heard.number = number
    if not _heard.waits:
        raise Noticed(number)
