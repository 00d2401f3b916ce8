"""A slide that ends the program, hangs it or eats its memory does so in a helper process, and is an error here."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image
from slide_files import smooth_pixels, write_pyramid

from benchmarks.formats import write_mirax, write_vms
from benchmarks.fuzz.slide_formats import write_whole
from napari_lrmil.errors import SlideError
from napari_lrmil.slide import Slide, probe

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and limits of POSIX systems")


def helpers(pid: int | None = None) -> list[psutil.Process]:
    """The helper processes of a process that are alive."""
    return [each for each in psutil.Process(pid).children() if _is_live_helper(each)]


def _is_live_helper(process: psutil.Process) -> bool:
    try:
        ours = "napari_lrmil.slide.helper" in " ".join(process.cmdline())
        return ours and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, psutil.ZombieProcess):  # it ends while it is looked at
        return False


@pytest.fixture
def no_helper() -> Iterator[None]:
    """No helper runs when the test begins, nor any that it has misled when it ends."""
    probe.end_helpers()
    yield
    probe.end_helpers()


@pytest.fixture
def slide_path(tmp_path: Path) -> Path:
    return write_pyramid(tmp_path / "slide.tif", smooth_pixels(300, 200), [(300, 200), (150, 100)])


def mislead(monkeypatch: pytest.MonkeyPatch, folder: Path, library: str) -> None:
    """Have helpers that start from now on find this text as OpenSlide's module; this process has loaded its own."""
    import openslide

    assert openslide.OpenSlide
    (folder / "modules").mkdir()
    (folder / "modules" / "openslide.py").write_text(library, encoding="utf-8")
    monkeypatch.syspath_prepend(folder / "modules")


def test_a_mirax_slide_at_which_openslide_aborts_is_refused(tmp_path: Path) -> None:
    path = write_whole(write_mirax, tmp_path, image_height=2**31 - 1)
    said = r"^slide\.mrxs is damaged: it says that a level measures 768 x 8,589,934,588 px"
    with pytest.raises(SlideError, match=said):
        Slide(path)
    for part in [*(tmp_path / "slide").iterdir(), path]:
        part.unlink()
    (tmp_path / "slide").rmdir()
    with Slide(write_whole(write_mirax, tmp_path)) as slide:
        assert slide.level_dimensions_xy[0] == (768, 512)


@pytest.mark.parametrize(
    ("library", "limits", "text"),
    [
        ("import os; os.abort()", {}, "ended the program that tried to open it"),
        ("import os; os._exit(0)", {}, "ended the program that tried to open it"),
        ("while True: pass", {"CPU_S": 0.5}, "slide.tif took longer than 0.5 s to open"),
        ("import time; time.sleep(600)", {"WALL_S": 2.0}, "slide.tif took longer than 2 s to open"),
        ("bytearray(2**30)", {"MEMORY_BYTES": 2**29}, "slide.tif needs more than 0.5 GB to open"),
    ],
)
def test_what_dies_hangs_or_eats_memory_is_an_error(
    library: str,
    limits: dict[str, float],
    text: str,
    slide_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    no_helper: None,
) -> None:
    mislead(monkeypatch, tmp_path, library)
    for name, value in limits.items():
        monkeypatch.setattr(probe, name, value)
    with pytest.raises(SlideError, match=text):
        Slide(slide_path)
    if "GB" not in text:
        assert helpers() == []
    # The next slide, which needs no OpenSlide, has a helper again.
    monkeypatch.setattr(probe, "WALL_S", 60.0)
    Image.fromarray(smooth_pixels(40, 30)).save(tmp_path / "next.png")
    with Slide(tmp_path / "next.png") as slide:
        assert slide.read_region((0, 0), 0, (8, 8)).shape == (8, 8, 3)


def test_a_dying_label_image_is_an_error_of_that_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_helper: None
) -> None:
    path = write_whole(write_vms, tmp_path)
    with Slide(path) as slide:
        probe.end_helpers()
        mislead(monkeypatch, tmp_path, "import os; os.abort()")
        with pytest.raises(SlideError, match="ended the program"):
            slide.read_associated("macro")
        assert slide.read_region((0, 0), 0, (8, 8)).shape == (8, 8, 3)


@pytest.mark.parametrize(
    "content", [b"", b"II*\0", b"II*\0\x08\0\0\0\xff\xff", b"\x89PNG\r\n\x1a\n", b"no slide"]
)
def test_errors_have_the_same_words(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bad.tif"
    path.write_bytes(content)
    with pytest.raises(SlideError) as there:
        Slide(path)
    with probe.unprobed(), pytest.raises(SlideError) as here:
        Slide(path)
    assert str(there.value) == str(here.value)


def test_a_slide_is_probed_once_in_each_state(slide_path: Path, no_helper: None) -> None:
    Slide(slide_path).close()
    assert len(helpers()) == 1
    probe.end_helpers()
    Slide(slide_path).close()
    with Slide(slide_path) as slide, slide.in_colours(icc=True):
        pass
    assert helpers() == []
    os.utime(slide_path, ns=(1, 1))
    Slide(slide_path).close()
    assert len(helpers()) == 1


def test_threads_share_few_helpers(tmp_path: Path, no_helper: None) -> None:
    pixels = smooth_pixels(300, 200)
    paths = [write_pyramid(tmp_path / f"{number}.tif", pixels, [(300, 200)]) for number in range(24)]

    def read(path: Path) -> int:
        with Slide(path) as slide:
            assert len(helpers()) <= probe.MOST_HELPERS
            return int(slide.read_region((0, 0), 0, (300, 200)).sum())

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(read, paths))) == 1
    assert len(helpers()) == 1


