"""Work behind the window in real threads: each job ends with exactly one report, whatever happens to it."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from real_windows import LONG_MS

from napari_lrmil._viewer.background import Steps, error_text, in_one_step, is_foreseen
from napari_lrmil._viewer.qt.background import QtBackground
from napari_lrmil.errors import SlideError


class Reports(list[tuple[str, object]]):
    """What a job has told, in order."""

    def of(self, job: str) -> dict[str, Any]:
        """The arguments of `Background.start` that note what job `job` tells."""
        return {
            "done": lambda result: self.append((f"{job} done", result)),
            "failed": lambda text: self.append((f"{job} failed", text)),
            "progressed": lambda step: self.append((f"{job} progressed", step)),
            "cancelled": lambda: self.append((f"{job} cancelled", None)),
        }


@pytest.fixture
def background(qapp: Any) -> Iterator[QtBackground]:
    made = QtBackground()
    yield made
    made.shutdown()


@pytest.fixture
def reports() -> Reports:
    return Reports()


class Held:
    """Steps that wait at each for the test to let them go on, and note that they were closed."""

    def __init__(self) -> None:
        self.reached, self.go_on = threading.Semaphore(0), threading.Semaphore(0)
        self.closed_in = ""

    def steps(self, count: int = 2) -> Steps[int, str]:
        try:
            for n in range(count):
                yield n
                self.reached.release()
                assert self.go_on.acquire(timeout=LONG_MS / 1000)
        finally:
            self.closed_in = threading.current_thread().name
        return "result"


def test_progress_then_the_result(background: QtBackground, reports: Reports, qtbot: Any) -> None:
    held = Held()
    held.go_on.release(2)
    background.start("read", held.steps(), **reports.of("a"))
    assert background.running("read")
    qtbot.waitUntil(lambda: len(reports) == 3, timeout=LONG_MS)
    assert reports == [("a progressed", 0), ("a progressed", 1), ("a done", "result")]
    assert not background.running("read")


def test_cancelling_ends_the_steps_in_their_thread_and_is_told(
    background: QtBackground, reports: Reports, qtbot: Any
) -> None:
    held = Held()
    background.start("read", held.steps(), **reports.of("a"))
    assert held.reached.acquire(timeout=LONG_MS / 1000)
    background.cancel("read")
    held.go_on.release()
    qtbot.waitUntil(lambda: ("a cancelled", None) in reports, timeout=LONG_MS)
    assert [what for what, _ in reports if what != "a progressed"] == ["a cancelled"]
    assert held.closed_in not in ("", threading.current_thread().name)


def test_a_job_whose_place_was_taken_still_reports_its_end_and_no_progress(
    background: QtBackground, reports: Reports, qtbot: Any
) -> None:
    old, new = Held(), Held()
    background.start("read", old.steps(), **reports.of("old"))
    assert old.reached.acquire(timeout=LONG_MS / 1000)
    qtbot.waitUntil(lambda: bool(reports), timeout=LONG_MS)
    background.start("read", new.steps(), **reports.of("new"))
    old.go_on.release(2)
    qtbot.waitUntil(lambda: ("old cancelled", None) in reports, timeout=LONG_MS)
    assert background.running("read")
    new.go_on.release(2)
    qtbot.waitUntil(lambda: ("new done", "result") in reports, timeout=LONG_MS)
    assert [what for what, _ in reports if what.startswith("old")] == ["old progressed", "old cancelled"]


def test_a_job_cancelled_before_it_began_is_not_run(
    background: QtBackground, reports: Reports, qtbot: Any
) -> None:
    ran: list[bool] = []
    background.start("write", in_one_step(lambda: ran.append(True)), **reports.of("a"))
    background.cancel("write")
    qtbot.waitUntil(lambda: any(what in ("a cancelled", "a done") for what, _ in reports), timeout=LONG_MS)
    ends = [what for what, _ in reports if what != "a progressed"]
    assert ends == (["a done"] if ran else ["a cancelled"])


def test_what_is_foreseen_is_told_in_its_own_words(
    background: QtBackground, reports: Reports, qtbot: Any
) -> None:
    def broken() -> None:
        raise SlideError("the slide is damaged")

    background.start("read", in_one_step(broken), **reports.of("a"))
    qtbot.waitUntil(lambda: ("a failed", "the slide is damaged") in reports, timeout=LONG_MS)


def test_a_fault_of_the_program_is_told_and_its_traceback_is_not_lost(
    background: QtBackground, reports: Reports, qtbot: Any
) -> None:
    def broken() -> None:
        raise ValueError("7 is no colour")

    with qtbot.capture_exceptions() as raised:
        background.start("read", in_one_step(broken), **reports.of("a"))
        qtbot.waitUntil(lambda: bool(raised), timeout=LONG_MS)
    assert reports[-1] == ("a failed", "Something unexpected went wrong: ValueError: 7 is no colour")
    assert raised[0][0] is ValueError


def test_nobody_is_told_after_the_end(background: QtBackground, reports: Reports, qtbot: Any) -> None:
    held = Held()
    background.start("read", held.steps(), **reports.of("a"))
    assert held.reached.acquire(timeout=LONG_MS / 1000)
    held.go_on.release(2)
    background.shutdown()
    assert held.closed_in
    background.start("read", held.steps(), **reports.of("b"))
    other, later = QtBackground(), Reports()
    other.start("read", in_one_step(lambda: None), **later.of("other"))
    qtbot.waitUntil(lambda: ("other done", None) in later, timeout=LONG_MS)
    other.shutdown()
    assert [what for what, _ in reports if what != "a progressed"] == []


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "no space"), "The disk is full"),
        (PermissionError(errno.EACCES, "no"), "can't be written to"),
        (FileNotFoundError(errno.ENOENT, "no"), "no longer there"),
        (OSError(errno.EIO, "broken"), "broken"),
        (MemoryError(), "The memory ran out"),
        (SlideError("damaged"), "damaged"),
    ],
)
def test_errors_that_say_enough_by_themselves(error: Exception, words: str) -> None:
    assert words in error_text(error)
    assert is_foreseen(error)


def test_a_short_job_waits_for_no_long_ones(background: QtBackground, qtbot: Any) -> None:
    """Classifying takes hours; verdicts are written meanwhile, however few cores there are."""
    go_on, done = threading.Event(), list[str]()
    for number in range(2 * (os.cpu_count() or 1)):
        background.start(f"long {number}", in_one_step(lambda: go_on.wait(60)))
    background.start("short", in_one_step(lambda: "written"), done=done.append)
    qtbot.waitUntil(lambda: done == ["written"], timeout=LONG_MS)
    assert not go_on.is_set()
    go_on.set()


ENDING = """
import atexit
import sys
import threading
import time

