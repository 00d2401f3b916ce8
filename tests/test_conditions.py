"""What the machine does to a program: pipes where files are meant, full and read-only disks, no home, other processes, clocks."""

from __future__ import annotations

import csv
import errno
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime, tzinfo
from pathlib import Path

import pytest
import torch

from napari_lrmil._viewer.background import error_text
from napari_lrmil.cache import ResultCache, summarise
from napari_lrmil.errors import LRMILError, TableError, WorklistError
from napari_lrmil.export.geojson import read_annotations
from napari_lrmil.export.images import write_heatmap_png
from napari_lrmil.export.result import read_prediction, write_prediction
from napari_lrmil.export.slide_report import write_slide_report
from napari_lrmil.export.tables import FolderRow, write_folder_table
from napari_lrmil.model.bundle import load_bundle
from napari_lrmil.predict import predict_slide, run_to_end
from napari_lrmil.slide import Slide
from napari_lrmil.table import read_table_file
from napari_lrmil.worklist import ReviewFile, Saved, Worklist, reviews
from training.config import load_config
from training.import_features.files import read_features

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="mounts and pipes of Linux")
ROOT = Path(__file__).resolve().parents[1]
PROGRAM = ("-m", "napari_lrmil", "predict")


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mount a small file system of its own; again with other options it is that one changed."""
    places: list[Path] = []

    def mount(name: str, options: str) -> Path:
        place = tmp_path / name
        place.mkdir(exist_ok=True)
        again = "remount," if place in places else ""
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", again + options, "tmpfs", str(place)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        if place not in places:
            places.append(place)
        return place

    yield mount
    for place in places:
        subprocess.run(["umount", "-l", str(place)], capture_output=True, check=False)


def lrmil(*words: object, cache: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """`lrmil predict` as a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "300", "OMP_NUM_THREADS": "1"}
    environment |= {"LRMIL_CACHE_DIR": str(cache)} | more
    return subprocess.run(
        [sys.executable, *PROGRAM, *map(str, words), "--device", "cpu"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def slides(cohort: Path, tmp_path: Path) -> Path:
    """A folder of four slides."""
    folder = tmp_path / "slides"
    folder.mkdir()
    for path in sorted((cohort.parent / "slides").iterdir())[:4]:
        shutil.copy(path, folder)
    return folder


def test_a_named_pipe_is_refused_wherever_a_file_is_meant(tmp_path: Path) -> None:
    """Opened, it would wait for ever for somebody who writes."""

    def pipe(name: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        os.mkfifo(path)
        return path

    readers: dict[str, tuple[Callable[[Path], object], type[LRMILError]]] = {
        "slides.csv": (lambda path: read_table_file(path, needed=("path",)), TableError),
        "worklist.csv": (Worklist.open, WorklistError),
        "config.toml": (lambda path: load_config(path, []), LRMILError),
        "a.geojson": (
            lambda path: read_annotations(path, bounds_l0_xywh=(0, 0, 9, 9), left_out=print),
            LRMILError,
        ),
        "s.h5": (read_features, LRMILError),
        "result.json": (read_prediction, LRMILError),
        "judged/lrmil-review.jsonl": (lambda path: Worklist.open(path.parent), LRMILError),
    }
    (tmp_path / "judged").mkdir()
    (tmp_path / "judged" / "s1.svs").touch()
    for name, (read, error) in readers.items():
        path = pipe(name)
        with pytest.raises(error, match="is a pipe or a device, not a file"):
            read(path)


# ---- full disks


def test_results_on_a_full_disk_stop_the_run_and_it_goes_on_once_there_is_room(
    slides: Path, tiny_bundle: Path, tmp_path: Path, mounted: Callable[..., Path]
) -> None:
    out, cache = mounted("disk", "size=20k") / "out", tmp_path / "cache"
    arguments = (slides, "--bundle", tiny_bundle, "--out", out)
    full = lrmil(*arguments, cache=cache)
    assert full.returncode in (1, 2), full.stderr
    assert f"error: {out} can't take results (No space left on device)" in full.stderr
    assert "Traceback" not in full.stderr
    for path in out.glob("*.json"):
        read_prediction(path)  # whole, or not there
    mounted("disk", "size=4m")
    again = lrmil(*arguments, cache=cache)
    assert again.returncode == 0, again.stderr
    assert "from cache" in again.stderr
    assert len(rows_of(out / "predictions.csv")) == len(list(out.glob("*.json"))) == 4


def test_a_cache_on_a_full_disk_costs_no_result(
    slides: Path, tiny_bundle: Path, tmp_path: Path, mounted: Callable[..., Path]
) -> None:
    cache = mounted("disk", "size=12k")
    done = lrmil(slides, "--bundle", tiny_bundle, "--out", tmp_path / "out", cache=cache)
    assert done.returncode == 0, done.stderr
    assert (
        f"note: the result cache in {cache} can't be written (No space left on device). Free some"
        in done.stderr
    )
    assert len(rows_of(tmp_path / "out" / "predictions.csv")) == 4


def test_a_verdict_on_a_full_disk_is_told_and_written_once_there_is_room(
    mounted: Callable[..., Path],
) -> None:
    folder = mounted("disk", "size=64k")
    slide = folder / "s1.svs"
    slide.write_bytes(b"slide")
    worklist = Worklist.open(folder)
    worklist.note_verdict(slide, "agree", "first")
    worklist.reviews.write_waiting()
    filler = folder / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    worklist.note_verdict(slide, "disagree", "x" * 5000)
    with pytest.raises(WorklistError, match=r"verdict on s1.svs could not be kept .*No space left"):
        worklist.reviews.write_waiting()
    assert worklist.reviews.saved(slide) is Saved.NO
    assert ReviewFile(folder).latest(slide).note == "first"
    filler.unlink()
    worklist.reviews.write_waiting()
    assert worklist.reviews.saved(slide) is Saved.YES
    again = ReviewFile(folder)
    assert (again.latest(slide).verdict, again.latest(slide).note, again.problems) == (
        "disagree",
        "x" * 5000,
        [],
    )


@pytest.mark.parametrize("how", ["full", "read-only"])
def test_exports_leave_nothing_half_and_the_window_has_a_sentence(
    how: str, generated_slide: Path, tiny_bundle: Path, mounted: Callable[..., Path]
) -> None:
    bundle = load_bundle(tiny_bundle)
    place = mounted("disk", "size=4k")
    (place / "kept").write_bytes(bytes(4096 if how == "full" else 1))
    with suppress(OSError):  # the last block
        (place / "more").write_bytes(bytes(4096))
    if how == "read-only":
        mounted("disk", "size=4k,ro")
    before = sorted(path.name for path in place.iterdir())
    with Slide(generated_slide) as slide:
        prediction = run_to_end(predict_slide(slide, bundle, device=torch.device("cpu")))
        exports: list[Callable[[], object]] = [
            lambda: write_folder_table(place / "t.csv", [FolderRow("s", summarise(prediction))]),
            lambda: write_prediction(prediction, place),
            lambda: write_heatmap_png(place / "h.png", prediction),
            lambda: run_to_end(write_slide_report(prediction, slide, bundle.info, html=place / "r.html")),
            lambda: run_to_end(write_slide_report(prediction, slide, bundle.info, pdf=place / "r.pdf")),
        ]
        for export in exports:
            with pytest.raises((OSError, LRMILError)) as caught:
                export()
            said = error_text(caught.value)
            assert {"full": "disk is full", "read-only": "can't be written to"}[how] in said or (
                os.strerror(errno.ENOSPC if how == "full" else errno.EROFS) in said
            )
            assert sorted(path.name for path in place.iterdir()) == before


# ---- read-only


def test_read_only_folders_of_results_and_cache(
    slides: Path, tiny_bundle: Path, tmp_path: Path, mounted: Callable[..., Path]
) -> None:
    place = mounted("disk", "size=1m")
    mounted("disk", "size=1m,ro")
    refused = lrmil(slides, "--bundle", tiny_bundle, "--out", place / "out", cache=tmp_path / "cache")
    assert refused.returncode == 2
    assert f"{place / 'out'} can't be the folder of the results: Read-only file system" in refused.stderr
    refused = lrmil(slides, "--bundle", tiny_bundle, "--out", place, cache=tmp_path / "cache")
    assert refused.returncode in (1, 2)
    assert f"{place} can't take results (Read-only file system)" in refused.stderr
    done = lrmil(slides, "--bundle", tiny_bundle, "--out", tmp_path / "out", cache=place)
    assert done.returncode == 0, done.stderr
    assert f"the result cache in {place} can't be written (Read-only file system)" in done.stderr
    assert "Traceback" not in refused.stderr + done.stderr


def test_verdicts_on_slides_of_a_read_only_disk(
    tmp_path: Path, mounted: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LRMIL_DATA_DIR", str(tmp_path / "data"))
    folder = mounted("disk", "size=64k")
    slide = folder / "s1.svs"
    slide.write_bytes(b"slide")
    mounted("disk", "size=64k,ro")
    worklist = Worklist.open(folder)
    worklist.note_verdict(slide, "agree")
    worklist.reviews.write_waiting()
    assert f"{folder} is read-only: verdicts are kept in {tmp_path / 'data'}" in worklist.reviews.note
    assert ReviewFile(folder).latest(slide).verdict == "agree"


# ---- home


@pytest.mark.parametrize("home", [None, "/nonexistent/home", "/dev/null", "", "another user's"])
def test_without_a_home_results_are_written_and_the_cache_is_a_note_at_most(
    home: str | None, slides: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a user that no list of users knows."""
    for name in [name for name in os.environ if name.startswith(("XDG_", "LRMIL_", "HF_")) or name == "HOME"]:
        monkeypatch.delenv(name)
    as_nobody = ["setpriv", "--reuid", "54321", "--regid", "54321", "--clear-groups"]
    if subprocess.run([*as_nobody, sys.executable, "-c", ""], capture_output=True, check=False).returncode:
        pytest.skip("another user can't run Python here")
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        if home == "another user's":
            (place / home).mkdir(mode=0o700)
            home = str(place / home)
        if home is not None:
            monkeypatch.setenv("HOME", home)
        shutil.copytree(slides, place / "slides")
        shutil.copytree(tiny_bundle, place / "bundle")
        (place / "work").mkdir()
        for path in (place, place / "work"):
            path.chmod(0o777)
        arguments = [
            str(place / "slides"),
            "--bundle",
            str(place / "bundle"),
            "--out",
            str(place / "work" / "out"),
        ]
        done = subprocess.run(
            [*as_nobody, sys.executable, *PROGRAM, *arguments, "--device", "cpu"],
            cwd=place / "work",
            env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "300", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        assert len(rows_of(place / "work" / "out" / "predictions.csv")) == 4
        assert [path.name for path in (place / "work").iterdir()] == ["out"]  # no folder named ~


# ---- others


def test_two_batches_on_one_folder_at_once(slides: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [
        sys.executable,
        *PROGRAM,
        str(slides),
        "--bundle",
        str(tiny_bundle),
        "--out",
        str(out),
        "--device",
        "cpu",
    ]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "LRMIL_CACHE_DIR": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    programs = [
        subprocess.Popen(
            command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        )
        for _ in range(2)
    ]
    for program in programs:
        _, told = program.communicate(timeout=120)
        assert program.returncode == 0, told
        assert "Traceback" not in told
    assert sorted(row["slide"] for row in rows_of(out / "predictions.csv")) == sorted(
        path.stem for path in slides.iterdir()
    )
    for path in out.glob("*.json"):
        read_prediction(path)
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


def test_two_windows_on_one_folder_keep_and_show_the_verdicts_of_both(tmp_path: Path) -> None:
    for name in ("s1.svs", "s2.svs"):
        (tmp_path / name).write_bytes(name.encode())
    here = Worklist.open(tmp_path)
    code = (
        "import sys; from pathlib import Path; from napari_lrmil.worklist import Worklist\n"
        "folder = Path(sys.argv[1]); worklist = Worklist.open(folder)\n"
        "worklist.note_verdict(folder / 's2.svs', 'disagree', 'there'); worklist.reviews.write_waiting()\n"
    )
    here.note_verdict(tmp_path / "s1.svs", "agree", "here")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment, check=True, timeout=60)
    here.reviews.write_waiting()
    here.reload_reviews()
    assert [(item.verdict, item.note) for item in here] == [("agree", "here"), ("disagree", "there")]
    assert [item.verdict for item in Worklist.open(tmp_path)] == ["agree", "disagree"]


# ---- clock


def test_a_verdict_elsewhere_counts_though_the_clock_was_set_back_before_it(
    tmp_path: Path, mounted: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the slides first, then, the disk being read-only by then, in the user's data folder."""

    class Clock(datetime):
        hour_now = 12

        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime(2026, 1, 1, cls.hour_now, tzinfo=tz)

    monkeypatch.setattr(reviews, "datetime", Clock)
    monkeypatch.setenv("LRMIL_DATA_DIR", str(tmp_path / "data"))
    folder = mounted("disk", "size=64k")
    slide = folder / "s1.svs"
    slide.write_bytes(b"slide")
    for verdict, hour, options in (
        ("agree", 12, "size=64k"),
        ("disagree", 9, "size=64k,ro"),
        ("unsure", 7, "size=64k,rw"),
    ):
        mounted("disk", options)
        Clock.hour_now = hour
        file = ReviewFile(folder)
        file.add(reviews.Review("s1.svs", verdict))
        file.write_waiting()
        assert file.latest(slide).verdict == ReviewFile(folder).latest(slide).verdict == verdict


def test_a_cache_that_is_full_keeps_what_came_after_the_clock_was_set_back(tmp_path: Path) -> None:
    cache = ResultCache(tmp_path, limit_bytes=10_000)
    names = [f"{number:064x}" for number in range(12)]
    for number, name in enumerate(names[:6]):
        cache.write_thumbnail(name, 128, bytes(1500))
        when = time.time() + 86_400 * 30 + number  # before the clock was set back by a month
        for path in (tmp_path / "thumbnails").rglob(f"{name}*"):
            os.utime(path, (when, when))
    for name in names[6:]:
        cache.write_thumbnail(name, 128, bytes(1500))
    kept = [name for name in names if cache.read_thumbnail(name, 128) is not None]
    assert set(names[7:]) <= set(kept)
    assert names[0] not in kept
