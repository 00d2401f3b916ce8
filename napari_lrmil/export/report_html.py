"""A slide's report as one HTML file: pictures inside, no script, nothing loaded from elsewhere."""

from __future__ import annotations

from base64 import b64encode

import numpy as np

from napari_lrmil.export.painting import Scale, length_text, nice_length
from napari_lrmil.export.report_content import ReportContent
from napari_lrmil.wording import NOT_TO_BE_USED, percent_text

_TEMPLATE = """{% macro overlay_figure() %}<figure><div class="whole"><img src="{{ overlay }}"
alt="Overview with {% if c.has_attention %}attention{% else %}contributions{% endif %}">
<div class="ramp" style="background: linear-gradient(to right, {{ ramp }})"></div>
<figcaption><div class="ends"><span>{{ "%.2g"|format(c.scale.low) }}</span><span>{{ "%.2g"|format(c.scale.high) }}</span></div>
{{ c.scale.label }}; clear: no tile read; numbers: tiles below</figcaption></div></figure>{% endmacro -%}
{% macro of_label() %}<div class="bars">{% for name, p in c.classes %}
<span>{{ name }}</span>
<div class="bar"><div style="width: {{ "%.2f"|format(p * 100) }}%"></div></div><span>{{ percent(p) }}</span>
{% endfor %}</div>
{% for text in c.label_trust %}<p class="trust">{{ text }}</p>{% endfor %}{% endmacro -%}
{% macro tiles() %}<h2>{{ tiles_title }}</h2>
<section class="tiles">{% for tile in c.tiles %}
<figure><img src="{{ pictures[loop.index0] }}" alt="Tile {{ loop.index }}">
<figcaption>{{ loop.index }}. p {{ "%+.4f"|format(tile.contribution) }}<br>
log-odds {{ "%+.3g"|format(tile.log_odds) }}, alone {{ "%+.2g"|format(tile.log_odds_alone) }}
{%- if tile.attention is not none %}<br>
attention {{ "%.2g"|format(tile.attention) }}×{% endif %}</figcaption></figure>
{% endfor %}</section>
<p style="font-size: 90%">{{ tiles_line }}</p>{% endmacro -%}
{% macro curve() %}<div><h2>Do these tiles matter?</h2>
<svg viewBox="0 0 300 132" width="100%" role="img" aria-label="Deletion curve" font-size="9" fill="#333">
<rect x="30" y="6" width="260" height="100" fill="none" stroke="#999"/>
<polygon points="{{ range_points }}" fill="#d9d9d9"/>
<polyline points="{{ random_points }}" fill="none" stroke="#666" stroke-width="1.4" stroke-dasharray="4 3"/>
<polyline points="{{ evidence_points }}" fill="none" stroke="#0072b2" stroke-width="2.2"/>
<text x="26" y="12" text-anchor="end">1</text><text x="26" y="106" text-anchor="end">0</text>
<text x="30" y="117">0%</text><text x="290" y="117" text-anchor="end">100% of the tiles removed</text>
<text x="10" y="56" text-anchor="middle" transform="rotate(-90 10 56)">p({{ short_label }})</text>
<line x1="30" x2="48" y1="126" y2="126" stroke="#0072b2" stroke-width="2.2"/><text x="52" y="129">strongest tiles first</text>
<line x1="150" x2="168" y1="126" y2="126" stroke="#666" stroke-dasharray="4 3"/><text x="172" y="129">random order, 5–95%</text>
</svg><p>{{ c.curve_line }}</p></div>{% endmacro -%}
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>LRMIL report: {{ c.name }}</title>
<style>
@page { size: {{ page }}; margin: 11mm; }
* { box-sizing: border-box; }
body { font: 12px/1.4 "DejaVu Sans", Verdana, Arial, sans-serif; color: #1a1a1a; background: #fff;
  max-width: 900px; margin: 0 auto; padding: 16px; }
h1 { font-size: 20px; margin: 0; white-space: nowrap; } #name { overflow-wrap: anywhere; }
h2 { font-size: 13px; margin: 12px 0 4px; }
p { margin: 2px 0; } figure { margin: 0; min-width: 0; } figcaption { color: #444; font-size: 10.5px; }
img { display: block; max-width: 100%; border: 1px solid #bbb; }
.whole { width: fit-content; max-width: 100%; margin: 0 auto; }
header { display: flex; justify-content: space-between; align-items: baseline; gap: 12px; }
.note { border: 2px solid #b35900; padding: 3px 8px; margin: 6px 0 10px; font-weight: bold; }
.top { display: grid; grid-template-columns: 1fr 1fr 1.15fr; gap: 14px; }
.top img { max-height: 320px; border: 0; }
.whole figcaption { width: 0; min-width: 100%; }
.result { font-size: 18px; font-weight: bold; overflow-wrap: anywhere; }
.warn { background: #fff1d6; border-left: 4px solid #b35900; padding: 3px 6px; margin: 4px 0; }
.bars { display: grid; grid-template-columns: fit-content(55%) minmax(40px, 1fr) auto; gap: 3px 8px; align-items: center;
  margin: 6px 0; }
.bars > span { overflow-wrap: anywhere; } .bar { background: #e6e6e6; height: 12px; }
.bar div { background: #2a5a83; height: 100%; }
.tiles { display: grid; grid-template-columns: repeat(6, 1fr); gap: 6px; } .tiles img { width: 100%; }
.half { display: grid; grid-template-columns: 1fr 1fr; gap: 18px; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: 88px 1fr; gap: 2px 8px; margin: 0; font-size: 10.5px; }
dt { color: #555; } dd { margin: 0; overflow-wrap: anywhere; }
.ramp { height: 9px; margin-top: 4px; } .ends { display: flex; justify-content: space-between; }
.withheld { border: 2px solid #b35900; padding: 3px 8px; margin: 10px 0; }
summary { cursor: pointer; } summary, .would { font-weight: bold; }
.scalebar { border-top: 3px solid #000; }
@media (max-width: 640px) { .top, .half { grid-template-columns: 1fr; } .tiles { grid-template-columns: repeat(3, 1fr); } }
@media print {
  body { max-width: none; padding: 0; font-size: 10px; }
  main { height: {{ print_height }}; overflow: hidden; }
  .half { grid-template-columns: 1fr 1fr; } .top { grid-template-columns: 1fr 1fr 1.15fr; max-height: 345px;
    overflow: hidden; }
  .tiles { grid-template-columns: repeat(6, 1fr); } .top img { max-height: 275px; }
  h1 { font-size: 17px; } .result { font-size: 15px; } .bars { max-height: 105px; overflow: hidden; gap: 1px 8px; }
  .bars > span { white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
  dl, figcaption { font-size: 8.5px; }
  h2, .result, .text, .trust, dd, #name { display: -webkit-box; -webkit-box-orient: vertical; overflow: hidden;
    -webkit-line-clamp: 5; }
  .text { -webkit-line-clamp: 6; } .trust, .result { -webkit-line-clamp: 2; } h2, #name { -webkit-line-clamp: 1; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
</style>
</head>
<body>
<main>
<header><h1>LRMIL slide report</h1><span id="name">{{ c.name }}</span></header>
<div class="note">{{ c.note }}</div>
<section class="top">
<figure><div class="whole"><img src="{{ plain }}" alt="Overview of the slide">
<div class="scalebar" style="width: {{ scalebar_percent }}%; margin-top: 4px"></div>
<figcaption>{{ scalebar_text }}</figcaption></div></figure>
{% if not c.withheld_line %}{{ overlay_figure() }}{% endif %}<div{% if c.withheld_line %} style="grid-column: span 2"{% endif %}>
<div class="result">{{ c.result_line }}</div>
{% for text in c.warnings %}<div class="warn">⚠ {{ text }}</div>{% endfor %}
{% if not c.withheld_line %}{{ of_label() }}{% endif %}
{% for text in c.trust %}<p class="trust">{{ text }}</p>{% endfor %}
<h2>Reviewer</h2>
<p>{{ c.verdict_text }}</p>
{% if c.verdict.note %}<p class="text">{{ c.verdict.note }}</p>{% endif %}
</div>
</section>
{% if c.withheld_line %}<details class="withheld"><summary>What the model would say: not to be used</summary>
<div class="warn">⚠ {{ not_to_be_used }}</div>
<div class="half"><div><p class="would">{{ c.withheld_line }}</p>{{ of_label() }}{{ curve() }}</div>{{ overlay_figure() }}</div>
{{ tiles() }}</details>{% else %}{{ tiles() }}{% endif %}
<section class="half">
{% if not c.withheld_line %}{{ curve() }}{% endif %}
<div><h2>Slide</h2><dl>{% for key, value in c.slide_facts %}<dt>{{ key }}</dt><dd>{{ value }}</dd>{% endfor %}</dl></div>
</section>
<h2>Model card</h2>
<dl>{% for key, value in c.model_facts %}<dt>{{ key }}</dt><dd>{{ value }}</dd>{% endfor %}</dl>
</main>
</body>
</html>
"""


