"""python -m benchmarks.fuzz.identifiers: a word in every metadata field of every format, looked for in all that is made.

Slides of all formats are written with a planted word in each text field, and planted dates. `lrmil predict` and `lrmil info`
read them in a process whose logs are kept at debug level; reports, heatmaps, tables, cache and worklist are written. Then every
file, every line of output and every log is searched, unpacked from whatever it is packed in. The names of the slides
are planted, too, and may be found only where docs/reliability.md says.

Then a model is trained on such slides, whose table has planted slide ids, patients and sites: the run's folder, its reports, its
model card and bundle, the shared store and the verdicts are searched, too.

A last part writes planted words into fields that mean something (a pixel size, an axis, an image type), one a slide, and
searches what is then said.
"""

from __future__ import annotations

import argparse
import base64
import io
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import imagecodecs
import torch

from benchmarks.formats import FORMATS, MPP, WITHOUT_MPP, stained
from benchmarks.fuzz.kills import TINY_RUN
from napari_lrmil.errors import LRMILError
from napari_lrmil.worklist import REVIEW_NAME, Review, ReviewFile

SIDE_PX = 1024
DATES = ("1953-12-17", "1953:12:17", "19531217", "17.12.1953")
FILE_NAME, FOLDER_NAME = "name of the file:", "name of its folder:"
SLIDE_ID, PATIENT, SITE = "the table's slide id:", "the table's patient:", "the table's site:"
_OF_THE_TABLE = (FILE_NAME, FOLDER_NAME, SLIDE_ID, PATIENT, SITE)
HOLDS = {
    "splits.json": _OF_THE_TABLE,
    "predictions": (SLIDE_ID, PATIENT),
    "val_predictions": (SLIDE_ID, PATIENT),
    "test_attention": (SLIDE_ID,),
    "teacher_outputs.safetensors": (SLIDE_ID,),
    "tile_index": (SLIDE_ID,),
    "reads": (SLIDE_ID,),
    "shortcuts": (SLIDE_ID,),
    "store": (SLIDE_ID,),
    "shown": (SLIDE_ID,),
    "verdicts": (FILE_NAME,),
}
"""Where names of the table's may stand in what a training makes, and must be found there: docs/reliability.md says the same."""
QUOTED_IN_ERRORS = frozenset(
    {"DICOM PhotometricInterpretation", "MIRAX IMAGE_FORMAT", "MIRAX INDEXFILE", "MIRAX FILE_0"}
)
"""What OpenSlide says in plain words where a file is refused: of what its pixels are, and which file it lacks."""
_MAX_UNPACKED = 2**26
_DEPTH = 3


def planted_word(field: str) -> str:
    """Return the word for a field: ten letters and digits that stand nowhere else."""
    return f"QX{zlib.crc32(field.encode()):08X}"


class Planted:
    """Plants words, and knows which field each is from.

    Parameters
    ----------
    wrong : str, optional
        A field that means something and gets a word all the same.
    """

    def __init__(self, wrong: str = "") -> None:
        self.wrong = wrong
        self.fields: dict[str, str] = {}
        self.meaningful: set[str] = set()

    def __call__(self, field: str, value: str = "") -> str:
        """Return what is to be written into a field."""
        if value:
            self.meaningful.add(field)
            if field != self.wrong:
                return value
        word = planted_word(field)
        self.fields[word] = field
        return word


# ---- searching


