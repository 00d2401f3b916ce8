"""The table as CSV, Markdown, HTML with plots, and in the terminal."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment
from rich.box import SIMPLE_HEAD
from rich.table import Table

from napari_lrmil.atomic import write_text
from training.benchmark.table import BenchmarkRow, Measured
from training.metrics import Interval
from training.report.plots import Series, Spot, front_panel

_NOTE = (
    "Values with 95 % intervals over patients inside folds and over trainings. AUC counts pairs of slides within a fold and a "
    "training. p: two-sided, of no difference to LRMIL, and adjusted for all rows (Holm). A row that isn't told from LRMIL isn't "
    "thereby as good. With two classes NKD and USKD have no terms of other classes: they are weighted cross-entropies there. "
    "Memory and training seconds are of the process that did a row; what rows before it had made isn't in them."
)
_MEASURED = ("auc", "balanced_accuracy", "macro_f1", "brier", "ece", "lrmil_minus_this")
_HEADINGS = {
    "name": "row",
    "train_auc": "training AUC",
    "auc": "AUC",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "brier": "Brier",
    "ece": "ECE",
    "lrmil_minus_this": "LRMIL minus this",
    "adjusted_p": "adjusted p",
    "parameters": "parameters (M)",
    "gflops": "GFLOPs",
    "tiles": "tiles",
    "megabytes": "MB read",
    "seconds": "s",
    "peak_gib": "peak GiB",
    "train_seconds": "training s",
}


def save(rows: Sequence[BenchmarkRow], folder: Path, title: str) -> list[Path]:
    """Write ``benchmark.csv``, ``.md`` and ``.html``; returns their paths.

    Parameters
    ----------
    rows : sequence of BenchmarkRow
    folder : Path
    title : str
        Of the pages.
    """
    texts = {"csv": as_csv(rows), "md": as_markdown(rows, title), "html": as_html(rows, title)}
    paths = []
    for ending, text in texts.items():
        path = folder / f"benchmark.{ending}"
        write_text(path, text)
        paths.append(path)
    return paths


def as_csv(rows: Sequence[BenchmarkRow]) -> str:
    """Return one line a row, an interval as three columns; what isn't known is empty."""
    text = io.StringIO()
    names: list[str] = []
    for name in BenchmarkRow.model_fields:
        names += [name, f"{name}_low", f"{name}_high"] if name in _MEASURED else [name]
    writer = csv.DictWriter(text, fieldnames=names, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        cells: dict[str, object] = {}
        for name in BenchmarkRow.model_fields:
            value = getattr(row, name)
            if isinstance(value, Measured):
                cells |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
            else:
                cells[name] = value
        writer.writerow(cells)
    return text.getvalue()


def as_markdown(rows: Sequence[BenchmarkRow], title: str) -> str:
    """Return a table of the rows that have numbers, and a list of those that failed."""
    good = [row for row in rows if not row.error]
    lines = [f"# {title}", "", "| " + " | ".join(_HEADINGS.values()) + " |", "|---" * len(_HEADINGS) + "|"]
    for row in good:
        cells = [cell(row, name).replace("|", "\\|") for name in _HEADINGS]
        lines.append("| " + " | ".join(cells) + " |")
    failed = [f"- {row.key}: {row.error.splitlines()[-1]}" for row in rows if row.error]
    return "\n".join([*lines, "", _NOTE, *(["", "Failed:", "", *failed] if failed else [])]) + "\n"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<style>
:root { --s0: #d55e00; --s1: #0072b2; --s2: #009e73; --s3: #cc79a7; --s4: #e69f00; --s5: #56b4e9; --s6: #767676; --s7: #111111;
  --ink: #101112; --grid: #d8d9da; --paper: #fdfdfe; --soft: #6b6c6d; }
body { font: 14px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .2rem .6rem; border-bottom: 1px solid var(--grid); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: normal; }
figure { display: inline-block; margin: 1rem 2rem 1rem 0; } pre { white-space: pre-wrap; color: var(--soft); }
</style></head><body>
<h1>{{ title }}</h1>
<table><thead><tr>{% for heading in headings %}<th>{{ heading }}</th>{% endfor %}</tr></thead><tbody>
{% for row in good %}<tr>{% for value in row %}<td>{{ value }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table>
<p>{{ note }}</p>
{% for caption, panel in panels %}<figure>{{ panel | safe }}<figcaption>{{ caption }}</figcaption></figure>{% endfor %}
<ol>{% for key in legend %}<li style="color: {{ key[0] }}">{{ key[1] }}</li>{% endfor %}</ol>
{% if failed %}<h2>Failed</h2>{% for row in failed %}<h3>{{ row.key }}</h3><pre>{{ row.error }}</pre>{% endfor %}{% endif %}
</body></html>
"""


def as_html(rows: Sequence[BenchmarkRow], title: str) -> str:
    """Return a page that needs nothing else: the table, AUC over what a slide costs, and what failed."""
    good = [row for row in rows if not row.error]
    series = {row.key: Series(place) for place, row in enumerate(good)}
    panels = []
    for name, label in (("seconds", "seconds a slide"), ("gflops", "GFLOPs a slide")):
        spots = []
        for row in good:
            cost = getattr(row, name)
            if cost and row.auc is not None:
                low, high = (math.nan if end is None else end for end in (row.auc.low, row.auc.high))
                spots.append(Spot(cost, Interval(row.auc.value, low, high), series[row.key], chosen=False))
        teacher = next((row.auc.value for row in good if row.key == "teacher_hr" and row.auc), math.nan)
        if spots:
            panels.append(
                (f"AUC over {label}", front_panel(f"bench-{name}", spots, label=label, bar=teacher))
            )
    page = Environment(autoescape=True).from_string(_PAGE)
    return page.render(
        title=title,
        headings=list(_HEADINGS.values()),
        good=[[cell(row, name) for name in _HEADINGS] for row in good],
        note=_NOTE,
        panels=panels,
        legend=[(series[row.key].css, row.name) for row in good],
        failed=[row for row in rows if row.error],
    )


def printed(rows: Sequence[BenchmarkRow]) -> Table:
    """Return what the terminal shows, within 80 columns: a key, two AUCs, the difference, seconds."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("row", overflow="fold", min_width=16)
    names = ("train_auc", "auc", "lrmil_minus_this", "seconds")
    for name in names:
        table.add_column({"train_auc": "train"}.get(name, _HEADINGS[name]), no_wrap=True)
    for row in rows:
        if row.error:
            table.add_row(row.key, "failed")
        else:
            table.add_row(row.key, *(cell(row, name) for name in names))
    return table


def cell(row: BenchmarkRow, name: str) -> str:
    """Return a cell as it is read; empty where nothing is known."""
    value = getattr(row, name)
    if value is None:
        return ""
    if isinstance(value, Measured):
        how = "+.3f" if name == "lrmil_minus_this" else ".3f"
        ends = ", ".join("-" if end is None else format(end, how) for end in (value.low, value.high))
        return f"{value.value:{how}} [{ends}]"
    if name == "parameters":
        return f"{value / 1e6:.3g}"
    if name == "train_auc":
        return f"{value:.3f}" + ("!" if row.unfitted else "")
    return f"{value:.3g}" if isinstance(value, float) else str(value)
