"""A real file system whose disk can be made to fail and to come back: what is read meanwhile is an input/output error."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_MIB = 2**20


class FailingDisk:
    """A small ext2 on a loop device. Its image is cut off for as long as the disk fails.

    Attributes
    ----------
    folder : Path
        Where it is mounted.
    """

    def __init__(self, image: Path, folder: Path) -> None:
        self._image, self.folder = image, folder
        self._whole: bytes | None = None

    def fail(self) -> None:
        """Have all reads of the files fail from now on; what they are called and how large they are is still known."""
        os.sync()
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        assert files
        self._whole = self._image.read_bytes()
        os.truncate(self._image, 0)
        for file in files:
            forget_pages(file)

    def come_back(self) -> None:
        """Have it as it was."""
        assert self._whole is not None
        self._image.write_bytes(self._whole)
        self._whole = None

    def unmount(self) -> None:
        """Take it away as a share goes: whoever has a file open keeps it."""
        subprocess.run(["umount", "-l", str(self.folder)], check=True, capture_output=True)

    def mount(self) -> None:
        """Have it there; the test is skipped where that isn't permitted."""
        run = subprocess.run(
            ["mount", "-o", "loop", str(self._image), str(self.folder)],
            capture_output=True,
            text=True,
            check=False,
        )
        if run.returncode:
            pytest.skip(f"no file system can be mounted here: {run.stderr.strip()}")


def forget_pages(file: Path) -> None:
    """Have the system forget what it has read of a file."""
    with file.open("rb") as stream:
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextmanager
def failing_disk(folder: Path, *, size_mib: int = 16) -> Iterator[FailingDisk]:
    """A disk that can fail, mounted below `folder`."""
    image, place = folder / "disk.img", folder / "disk"
    image.touch()
    place.mkdir()
    os.truncate(image, size_mib * _MIB)
    try:
        made = subprocess.run(
            ["mke2fs", "-q", "-F", "-t", "ext2", str(image)], capture_output=True, check=False
        )
    except FileNotFoundError:
        pytest.skip("there is no mke2fs here")
    assert not made.returncode, made.stderr
    disk = FailingDisk(image, place)
    disk.mount()
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(place)], capture_output=True, check=False)
