"""From an Altair chart to inline SVG: the theme, the colours as CSS classes, the shrinking."""

from __future__ import annotations

import json
import re
from typing import Any

import altair as alt
import vl_convert
from markupsafe import Markup, escape

GROUP_COLOURS, HEAT_LEVELS = 8, 8
COLOURS = (
    "ink", "soft", "faint", "rule", "paper", "accent", "against", "ra", "rb",
    *(f"{side}{i}" for side in "ab" for i in range(1, 6)),
    *(f"g{i}" for i in range(GROUP_COLOURS)), *(f"h{i}" for i in range(HEAT_LEVELS)),
)  # fmt: skip
# Altair accepts real colours only, so each CSS variable has a stand-in that is swapped for a class afterwards.
_STANDIN = {name: f"#fe00{i:02x}" for i, name in enumerate(COLOURS)}
_NAME = {hexcode: name for name, hexcode in _STANDIN.items()}
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left")
WIDTH = 840
_OURS = "\u2063"
_SEPARATORS = {0x2028: " ", 0x2029: " "}  # Vega takes them for the end of a line, in the middle of a name

alt.data_transformers.disable_max_rows()


def colour(name: str) -> str:
    """The stand-in to use in a spec for the page's colour `name`."""
    return _STANDIN[name]


def data(rows: list[dict[str, Any]]) -> alt.Data:
    """Rows for a chart; a row's `tip` is marked as ours, for Vega describes every other mark in its own words."""
    return alt.Data(values=[{**row, "tip": _OURS + row["tip"]} if "tip" in row else row for row in rows])


def axis(title: str | None, lang: str, **more: Any) -> alt.Axis:
    """An axis whose numbers read 20k, 1.2M (20 тыс., 1,2 млн).

    Six digits: ticks are round numbers, but those of a narrow axis, such as 0.9995 and 1, are alike in three.
    """
    thousand, million = ("' тыс.'", "' млн'") if lang == "ru" else ("'k'", "'M'")
    label = (
        f"abs(datum.value)>=1e6?format(datum.value/1e6,'.6~r')+{million}:"
        f"abs(datum.value)>=1e3?format(datum.value/1e3,'.6~r')+{thousand}:format(datum.value,'.6~r')"
    )
    return alt.Axis(**{"title": title, "labelExpr": label, **more})


def themed(chart: Any) -> Any:
    """Fine rules, no frame, labels in the soft ink."""
    soft, rule = colour("soft"), colour("rule")
    return (
        chart.configure(
            background="transparent", font="Liberation Sans", padding={"left": 10, "top": 4, "right": 12, "bottom": 4}
        )
        .configure_view(stroke=None)
        .configure_axis(
            domainColor=rule,
            tickColor=rule,
            gridColor=rule,
            gridOpacity=0.6,
            labelColor=soft,
            titleColor=soft,
            labelFontSize=12,
            titleFontSize=12,
            titleFontWeight="normal",
            titlePadding=8,
            labelLimit=260,
            titleLimit=600,
        )
        .configure_title(color=colour("ink"), fontSize=13, fontWeight="normal", anchor="start", offset=8)
        .configure_legend(disable=True)
    )


def svg(chart: Any, *, name: str, label: str, lang: str) -> Markup:
    """Draw a chart as inline SVG.

    Args:
        chart: an Altair chart; marks with a `description` get it as hover text, with an `href` become links.
        name: short and unique on the page; prefixes the ids inside.
        label: what the picture shows, for those who do not see it.
        lang: number format of the axes.
    """
    locale = vl_convert.get_format_locale("ru-RU") if lang == "ru" else None
    spec = json.dumps(themed(chart).to_dict(), ensure_ascii=False).translate(_SEPARATORS)
    text = vl_convert.vegalite_to_svg(spec, format_locale=locale)
    text = _shrink(text, name)
    head = f'<svg role="img" aria-label="{escape(label)}" '
    return Markup(text.replace("<svg ", head, 1))