def tiles_title(content: ReportContent) -> str:
    """What stands above the tiles."""
    n = len(content.tiles)
    if not n:
        return f"No tile speaks for {content.called}"
    return (
        f"The {n} tiles that speak most for {content.called}"
        if n > 1
        else f"The tile that speaks for {content.called}"
    )


def tiles_line(content: ReportContent) -> str:
    """What the captions under the tiles mean."""
    notes = "".join(f" {note}" for note in content.evidence_notes)
    if not content.tiles:
        return (
            f"Left out one by one, no tile lowers the probability of {content.called}: "
            f"none can be named as what the result rests on.{notes}"
        )
    mpp = content.tiles[0].mpp
    attention = " Attention: times the average tile." if content.has_attention else ""
    exact = "exact" if content.all_exact else "exact where it isn't estimated"
    return (
        f"Tiles of {content.tile_um:.0f} µm, shown at {mpp:.2g} µm/px; the model read {content.read_mpp:g} µm/px. "
        f"p and log-odds: of {content.called} with the tile minus without it, {exact}; alone: log-odds of the tile by "
        f"itself.{attention}{notes}"
    )


def render_html(content: ReportContent, *, page: str) -> str:
    """The whole file.

    Parameters
    ----------
    content : ReportContent
    page : {'A4', 'letter'}
        For printing.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined)
    curve = content.deletion

    def points(*pairs: tuple[float, float]) -> str:
        return " ".join(f"{30 + 260 * x:.1f},{106 - 100 * y:.1f}" for x, y in pairs)

    def line(values: list[float]) -> list[tuple[float, float]]:
        return list(zip(curve.fractions.tolist(), values, strict=True))

    width_um = content.picture_px[0] * content.um_per_px
    bar_um = nice_length(0.5 * width_um)
    high, low = line(curve.random_high.tolist()), line(curve.random_low.tolist())
    return environment.from_string(_TEMPLATE).render(
        c=content,
        page=page,
        print_height="274mm" if page == "A4" else "256mm",
        plain=_data_url(content.plain_jpeg),
        overlay=_data_url(content.overlay_jpeg),
        pictures=[_data_url(tile.jpeg) for tile in content.tiles],
        ramp=_gradient(content.scale),
        scalebar_text=length_text(bar_um),
        scalebar_percent=round(100 * bar_um / width_um, 2),
        not_to_be_used=NOT_TO_BE_USED,
        tiles_title=tiles_title(content),
        tiles_line=tiles_line(content),
        percent=lambda probability: percent_text(probability, decimals=1),
        short_label=content.called if len(content.called) <= 18 else f"{content.called[:16]}…",
        evidence_points=points(*line(curve.by_evidence.tolist())),
        random_points=points(*line(curve.random_mean.tolist())),
        range_points=points(*high, *reversed(low)),
    )


def _data_url(jpeg: bytes) -> str:
    return f"data:image/jpeg;base64,{b64encode(jpeg).decode()}"


def _gradient(scale: Scale) -> str:
    colours = scale.colours(np.linspace(scale.low, scale.high, 12), thin=False)
    return ", ".join(f"rgb({r} {g} {b})" for r, g, b, _ in colours.tolist())
