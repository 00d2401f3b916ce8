"""A window where HOME is nothing that can be written: real processes of a user that no list of users knows."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from made_slides import write_slide
from tiny_models import tiny_spec, write_bundle

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="users of Linux")
ROOT = Path(__file__).resolve().parents[2]
AS_NOBODY = ("setpriv", "--reuid", "54321", "--regid", "54321", "--clear-groups")

WINDOW = """
import sys
import time
from pathlib import Path

import napari
from napari.utils.notifications import notification_manager
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QApplication, QMessageBox

from napari_lrmil._viewer.docks.docked import dock_widget
from napari_lrmil._viewer.docks.worklist.widget import worklist_dock

folder, bundle, who_closes = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
viewer = napari.Viewer()
main, worklist = dock_widget(viewer), worklist_dock(viewer)
notification_manager.notification_ready.connect(lambda note: print("notice:", note.message, flush=True))


def wait(so):
    started = time.monotonic()
    while not so():
        assert time.monotonic() - started < 100
        QApplication.processEvents()
        time.sleep(0.01)


worklist.presenter.open_list(folder)
main.controller.load_bundle(bundle)
wait(lambda: main.controller.bundle is not None and worklist.model.rowCount() == 1)
worklist.presenter.open_slide(folder / "s0.tiff")
wait(lambda: main.controller.slide is not None)
main.controller.classify()
wait(lambda: main.controller.result is not None)
print("label:", main.controller.result.label, flush=True)
worklist.presenter.judge("agree")
wait(lambda: worklist.error.text() or (folder / "lrmil-review.jsonl").exists())
print("verdict:", worklist.error.text() or "kept", flush=True)

if who_closes == "a script":
    viewer.close()
else:

    def look():
        box = QApplication.activeModalWidget()
        if isinstance(box, QMessageBox):
            print("message:", " ".join(box.text().split()), flush=True)
            box.accept()

    looking = QTimer()
    looking.timeout.connect(look)
    looking.start(20)
    QTimer.singleShot(0, viewer.window._qt_window.close)
    napari.run()
print("closed", flush=True)
"""


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that everybody can write to, with a slide and a bundle."""
    for name in [name for name in os.environ if name.startswith(("XDG_", "LRMIL_", "HF_"))]:
        monkeypatch.delenv(name)
    if subprocess.run([*AS_NOBODY, sys.executable, "-c", ""], capture_output=True, check=False).returncode:
        pytest.skip("another user can't run Python here")
    with tempfile.TemporaryDirectory() as temporary:
        target = Path(temporary)
        for folder in (target, target / "slides", target / "work", target / "cache"):
            folder.mkdir(exist_ok=True)
            folder.chmod(0o777)
        for home, mode in (("read-only", 0o555), ("another user's", 0o700)):
            (target / home).mkdir()
            (target / home).chmod(mode)
        write_slide(target / "slides" / "s0.tiff", size_xy=(1024, 768)).chmod(0o444)
        write_bundle(target / "bundle", tiny_spec(), tile_px=32)
        yield target


def in_a_window(place: Path, home: str, who_closes: str, **more: str) -> dict[str, list[str]]:
    """What a window says, by kind. What napari itself needs, a folder for its cache and no file of settings, it has."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "HOME": home,
        "NAPARI_CONFIG": "",
    }
    environment |= {"XDG_CACHE_HOME": str(place / "cache"), "MPLCONFIGDIR": str(place / "cache")} | more
    if "XAUTHORITY" in os.environ:  # of a display that was made for the tests' user alone
        environment["XAUTHORITY"] = str(shutil.copy(os.environ["XAUTHORITY"], place / "xauthority"))
        (place / "xauthority").chmod(0o444)
    done = subprocess.run(
        [*AS_NOBODY, sys.executable, "-c", WINDOW, str(place / "slides"), str(place / "bundle"), who_closes],
        cwd=place / "work",
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    said: dict[str, list[str]] = {"stderr": [done.stderr]}
    for line in done.stdout.splitlines():
        kind, _, text = line.partition(": ")
        said.setdefault(kind, []).append(text)
    assert said["label"] == ["lesion"] or said["label"] == ["benign"]
    assert "closed" in said
    assert not list((place / "work").iterdir())  # no folder named ~
    return said


@pytest.mark.parametrize(
    "home",
    [
        "/dev/null",
        pytest.param("/nonexistent/home", marks=pytest.mark.slow),
        pytest.param("read-only", marks=pytest.mark.slow),
        pytest.param("another user's", marks=pytest.mark.slow),
    ],
)
def test_a_window_without_a_home_keeps_verdicts_beside_the_slides(home: str, place: Path) -> None:
    """And says that results can't be kept, where the cache has no place either."""
    said = in_a_window(
        place,
        home if home.startswith("/") else str(place / home),
        "a user",
        LRMIL_CACHE_DIR=str(place / "read-only" / "cache"),
    )
    assert said["verdict"] == ["kept"]
    (line,) = (place / "slides" / "lrmil-review.jsonl").read_text().splitlines()
    assert json.loads(line)["verdict"] == "agree"
    (notice,) = [text for text in said["notice"] if "PyQt5" not in text]
    assert "the result cache in" in notice
    assert "can't be written" in notice
    assert "message" not in said


@pytest.mark.parametrize("who_closes", ["a user", "a script"])
def test_a_verdict_that_can_be_kept_nowhere_is_told_until_the_end(who_closes: str, place: Path) -> None:
    (place / "slides").chmod(0o555)
    said = in_a_window(place, "/nonexistent/home", who_closes)
    (verdict,) = said["verdict"]
    assert "can't be" in verdict or "could not be kept" in verdict
    lost = "These verdicts are not saved: s0.tiff: agree"
    if who_closes == "a user":
        (message,) = said["message"]
        assert lost in message
    assert lost in " ".join(said["stderr"][0].split())
    assert [path.name for path in (place / "slides").iterdir()] == ["s0.tiff"]
