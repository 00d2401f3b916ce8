"""Worklists: which slides a folder holds, what comes first, and verdicts that outlive a killed program."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import datetime, tzinfo
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from seen_slides import judge, load_results, remember

from napari_lrmil.cache import ResultCache, ResultSummary
from napari_lrmil.errors import SlideError
from napari_lrmil.slide import Slide
from napari_lrmil.worklist import (
    ListedSlide,
    Order,
    Saved,
    Status,
    Worklist,
    WorklistError,
    WorklistItem,
    find_slides,
    list_slides,
    read_slide_table,
    reviews,
    thumbnail,
    thumbnails,
)

FINGERPRINT, OTHER = "a" * 64, "b" * 64


@pytest.fixture(autouse=True)
def own_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LRMIL_DATA_DIR", str(tmp_path / "user-data"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three files that are called slides."""
    where = tmp_path / "slides"
    where.mkdir()
    for name in ("s2.svs", "s10.svs", "s1.svs"):
        (where / name).write_bytes(name.encode())
    return where


def summary(
    label: str = "lesion",
    probability: float = 0.9,
    *,
    unsure: bool = False,
    ood: bool = False,
    fingerprint: str = FINGERPRINT,
) -> ResultSummary:
    return ResultSummary(
        called=label,
        probability=probability,
        class_names=("benign", "lesion"),
        class_probabilities=(1 - probability, probability),
        prediction_set=None,
        unsure=unsure,
        out_of_distribution=ood,
        ood_score=None,
        n_tiles=3,
        seconds=1.0,
        fingerprint=fingerprint,
        bundle_name="Tiny",
        bundle_sha256="c" * 64,
    )


def names(items: list[WorklistItem] | list[Path]) -> list[str]:
    return [(item.path if isinstance(item, WorklistItem) else item).name for item in items]


def lines_of(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "lrmil-review.jsonl").read_text().splitlines()]


# --- listing ---


def test_real_folders_list_each_slide_once(shared_file: Callable[[str], Path]) -> None:
    repacked = find_slides(shared_file("slides_repacked"), recursive=True)
    assert sorted(names(repacked)) == [
        "cmu.mrxs",
        "cmu.vms",
        "cmu_aperio_pyramid.svs",
        "cmu_generic_pyramid.tiff",
        "cmu_leica.scn",
        "cmu_philips.tiff",
        "cmu_pyramid.ome.tiff",
        "cmu_trestle.tif",
        "cmu_ventana.bif",
    ]
    for path in repacked:
        Slide(path).close()
    top = find_slides(shared_file("slides_real"))
    assert names(top) == [
        "CMU-1-Small-Region-dicom",  # a folder of four DICOM files
        "CMU-1-Small-Region.svs",
        "multiframe_camelyon_challenge_image.dcm",
        "tcga-cr-7395-01a-01-ts1.svs",
        "test3-DAPI-2-387.ndpi",
    ]
    for path in top:
        Slide(path).close()


def test_zipped_zarrs_are_listed_for_opening_them_says_what_to_do(tmp_path: Path) -> None:
    for name in ("a.zarr.zip", "b.OZX", "papers.zip"):
        (tmp_path / name).write_bytes(b"PK\3\4")
    assert names(find_slides(tmp_path)) == ["a.zarr.zip", "b.OZX"]
    assert list_slides(tmp_path)[0].slide_id == "a.zarr.zip"
    with pytest.raises(SlideError, match="unpack it"):
        Slide(tmp_path / "b.OZX")


def test_every_slide_that_opens_is_listed(shared_file: Callable[[str], Path]) -> None:
    """Against the reader itself: of the files with a slide's pixels, none is missed."""
    root = shared_file("slides_real")
    listed = set(find_slides(root, recursive=True))
    for path in root.rglob("*"):
        if path.suffix.lower() not in (".svs", ".tif", ".tiff", ".ndpi", ".dcm"):
            continue
        try:
            Slide(path).close()
        except SlideError:
            continue
        # A DICOM file stands for its folder, or for the largest of its series.
        series = {path, path.parent, *path.parent.glob("*.dcm")} if path.suffix == ".dcm" else {path}
        assert series & listed, path


