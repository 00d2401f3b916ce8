"""What is free goes back to the system."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from napari_lrmil import memory

_FRAGMENTED = """
import resource, sys
from napari_lrmil.memory import return_free_memory
def resident_mb():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 1e6
blocks = [bytes(100_000) for _ in range(2000)]  # below what the C library maps one by one
kept = blocks[::50]
del blocks
before = resident_mb()
return_free_memory()
print(before - resident_mb())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks the C library of Linux")
def test_free_memory_between_what_is_kept_is_given_back() -> None:
    if not hasattr(ctypes.CDLL(None), "malloc_trim"):
        pytest.skip("this C library has no such call")
    done = subprocess.run([sys.executable, "-c", _FRAGMENTED], capture_output=True, text=True, check=True)
    assert float(done.stdout) > 100  # of 200 MB


def test_elsewhere_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.sys, "platform", "win32")
    monkeypatch.setattr(memory.ctypes, "CDLL", None)
    memory.return_free_memory()
