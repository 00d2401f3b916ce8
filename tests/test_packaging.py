"""A wheel of the project works where only the wheel is."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from npe2 import PluginManifest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", str(out), str(ROOT)],
        check=True,
        capture_output=True,
    )
    (path,) = out.glob("*.whl")
    return path


@pytest.mark.slow
def test_wheel_holds_the_package_alone(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    folders = {name.split("/")[0] for name in names}
    assert {folder for folder in folders if not folder.endswith(".dist-info")} == {"napari_lrmil"}
    for needed in (
        "napari.yaml",
        "py.typed",
        "demo/bundle/bundle.json",
        "demo/bundle/model.safetensors",
        "demo/bundle/README.md",
        "demo/slides/lesion.tiff",
        "demo/slides/benign.tiff",
    ):
        assert f"napari_lrmil/{needed}" in names
    assert not [name for name in names if name.endswith((".pkl", ".pt", ".pth", ".npz"))]
    sizes = {info.filename: info.file_size for info in zipfile.ZipFile(wheel).infolist()}
    weights = sum(size for name, size in sizes.items() if name.endswith(".safetensors"))
    assert weights < 12e6
    metadata = next(name for name in names if name.endswith(".dist-info/METADATA"))
    required = [
        line
        for line in zipfile.ZipFile(wheel).read(metadata).decode().splitlines()
        if line.startswith("Requires-Dist") and "extra ==" not in line
    ]
    assert not [line for line in required if "pyqt" in line.lower() or "pyside" in line.lower()]


@pytest.mark.slow
def test_wheel_installs_and_napari_finds_the_plugin(wheel: Path, tmp_path: Path) -> None:
    # The dependencies (gigabytes) are lent by path from this environment; the project itself is not:
    # an editable install is found through hooks that a plain path entry doesn't run.
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel],
        check=True,
        capture_output=True,
    )
    site = Path(
        subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
    )
    (site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    code = """
import json, napari_lrmil
from npe2 import PluginManager
manager = PluginManager.instance(); manager.discover()
manifest = manager.get_manifest("napari-lrmil")
readers = [reader.command for reader in manager.iter_compatible_readers(["slide.svs"])]
print(json.dumps([napari_lrmil.__file__, manifest.display_name, [w.display_name for w in manifest.contributions.widgets],
                  len(manifest.contributions.sample_data), readers]))
"""
    found = json.loads(
        subprocess.run([python, "-c", code], check=True, capture_output=True, text=True, cwd=tmp_path).stdout
    )
    assert Path(found[0]).is_relative_to(environment)
    assert found[1] == "LRMIL"
    manifest = PluginManifest.from_file(ROOT / "napari_lrmil" / "napari.yaml")
    assert found[2] == [widget.display_name for widget in manifest.contributions.widgets]
    assert found[2][0] == "LRMIL: classify slide"
    assert found[3] == 2
    assert "napari-lrmil.get_reader" in found[4]
    options = ["--bundle", "demo", "--out", tmp_path / "out", "--device", "cpu"]
    predicted = subprocess.run(
        [environment / "bin" / "lrmil", "predict", site / "napari_lrmil/demo/slides/lesion.tiff", *options],
        check=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert "not for diagnosis" in predicted.stderr
    assert json.loads((tmp_path / "out" / "lesion.json").read_text())["slide"] == "lesion"
