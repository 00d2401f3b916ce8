"""Work behind the window in real threads."""

from __future__ import annotations

import os
import threading
from typing import Any

from napari_lrmil._viewer.background import in_one_step
from napari_lrmil._viewer.qt.background import QtBackground


def test_a_short_job_waits_for_no_long_ones(qapp: Any, qtbot: Any) -> None:
    """Classifying takes hours; verdicts are written meanwhile, however few cores there are."""
    background, go_on, done = QtBackground(), threading.Event(), list[str]()
    for number in range(2 * (os.cpu_count() or 1)):
        background.start(f"long {number}", in_one_step(lambda: go_on.wait(60)))
    background.start("short", in_one_step(lambda: "written"), done=done.append)
    qtbot.waitUntil(lambda: done == ["written"], timeout=20_000)
    assert not go_on.is_set()
    go_on.set()
    background.shutdown()