def test_a_dicom_folder_is_one_slide(shared_file: Callable[[str], Path], tmp_path: Path) -> None:
    source = shared_file("slides_real/CMU-1-Small-Region-dicom")
    assert find_slides(source) == [source]
    # Without ".dcm", as archives name them; with a stranger of another series, each series is a file.
    bare = tmp_path / "bare"
    bare.mkdir()
    for number, path in enumerate(sorted(source.iterdir())):
        shutil.copy(path, bare / f"IM{number}")
    assert find_slides(tmp_path) == [bare]
    shutil.copy(shared_file("slides_real/multiframe_camelyon_challenge_image.dcm"), bare / "other.dcm")
    two = find_slides(bare)
    assert names(two) == ["IM1", "other.dcm"]
    for path in two:
        Slide(path).close()
    (bare / "ct.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"1.2.840.10008.5.1.4.1.1.2" + b"\0" * 100)
    assert find_slides(bare) == two


def test_zarr_folders_are_one_slide_and_pictures_beside_slides_none(tmp_path: Path) -> None:
    for name in ("a.zarr/0", "b/0", "deep/deeper", ".hidden"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "b" / "zarr.json").write_text("{}")
    for name in ("c.SVS", "c_thumbnail.jpg", "._c.svs", "notes.txt", "deep/deeper/d.tif", ".hidden/e.svs"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "deep" / "region.png").write_bytes(b"x")
    assert names(find_slides(tmp_path)) == ["a.zarr", "b", "c.SVS"]
    assert names(find_slides(tmp_path, recursive=True)) == ["a.zarr", "b", "c.SVS", "d.tif", "region.png"]
    assert find_slides(tmp_path / "b") == [tmp_path / "b"]


def test_links_that_lead_back_end(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a.svs").write_bytes(b"x")
    (tmp_path / "inner" / "back").symlink_to(tmp_path)
    assert names(find_slides(tmp_path, recursive=True)) == ["a.svs"]


def test_names_sort_as_people_count(folder: Path) -> None:
    assert names(list(Worklist.open(folder))) == ["s1.svs", "s2.svs", "s10.svs"]


def test_a_folder_without_slides(tmp_path: Path) -> None:
    with pytest.raises(WorklistError, match="holds no slides"):
        Worklist.open(tmp_path)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.svs").write_bytes(b"x")
    with pytest.raises(WorklistError, match="--recursive"):
        Worklist.open(tmp_path)
    assert len(Worklist.open(tmp_path, recursive=True)) == 1
    with pytest.raises(WorklistError, match="no such slide table"):
        Worklist.open(tmp_path / "absent.csv")


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_tables(delimiter: str, folder: Path) -> None:
    rows = [["Slide_ID", "Path", "mpp", "label", "other"], ["A 1", "slides/s1.svs", "0.25", "lesion", "x"]]
    rows.append(["", str(folder / "s2.svs"), "", "", ""])
    table = folder.parent / "table.csv"
    table.write_text("\ufeff" + "\r\n".join(delimiter.join(row) for row in rows) + "\r\n", encoding="utf-8")
    first, second = Worklist.open(table)
    assert (first.path, first.slide_id, first.mpp, first.known_label) == (
        folder / "s1.svs", "A 1", 0.25, "lesion"
    )  # fmt: skip
    assert (second.path, second.slide_id, second.mpp, second.known_label) == (
        folder / "s2.svs", "s2", None, None
    )  # fmt: skip


@pytest.mark.parametrize(("text", "said"), [
    ("file\na.svs\n", "column 'path' is missing"),
    ("", "column 'path' is missing"),
    ("path\n", "has no rows"),
    ("path,mpp\na.svs,0\nb.svs,x\n,1\na.svs,\n",
     "line 2: mpp '0' is no number above 0; line 3: mpp 'x' is no number above 0; line 4: path is empty; "
     "lines 2 and 5 name the same slide"),
])  # fmt: skip
def test_wrong_tables_tell_everything_at_once(text: str, said: str, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text(text)
    with pytest.raises(WorklistError) as caught:
        read_slide_table(table)
    assert said in str(caught.value)


@pytest.mark.parametrize("head", ['"","path"', ",path", ",path,"])
def test_row_names_of_r_and_pandas_are_no_column(head: str, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    end = "," if head.endswith(",") else ""
    table.write_text(head + "\n" + "".join(f"{n},s{n}.tiff{end}\n" for n in range(3)))
    assert read_slide_table(table) == [ListedSlide(tmp_path / f"s{n}.tiff", f"s{n}") for n in range(3)]


def test_names_that_look_like_one_are_a_note_in_the_worklist(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("path,slide_id,label\na.svs,7,Tumor\nb.svs,7.0,tumor\nc.svs,x,NA\nd.svs,x,\n")
    worklist = Worklist.open(table)
    assert worklist.notes == (
        "table.csv: slide_id '7' (line 2) and '7.0' (line 3) look like one",
        "table.csv: label 'Tumor' (line 2) and 'tumor' (line 3) look like one",
        "table.csv: lines 4, 5 have the slide_id 'x'",
    )
    assert [item.known_label for item in worklist] == ["Tumor", "tumor", None, None]


def test_a_home_of_nobody_is_named(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("path,mpp\n~nosuchuser/a.svs,1\nb.svs,x\n")
    with pytest.raises(
        WorklistError, match=r"line 2: path '~nosuchuser/a.svs' can't be one.*; line 3: mpp 'x'"
    ):
        read_slide_table(table)


def test_a_thousand_slides_open_at_once(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    for number in range(1000):
        (tmp_path / f"slide-{number}.svs").write_bytes(b"x")
    cache = ResultCache(tmp_path / "cache")
    for item in Worklist.open(tmp_path):
        remember(cache, item.path, FINGERPRINT)
    writer = Worklist.open(tmp_path)
    for item in list(writer)[:50]:
        judge(writer, item.path, "agree")
    started = time.process_time()  # other programs on the computer count for nothing
    worklist = Worklist.open(tmp_path)
    opened = time.process_time() - started
    started = time.process_time()
    load_results(worklist, cache, "c" * 64, lambda mpp_xy: "k" * 64)
    looked_up = time.process_time() - started
    started = time.thread_time()
    path = None
    for _ in range(20):
        following = worklist.neighbour(path)
        assert following is not None
        path = following.path
    stepped = (time.thread_time() - started) / 20
    record_property("open, look up, step", (opened, looked_up, stepped))
    assert len(worklist) == 1000
    assert worklist.counts()[Status.REVIEWED] == 50
    assert opened < 1
    assert looked_up < 1.5
    assert stepped < 0.1


# --- states and orders ---


def test_doubt_comes_first_and_verdicts_move_nothing(tmp_path: Path) -> None:
    results = {
        "sure": summary(probability=0.99),
        "torn": summary(probability=0.55),
        "strange": summary(probability=0.98, ood=True),
        "unsure": summary(probability=0.97, unsure=True),
        "both": summary(probability=0.6, unsure=True, ood=True),
    }
    for name in (*results, "new", "broken"):
        (tmp_path / f"{name}.svs").write_bytes(b"x")
    worklist = Worklist.open(tmp_path)
    for name, result in results.items():
        worklist.set_result(tmp_path / f"{name}.svs", result)
    worklist.set_status(tmp_path / "broken.svs", Status.FAILED, error="torn file")
    wanted = ["unsure.svs", "both.svs", "strange.svs", "torn.svs", "sure.svs", "broken.svs", "new.svs"]
    assert names(worklist.ordered()) == wanted
    judge(worklist, tmp_path / "unsure.svs", "agree")
    assert names(worklist.ordered()) == wanted
    assert names(worklist.ordered(Order.NAME)) == sorted(wanted)
    by_status = [item.status for item in worklist.ordered(Order.STATUS)]
    assert (by_status[0], by_status[1], by_status[-1]) == (Status.FAILED, Status.NEW, Status.REVIEWED)


def test_next_and_previous(folder: Path) -> None:
    worklist = Worklist.open(folder)
    one, two, ten = (folder / f"s{number}.svs" for number in (1, 2, 10))

    def at(path: Path | None, step: int, to_review: bool = False) -> Path | None:
        item = worklist.neighbour(path, step, order=Order.NAME, to_review=to_review)
        return item.path if item else None

    assert (at(None, 1), at(one, 1), at(two, 1), at(ten, 1)) == (one, two, ten, None)
    assert (at(None, -1), at(ten, -1), at(two, -1), at(one, -1)) == (ten, two, one, None)
    assert at(folder / "unknown.svs", 1) == one
    judge(worklist, two, "disagree")
    assert (at(one, 1, True), at(ten, -1, True), at(one, 1)) == (ten, one, two)


def test_status_follows_result_and_verdict(folder: Path) -> None:
    worklist = Worklist.open(folder)
    path = folder / "s1.svs"
    assert worklist.set_status(path, Status.RUNNING).status is Status.RUNNING
    assert judge(worklist, path, None, "looks odd").status is Status.RUNNING  # the work goes on
    done = worklist.set_result(path, summary("lesion", 0.8))
    assert (done.status, done.label, done.probability, done.note) == (Status.DONE, "lesion", 0.8, "looks odd")
    judged = judge(worklist, path, "agree")
    assert (judged.status, judged.note, judged.judged_answer) == (Status.REVIEWED, "looks odd", "lesion")
    assert worklist.set_result(path, summary("lesion", 0.7)).status is Status.REVIEWED
    # Another bundle says otherwise: the reviewer agreed with something else.
    changed = worklist.set_result(path, summary("benign", 0.7))
    assert (changed.status, changed.verdict, changed.verdict_outdated) == (Status.DONE, "agree", True)
    assert judge(worklist, path, None).status is Status.DONE
    failed = worklist.set_status(path, Status.FAILED, error="gone")
    assert (failed.status, failed.error) == (Status.FAILED, "gone")
    worklist.forget_results()
    assert (worklist[path].status, worklist[path].label, worklist[path].error) == (Status.NEW, None, "")
    with pytest.raises(WorklistError, match="not in the worklist"):
        worklist.set_status(folder / "x.svs", Status.NEW)


# --- verdicts ---


def test_reopening_brings_everything_back(folder: Path) -> None:
    worklist = Worklist.open(folder)
    worklist.set_result(folder / "s1.svs", summary("lesion"))
    judge(worklist, folder / "s1.svs", "disagree", "Entzündung, kein Tumor\n2. Zeile", reviewer="R1")
    judge(worklist, folder / "s2.svs", "agree")
    judge(worklist, folder / "s2.svs", "unsure", "second look")
    judge(worklist, folder / "s10.svs", "agree")
    judge(worklist, folder / "s10.svs", None)
    again = Worklist.open(folder)
    one, two, ten = again
    assert (one.verdict, one.note, one.judged_answer) == (
        "disagree", "Entzündung, kein Tumor\n2. Zeile", "lesion"
    )  # fmt: skip
    assert (two.verdict, two.note, two.status) == ("unsure", "second look", Status.REVIEWED)
    assert (ten.verdict, ten.status) == (None, Status.NEW)
    assert again.reviews.note == ""
    first = lines_of(folder)[0]
    assert first.pop("time")
    assert first == {
        "format": "lrmil-review", "version": 1, "slide": "s1.svs", "verdict": "disagree",
        "note": "Entzündung, kein Tumor\n2. Zeile", "label_shown": "lesion", "bundle_sha256": "c" * 64,
        "fingerprint": FINGERPRINT, "reviewer": "R1",
        "set_shown": None, "unsure_shown": False, "unlike_training_shown": False, "answer_shown": "lesion",
        "revealed_label": None,
    }  # fmt: skip


def test_a_folder_moved_elsewhere_keeps_its_verdicts(folder: Path, tmp_path: Path) -> None:
    (folder / "deep").mkdir()
    (folder / "deep" / "d.svs").write_bytes(b"x")
    worklist = Worklist.open(folder, recursive=True)
    judge(worklist, folder / "deep" / "d.svs", "agree")
    moved = Path(shutil.move(folder, tmp_path / "elsewhere"))
    assert Worklist.open(moved, recursive=True)[moved / "deep" / "d.svs"].verdict == "agree"
    assert lines_of(moved)[0]["slide"] == "deep/d.svs"


def test_tables_keep_verdicts_beside_them(folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "lists" / "table.csv"
    table.parent.mkdir()
    table.write_text("path\n../slides/s1.svs\n")
    (item,) = Worklist.open(table)
    judge(Worklist.open(table), item.path, "agree")
    assert (tmp_path / "lists" / "lrmil-review.jsonl").exists()
    assert [item.verdict for item in Worklist.open(table)] == ["agree"]
    assert lines_of(table.parent)[0]["slide"] == "../slides/s1.svs"


def test_a_verdict_does_not_pass_to_another_slide_of_that_name(folder: Path) -> None:
    worklist = Worklist.open(folder)
    worklist.set_result(folder / "s1.svs", summary(fingerprint=FINGERPRINT))
    judge(worklist, folder / "s1.svs", "agree", "mine")
    again = Worklist.open(folder)
    assert again[folder / "s1.svs"].verdict == "agree"  # not known yet to be another
    found = again.set_result(folder / "s1.svs", summary(fingerprint=OTHER))
    assert (found.verdict, found.note, found.status) == (None, "", Status.DONE)
    assert again.set_result(folder / "s1.svs", summary(fingerprint=FINGERPRINT)).verdict == "agree"


@pytest.mark.parametrize("tail", [
    b'{"format": "lrmil-review", "version": 1, "slide": "s2.svs", "verd',
    '{"format": "lrmil-review", "note": "ü'.encode()[:-1],
    b"\0\0\0\0\0\0\0\0",
])  # fmt: skip
def test_a_torn_line_is_left_out_and_ended(tail: bytes, folder: Path) -> None:
    judge(Worklist.open(folder), folder / "s1.svs", "agree")
    with (folder / "lrmil-review.jsonl").open("ab") as file:
        file.write(tail)
    torn = Worklist.open(folder)
    assert torn[folder / "s1.svs"].verdict == "agree"
    assert "line 2 was cut off and is left out" in torn.reviews.note
    judge(torn, folder / "s2.svs", "disagree")
    again = Worklist.open(folder)
    assert [item.verdict for item in again] == ["agree", "disagree", None]
    assert "line 2 can't be read and is left out" in again.reviews.note


def test_strange_lines_are_left_out_with_a_note(folder: Path) -> None:
    good = {"format": "lrmil-review", "version": 1, "slide": "s1.svs", "verdict": "agree", "extra": 1}
    lines: list[object] = [
        good, good | {"version": 2, "slide": "s2.svs"}, good | {"verdict": "maybe"}, good | {"format": "x"},
        good | {"note": 7}, {"slide": "s1.svs"}, 5, [good], good | {"version": "1"}, good | {"slide": None},
    ]  # fmt: skip
    text = "\n".join(json.dumps(line) for line in lines) + "\n\n"
    (folder / "lrmil-review.jsonl").write_text(text)
    worklist = Worklist.open(folder)
    assert [item.verdict for item in worklist] == ["agree", None, None]
    assert len(worklist.reviews.problems) == 9
    assert "line 2 has version 2, newer than this program's 1, and is left out" in worklist.reviews.note
    judge(worklist, folder / "s2.svs", "agree")
    assert (folder / "lrmil-review.jsonl").read_text().startswith(text.rstrip("\n"))  # nothing is rewritten


def _judge(folder: str, name: str, count: int, note: str) -> None:
    worklist = Worklist.open(folder)
    for number in range(count):
        judge(worklist, Path(folder) / name, "agree", f"{note}{number}")


def test_two_programs_lose_nothing(folder: Path) -> None:
    context = multiprocessing.get_context("spawn")
    programs = [
        context.Process(target=_judge, args=(str(folder), name, 100, "x" * 5000 + name))
        for name in ("s1.svs", "s2.svs", "s10.svs")
    ]
    for program in programs:
        program.start()
    for program in programs:
        program.join(60)
        assert program.exitcode == 0
    notes = [str(line["note"]) for line in lines_of(folder)]
    assert len(notes) == 300
    assert set(notes) == {
        f"{'x' * 5000}{name}{number}" for name in ("s1.svs", "s2.svs", "s10.svs") for number in range(100)
    }
    assert [item.note[-3:] for item in Worklist.open(folder)] == ["s99"] * 3


def test_a_killed_program_loses_no_verdict_that_it_was_told(folder: Path) -> None:
    """Killed at some moment while it writes; each verdict that it said to be kept is there."""
    code = (
        "import sys; from pathlib import Path; from napari_lrmil.worklist import Worklist\n"
        "folder = Path(sys.argv[1]); worklist = Worklist.open(folder); path = folder / 's1.svs'\n"
        "for number in range(int(sys.argv[2]), 10**9):\n"
        "    worklist.note_verdict(path, 'agree', 'x' * 3000 + str(number)); worklist.reviews.write_waiting()\n"
        "    print(number, flush=True)\n"
    )
    start = 0
    for n_told in (7, 20, 1):
        program = subprocess.Popen(
            [sys.executable, "-c", code, str(folder), str(start)], stdout=subprocess.PIPE, text=True
        )
        assert program.stdout is not None
        told = [int(program.stdout.readline()) for _ in range(n_told)][-1]
        program.send_signal(signal.SIGKILL)
        rest = program.stdout.read().splitlines()
        program.stdout.close()
        program.wait(20)
        told = int(rest[-1]) if rest else told
        worklist = Worklist.open(folder)
        kept = int(worklist[folder / "s1.svs"].note.lstrip("x"))
        assert kept in (told, told + 1)  # one may have been kept but not yet told
        start = kept + 1
        judge(worklist, folder / "s2.svs", "unsure", "between")
    assert Worklist.open(folder)[folder / "s2.svs"].note == "between"
    numbers = [int(str(line["note"]).lstrip("x")) for line in lines_of(folder) if line["slide"] == "s1.svs"]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) >= 28


def deny(monkeypatch: pytest.MonkeyPatch, folder: Path, number: int) -> None:
    """As if the folder were read-only, which nothing is to the superuser that tests may run as."""
    really = os.open

    def opened(path: str | Path, flags: int, mode: int = 0o777, **more: int) -> int:
        if Path(path).parent == folder and flags & os.O_CREAT:
            raise OSError(number, os.strerror(number))
        return really(path, flags, mode, **more)

    monkeypatch.setattr(reviews.os, "open", opened)


def test_within_a_file_the_last_line_counts_though_the_clock_was_set_back(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock(datetime):
        hour_now = 12

        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime(2026, 1, 1, cls.hour_now, tzinfo=tz)

    monkeypatch.setattr(reviews, "datetime", Clock)
    for read_only in (False, True):
        if read_only:  # the file in the user's data folder, which came after the other one
            Clock.hour_now = 13
            deny(monkeypatch, folder, errno.EACCES)
        worklist = Worklist.open(folder)
        judge(worklist, folder / "s1.svs", "agree")
        Clock.hour_now -= 1
        judge(worklist, folder / "s1.svs", "disagree")
        assert Worklist.open(folder)[folder / "s1.svs"].verdict == "disagree"


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_read_only_folder_has_its_verdicts_elsewhere(
    number: int, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge(Worklist.open(folder), folder / "s1.svs", "agree", "before")
    deny(monkeypatch, folder, number)
    worklist = Worklist.open(folder)
    judge(worklist, folder / "s1.svs", "disagree", "after")
    judge(worklist, folder / "s2.svs", "agree")
    (fallback,) = (tmp_path / "user-data" / "reviews").iterdir()
    assert f"{folder} is read-only: verdicts are kept in {fallback} instead" in worklist.reviews.note
    again = Worklist.open(folder)
    assert [item.verdict for item in again] == ["disagree", "agree", None]
    monkeypatch.undo()
    monkeypatch.setenv("LRMIL_DATA_DIR", str(tmp_path / "user-data"))
    # Writable again: the file beside the slides is used again, and the later verdict counts.
    time.sleep(0.01)
    judge(again, folder / "s1.svs", "unsure")
    assert again.reviews.note == ""
    assert [item.verdict for item in Worklist.open(folder)] == ["unsure", "agree", None]


def test_a_full_disk_is_an_error_that_leaves_the_file_as_it_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worklist = Worklist.open(folder)
    judge(worklist, folder / "s1.svs", "agree")
    before = (folder / "lrmil-review.jsonl").read_bytes()
    really = os.write
    monkeypatch.setattr(reviews.os, "write", lambda handle, data: really(handle, data[:10]))
    with pytest.raises(WorklistError, match=r"could not be kept .* Free some space"):
        judge(worklist, folder / "s1.svs", "disagree")
    assert (worklist[folder / "s1.svs"].verdict, worklist[folder / "s1.svs"].saved) == ("disagree", Saved.NO)
    assert (folder / "lrmil-review.jsonl").read_bytes() == before


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX locks")
def test_a_lock_that_stays_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    worklist = Worklist.open(folder)
    judge(worklist, folder / "s1.svs", "agree")
    monkeypatch.setattr(reviews, "LOCK_WAIT_S", 0.1)
    with (folder / "lrmil-review.jsonl").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(WorklistError, match="another program holds it"):
            judge(worklist, folder / "s1.svs", "disagree")
    judge(worklist, folder / "s1.svs", "disagree")
    assert worklist[folder / "s1.svs"].verdict == "disagree"


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX locks")
def test_the_list_goes_on_while_a_verdict_waits_for_the_disk(folder: Path) -> None:
    """Another program holds the file: the verdict is in the list at once and on the disk when the file is free."""
    import fcntl

    worklist = Worklist.open(folder)
    one, two = folder / "s1.svs", folder / "s2.svs"
    judge(worklist, two, "unsure")
    errors: list[WorklistError] = []

    def write() -> None:
        try:
            worklist.reviews.write_waiting()
        except WorklistError as error:
            errors.append(error)

    with (folder / "lrmil-review.jsonl").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        noted = worklist.note_verdict(one, "agree", "at once")
        assert (noted.verdict, noted.note, noted.saved, noted.status) == (
            "agree", "at once", Saved.SAVING, Status.REVIEWED
        )  # fmt: skip
        writer = threading.Thread(target=write)
        writer.start()
        worklist.note_verdict(one, "disagree")
        # What the window does meanwhile: it reads, sorts, and looks for lines of other programs.
        worklist.reload_reviews()
        assert (worklist[one].verdict, worklist[one].note, worklist[one].saved) == (
            "disagree",
            "at once",
            Saved.SAVING,
        )
        assert worklist.set_result(one, summary()).verdict == "disagree"
        assert names(worklist.ordered(Order.NAME)) == ["s1.svs", "s2.svs", "s10.svs"]
        assert worklist.look_what_is_saved() == []
        # Whoever looks at the folder in this program sees what waits, as a report does.
        assert Worklist.open(folder)[one].verdict == "disagree"
        assert [line["slide"] for line in lines_of(folder)] == ["s2.svs"]
        assert writer.is_alive()
    writer.join(20)
    assert errors == []
    (written,) = worklist.look_what_is_saved()
    assert (written.path, written.verdict, written.saved) == (one, "disagree", Saved.YES)
    assert [line["verdict"] for line in lines_of(folder)] == ["unsure", "agree", "disagree"]


def test_threads_write_each_verdict_once_in_the_order_they_were_given(folder: Path) -> None:
    """Two writers, and one that reads the files again: the list never shows an older verdict than the last given."""
    worklist = Worklist.open(folder)
    one = folder / "s1.svs"
    done = threading.Event()
    errors: list[WorklistError] = []

    def write() -> None:
        while not done.is_set():
            try:
                worklist.reviews.write_waiting()
            except WorklistError as error:
                errors.append(error)

    def read_again() -> None:
        while not done.is_set():
            worklist.reviews.reload()

    threads = [threading.Thread(target=target) for target in (write, write, read_again)]
    for thread in threads:
        thread.start()
    try:
        for number in range(200):
            worklist.note_verdict(one, "agree", str(number))
            for _ in range(3):
                latest = worklist.reviews.latest(one)
                assert latest is not None
                assert latest.note == str(number)
    finally:
        done.set()
        for thread in threads:
            thread.join(20)
    worklist.reviews.write_waiting()  # as the window does before it goes
    assert errors == []
    assert [line["note"] for line in lines_of(folder)] == [str(number) for number in range(200)]


def test_a_verdict_by_the_fingerprint_of_an_earlier_version_still_counts(folder: Path) -> None:
    """Its first 24 digits are the last ones of today's; a slide that differs there is another one."""
    line = {
        "format": "lrmil-review", "version": 1, "slide": "s1.svs", "verdict": "agree", "label_shown": "lesion",
        "fingerprint": "c" * 64,
    }  # fmt: skip
    (folder / "lrmil-review.jsonl").write_text(json.dumps(line) + "\n")
    worklist = Worklist.open(folder)
    same, other = "0" * 40 + "c" * 24, "c" * 40 + "0" * 24
    assert worklist.set_result(folder / "s1.svs", summary(fingerprint=same)).verdict == "agree"
    assert worklist.set_result(folder / "s1.svs", summary(fingerprint=other)).verdict is None
    # Two of today's must agree as a whole.
    worklist.set_result(folder / "s1.svs", summary(fingerprint=same))
    judge(worklist, folder / "s1.svs", "disagree")
    twin = "1" * 40 + "c" * 24
    assert worklist.set_result(folder / "s1.svs", summary(fingerprint=twin)).verdict is None


def test_a_verdict_that_cant_be_written_is_not_lost(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stays as not saved, and the next try brings it along, in its order."""
    worklist = Worklist.open(folder)
    one, two = folder / "s1.svs", folder / "s2.svs"
    judge(worklist, one, "agree", "before")
    worklist.note_verdict(one, "disagree", "again")
    really = os.write
    with monkeypatch.context() as full:
        full.setattr(reviews.os, "write", lambda handle, data: really(handle, data[:10]))
        # The reviewer is elsewhere by then: the error says which slide it is about.
        with pytest.raises(
            WorklistError, match=r"^the verdict on s1.svs could not be kept .* Free some space"
        ):
            worklist.reviews.write_waiting()
        assert [(item.path, item.verdict, item.saved) for item in worklist.look_what_is_saved()] == [
            (one, "disagree", Saved.NO)
        ]
        assert worklist.note_verdict(two, "unsure").saved is Saved.SAVING
        with pytest.raises(WorklistError, match=r"^the verdict on s1.svs"):
            worklist.reviews.write_waiting()
        worklist.look_what_is_saved()
        assert (worklist[one].saved, worklist[two].saved) == (Saved.NO, Saved.NO)
    assert [line["note"] for line in lines_of(folder)] == ["before"]
    worklist.reviews.write_waiting()
    assert [item.saved for item in worklist.look_what_is_saved()] == [Saved.YES, Saved.YES]
    assert [(line["slide"], line["verdict"]) for line in lines_of(folder)] == [
        ("s1.svs", "agree"), ("s1.svs", "disagree"), ("s2.svs", "unsure")
    ]  # fmt: skip
    assert worklist.reviews.waiting == ()


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX locks")
def test_the_last_chance_is_the_users_data_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the program ends while another one holds the file."""
    import fcntl

    monkeypatch.setattr(reviews, "LOCK_WAIT_S", 0.1)
    worklist = Worklist.open(folder)
    one = folder / "s1.svs"
    judge(worklist, one, "agree")
    time.sleep(0.01)
    with (folder / "lrmil-review.jsonl").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        worklist.note_verdict(one, "disagree")
        worklist.reviews.write_waiting(last_chance=True)
    assert "could not be written to (another program holds it): verdicts are kept in" in worklist.reviews.note
    assert [line["verdict"] for line in lines_of(folder)] == ["agree"]
    again = Worklist(list_slides(folder), reviews.ReviewFile(folder))  # as another start of the program
    assert again[one].verdict == "disagree"


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes")
def test_names_that_are_no_text(folder: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(folder) + b"/\xff\xfe.svs"))
    odd.write_bytes(b"x")
    judge(Worklist.open(folder), odd, "agree")
    assert Worklist.open(folder)[odd].verdict == "agree"


def test_another_programs_verdict_arrives(folder: Path) -> None:
    mine, theirs = Worklist.open(folder), Worklist.open(folder)
    judge(theirs, folder / "s1.svs", "agree")
    mine.set_status(folder / "s2.svs", Status.RUNNING)
    mine.reload_reviews()
    assert mine[folder / "s1.svs"].status is Status.REVIEWED
    assert mine[folder / "s2.svs"].status is Status.RUNNING


def test_no_such_verdict(folder: Path) -> None:
    worklist = Worklist.open(folder)
    with pytest.raises(WorklistError, match="is no verdict; there are agree, disagree, unsure"):
        judge(worklist, folder / "s1.svs", "maybe")  # type: ignore[arg-type]
    assert not (folder / "lrmil-review.jsonl").exists()


# --- thumbnails ---


@pytest.mark.parametrize("name", [
    "slides_real/CMU-1-Small-Region.svs",
    "slides_real/CMU-1-Small-Region-dicom",
    "slides_repacked/cmu_aperio_pyramid.svs",
    "slides_repacked/cmu_leica.scn",
    "slides_repacked/mrxs/cmu.mrxs",
])  # fmt: skip
def test_thumbnails_show_the_scanned_area(
    name: str, shared_file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Slide, "read_associated", lambda *_: pytest.fail("labels show names"))
    picture = thumbnail(shared_file(name), 200)
    with Slide(shared_file(name)) as slide:
        left, top, width, height = slide.bounds_l0_xywh
        pixels = slide.read_region((left, top), 0, (width, height))
    assert max(picture.shape[:2]) == 200
    expected = Image.fromarray(pixels).resize(picture.shape[1::-1], Image.Resampling.BOX)
    away = [
        np.abs(np.roll(picture, (dy, dx), (0, 1)).astype(float) - np.asarray(expected, float)).mean()
        for dy, dx in ((0, 0), (0, 2), (0, -2), (2, 0), (-2, 0))
    ]
    assert away[0] < 8  # JPEG, and coarse levels made by other filters
    assert away[0] < 0.7 * min(away[1:])


def test_thumbnails_read_a_coarse_level_and_come_from_the_cache(
    generated_slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    levels: list[int] = []
    really = Slide.read_region

    def noted(slide: Slide, location: tuple[int, int], level: int, size: tuple[int, int], **more: bool):  # type: ignore[no-untyped-def]
        levels.append(level)
        return really(slide, location, level, size, **more)

    monkeypatch.setattr(Slide, "read_region", noted)
    cache = ResultCache(tmp_path / "cache")
    first = thumbnail(generated_slide, 64, cache=cache)
    assert set(levels) == {2}  # 1024 px in levels 1/4/16: opening and thumbnail read the coarsest alone
    assert first.shape == (48, 64, 3)
    # Known now: the slide isn't opened again.
    monkeypatch.setattr(thumbnails, "Slide", lambda *_: pytest.fail("opened"))
    np.testing.assert_array_equal(thumbnail(generated_slide, 64, cache=cache), first)
    monkeypatch.undo()
    # A renamed copy is the same slide; a damaged picture is made anew.
    copy = Path(shutil.copy(generated_slide, tmp_path / "copy.tif"))
    (kept,) = cache.root.rglob("*.jpg")
    before = kept.read_bytes()
    np.testing.assert_array_equal(thumbnail(copy, 64, cache=cache), first)
    kept.write_bytes(before[:100])
    np.testing.assert_array_equal(thumbnail(copy, 64, cache=cache), first)
    assert kept.read_bytes() == before


def test_a_slide_without_a_coarse_level_has_no_thumbnail(
    generated_slide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thumbnails, "MAX_LEVEL_PX", 100)
    with pytest.raises(SlideError, match="no level that is coarse enough"):
        thumbnail(generated_slide, 512)


def test_small_slides_are_not_enlarged(tmp_path: Path) -> None:
    Image.new("RGB", (30, 20), (200, 10, 90)).save(tmp_path / "tiny.png")
    assert thumbnail(tmp_path / "tiny.png", 256).shape == (20, 30, 3)


# --- a folder from somebody else ---------------------------------------------------------------------------------------


def test_a_verdict_is_never_written_through_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LRMIL_DATA_DIR", str(tmp_path / "data"))
    (tmp_path / ".bashrc").write_text("mine\n")
    folder = tmp_path / "slides"
    folder.mkdir()
    (folder / reviews.REVIEW_NAME).symlink_to(tmp_path / ".bashrc")
    file = reviews.ReviewFile(folder)
    file.add(reviews.Review("a.svs", "agree"))
    file.write_waiting()
    assert (tmp_path / ".bashrc").read_text() == "mine\n"
    assert file.where == file.fallback
    assert f"has a link or something else that is no file by the name {reviews.REVIEW_NAME}" in file.note
    again = reviews.ReviewFile(folder).latest(folder / "a.svs")
    assert again is not None
    assert again.verdict == "agree"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a system without pipes that have a name")
def test_a_pipe_in_the_place_of_the_verdicts_is_told(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / reviews.REVIEW_NAME)
    with pytest.raises(WorklistError, match=r"can't be read \(it is a pipe or a device, not a file\)"):
        reviews.ReviewFile(tmp_path)


def test_a_line_that_is_nested_too_deeply_is_left_out(tmp_path: Path) -> None:
    (tmp_path / reviews.REVIEW_NAME).write_bytes(b"[" * 100_000 + b"\n")
    assert reviews.ReviewFile(tmp_path).problems == [
        f"{reviews.REVIEW_NAME}: line 1 can't be read and is left out."
    ]
