"""What can be exported of the current slide: one table of the kinds of file, and the steps that write each. No Qt.

Every file appears whole at the end or not at all: closing the steps before that leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from napari_lrmil.atomic import replacing
from napari_lrmil.export.errors import ExportError
from napari_lrmil.slide.identity import same_slide
from napari_lrmil.worklist import ReviewFile, WorklistError

if TYPE_CHECKING:
    from napari_lrmil.export.slide_report import Verdict
    from napari_lrmil.model.bundle import BundleInfo
    from napari_lrmil.predict import SlidePrediction
    from napari_lrmil.slide import Slide

_FOLDERS_UP = 3
"""A worklist's folder may lie above the slide's."""


class Step(NamedTuple):
    """How far an export is; 0 of 0 where the end isn't known."""

    done: int
    total: int
    doing: str


class Source(NamedTuple):
    """What is exported; `info` is of the model that made the prediction, where that is loaded."""

    slide: Slide
    prediction: SlidePrediction
    info: BundleInfo | None


class Options(NamedTuple):
    """How: heatmaps over the slide or alone, with the slide's name or without."""

    over_slide: bool = True
    show_identifiers: bool = False


Writing = Generator[Step, None, tuple[Path, ...]]
"""Writes files step by step, and returns which."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """A kind of file.

    Attributes
    ----------
    key : str
    title : str
        Of its button.
    tool_tip : str
    default_name : str
        Holds nothing of the slide's name.
    suffix : str
        What its name ends with.
    filter : str
        Of the file dialog.
    steps : callable
        (path, source, options) -> Writing.
    beside : tuple of str
        Suffixes of further files of the same stem.
    needs_bundle : bool
        Whether the model card goes into it.
    """

    key: str
    title: str
    tool_tip: str
    default_name: str
    suffix: str
    filter: str
    steps: Callable[[Path, Source, Options], Writing]
    beside: tuple[str, ...] = ()
    needs_bundle: bool = False

    @property
    def name(self) -> str:
        """The title without the dots that announce a dialog."""
        return self.title.removesuffix(" …")

    def with_ending(self, chosen: Path) -> Path:
        """The path to write: with the ending that belongs to the format."""
        if chosen.name.lower().endswith(self.suffix):
            return chosen
        return chosen.with_name(chosen.name + self.suffix)

    def targets(self, path: Path) -> tuple[Path, ...]:
        """All files that are written where `path` was chosen."""
        return (path, *(path.with_suffix(suffix) for suffix in self.beside))


def _report(path: Path, source: Source, options: Options, *, pdf: bool) -> Writing:
    from napari_lrmil.export.slide_report import write_slide_report

    if source.info is None:
        raise ExportError("a report needs the model that made the result. Load it, or classify again.")
    yield Step(0, 0, "looking for the verdict")
    verdict = verdict_of(source.slide.path, source.prediction.slide_fingerprint)
    yield Step(0, 0, "preparing the report")
    # The scratch file beside the target is the report's; it takes its place after the last chance to cancel.
    with replacing(path) as scratch:
        for progress in write_slide_report(
            source.prediction,
            source.slide,
            source.info,
            pdf=scratch if pdf else None,
            html=None if pdf else scratch,
            verdict=verdict,
            show_identifiers=options.show_identifiers,
        ):
            yield Step(*progress)
        source.slide.check_unchanged()  # what was read since is of this file
        yield Step(1, 1, "finishing")
    return (path,)


def of_unchanged(slide: Slide, steps: Writing) -> Writing:
    """Write a file, if the slide's own is still the one that is shown: another one isn't what the result is of.

    Raises
    ------
    SlideChangedError
    """
    slide.check_unchanged()
    return (yield from steps)


def verdict_of(slide_path: Path, fingerprint: str) -> Verdict | None:
    """The reviewer's latest verdict, from the review file of the slide's folder or of one above it.

    None where there is none, where it is on another file that was there before, or where its file can't be read: a report
    without it is better than no report.
    """
    from napari_lrmil.export.slide_report import Verdict

    for folder in list(slide_path.absolute().parents)[:_FOLDERS_UP]:
        try:
            review = ReviewFile.of(folder).latest(slide_path)  # what waits to be written, too
        except WorklistError:
            continue
        if review is not None and (review.fingerprint is None or same_slide(review.fingerprint, fingerprint)):
            return Verdict(review.verdict, review.note, review.time or None, review.answer_shown or "")
    return None


def _png(path: Path, source: Source, options: Options) -> Writing:
    from napari_lrmil.export.images import write_heatmap_png

    yield Step(0, 0, "painting the heatmap")
    with replacing(path) as scratch:
        write_heatmap_png(scratch, source.prediction, slide=source.slide if options.over_slide else None)
        source.slide.check_unchanged()  # what was read since is of this file
        yield Step(1, 1, "finishing")
    return (path,)


def _zarr(path: Path, source: Source, options: Options) -> Writing:
    from napari_lrmil.export.images import write_heatmap_zarr

    yield Step(0, 0, "writing the heatmap")
    return (write_heatmap_zarr(path, source.prediction, overwrite=True),)


def _geojson(path: Path, source: Source, options: Options) -> Writing:
    from napari_lrmil.export.geojson import write_heatmap_geojson

    yield Step(0, 0, "writing the tiles")
    with replacing(path) as scratch:
        write_heatmap_geojson(scratch, source.prediction, bounds_l0_xywh=source.slide.bounds_l0_xywh)
        source.slide.check_unchanged()  # what was read since is of this file
        yield Step(1, 1, "finishing")
    return (path,)


def _tables(path: Path, source: Source, options: Options) -> Writing:
    from napari_lrmil.export.result import write_prediction
    from napari_lrmil.export.tables import shown_name

    yield Step(0, 0, "writing the tables")
    name = shown_name(source.prediction, show_identifiers=options.show_identifiers)
    named = replace(source.prediction, slide_name=name)
    return write_prediction(named, path.parent, stem=path.stem)


FORMATS: tuple[Format, ...] = (
    Format(
        key="pdf",
        title="Report (PDF) …",
        tool_tip="One page: slide, heatmap, probabilities, tiles that speak most, model card, versions",
        default_name="report.pdf",
        suffix=".pdf",
        filter="PDF (*.pdf)",
        steps=partial(_report, pdf=True),
        needs_bundle=True,
    ),
    Format(
        key="html",
        title="Report (HTML) …",
        tool_tip="The same page for a browser, with its pictures inside",
        default_name="report.html",
        suffix=".html",
        filter="HTML (*.html)",
        steps=partial(_report, pdf=False),
        needs_bundle=True,
    ),
    Format(
        key="png",
        title="Heatmap as picture (PNG) …",
        tool_tip="Colours with scale bar and colour bar, for slides and papers",
        default_name="heatmap.png",
        suffix=".png",
        filter="PNG (*.png)",
        steps=_png,
    ),
    Format(
        key="zarr",
        title="Heatmap as numbers (OME-Zarr) …",
        tool_tip="Attention and contribution of each tile as float32, in µm; a folder",
        default_name="heatmap.ome.zarr",
        suffix=".ome.zarr",
        filter="OME-Zarr (*.ome.zarr)",
        steps=_zarr,
    ),
    Format(
        key="geojson",
        title="Tiles for QuPath (GeoJSON) …",
        tool_tip="A detection for each tile with its measurements; drag the file onto the image in QuPath",
        default_name="tiles.geojson",
        suffix=".geojson",
        filter="GeoJSON (*.geojson)",
        steps=_geojson,
    ),
    Format(
        key="tables",
        title="Tables (JSON and CSV) …",
        tool_tip="The slide's result as JSON, and beside it a CSV with a row a tile",
        default_name="result.json",
        suffix=".json",
        filter="JSON, and CSV of the same name (*.json)",
        steps=_tables,
        beside=(".csv",),
    ),
)


def refuse_the_slide(paths: tuple[Path, ...], slide: Slide) -> None:
    """Never write over the slide itself.

    Raises
    ------
    ExportError
    """
    own = slide.path.absolute()
    for path in paths:
        there = path.absolute()
        if there == own or (path.exists() and own.exists() and path.samefile(own)):
            raise ExportError("This is the slide itself. Choose another name.")