def _shrink(text: str, name: str) -> str:
    """Colours to classes, hover text to `data-tip`, and everything a browser does not need away."""
    text = re.sub(
        r' (?:role|aria-roledescription|aria-hidden|font-family|pointer-events|xmlns(?::xlink)?|version)="[^"]*"',
        "",
        text,
    )
    text = text.replace(f' aria-label="{_OURS}', ' data-tip="').replace(' opacity="1"', "")
    text = re.sub(r' aria-label="[^"]*"', "", text)
    text = re.sub(
        r'<path class="(?:background|foreground)"(?: display="none")?(?: d="[^"]*")?(?: display="none")?/>', "", text
    )
    text = re.sub(r'<path class="(?:background|foreground)"[^>]*d="(?:M0,0h0v0h0Z)?"[^>]*/>', "", text)
    text = re.sub(r'xlink:href="[^"#]*#', 'href="#', text)
    text = re.sub(r' (?:d|transform|x2?|y2?|width|height)="[^"]*"', _rounded, text)
    text = re.sub(r'(id="|url\(#)', rf"\1{name}-", text)
    text = re.sub(r' class="mark-group role-(?:frame root|axis|scope|legend)"', "", text)
    return re.sub(r"<(?:path|line|text|rect|circle)\b[^>]*>", _classes, text)


def _rounded(match: re.Match[str]) -> str:
    return re.sub(r"\d+\.\d{2,}", lambda m: f"{float(m[0]):.1f}".removesuffix(".0"), match[0])


def _classes(match: re.Match[str]) -> str:
    tag, names = match[0], []
    for kind in ("fill", "stroke"):
        found = re.search(rf' {kind}="(#fe00[0-9a-f]{{2}})"', tag)
        if found:
            names.append(f"{kind[0]}-{_NAME[found[1]]}")
            tag = tag.replace(found[0], "")
    if not names:
        return tag
    at = tag.index(" ") if " " in tag else len(tag) - 1
    return f'{tag[:at]} class="{" ".join(names)}"{tag[at:]}'


def colour_rules() -> Markup:
    """The CSS that gives the classes of all charts their colours."""
    return Markup("".join(f".f-{c}{{fill:var(--{c})}}.s-{c}{{stroke:var(--{c})}}" for c in COLOURS))


def group_scales(groups: list[str]) -> dict[str, Any]:
    """Colour and shape channels over groups, the same on every chart."""
    index = [min(i, GROUP_COLOURS - 1) for i in range(len(groups))]
    return {
        "color": alt.Color("group:N", scale=alt.Scale(domain=groups, range=[colour(f"g{i}") for i in index])),
        "shape": alt.Shape("group:N", scale=alt.Scale(domain=groups, range=[SHAPES[i] for i in index])),
    }


def heat(field: str) -> alt.Color:
    """The sequential colours, for a field that holds a level 0..HEAT_LEVELS-1."""
    levels = list(range(HEAT_LEVELS))
    return alt.Color(f"{field}:O", scale=alt.Scale(domain=levels, range=[colour(f"h{i}") for i in levels]))


def signed_heat(field: str) -> alt.Color:
    """The colours of a difference, for a field that holds a level -5 (more in A) to 5 (more in B)."""
    inks = [*(f"a{i}" for i in range(5, 0, -1)), "h0", *(f"b{i}" for i in range(1, 6))]
    scale = alt.Scale(domain=list(range(-5, 6)), range=[colour(ink) for ink in inks])
    return alt.Color(f"{field}:O", scale=scale)


def signed_levels(values: list[float]) -> tuple[list[int], float]:
    """Differences as levels -5..5, linear up to the 98th percentile of their sizes; and that top."""
    top = levels([abs(v) for v in values])[1][1]
    return [max(-5, min(5, round(5 * v / top))) for v in values], top


def levels(values: list[float]) -> tuple[list[int], tuple[float, float]]:
    """Values as heat levels, linear between their 2nd and 98th percentiles; and those ends.

    The lower end is 0 unless all values lie so far above it that most colours would go unused; the
    colours always span a fifth of the top at least, so that small differences do not look large.
    """
    ranked = sorted(values)
    top = (ranked[int(0.98 * (len(ranked) - 1))] if ranked else 0.0) or max(values, default=0.0) or 1.0
    low = ranked[int(0.02 * (len(ranked) - 1))] if ranked else 0.0
    low = min(low, 0.8 * top) if 0.25 * top < low else 0.0
    return [max(0, min(HEAT_LEVELS - 1, int(HEAT_LEVELS * (v - low) / (top - low)))) for v in values], (low, top)