def _unpacked(data: bytes) -> Iterator[bytes]:
    """What is packed in a file, in whichever way: archives, streams, base64, hexadecimal strings, PDF's text."""
    if data[:4] == b"PK\3\4":
        with suppress(zipfile.BadZipFile, OSError), zipfile.ZipFile(io.BytesIO(data)) as archive:
            for name in archive.namelist():
                yield name.encode() + b"\n" + archive.read(name)
    for found in re.finditer(rb"\x1f\x8b\x08", data):
        with suppress(zlib.error):
            yield zlib.decompressobj(47).decompress(data[found.start() :], _MAX_UNPACKED)
    for found in re.finditer(rb"[\x08\x18\x28\x38\x48\x58\x68\x78]", data):
        at = found.start()
        if int.from_bytes(data[at : at + 2], "big") % 31 == 0:
            with suppress(zlib.error):
                text = zlib.decompressobj().decompress(data[at:], _MAX_UNPACKED)
                if len(text) > 8:
                    yield text
    for found in re.finditer(rb"\x28\xb5\x2f\xfd", data):
        with suppress(Exception):
            yield bytes(imagecodecs.zstd_decode(data[found.start() :]))
    if (
        len(data) > 16 and data[0] == 2 and int.from_bytes(data[12:16], "little") == len(data)
    ):  # a chunk of Blosc
        with suppress(Exception):
            yield bytes(imagecodecs.blosc_decode(data))
    for found in re.finditer(rb"[A-Za-z0-9+/]{24,}={0,2}", data):
        with suppress(ValueError):
            yield base64.b64decode(found[0], validate=True)
    for found in re.finditer(rb"<([0-9A-Fa-f\s]{16,})>", data):
        with suppress(ValueError):
            yield bytes.fromhex(found[1].decode())
    if data[:5] == b"%PDF-":
        yield _pdf_text(data).encode()


def _pdf_text(data: bytes) -> str:
    import pypdfium2

    document = pypdfium2.PdfDocument(data)
    texts = [page.get_textpage().get_text_bounded() for page in document]
    return "".join([*texts, *document.get_metadata_dict().values()])


def words_in(data: bytes, words: Iterable[str], *, depth: int = _DEPTH) -> set[str]:
    """Return which of `words` a file holds, in upper or lower case, whatever it is encoded as and packed in."""
    words = list(words)
    if not words:
        return set()
    wanted = {
        text.encode(encoding): word
        for word in words
        for text in (word.lower(),)
        for encoding in ("utf-8", "utf-16-le", "utf-16-be")
    }
    pattern = re.compile(b"|".join(map(re.escape, wanted)))
    return _search(data, pattern, wanted, depth)


def _search(data: bytes, pattern: re.Pattern[bytes], wanted: dict[bytes, str], depth: int) -> set[str]:
    found = {wanted[match] for match in pattern.findall(data.lower())}
    if depth:
        for part in _unpacked(data):
            found |= _search(part, pattern, wanted, depth - 1)
    return found


class Leak(NamedTuple):
    """A planted word where it doesn't belong."""

    place: str
    field: str


@dataclass
class Found:
    """What a search came to."""

    files: int = 0
    n_bytes: int = 0
    leaks: list[Leak] = field(default_factory=list)

    def take(self, other: Found) -> None:
        """Add another search's."""
        self.files += other.files
        self.n_bytes += other.n_bytes
        self.leaks += other.leaks


def search(folder: Path, fields: dict[str, str]) -> Found:
    """Search each file of a folder, and its name.

    Parameters
    ----------
    folder : Path
    fields : dict
        Word -> where it was planted.
    """
    found = Found()
    for path in sorted(folder.rglob("*")):
        place = path.relative_to(folder).as_posix()
        data = path.read_bytes() if path.is_file() else b""
        found.files += path.is_file()
        found.n_bytes += len(data)
        found.leaks += [
            Leak(place, fields[word]) for word in sorted(words_in(place.encode() + b"\n" + data, fields))
        ]
    return found


# ---- what is made of slides


_LOGGED = """
import logging, sys
logging.basicConfig(level=logging.DEBUG, filename=sys.argv.pop(1))
from {module} import app
app()
"""