@pytest.mark.parametrize("executable", ["", "/opt/qgis/bin/qgis"])
def test_without_an_interpreter_slides_open_unprobed(
    executable: str,
    slide_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    no_helper: None,
) -> None:
    monkeypatch.setattr(sys, "executable", executable)
    caplog.set_level("DEBUG", "napari_lrmil")
    with Slide(slide_path) as slide:
        assert slide.level_dimensions_xy[0] == (300, 200)
    assert helpers() == []
    assert "opened unprobed" in caplog.text


def test_a_helper_that_cannot_start_stops_nobody(
    slide_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_helper: None
) -> None:
    broken = tmp_path / "python3"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    Slide(slide_path).close()
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python-absent"))
    Slide(slide_path, backend="tiff").close()


# ---- its life


_OPEN_AND_SAY = """
import sys
from napari_lrmil.slide import Slide
slide = Slide(sys.argv[1])
print("open", flush=True)
sys.stdin.read()
"""


def opened_elsewhere(slide: Path) -> subprocess.Popen[str]:
    """A program that has opened a slide and waits for its input to end."""
    program = subprocess.Popen(
        [sys.executable, "-c", _OPEN_AND_SAY, str(slide)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )  # fmt: skip
    assert program.stdout is not None
    assert program.stdout.readline() == "open\n"
    return program


@pytest.mark.parametrize("how", ["its end", "SIGKILL", "SIGINT"])
def test_the_helper_goes_with_the_program(how: str, slide_path: Path) -> None:
    program = opened_elsewhere(slide_path)
    there = helpers(program.pid)
    assert len(there) == 1
    assert os.getsid(there[0].pid) != os.getsid(program.pid)  # out of reach of a terminal's Ctrl-C
    if how == "its end":
        _, noise = program.communicate(timeout=60)
        assert noise == ""
    else:
        program.send_signal(signal.Signals[how])
        program.communicate(timeout=60)
    gone, alive = psutil.wait_procs(there, timeout=30)
    assert gone
    assert not alive


_OPEN_IN_VAIN = """
import sys
from napari_lrmil.slide import Slide
print("begin", flush=True)
Slide(sys.argv[1])
"""


def test_a_helper_that_computes_goes_with_the_program(slide_path: Path, tmp_path: Path) -> None:
    (tmp_path / "openslide.py").write_text(
        f"open({str(tmp_path / 'busy')!r}, 'w').close()\nwhile True: pass\n", encoding="utf-8"
    )
    program = subprocess.Popen(
        [sys.executable, "-c", _OPEN_IN_VAIN, str(slide_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *(p for p in sys.path if p)])},
    )
    until = time.monotonic() + 60
    while not (tmp_path / "busy").exists():
        assert time.monotonic() < until
        time.sleep(0.02)
    there = helpers(program.pid)
    program.kill()
    program.wait()
    _, alive = psutil.wait_procs(there, timeout=15)  # far less than the helper may compute
    assert there
    assert not alive


_UNPICKLE = """
import pickle, sys
slide = pickle.load(sys.stdin.buffer)
import psutil
print(slide.read_region((0, 0), 0, (8, 8)).sum(), len(psutil.Process().children()))
"""


def test_a_copy_in_another_process_is_not_probed_again(slide_path: Path) -> None:
    with Slide(slide_path) as slide:
        sum_here = slide.read_region((0, 0), 0, (8, 8)).astype(np.int64).sum()
        said = subprocess.run(
            [sys.executable, "-c", _UNPICKLE],
            input=pickle.dumps(slide),
            capture_output=True,
            check=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )
    assert said.stdout.decode().split() == [str(sum_here), "0"]


_FORK = """
import os, sys
from napari_lrmil.slide import Slide, probe
Slide(sys.argv[1]).close()
pid = os.fork()
if pid == 0:
    Slide(sys.argv[2]).close()  # by a helper of its own
    probe.end_helpers()
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
Slide(sys.argv[3]).close()
print("fine")
"""


def test_a_fork_has_helpers_of_its_own(slide_path: Path, tmp_path: Path) -> None:
    others = [
        write_pyramid(tmp_path / name, smooth_pixels(200, 200), [(200, 200)]) for name in ("a.tif", "b.tif")
    ]
    said = subprocess.run(
        [sys.executable, "-W", "error", "-c", _FORK, str(slide_path), *map(str, others)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert (said.stdout, said.stderr) == ("fine\n", "")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no names that aren't text")
def test_names_that_are_no_text(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/sl\xffide.tif"))
    write_pyramid(path, smooth_pixels(200, 200), [(200, 200)])
    with Slide(path) as slide:
        assert slide.level_dimensions_xy == ((200, 200),)
