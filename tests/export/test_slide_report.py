"""The report of a slide: one page, everything on it, nothing that names the patient."""

from __future__ import annotations

import html.parser
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pypdfium2
import pytest
import torch

from napari_lrmil.evidence import DeletionCurve
from napari_lrmil.export import report_pdf
from napari_lrmil.export.errors import ExportError
from napari_lrmil.export.slide_report import Verdict, write_slide_report
from napari_lrmil.model.bundle import BundleInfo, ModelBundle
from napari_lrmil.predict import SlidePrediction, predict_slide, run_to_end
from napari_lrmil.slide import Slide
from napari_lrmil.wording import (
    ATTENTION_NOTE,
    NOT_TO_BE_USED,
    curve_text,
    distance_text,
    percent_text,
    set_text,
    unlike_training_text,
)

WHEN = datetime(2026, 3, 4, 15, 30, tzinfo=UTC)
GERMAN = "Größe ≥ 5 µm – über α-Rand; Ω, Жук, ł, ∆ × ½"
LONG = "Überlange Anmerkung, die kein Ende nimmt. " * 400


class Words(html.parser.HTMLParser):
    """Visible text, and what a browser would load."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.loads, self.tags, self._hidden = "", [], [], False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._hidden = tag == "style"
        self.loads += [value for name, value in attrs if name in ("src", "href", "srcset", "data") and value]

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.text += data


def pdf_of(path: Path) -> tuple[int, tuple[float, float], str, np.ndarray]:
    document = pypdfium2.PdfDocument(path)
    try:
        page = document[0]
        text_page = page.get_textpage()
        text = re.sub(r"\s+", " ", text_page.get_text_bounded())
        pixels = np.asarray(page.render(scale=1).to_pil().convert("L"))
        size, count = page.get_size(), len(document)
        text_page.close()
        page.close()
    finally:
        document.close()
    return count, size, text, pixels


@pytest.fixture(scope="module")
def trusted(leica_prediction: SlidePrediction) -> SlidePrediction:
    return replace(
        leica_prediction,
        prediction_set=("benign", "lesion"),
        coverage=0.9,
        ood_score=1.25,
        ood_threshold=2.5,
        slide_name="MUSTERMANN_Erika",
    )


@pytest.fixture(scope="module")
def called(trusted: SlidePrediction) -> int:
    """Index of the class that the packaged model happens to call."""
    return trusted.called_index


@pytest.fixture(scope="module")
def n_shown(trusted: SlidePrediction, called: int) -> int:
    """Tiles that speak for it, of which a report shows six at most; with none there would be nothing to look for."""
    number = min(6, int((trusted.log_odds_contributions[:, called] > 0).sum()))
    assert number > 1
    return number


@pytest.fixture(scope="module")
def unlike(trusted: SlidePrediction) -> SlidePrediction:
    return replace(trusted, ood_score=4.25)


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        (Verdict("agree", answer="called"), "Agrees with the model."),
        (Verdict("agree", answer="other"), "Agreed, when the answer was other."),
        (Verdict("disagree", answer="other"), "Disagreed, when the answer was other."),
        (Verdict("unsure", answer=""), "The reviewer was unsure, when there was no label."),
    ],
)
def test_a_verdict_on_another_label_is_not_one_on_this(
    trusted: SlidePrediction,
    leica: Slide,
    demo_bundle: ModelBundle,
    called: int,
    tmp_path: Path,
    verdict: Verdict,
    said: str,
) -> None:
    names = {"called": trusted.class_names[called], "other": trusted.class_names[1 - called], "": ""}
    assert trusted.label == names["called"]
    verdict, said = verdict._replace(answer=names[verdict.answer]), said.replace("other", names["other"])
    path = tmp_path / "r.html"
    run_to_end(write_slide_report(trusted, leica, demo_bundle.info, html=path, verdict=verdict))
    text = re.sub(r"\s+", " ", path.read_text(encoding="utf-8"))
    assert said in text
    assert text.count("Agrees with the model") == (said == "Agrees with the model.")


@pytest.fixture
def report(
    trusted: SlidePrediction, leica: Slide, demo_bundle: ModelBundle, tmp_path: Path
) -> tuple[str, str, Path]:
    verdict = Verdict("disagree", f"<b>{GERMAN}</b> & so", "2026-03-04 15:00")
    paths = run_to_end(
        write_slide_report(
            trusted,
            leica,
            demo_bundle.info,
            html=tmp_path / "r.html",
            pdf=tmp_path / "r.pdf",
            verdict=verdict,
            written=WHEN,
        )
    )
    assert paths == (tmp_path / "r.html", tmp_path / "r.pdf")
    words = Words()
    words.feed(paths[0].read_text(encoding="utf-8"))
    return re.sub(r"\s+", " ", words.text), pdf_of(paths[1])[2], tmp_path


def test_both_say_the_same(
    report: tuple[str, str, Path],
    trusted: SlidePrediction,
    demo_bundle: ModelBundle,
    called: int,
    n_shown: int,
) -> None:
    name = trusted.class_names[called]
    top = trusted.class_contributions[:, called].max()
    said = [
        "Demonstration only, not for diagnosis.",
        f"{name}, {percent_text(float(trusted.class_probabilities[called]), decimals=1)}",
        set_text(trusted),
        "Unsure: benign or lesion at 90 %",
        distance_text(trusted),
        "1.25 (warning above 2.5)",
        "Disagrees with the model. (2026-03-04 15:00)",
        f"<b>{GERMAN}</b> & so",
        f"The {n_shown} tiles that speak most for {name}",
        f"1. p {top:+.4f}",
        "shown at 0.5 µm/px; the model read 2 µm/px",
        curve_text(trusted.deletion),
        ATTENTION_NOTE,
        f"{len(trusted.tiles)} from level {trusted.level}",
        "1.11 × 1.48 mm at 0.499 µm/px",
        demo_bundle.info.provenance.training_data,
        "bsd-3-clause",
        "≥ 25% tissue",
        "napari-lrmil",
        "2026-03-04 15:30+00:00",
        "not of every byte",
    ]
    for text in report[:2]:
        for wanted in said:
            assert wanted in text
        packed = text.replace(" ", "").replace("\u00ad", "")
        assert trusted.slide_fingerprint in packed
        assert trusted.bundle_sha256 in packed


def test_a_slide_unlike_those_of_training_gets_its_answer_and_the_label_apart(
    unlike: SlidePrediction, leica: Slide, demo_bundle: ModelBundle, called: int, tmp_path: Path
) -> None:
    html, pdf = tmp_path / "r.html", tmp_path / "r.pdf"
    name = unlike.class_names[called]
    verdict = Verdict("agree", answer=name)
    run_to_end(write_slide_report(unlike, leica, demo_bundle.info, html=html, pdf=pdf, verdict=verdict))
    page = re.sub(r"\s+", " ", html.read_text(encoding="utf-8"))
    assert '<div class="result">unlike training</div>' in page
    fold = re.search(r"<details class=\"withheld\"><summary>(.*?)</summary>(.*?)</details>", page)
    assert fold is not None  # folded: no 'open'
    assert fold[1] == "What the model would say: not to be used"
    share = percent_text(float(unlike.class_probabilities[called]), decimals=1)
    inside = Words()
    inside.feed(fold[2])
    assert NOT_TO_BE_USED in inside.text
    assert f"It would say: {name} {share}" in inside.text
    assert f"tiles that speak most for {name}" in inside.text
    outside = Words()
    outside.feed(page.replace(fold[0], "").partition("<body>")[2])
    told, _, card = re.sub(r"\s+", " ", outside.text).partition("Model card")
    assert card
    assert unlike_training_text(unlike) in told
    assert f"Agreed, when the answer was {name}." in told  # the only place that names a class
    assert not re.search("benign|lesion", told.replace(f"when the answer was {name}", ""))
    count, _, text, _ = pdf_of(pdf)
    assert count == 1
    assert "unlike training" in text
    before, mark, after = text.partition(NOT_TO_BE_USED)
    assert mark
    assert not re.search("benign|lesion", before.replace(f"when the answer was {name}", ""))
    assert after.strip().startswith(f"It would say: {name} {share}")


def test_no_identifiers_unless_wanted(
    report: tuple[str, str, Path],
    trusted: SlidePrediction,
    leica: Slide,
    demo_bundle: ModelBundle,
    tmp_path: Path,
) -> None:
    for path in report[2].iterdir():
        data = path.read_bytes()
        for secret in (b"MUSTERMANN", leica.path.stem.encode(), str(leica.path.parent).encode()):
            assert secret not in data
    assert all(f"slide {trusted.slide_fingerprint[:8]}" in text for text in report[:2])
    named = tmp_path / "named.pdf"
    run_to_end(write_slide_report(trusted, leica, demo_bundle.info, pdf=named, show_identifiers=True))
    assert "MUSTERMANN_Erika" in pdf_of(named)[2]


def test_label_and_macro_are_never_read(
    leica_prediction: SlidePrediction,
    leica: Slide,
    demo_bundle: ModelBundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("an associated image was read")

    monkeypatch.setattr(Slide, "read_associated", refuse)
    run_to_end(write_slide_report(leica_prediction, leica, demo_bundle.info, html=tmp_path / "r.html"))


def test_html_stands_alone_and_is_escaped(report: tuple[str, str, Path], n_shown: int) -> None:
    words = Words()
    words.feed((report[2] / "r.html").read_text(encoding="utf-8"))
    assert len(words.loads) == 2 + n_shown
    assert all(load.startswith("data:image/jpeg;base64,") for load in words.loads)
    assert "script" not in words.tags
    assert "b" not in words.tags


@pytest.mark.parametrize("n_for", [0, 1, 3, 6, 9])
def test_only_tiles_that_speak_for_the_label_are_shown(
    trusted: SlidePrediction, leica: Slide, demo_bundle: ModelBundle, tmp_path: Path, n_for: int
) -> None:
    lesion = np.full(len(trusted.tiles), -0.01)
    lesion[:n_for] = 0.02
    speaking = 1 if trusted.label == "lesion" else -1
    contributions = np.stack([-lesion, lesion], axis=1) * speaking
    changed = replace(trusted, class_contributions=contributions, log_odds_contributions=5 * contributions)
    html, pdf = tmp_path / "r.html", tmp_path / "r.pdf"
    run_to_end(write_slide_report(changed, leica, demo_bundle.info, html=html, pdf=pdf))
    words = Words()
    words.feed(html.read_text(encoding="utf-8"))
    title = {
        0: f"No tile speaks for {changed.label}",
        1: f"The tile that speaks for {changed.label}",
    }.get(n_for, f"The {min(n_for, 6)} tiles that speak most for {changed.label}")
    for text in (re.sub(r"\s+", " ", words.text), pdf_of(pdf)[2]):
        assert title in text
        assert ("no tile lowers the probability" in text) == (n_for == 0)
    assert len(words.loads) == 2 + min(n_for, 6)


@pytest.mark.parametrize(("page", "size"), [("A4", (595, 842)), ("letter", (612, 792))])
@pytest.mark.parametrize(
    "note", ["", LONG, "W" * 4000, "x\n" * 300], ids=["none", "long", "one word", "lines"]
)
def test_pdf_is_one_page_whatever_the_note(
    trusted: SlidePrediction,
    leica: Slide,
    demo_bundle: ModelBundle,
    tmp_path: Path,
    page: str,
    size: tuple[int, int],
    note: str,
) -> None:
    info = demo_bundle.info
    if note:
        provenance = info.provenance.model_copy(update={"training_data": note})
        names = tuple(f"a class with a rather long name, number {number}" for number in range(12))
        count = len(trusted.tiles)
        trusted = replace(
            trusted,
            class_names=names,
            class_probabilities=np.full(12, 1 / 12),
            thresholds=(1 / 12,) * 12,
            class_contributions=np.zeros((count, 12)),
            log_odds_contributions=np.tile(np.linspace(-9, 9, count)[:, None], (1, 12)),
            log_odds_alone=np.full((count, 12), -123.456),
            prediction_set=names,
            slide_name=note[:300],
        )
        info = info.model_copy(update={"provenance": provenance, "description": note, "name": note[:200]})
        trusted = replace(trusted, bundle_sha256=info.sha256)
    path = tmp_path / "r.pdf"
    steps = write_slide_report(
        trusted, leica, info, pdf=path, verdict=Verdict("agree", note, WHEN), page=page, show_identifiers=True
    )
    run_to_end(steps)
    count, found_size, text, pixels = pdf_of(path)
    assert count == 1
    assert tuple(round(length) for length in found_size) == size
    dark = np.argwhere(pixels < 200)
    assert dark.min() >= 30  # the margins stay clear: nothing runs off the page
    assert (dark.max(axis=0) <= np.array(pixels.shape) - 28).all()
    assert "Model card" in text
    assert "Demonstration only" in text
    if note == LONG:
        assert "cut; the HTML report has all" in text


def test_pdf_shows_what_the_font_has_and_marks_the_rest() -> None:
    report_pdf.register_fonts()
    assert report_pdf.printable(GERMAN + "\n\t") == GERMAN + "\n "
    assert report_pdf.printable("漢字") == "▯▯"
    assert report_pdf.one_line("short", 8, 100) == "short"
    cut = report_pdf.one_line("a very long name of a slide", 8, 60)
    assert cut.startswith("a ")
    assert cut.endswith("e")
    assert "…" in cut


def test_cancelled_or_failed_leaves_nothing(
    leica_prediction: SlidePrediction,
    leica: Slide,
    demo_bundle: ModelBundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    html_path, pdf_path = tmp_path / "r.html", tmp_path / "r.pdf"
    html_path.write_text("older")

    def steps() -> Callable[[], object]:
        made = write_slide_report(leica_prediction, leica, demo_bundle.info, html=html_path, pdf=pdf_path)
        return made

    speaking = int((leica_prediction.log_odds_contributions[:, leica_prediction.called_index] > 0).sum())
    assert speaking > 1
    seen = [(step.done, step.total) for step in steps()]
    # Room for six tiles is counted from the start; with fewer the steps of those that aren't there are passed over.
    assert [done for done, _ in seen] == [*range(1 + min(6, speaking)), 7, 8]
    assert {total for _, total in seen} == {9}
    html_path.write_text("older")
    pdf_path.unlink()
    for stop_after in range(1, len(seen) + 1):
        running = steps()
        for _ in range(stop_after):
            next(running)
        running.close()
        assert [path.name for path in tmp_path.iterdir()] == ["r.html"]
        assert html_path.read_text() == "older"

    def fail(*_: object, **__: object) -> bytes:
        raise OSError("disk full")

    monkeypatch.setattr(report_pdf, "render_pdf", fail)
    with pytest.raises(OSError, match="disk full"):
        run_to_end(steps())
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]
    assert html_path.read_text() == "older"


def test_refuses_the_wrong_slide_or_bundle(
    leica_prediction: SlidePrediction, leica: Slide, aperio: Slide, demo_bundle: ModelBundle, tmp_path: Path
) -> None:
    other = demo_bundle.info.model_copy(update={"weights_sha256": "0" * 64})
    asked: list[tuple[Slide, BundleInfo, dict[str, object], str]] = [
        (aperio, demo_bundle.info, {"pdf": tmp_path / "r.pdf"}, "not the slide"),
        (leica, other, {"pdf": tmp_path / "r.pdf"}, "not the bundle"),
        (leica, demo_bundle.info, {}, "needs a file"),
        (leica, demo_bundle.info, {"pdf": tmp_path / "r.pdf", "n_tiles": 7}, "1 to 6"),
    ]
    for slide, info, options, said in asked:
        with pytest.raises(ExportError, match=said):
            run_to_end(write_slide_report(leica_prediction, slide, info, **options))  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_slide_without_finer_level_or_tissue_to_spare(
    demo_bundle: ModelBundle, tmp_path: Path, generated_slide: Path
) -> None:
    """Few tiles, and a curve whose steps repeat."""
    with Slide(generated_slide) as slide:
        prediction = run_to_end(predict_slide(slide, demo_bundle, device=torch.device("cpu")))
        one = np.array([0])
        few = replace(
            prediction,
            tiles=replace(prediction.tiles, rows=prediction.tiles.rows[:1], cols=prediction.tiles.cols[:1]),
            attention_scores=np.ones(1),
            attention_logits=np.zeros(1),
            class_contributions=prediction.class_contributions[one],
            log_odds_contributions=np.abs(prediction.log_odds_contributions[one]),
            log_odds_alone=prediction.log_odds_alone[one],
            deletion=DeletionCurve(
                np.array([0.0, 0.0, 1.0]), *(np.array([0.9, 0.9, 0.5]) for _ in range(4)), class_index=0
            ),
        )
        path = tmp_path / "few.pdf"
        run_to_end(write_slide_report(few, slide, demo_bundle.info, pdf=path, html=tmp_path / "few.html"))
    count, _, text, _ = pdf_of(path)
    assert count == 1
    assert "Not reviewed." in text
    assert curve_text(few.deletion) in text
    assert "no tile matters much more than another" in text
    assert "this model states none" in text


@pytest.mark.slow
@pytest.mark.parametrize(("page", "size"), [("A4", (595, 842)), ("letter", (612, 792))])
def test_printed_html_is_one_page(
    trusted: SlidePrediction,
    leica: Slide,
    demo_bundle: ModelBundle,
    tmp_path: Path,
    page: str,
    size: tuple[int, int],
) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium to print with")
    for number, verdict in enumerate((None, Verdict("agree", LONG, WHEN))):
        path, printed = tmp_path / f"{number}.html", tmp_path / f"{number}.pdf"
        run_to_end(
            write_slide_report(trusted, leica, demo_bundle.info, html=path, verdict=verdict, page=page)  # type: ignore[arg-type]
        )
        subprocess.run(
            [
                *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-pdf-header-footer"),
                *(f"--user-data-dir={tmp_path / 'profile'}", f"--print-to-pdf={printed}", path.as_uri()),
            ],
            check=True,
            capture_output=True,
            timeout=120,
        )
        count, found_size, text, _ = pdf_of(printed)
        assert count == 1
        assert tuple(round(length) for length in found_size) == size
        assert "Training data" in text


def test_import_is_light() -> None:
    modules = ("", ".geojson", ".images", ".slide_report", ".tables", ".result")
    code = "import sys\n" + "\n".join(f"import napari_lrmil.export{name}" for name in modules)
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nprint(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert not loaded & {
        "torch",
        "timm",
        "napari",
        "qtpy",
        "PyQt5",
        "reportlab",
        "jinja2",
        "matplotlib",
        "zarr",
    }