def run_logged(folder: Path, name: str, words: list[str], *, module: str = "napari_lrmil.cli.main") -> int:
    """Run a command in a process of its own; its output, and its logs at debug level, go to files of `folder`."""
    with (
        (folder / f"{name}-stdout.txt").open("wb") as out,
        (folder / f"{name}-stderr.txt").open("wb") as error,
    ):
        done = subprocess.run(
            [sys.executable, "-c", _LOGGED.format(module=module), str(folder / f"{name}-log.txt"), *words],
            stdout=out,
            stderr=error,
            env=os.environ | {"COLUMNS": "300", "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
            check=False,
        )
    return done.returncode


def write_slides(
    folder: Path, formats: Iterable[str], planted: Planted, *, side_px: int = SIDE_PX
) -> dict[str, Path]:
    """Write a slide of each format; its name is planted, too."""
    slides = {}
    for number, name in enumerate(formats):
        home = folder / f"{number}{planted(f'{FOLDER_NAME} {name}')}"
        home.mkdir(parents=True)
        stem = planted(f"{FILE_NAME} {name}")
        slides[name] = FORMATS[name](home, stem, stained(side_px, number), planted)
    return slides


def mpp_of(name: str) -> float | None:
    """Return the µm/px that has to be given for a format."""
    return MPP if name in WITHOUT_MPP else None


def make_everything(slides: dict[str, Path], out: Path, bundle: str) -> None:
    """Write all that can be written of slides without asking for names: folders `named` and `unnamed` in `out`.

    `named` has what the command line prints and writes, where a slide is called by its name.
    """
    from napari_lrmil.cache import ResultCache, ResultKeys, open_slide, summarise
    from napari_lrmil.export.geojson import write_heatmap_geojson
    from napari_lrmil.export.images import write_heatmap_png, write_heatmap_zarr
    from napari_lrmil.export.result import write_prediction
    from napari_lrmil.export.slide_report import write_slide_report
    from napari_lrmil.export.tables import FolderRow, neutral_name, write_folder_table
    from napari_lrmil.model.bundle import load_bundle, resolve_bundle
    from napari_lrmil.predict import predict_slide, run_to_end
    from napari_lrmil.worklist.thumbnails import thumbnail

    named, unnamed = out / "named", out / "unnamed"
    named.mkdir(parents=True)
    unnamed.mkdir(exist_ok=True)
    given = [*map(str, slides.values()), "--mpp", str(MPP)]
    into = ["--bundle", bundle, "--out", str(named / "out"), "--cache-dir", str(unnamed / "cache")]
    for words in (["info", *given], ["predict", *given, *into]):
        status = run_logged(named, words[0], words)
        assert status == 0, f"{words[0]} ended with {status}: see {named}"
    loaded = load_bundle(resolve_bundle(bundle))
    rows = []
    for name, path in slides.items():
        with open_slide(path, mpp=mpp_of(name)) as slide:
            prediction = run_to_end(predict_slide(slide, loaded, device=torch.device("cpu")))
            home = unnamed / name
            home.mkdir()
            (home / "slide.txt").write_text(f"{slide.metadata}\n{slide.pixel_size}\n{slide.shown_image}\n")
            cache = ResultCache(unnamed / "cache of the window")
            cache.remember_slide(slide, prediction.slide_fingerprint)
            cache.put(prediction, ResultKeys(loaded.info)(prediction.mpp_xy))
            thumbnail(path, cache=cache)
            stem = neutral_name(prediction.slide_fingerprint)
            write_prediction(replace(prediction, slide_name=stem), home, stem=stem)
            write_heatmap_png(home / "plain.png", prediction)
            write_heatmap_png(home / "over.png", prediction, slide=slide)
            write_heatmap_zarr(home / "heatmap.zarr", prediction)
            write_heatmap_geojson(home / "heatmap.geojson", prediction, bounds_l0_xywh=slide.bounds_l0_xywh)
            for shown, where in ((False, home), (True, named / name)):
                where.mkdir(exist_ok=True)
                run_to_end(
                    write_slide_report(
                        prediction,
                        slide,
                        loaded.info,
                        html=where / "report.html",
                        pdf=where / "report.pdf",
                        show_identifiers=shown,
                    )
                )
            rows.append(FolderRow(slide.name, summarise(prediction), verdict="agree"))
    write_folder_table(unnamed / "predictions.csv", rows, class_names=loaded.info.class_names)
    write_folder_table(
        named / "predictions.csv", rows, class_names=loaded.info.class_names, show_identifiers=True
    )


# ---- the attacks


def attack_metadata(
    folder: Path, *, formats: Iterable[str] = FORMATS, bundle: str = "demo", side_px: int = SIDE_PX
) -> Found:
    """Plant words in all formats, make everything of the slides, and search it.

    Returns
    -------
    Found
        Names of files are leaks in `unnamed` only.
    """
    planted = Planted()
    slides = write_slides(folder / "planted", formats, planted, side_px=side_px)
    unread = set(planted.fields.values()) - {
        leak.field for leak in search(folder / "planted", planted.fields).leaks
    }
    assert not unread, f"not found where they were planted: {unread}"
    with logs_to(folder / "made" / "unnamed" / "log.txt"):
        make_everything(slides, folder / "made", bundle)
    secrets = planted.fields | {date: f"date {date}" for date in DATES}
    names = {word for word, field in secrets.items() if field.startswith(FILE_NAME)}
    everywhere = {word: field for word, field in secrets.items() if word not in names}
    found = search(folder / "made" / "named", everywhere)
    found.take(search(folder / "made" / "unnamed", secrets))
    said = search(folder / "made" / "named", {word: secrets[word] for word in names})
    assert {leak.field for leak in said.leaks} == {secrets[word] for word in names}, "the search is blind"
    return found


def attack_training(folder: Path, *, formats: Iterable[str] = FORMATS, side_px: int = SIDE_PX) -> Found:
    """Train on planted slides, of which the table has planted ids, patients and sites; judge them; and search it all.

    Parameters
    ----------
    folder : Path
    formats : iterable of str
        Six or more.
    side_px : int

    Returns
    -------
    Found
        Of the table's own columns, only what stands elsewhere than `HOLDS` says.
    """
    planted, made = Planted(), folder / "made"
    slides = write_slides(folder / "planted", formats, planted, side_px=side_px)
    made.mkdir()
    (folder / "table").mkdir()
    (made / "shown").mkdir()
    rows = ["slide_id,path,patient_id,label,fold,site,mpp"]
    for number, (name, path) in enumerate(slides.items()):
        fold = ("train", "val", "test")[number // 2] if number < 6 else "train"
        own = [planted(f"{column} {name}") for column in (SLIDE_ID, PATIENT, SITE)]
        label = ("benign", "lesion")[number % 2]
        rows.append(f"{own[0]},{path},{own[1]},{label},{fold},{own[2]},{mpp_of(name) or ''}")
    table, config = folder / "table" / "slides.csv", folder / "table" / "config.toml"
    table.write_text("\n".join(rows) + "\n", encoding="utf-8")
    config.write_text(TINY_RUN.format(slides=table), encoding="utf-8")
    words = [str(config), "--run.out_dir", str(made / "run"), "--run.embeddings", str(made / "store")]
    status = run_logged(made, "train", words, module="training.run.cli")
    assert status == 0, f"the run ended with {status}: see {made}"
    asked = ["--show-identifiers", "--out", str(made / "shown" / "report.html")]
    for name, options in (("report", []), ("report-shown", asked)):
        status = run_logged(made, name, [str(made / "run"), *options], module="training.report.__main__")
        assert status == 0, f"{name} ended with {status}: see {made}"
    for name, path in slides.items():
        reviews = ReviewFile(path.parent)
        reviews.add(Review(path.name, "agree", "", name))
        reviews.write_waiting()
        (made / "verdicts").mkdir(exist_ok=True)
        shutil.copy(path.parent / REVIEW_NAME, made / "verdicts" / f"{name}.jsonl")
    secrets = planted.fields | {date: f"date {date}" for date in DATES}
    found = search(made, secrets)
    held = {
        (part, kind): {
            leak for leak in found.leaks if part in Path(leak.place).parts and leak.field.startswith(kind)
        }
        for part, kinds in HOLDS.items()
        for kind in kinds
    }
    unfound = [place for place, leaks in held.items() if not leaks]
    assert not unfound, f"the search is blind, or the documentation says too much: {unfound}"
    known = set().union(*held.values())
    found.leaks = [leak for leak in found.leaks if leak not in known]
    return found


def attack_meaning(
    folder: Path, *, formats: Iterable[str] = FORMATS, side_px: int = 512
) -> tuple[Found, int]:
    """Plant a word in each field that means something, a slide each, and search what is said of the slide.

    Returns
    -------
    found : Found
    n_slides : int
    """
    found, n_slides = Found(), 0
    for name in formats:
        first = Planted()
        (folder / "first" / name).mkdir(parents=True)
        FORMATS[name](folder / "first" / name, "slide", stained(side_px, 0), first)
        for number, wrong in enumerate(sorted(first.meaningful)):
            planted, home = Planted(wrong), folder / f"{name}{number}"
            out = home / "made"
            out.mkdir(parents=True)
            path = FORMATS[name](home, "slide", stained(side_px, 0), planted)
            with logs_to(out / "log.txt"):
                (out / "said.txt").write_text(what_is_said(path, mpp_of(name)))
            secrets = {} if wrong in QUOTED_IN_ERRORS else {planted_word(wrong): wrong}
            assert search(home, {planted_word(wrong): wrong}).leaks, f"{wrong} isn't where it was planted"
            part = search(out, secrets)
            found.take(
                replace(part, leaks=[Leak(f"{name}: {leak.place}", leak.field) for leak in part.leaks])
            )
            n_slides += 1
    return found, n_slides


def what_is_said(path: Path, mpp: float | None) -> str:
    """Return what the program says of a slide, or why it doesn't open."""
    from typer.testing import CliRunner

    from napari_lrmil.cli.main import app
    from napari_lrmil.slide import Slide

    words = ["info", str(path), *([] if mpp is None else ["--mpp", str(mpp)])]
    told = CliRunner().invoke(app, words, env={"COLUMNS": "300"}).output
    try:
        with Slide(path, mpp=mpp) as slide:
            slide.fingerprint()
            return f"{told}\n{slide.metadata}\n{slide.pixel_size}\n{slide.has_mpp and slide.mpp_xy}"
    except LRMILError as error:
        return f"{told}\n{error}"


@contextmanager
def logs_to(path: Path) -> Iterator[None]:
    """Keep all logs of this process at debug level, and what is written to its standard output, in a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    root = logging.getLogger()
    before = root.level
    with path.open("w") as file:
        handler = logging.StreamHandler(file)
        root.addHandler(handler)
        root.setLevel(logging.DEBUG)
        try:
            with redirect_stdout(file), redirect_stderr(file):
                yield
        finally:
            root.removeHandler(handler)
            root.setLevel(before)


def main() -> None:
    """Attack and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--bundle", default="demo")
    parser.add_argument("--keep", type=Path, help="a folder for all that is made; default: a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        os.environ["LRMIL_CACHE_DIR"] = os.environ["LRMIL_DATA_DIR"] = str(folder / "own")
        found = attack_metadata(folder / "metadata", bundle=options.bundle)
        _say(f"{len(FORMATS)} formats, a word in every field", found)
        trained = attack_training(folder / "training")
        _say(f"a training run on {len(FORMATS)} formats", trained)
        meant, n_slides = attack_meaning(folder / "meaning")
        _say(f"{n_slides} slides with a word where a value is meant", meant)
    sys.exit(bool(found.leaks or trained.leaks or meant.leaks))


def _say(what: str, found: Found) -> None:
    print(f"{what}: {found.files} files of {found.n_bytes / 1e6:.1f} MB searched, {len(found.leaks)} leaks")
    for leak in found.leaks:
        print(f"  {leak.field} in {leak.place}")


if __name__ == "__main__":
    main()
