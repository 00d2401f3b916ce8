"""Files and folders are written whole or not at all, whatever happens on the way."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from napari_lrmil.atomic import remove_folder, remove_stale_scratch, replacing, replacing_folder, write_text


def put(target: Path, text: str, *, fails: bool = False) -> None:
    with replacing_folder(target) as scratch:
        (scratch / "file").write_text(text)
        (scratch / "deep").mkdir()
        if fails:
            raise KeyboardInterrupt


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_failed_block_leaves_the_old_folder(tmp_path: Path) -> None:
    target = tmp_path / "shelf" / "entry"
    put(target, "old")
    (target / "more").write_text("of the old one")
    with pytest.raises(KeyboardInterrupt):
        put(target, "new", fails=True)
    assert (target / "file").read_text() == "old"
    assert names(target.parent) == ["entry"]
    put(target, "new")
    assert (target / "file").read_text() == "new"
    assert names(target) == ["deep", "file"]
    assert names(target.parent) == ["entry"]


def test_a_failed_block_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"
    write_text(path, "ü\n")

    def fail() -> None:
        with replacing(path) as scratch:
            scratch.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_bytes() == "ü\n".encode()
    assert names(path.parent) == ["file.txt"]


@pytest.mark.skipif(os.name != "posix", reason="modes of files")
@pytest.mark.parametrize("mask", [0o002, 0o022, 0o077])
def test_who_may_read_a_file_is_said_by_the_umask(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        write_text(tmp_path / "file.txt", "text")
        put(tmp_path / "folder", "text")
    finally:
        os.umask(before)
    for path in (tmp_path / "file.txt", tmp_path / "folder" / "file"):
        assert path.stat().st_mode & 0o777 == 0o666 & ~mask


def test_the_longest_name_leaves_room_for_the_scratch(tmp_path: Path) -> None:
    for name in ("n" * 255, "\u53f0" * 85):
        write_text(tmp_path / name, "text")
        assert (tmp_path / name).read_text() == "text"


@pytest.mark.parametrize("failing_call", [1, 2])
def test_a_move_that_fails_leaves_the_old_folder(
    failing_call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "entry"
    put(target, "old")
    calls, really = 0, os.replace

    def move(source: Path, destination: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == failing_call:
            raise OSError(28, "No space left on device")
        really(source, destination)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", move)
        with pytest.raises(OSError, match="No space left"):
            put(target, "new")
    assert (target / "file").read_text() == "old"
    assert names(tmp_path) == ["entry"]


KILLED = """
import os, signal, sys
from pathlib import Path
from napari_lrmil.atomic import replacing_folder
really, calls = os.replace, 0
def move(source, destination):
    global calls
    calls += 1
    if calls == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    really(source, destination)
os.replace = move
with replacing_folder(Path(sys.argv[1])) as scratch:
    (scratch / "file").write_text("new")
    if sys.argv[2] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize(("step", "left"), [(0, "old"), (1, "old"), (2, None)])
def test_killed_at_any_step_it_is_whole_or_absent(step: int, left: str | None, tmp_path: Path) -> None:
    target = tmp_path / "entry"
    put(target, "old")
    subprocess.run([sys.executable, "-c", KILLED, str(target), str(step)], check=False)
    found = (target / "file").read_text() if target.exists() else None
    assert found == left
    scratch = [name for name in names(tmp_path) if name != "entry"]
    assert scratch
    assert all(name.startswith(".writing-") for name in scratch)
    remove_stale_scratch(tmp_path, older_than_s=3600)
    assert [name for name in names(tmp_path) if name != "entry"] == scratch  # somebody may be at work
    for name in scratch:
        os.utime(tmp_path / name, (1e9, 1e9))
    remove_stale_scratch(tmp_path, older_than_s=3600)
    put(target, "new")
    assert (target / "file").read_text() == "new"
    assert names(tmp_path) == ["entry"]


def test_of_many_writers_the_last_stays_and_a_reader_sees_whole_folders(tmp_path: Path) -> None:
    target = tmp_path / "entry"
    errors: list[BaseException] = []

    def write(text: str) -> None:
        try:
            for _ in range(30):
                put(target, text)
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    writers = [threading.Thread(target=write, args=(text,)) for text in ("a", "b", "c")]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        try:
            seen.add((target / "file").read_text())
        except FileNotFoundError:
            time.sleep(0)
    for writer in writers:
        writer.join()
    assert errors == []
    assert seen <= {"a", "b", "c"}
    assert (target / "file").read_text() in ("a", "b", "c")
    assert names(tmp_path) == ["entry"]


def test_a_link_is_replaced_and_what_it_leads_to_is_left_alone(tmp_path: Path) -> None:
    mine = tmp_path / "elsewhere" / "mine"
    put(mine, "mine")
    (tmp_path / "entry").symlink_to(mine)
    put(tmp_path / "entry", "new")
    assert (tmp_path / "entry" / "file").read_text() == "new"
    assert not (tmp_path / "entry").is_symlink()
    assert (mine / "file").read_text() == "mine"
    assert names(tmp_path) == ["elsewhere", "entry"]


def test_removing(tmp_path: Path) -> None:
    put(tmp_path / "entry", "x")
    remove_folder(tmp_path / "entry")
    remove_folder(tmp_path / "entry")
    assert names(tmp_path) == []
    remove_stale_scratch(tmp_path / "absent", older_than_s=0)
