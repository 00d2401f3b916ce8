"""Pictures of the workspace, for the documentation and for whoever changes it and wants to see all of it.

    python scripts/gallery.py [docs/screenshots] [--only main worklist]
    python scripts/gallery.py --real-slide CMU-1-Small-Region.svs

Real windows (`gallery_scenes.py`), with generated slides and the demonstration model (`gallery_files.py`); or real_slide.png
alone, of a slide of which that model says that it is unlike its training. Without a display it starts itself under xvfb-run.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tempfile
from pathlib import Path

OUT = Path(__file__).resolve().parents[1] / "docs" / "screenshots"
MOST_BYTES = 215_000
_COLOURS = (256, 192, 128, 96, 64, 48)


def shrink(png: bytes) -> bytes:
    """Reduce to as many colours of a palette as leave it small enough; no visible loss in most windows."""
    from PIL import Image

    picture = Image.open(io.BytesIO(png)).convert("RGB")
    for colours in _COLOURS:
        small = io.BytesIO()
        picture.quantize(colours, method=Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE).save(
            small, "PNG", optimize=True
        )
        if small.tell() < MOST_BYTES:
            break
    return small.getvalue()


def write_list(out: Path, texts: dict[str, str]) -> None:
    """Write README.md: a line a picture."""
    lines = [
        "# Screenshots",
        "",
        "Made by `python scripts/gallery.py` from generated slides and the demonstration model, with a trust part",
        "fitted to 30 generated slides where it has none; `real_slide.png` with `--real-slide FILE`.",
        "",
        *(f"- [{name}.png]({name}.png): {text}" for name, text in texts.items()),
        "- [real_slide.png](real_slide.png): a real slide (CMU-1-Small-Region of the OpenSlide test data, CC0), of which the",
        "  demonstration model says that it is unlike its training",
        "",
    ]
    (out / "README.md").write_text("\n".join(lines), encoding="utf-8")


def make_gallery(out: Path, names: list[str]) -> None:
    """Draw all pictures, or some."""
    from napari_lrmil._viewer.models import import_models

    import_models()  # before anything draws; see there
    from gallery_files import make_files
    from gallery_scenes import PICTURES, Stage

    if unknown := set(names) - {each.name for each in PICTURES}:
        raise SystemExit(
            f"no such picture: {', '.join(unknown)}; there are {', '.join(each.name for each in PICTURES)}"
        )

    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="lrmil-") as folder:
        files = make_files(Path(folder))
        for each in PICTURES:
            if names and each.name not in names:
                continue
            for variable in ("LRMIL_CACHE_DIR", "LRMIL_DATA_DIR"):
                os.environ[variable] = str(Path(folder) / each.name / variable)
            for kept in files.folder.glob("lrmil-*"):
                kept.unlink()
            stage = Stage(files, each.theme)
            try:
                each.draw(stage)
                if not each.name.startswith("worklist"):  # whose slide at work would be done by then
                    stage.settle()
                    stage.dismiss_notices()
                    stage.settle(0.2)
                data = shrink(stage.grab())
            finally:
                stage.close()
            (out / f"{each.name}.png").write_bytes(data)
            print(f"{each.name}.png: {len(data) / 1e3:.0f} kB", flush=True)
    write_list(out, {each.name: each.text for each in PICTURES})


def make_real_slide(out: Path, slide: Path) -> None:
    """Draw real_slide.png, or stop where the model gives the slide a label."""
    from screenshot import take_screenshot

    from napari_lrmil.model.card import UNLIKE_TRAINING

    with tempfile.TemporaryDirectory(prefix="lrmil-") as folder:
        shot = Path(folder) / "shot.png"
        answer = take_screenshot(slide, shot)
        if answer != UNLIKE_TRAINING:
            raise SystemExit(f"{slide.name}: {answer}; a slide that is {UNLIKE_TRAINING} is wanted")
        data = shrink(shot.read_bytes())
    (out / "real_slide.png").write_bytes(data)
    print(f"real_slide.png: {len(data) / 1e3:.0f} kB", flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, nargs="?", default=OUT)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="of the pictures")
    parser.add_argument(
        "--real-slide", type=Path, metavar="FILE", help="draw real_slide.png of it, and nothing else"
    )
    options = parser.parse_args(arguments)
    if sys.platform.startswith("linux") and "DISPLAY" not in os.environ:
        screen = ["xvfb-run", "-a", "-s", "-screen 0 1920x1200x24"]
        again = [sys.executable, __file__, *(sys.argv[1:] if arguments is None else arguments)]
        return subprocess.run([*screen, *again], check=False).returncode
    os.environ["NAPARI_CONFIG"] = ""  # default settings of napari, and none are kept
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `training` isn't installed everywhere
    if options.real_slide:
        make_real_slide(options.out, options.real_slide)
    else:
        make_gallery(options.out, options.only)
    return 0


if __name__ == "__main__":
    sys.exit(main())
