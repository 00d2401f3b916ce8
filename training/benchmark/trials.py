"""Each row tried in a process of its own, so that one that fails, or runs out of memory, is listed and the rest go on."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from napari_lrmil.atomic import write_text
from training.benchmark.rows import Row, inline
from training.config import RunConfig
from training.hashing import content_hash
from training.progress import Reporter

_LINES = 12
"""Of what a failed process said last."""
_KIBIBYTE = 1024


class Trial(BaseModel):
    """How it went."""

    model_config = ConfigDict(frozen=True)

    state: Literal["done", "failed"]
    key: str
    """Hash of config and row: what is done stays done as long as it is the same."""
    seconds: float
    """Of the process that did it, from start to end; what other rows had done before isn't in it."""
    peak_bytes: int | None
    """Most memory that it held; None where the system doesn't say."""
    error: str = ""


class Trials:
    """What is known of the rows of a benchmark, in ``<run>/benchmark``.

    Parameters
    ----------
    folder : Path
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / "trials.json"
        self._of: dict[str, Trial] = {}
        # None yet, or of another version: rows are tried again, and what is finished of them is skipped.
        with suppress(FileNotFoundError, ValidationError):
            self._of = TypeAdapter(dict[str, Trial]).validate_json(self._path.read_bytes())

    def get(self, row: Row, config: RunConfig) -> Trial | None:
        """Return how a row went with this config; None where it wasn't tried."""
        trial = self._of.get(row.key)
        return trial if trial is not None and trial.key == _key(row, config) else None

    def note(self, row: Row, trial: Trial) -> None:
        """Keep how a row went."""
        self._of[row.key] = trial
        self.folder.mkdir(parents=True, exist_ok=True)
        text = TypeAdapter(dict[str, Trial]).dump_json(self._of, indent=2).decode()
        write_text(self._path, text + "\n")


def try_rows(
    rows: Sequence[Row], config: RunConfig, words: Sequence[str], trials: Trials, reporter: Reporter
) -> None:
    """Try each row that isn't done; those that failed before are tried again.

    Parameters
    ----------
    rows : sequence of Row
    config : RunConfig
        As loaded, for the hash.
    words : sequence of str
        Config file and overrides, as ``python -m training.run`` takes them.
    trials : Trials
    reporter : Reporter
    """
    for number, row in enumerate(rows, start=1):
        before = trials.get(row, config)
        if before is not None and before.state == "done":
            reporter.say(f"[dim]{number}/{len(rows)} {row.key}: done before[/]")
            continue
        reporter.say(f"{number}/{len(rows)} {row.key} ...")
        log = trials.folder / "logs" / f"{row.key}.txt"
        trial = run_process(
            [*words, "--compare", inline([row.entry]), "--evaluate.shortcuts", "[]"], log, _key(row, config)
        )
        trials.note(row, trial)
        if trial.state == "failed":
            reporter.say(f"[yellow]{row.key} failed[/], see {log}: {trial.error.splitlines()[-1]}")


def run_process(words: Sequence[str], log: Path, key: str) -> Trial:
    """Run ``python -m training.run`` to its end, its words in a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "training.run", *words], stdout=file, stderr=subprocess.STDOUT
        )
        try:
            status, peak = _wait(process)
        except BaseException:
            process.terminate()
            process.wait()
            raise
    seconds = time.monotonic() - started
    if status == 0:
        return Trial(state="done", key=key, seconds=seconds, peak_bytes=peak)
    said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-_LINES:]
    what = f"killed by signal {-status}" if status < 0 else f"exit {status}"
    error = "\n".join([*said, what] if status < 0 or not said else said)
    return Trial(state="failed", key=key, seconds=seconds, peak_bytes=peak, error=error)


def _wait(process: subprocess.Popen[bytes]) -> tuple[int, int | None]:
    """Return how a process ended, negative for a signal, and the most memory that it held."""
    if not hasattr(os, "wait4"):
        return process.wait(), None
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)  # it is gone: nobody may wait for it again
    scale = 1 if sys.platform == "darwin" else _KIBIBYTE
    return process.returncode, usage.ru_maxrss * scale


def _key(row: Row, config: RunConfig) -> str:
    return content_hash(config.model_dump_json(exclude={"compare"}), sorted(row.entry.items(), key=str))
