"""What can be exported of the current slide, and the steps that write it. No Qt.

Every file appears whole at the end or not at all: closing the steps before that leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from napari_lrmil.atomic import replacing
from napari_lrmil.export.errors import ExportError

if TYPE_CHECKING:
    from napari_lrmil.export.slide_report import Verdict
    from napari_lrmil.model.bundle import BundleInfo
    from napari_lrmil.predict import SlidePrediction
    from napari_lrmil.slide import Slide


class Step(NamedTuple):
    """How far an export is; 0 of 0 where the end isn't known."""

    done: int
    total: int
    doing: str


class Source(NamedTuple):
    """What is exported."""

    slide: Slide
    prediction: SlidePrediction
    info: BundleInfo | None
    verdict: Verdict | None = None


class Options(NamedTuple):
    """How."""

    over_slide: bool = True
    show_identifiers: bool = False


Exporter = Generator[Step, None, tuple[Path, ...]]


class Format(NamedTuple):
    """A kind of file.

    Attributes
    ----------
    key : str
    title, tool_tip : str
    default_name : str
        Holds nothing of the slide's name.
    suffix : str
    filter : str
        Of the file dialog.
    targets : callable
        The paths that a chosen one stands for.
    steps : callable
    needs_bundle : bool
        Whether the model card goes into it.
    """

    key: str
    title: str
    tool_tip: str
    default_name: str
    suffix: str
    filter: str
    targets: Callable[[Path], tuple[Path, ...]]
    steps: Callable[[Path, Source, Options], Exporter]
    needs_bundle: bool = False


def _one(path: Path) -> tuple[Path, ...]:
    return (path,)


def _with_table(path: Path) -> tuple[Path, ...]:
    return (path, path.with_suffix(".csv"))


def _report(path: Path, source: Source, options: Options, *, pdf: bool) -> Exporter:
    from napari_lrmil.export.slide_report import write_slide_report

    if source.info is None:
        raise ExportError("a report needs the model that made the result. Load it, or classify again.")
    yield Step(0, 0, "preparing the report")
    # The scratch file beside the target is the report's; it takes its place after the last chance to cancel.
    with replacing(path) as scratch:
        steps = write_slide_report(
            source.prediction,
            source.slide,
            source.info,
            pdf=scratch if pdf else None,
            html=None if pdf else scratch,
            verdict=source.verdict,
            show_identifiers=options.show_identifiers,
        )
        while True:
            try:
                done, total, doing = next(steps)
            except StopIteration:
                break
            yield Step(done, total, doing)
        yield Step(1, 1, "finishing")
    return (path,)


def _report_pdf(path: Path, source: Source, options: Options) -> Exporter:
    return (yield from _report(path, source, options, pdf=True))


def _report_html(path: Path, source: Source, options: Options) -> Exporter:
    return (yield from _report(path, source, options, pdf=False))


def _png(path: Path, source: Source, options: Options) -> Exporter:
    from napari_lrmil.export.images import write_heatmap_png

    yield Step(0, 0, "painting the heatmap")
    with replacing(path) as scratch:
        write_heatmap_png(scratch, source.prediction, slide=source.slide if options.over_slide else None)
        yield Step(1, 1, "finishing")
    return (path,)


def _zarr(path: Path, source: Source, options: Options) -> Exporter:
    from napari_lrmil.export.images import write_heatmap_zarr

    yield Step(0, 0, "writing the heatmap")
    return (write_heatmap_zarr(path, source.prediction, overwrite=True),)


def _geojson(path: Path, source: Source, options: Options) -> Exporter:
    from napari_lrmil.export.geojson import write_heatmap_geojson

    yield Step(0, 0, "writing the tiles")
    with replacing(path) as scratch:
        write_heatmap_geojson(scratch, source.prediction, bounds_l0_xywh=source.slide.bounds_l0_xywh)
        yield Step(1, 1, "finishing")
    return (path,)


def _tables(path: Path, source: Source, options: Options) -> Exporter:
    from napari_lrmil.export.tables import shown_name, write_prediction

    yield Step(0, 0, "writing the tables")
    name = shown_name(source.prediction, show_identifiers=options.show_identifiers)
    named = replace(source.prediction, slide_name=name)
    return write_prediction(named, path.parent, stem=path.stem)


FORMATS: tuple[Format, ...] = (
    Format(
        "pdf",
        "Report (PDF) …",
        "One page: slide, heatmap, probabilities, tiles that speak most, model card, versions",
        "report.pdf",
        ".pdf",
        "PDF (*.pdf)",
        _one,
        _report_pdf,
        needs_bundle=True,
    ),
    Format(
        "html",
        "Report (HTML) …",
        "The same page for a browser, with its pictures inside",
        "report.html",
        ".html",
        "HTML (*.html)",
        _one,
        _report_html,
        needs_bundle=True,
    ),
    Format(
        "png",
        "Heatmap as picture (PNG) …",
        "Colours with scale bar and colour bar, for slides and papers",
        "heatmap.png",
        ".png",
        "PNG (*.png)",
        _one,
        _png,
    ),
    Format(
        "zarr",
        "Heatmap as numbers (OME-Zarr) …",
        "Attention and contribution of each tile as float32, in µm; a folder",
        "heatmap.ome.zarr",
        ".ome.zarr",
        "OME-Zarr (*.ome.zarr)",
        _one,
        _zarr,
    ),
    Format(
        "geojson",
        "Tiles for QuPath (GeoJSON) …",
        "A detection for each tile with its measurements; drag the file onto the image in QuPath",
        "tiles.geojson",
        ".geojson",
        "GeoJSON (*.geojson)",
        _one,
        _geojson,
    ),
    Format(
        "tables",
        "Tables (JSON and CSV) …",
        "The slide's result as JSON, and beside it a CSV with a row a tile",
        "result.json",
        ".json",
        "JSON, and CSV of the same name (*.json)",
        _with_table,
        _tables,
    ),
)


def target_of(chosen: Path, wanted: Format) -> Path:
    """The path to write: with the ending that belongs to the format."""
    if chosen.name.lower().endswith(wanted.suffix):
        return chosen
    return chosen.with_name(chosen.name + wanted.suffix)


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
