"""Who is at work in a run directory: several processes may be, each at a step of its own.

A lock is one of the system's on a file in ``.locks``: it is free again when its process ends, however that ends. Beside it
stands who holds it, for whoever waits.
"""

from __future__ import annotations

import json
import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from rich.markup import escape

from napari_lrmil.atomic import fitting_name, write_text
from napari_lrmil.errors import ConfigError
from training.files import read_json_object
from training.progress import Reporter

_POLL_S = 0.5
_GATE_S = 60.0
"""The gate is held for moments."""


class Locks:
    """The locks of a run directory.

    Parameters
    ----------
    root : Path
        The run directory.
    reporter : Reporter
    """

    def __init__(self, root: Path, reporter: Reporter) -> None:
        self._root, self._reporter = root, reporter

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Hold a step within the block; where another process holds it, say who and wait.

        Parameters
        ----------
        name : str
            As its marker's.

        Raises
        ------
        ConfigError
            Where the file system has no locks.
        """
        path = self._path(name)
        with _held(path, wait=False) as mine:
            if mine:
                _sign(path)
                yield
                return
        self._reporter.say(f"{name} is being done by {escape(self.who(name))}: waiting for that")
        with _held(path, wait=True):
            _sign(path)
            yield

    def is_held(self, name: str) -> bool:
        """Whether another process holds a step."""
        path = self._path(name)
        if not path.exists():
            return False
        with _held(path, wait=False) as mine:
            return not mine

    def who(self, name: str) -> str:
        """Return who holds a step, or did so last."""
        return _signature(self._path(name))

    @contextmanager
    def at_work(self, config_key: str) -> Iterator[None]:
        """Be at work in the directory within the block, beside others with the same config.

        Raises
        ------
        ConfigError
            Where somebody works with another config.
        """
        folder = self._root / ".locks" / "at_work"
        mine = folder / f"{fitting_name(socket.gethostname())}-{os.getpid()}-{uuid.uuid4().hex[:8]}.lock"
        # Earlier versions hold this one as long as they are at work.
        with _held(self._root / ".lock", wait=True, timeout_s=_GATE_S) as passed:
            if not passed:
                raise self._busy("a run of an earlier version")
            for path in sorted(folder.glob("*.lock")) if folder.is_dir() else ():
                with _held(path, wait=False) as gone:
                    there = read_json_object(path.with_suffix(".json"))
                if gone:
                    path.unlink(missing_ok=True)
                    path.with_suffix(".json").unlink(missing_ok=True)
                elif there is None or there.get("config") != config_key:
                    raise self._busy(_signature(path))
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(mine)
            lock.acquire()
            _sign(mine, config=config_key)
        try:
            yield
        finally:
            lock.release()
            for path in (mine, mine.with_suffix(".json")):
                path.unlink(missing_ok=True)

    def _busy(self, who: str) -> ConfigError:
        return ConfigError(
            f"another run is working in {self._root} with another config ({who}). Wait for it, stop it, or take another "
            "run.out_dir."
        )

    def _path(self, name: str) -> Path:
        return self._root / ".locks" / f"{fitting_name(name.replace('/', '-'))}.lock"


@contextmanager
def _held(path: Path, *, wait: bool, timeout_s: float = -1) -> Iterator[bool]:
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=timeout_s if wait else 0, poll_interval=_POLL_S)
    except Timeout:
        yield False
        return
    except NotImplementedError as error:
        raise ConfigError(
            f"the file system of {path.parent} has no file locks, by which runs side by side are kept apart: have it mounted "
            "with them (of Lustre, the option flock), or take a run.out_dir elsewhere"
        ) from error
    try:
        yield True
    finally:
        lock.release()


def _sign(path: Path, **more: str) -> None:
    job = os.environ.get("SLURM_JOB_ID", "")
    who = {"host": socket.gethostname(), "process": os.getpid()} | ({"job": job} if job else {}) | more
    with suppress(OSError):  # it only helps who waits
        write_text(path.with_suffix(".json"), json.dumps(who) + "\n")


def _signature(path: Path) -> str:
    who = read_json_object(path.with_suffix(".json"))
    if who is None:
        return "another process"
    job = f", SLURM job {who['job']}" if "job" in who else ""
    return f"process {who.get('process')} on {who.get('host')}{job}"
