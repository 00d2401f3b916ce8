"""One page a slide, for the file and for people without a viewer: HTML and PDF with the same content."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from napari_lrmil.atomic import replacing
from napari_lrmil.export.errors import ExportError
from napari_lrmil.export.report_content import ReportProgress, Verdict, gather

if TYPE_CHECKING:  # both load torch
    from napari_lrmil.model.bundle import BundleInfo
    from napari_lrmil.predict import SlidePrediction
    from napari_lrmil.slide import Slide

__all__ = ["ReportProgress", "Verdict", "write_slide_report"]

ReportSteps = Generator[ReportProgress, None, tuple[Path, ...]]


def write_slide_report(
    prediction: SlidePrediction,
    slide: Slide,
    info: BundleInfo,
    *,
    html: str | Path | None = None,
    pdf: str | Path | None = None,
    verdict: Verdict | None = None,
    n_tiles: int = 6,
    show_identifiers: bool = False,
    page: Literal["A4", "letter"] = "A4",
    written: datetime | None = None,
) -> ReportSteps:
    """Write a slide's report step by step, each file whole or not at all.

    A generator: it yields progress before each step, so that the caller can show it and can cancel by
    closing it, after which there is no new file. Its return value are the paths (or use `predict.run_to_end`).

    The slide's label and macro images are never used. Its file name can hold a patient's; without
    `show_identifiers` the report, its title and its metadata name the slide by its fingerprint. The
    reviewer's note is shown as it was written.

    Parameters
    ----------
    prediction : SlidePrediction
    slide : Slide
        The one of the prediction, open; its colours are shown as it is set to give them.
    info : BundleInfo
        Of the bundle that made the prediction.
    html, pdf : path-like, optional
        At least one.
    verdict : Verdict, optional
    n_tiles : int
        Tiles that speak most for the predicted class, 1 to 6.
    show_identifiers : bool
    page : {'A4', 'letter'}
    written : datetime, optional
        Default: now, in local time.

    Raises
    ------
    ExportError
        Where no file is asked for, or the slide or bundle isn't the prediction's.
    SlideError
    """
    if html is None and pdf is None:
        raise ExportError("a report needs a file to go to: an HTML, a PDF or both")
    if not 1 <= n_tiles <= 6:
        raise ExportError(f"a report shows 1 to 6 tiles, not {n_tiles}")
    if slide.fingerprint() != prediction.slide_fingerprint:
        raise ExportError("this is not the slide that was classified. Classify it again.")
    if info.sha256 != prediction.bundle_sha256:
        raise ExportError("this is not the bundle that classified the slide. Classify it again.")
    shown = min(n_tiles, len(prediction.tiles))
    total = 1 + shown + (html is not None) + (pdf is not None)
    content = yield from gather(
        prediction,
        slide,
        info,
        verdict=verdict,
        n_tiles=shown,
        show_identifiers=show_identifiers,
        written=written or datetime.now().astimezone(),
        total=total,
    )
    paths = []
    with ExitStack() as stack:
        if html is not None:
            yield ReportProgress(1 + shown, total, "writing HTML")
            from napari_lrmil.export.report_html import render_html

            paths.append(Path(html))
            scratch = stack.enter_context(replacing(Path(html)))
            scratch.write_text(render_html(content, page=page), encoding="utf-8", newline="\n")
        if pdf is not None:
            yield ReportProgress(total - 1, total, "writing PDF")
            from napari_lrmil.export.report_pdf import render_pdf

            paths.append(Path(pdf))
            stack.enter_context(replacing(Path(pdf))).write_bytes(render_pdf(content, page=page))
    return tuple(paths)
