"""What must hold for the project's files as a whole."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def _tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if name]


def _texts() -> list[tuple[Path, str]]:
    found = []
    for path in _tracked():
        if not path.is_file():
            continue
        try:
            found.append((path, path.read_text(encoding="utf-8")))
        except UnicodeDecodeError:
            continue
    return found


def test_no_pickle_and_no_eval_in_the_code() -> None:
    forbidden = re.compile(
        r"^\s*(import pickle|from pickle)|torch\.load\((?![^()]*weights_only=True\))"
        r"|allow_pickle\s*=\s*True|(?<![.\w])(eval|exec)\(",
        re.M,
    )
    found = [
        str(path.relative_to(ROOT))
        for path, text in _texts()
        if path.suffix == ".py"
        and path.relative_to(ROOT).parts[0] in ("napari_lrmil", "training")
        and forbidden.search(text)
    ]
    assert found == []


def test_only_the_viewer_imports_qt_and_napari() -> None:
    pattern = re.compile(r"^\s*(import|from) (qtpy|napari|superqt|PyQt\d|PySide\d)\b", re.M)
    found = [
        str(path.relative_to(ROOT))
        for path, text in _texts()
        if path.suffix == ".py"
        and path.relative_to(ROOT).parts[0] in ("napari_lrmil", "training")
        and "_viewer" not in path.parts
        and pattern.search(text)
    ]
    assert found == []


def test_no_binding_is_imported_directly() -> None:
    pattern = re.compile(r"^\s*(import|from) (PyQt\d|PySide\d)\b", re.M)
    assert [str(path) for path, text in _texts() if path.suffix == ".py" and pattern.search(text)] == []


def test_readme_names_the_two_commands_and_its_pictures_exist() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    first_screen = "\n".join(readme.splitlines()[:24])
    assert "make demo" in first_screen
    assert "make test" in first_screen
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", readme)
    assert pictures
    assert [name for name in pictures if not (ROOT / name).is_file()] == []