from qtpy.QtCore import QCoreApplication, QTimer

from napari_lrmil._viewer.qt import background

begun, ended = threading.Event(), threading.Event()


def run(worker):
    tell(worker)
    assert ended.wait(60)
    time.sleep(0.2)  # as on a busy machine: the job is over, its thread has yet to go
    print("left", flush=True)


tell = background._Worker.run
background._Worker.run = run


def steps():
    print("begun", flush=True)
    begun.set()
    while True:
        yield
        time.sleep(0.01)


app = QCoreApplication([])
atexit.register(lambda: print(background.thread_pool().activeThreadCount(), flush=True))  # the first is called last
jobs = background.QtBackground()
jobs.start("job", steps())
if sys.argv[1] == "shut down":
    app.aboutToQuit.connect(jobs.shutdown)
if sys.argv[1] == "no loop":
    assert begun.wait(60)
else:
    looking = QTimer()
    looking.timeout.connect(lambda: begun.is_set() and app.quit())
    looking.start(20)
    app.exec_() if hasattr(app, "exec_") else app.exec()
print("ended", flush=True)
ended.set()
"""


@pytest.mark.parametrize("way", ["shut down", "left running", "no loop"])
def test_threads_end_before_the_interpreter(way: str) -> None:
    """One that is still at its end while Python is taken down would crash the program."""
    done = subprocess.run(
        [sys.executable, "-c", ENDING, way], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.split() == ["begun", "ended", "left", "0"], done.stderr
    assert done.returncode == 0
