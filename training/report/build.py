"""The page: data, tables, plots and examples put into the template, with nobody's name unless asked."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath, PureWindowsPath

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from napari_lrmil.atomic import write_text
from napari_lrmil.errors import LRMILError
from napari_lrmil.model.device import resolve_device
from training.config import RunConfig
from training.methods import OURS
from training.progress import Reporter
from training.report import figures, tables
from training.report.data import RunData, read_run
from training.report.examples import choose, colour_bar, make_examples
from training.run.layout import RunDir
from training.stages.distill_tiles import TRANSDUCTIVE_NOTE
from training.stages.evaluate import called_text, unfitted_note, unfitted_trainings
from training.stages.front import front_text, timed_text
from training.stages.heads import MILSection

_TEMPLATES = Path(__file__).resolve().parent / "templates"

_PATHS = {
    (section, name)
    for section, model in RunConfig.model_fields.items()
    for name, found in getattr(model.annotation, "model_fields", {}).items()
    if "Path" in str(found.annotation)
}


def build_report(
    run_dir: Path,
    *,
    out: Path | None = None,
    n_examples: int | None = None,
    show_identifiers: bool = False,
    device: str = "auto",
    date: datetime | None = None,
    reporter: Reporter | None = None,
) -> Path:
    """Write the report of a finished run as one HTML file.

    Parameters
    ----------
    run_dir : Path
        As ``python -m training.run`` leaves it.
    out : Path, optional
        Default ``run_dir/report.html``.
    n_examples : int, optional
        Slides with heatmaps at most; default two a class, of up to four classes. 0 reads no slide.
    show_identifiers : bool
        Show slide and patient ids and whole paths, which can say who a patient is.
    device : str
        For the heatmaps, as in the config.
    date : datetime, optional
        Printed on the page; default now. With the same date, the same run gives the same bytes on the same
        machine.
    reporter : Reporter, optional
        For a bar over the examples.

    Returns
    -------
    Path
        Of the file.

    Raises
    ------
    LRMILError
        Where the run isn't finished, naming the part that is missing, or the file can't be written.
    """
    data = read_run(run_dir)
    path = RunDir(run_dir).report_html if out is None else out
    choices = choose(data, n_examples)
    examples, scale = make_examples(data, choices, device=resolve_device(device), reporter=reporter)
    page = (
        _environment()
        .get_template("report.html.j2")
        .render(
            _context(data, show_identifiers=show_identifiers, date=date or datetime.now(UTC)),
            examples=examples,
            heat_top=scale.high,
            heat_low=scale.low,
            heat_attention=not scale.diverging,
            colour_bar=colour_bar(scale),
        )
    )
    try:
        write_text(path, page)
    except OSError as error:
        raise LRMILError(f"{path} can't be written: {error.strerror}") from error
    return path


def _context(data: RunData, *, show_identifiers: bool, date: datetime) -> dict[str, object]:
    config, info = data.config, data.info
    rows = tables.comparison(data)
    calibration, bins = figures.calibration_group(data)
    pooled = data.pooled(OURS.key)
    return {
        "title": config.get("export", {}).get("name", "LRMIL run"),
        "description": config.get("export", {}).get("description", ""),
        "training_data": config.get("export", {}).get("training_data", ""),
        "demonstration": bool(config.get("export", {}).get("demonstration", False)),
        "date": date.strftime("%Y-%m-%d %H:%M %Z").strip(),
        "seed": config.get("run", {}).get("seed"),
        "provenance": None if info is None else info.provenance,
        "class_names": data.class_names,
        "n_slides": len(pooled.labels),
        "n_patients": len(set(pooled.patients)),
        "n_trainings": data.trainings,
        "n_resamples": config.get("evaluate", {}).get("bootstrap"),
        "labels_in_stage1": config.get("stage1", {}).get("weighting") == "attention",
        "shared_encoder": data.shared_stage1 is not None,
        "transductive": TRANSDUCTIVE_NOTE if data.is_transductive else "",
        "preserved_sites": bool(config.get("data", {}).get("preserved_sites", False)),
        "notes": data.notes,
        "called_text": called_text(data.results[OURS.key], data.positive_class),
        "main_rows": [row for row in rows if not row.shortcut],
        "shortcut_rows": [row for row in rows if row.shortcut],
        "ours": next(row for row in rows if row.ours),
        "largest_difference": tables.largest_difference(rows),
        "class_rows": tables.class_rows(data),
        "encoders_text": tables.encoders_text(data),
        "unfitted": unfitted_trainings(data.results),
        "unfitted_note": unfitted_note(
            config.get("mil", {}).get("fitted_auc", MILSection.model_fields["fitted_auc"].default)
        ),
        "metric_names": [name for _, name in tables.METRICS],
        "fold_metric_names": [name for _, name in tables.FOLD_METRICS],
        "fold_blocks": tables.fold_blocks(data),
        "fold_parts": tables.fold_parts(data),
        "front": data.front,
        "front_text": "" if data.front is None else front_text(data.front),
        "timed_text": "" if data.front is None else timed_text(data.front),
        "front_group": figures.front_group(data),
        "roc_groups": figures.roc_groups(data),
        "calibration": calibration,
        "bins": bins,
        "confusion": tables.confusion_rows(data),
        "curve_groups": figures.curve_groups(data),
        "show_identifiers": show_identifiers,
        "config_text": json.dumps(
            _shown_config(config, show_identifiers=show_identifiers), indent=2, ensure_ascii=False
        ),
    }


def _shown_config(config: Mapping[str, object], *, show_identifiers: bool) -> Mapping[str, object]:
    """Return the config, its paths cut down to the last part: folders are named after people and studies."""
    if show_identifiers:
        return config
    shown: dict[str, object] = {}
    for section, fields in config.items():
        if isinstance(fields, dict):
            shown[section] = {
                name: _last_part(value)
                if isinstance(value, str) and _is_path(section, name, value)
                else value
                for name, value in fields.items()
            }
        else:
            shown[section] = fields
    return shown


def _is_path(section: str, name: str, value: str) -> bool:
    absolute = PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute()
    return (section, name) in _PATHS or absolute or value.startswith("~")


def _last_part(value: str) -> str:
    return PureWindowsPath(value).name  # it takes both kinds of slashes


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "signed": signed, "percent": percent, "drawing": _drawing}
    return environment


def number(value: float | None, digits: int = 3) -> str:
    """Write a number for a table; a dash where there is none."""
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def signed(value: float) -> str:
    """Write a number with its sign, the minus as wide as the plus."""
    return "–" if math.isnan(value) else f"{value:+.3f}".replace("-", "−")


def percent(value: float) -> str:
    """Write a share as whole per cent."""
    return "–" if math.isnan(value) else f"{100 * value:.0f} %"


def _drawing(svg: str) -> Markup:
    """Mark an SVG of our own plots as safe: they hold no text from outside."""
    return Markup(svg)
