"""What charts are drawn on: ticks, the frame, and a sheet that stands by itself; SVG text, no library, no script.

Colours are classes of :data:`STYLE`, light and dark; every text is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from textwrap import wrap
from typing import Any

WIDTH = 860
LEFT, RIGHT, TOP = 58, 14, 24
PLOT_WIDTH = WIDTH - LEFT - RIGHT
TICKS = 4
LABEL_CHARS_MAX = 16
SHEET_MARGIN = 20
SAID_CHARS, SAID_LINE = 132, 16
CHART_HEAD = 48
KEY_CHAR, KEY_GAP = 6.3, 30
"""Width of a letter, and of a swatch with its room, in a key."""

STYLE = """
:root{--ink:#1b1f24;--soft:#5d6672;--line:#d5dae1;--paper:#fff;--panel:#f5f7f9;--serving:#1f6feb;--reference:#b9c2cd;
--young:#8b95a1;--page:#c62828;--warn:#b26a00;--champion:#6f42c1;--good:#1a7f37;
--c0:#1f6feb;--c1:#c4620a;--c2:#1a7f37;--c3:#8250df;--c4:#bf3989;--c5:#57606a}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ed;--soft:#9aa4b0;--line:#353c45;--paper:#14181d;--panel:#1c2229;
--serving:#58a6ff;--reference:#48525e;--young:#7d8793;--page:#ff6b6b;--warn:#e3a03c;--champion:#b392f0;--good:#56d364;
--c0:#58a6ff;--c1:#f0883e;--c2:#56d364;--c3:#bc8cff;--c4:#f778ba;--c5:#9aa4b0}}
.tick{font:11px system-ui,sans-serif;fill:var(--soft)}.grid{stroke:var(--line);stroke-width:1}
.zero{stroke:var(--soft);stroke-width:1}.reference{fill:var(--reference)}.serving{fill:var(--serving)}
.line{fill:none;stroke:var(--serving);stroke-width:1.8;stroke-linejoin:round}.dot{fill:var(--serving)}
.band{fill:var(--serving);fill-opacity:.16}.young{fill:var(--young)}
.above{fill:var(--page);fill-opacity:.07}.limit{stroke:var(--page);stroke-width:1.4}
.limit-text{font:11px system-ui,sans-serif;fill:var(--page)}
.change line{stroke:var(--champion);stroke-width:1.4}.change path{fill:var(--champion)}
.change text{font:11px system-ui,sans-serif;fill:var(--champion)}
.mark line{stroke:var(--soft);stroke-dasharray:3 3}.mark path{fill:var(--soft)}
.mark.page line,.mark.critical line{stroke:var(--page)}.mark.page path,.mark.critical path{fill:var(--page)}
.mark.warn line{stroke:var(--warn)}.mark.warn path{fill:var(--warn)}
.mark.champion line{stroke:var(--champion);stroke-dasharray:none}.mark.champion path{fill:var(--champion)}
.curve{fill:none;stroke-width:1.8;stroke-linejoin:round}.own{fill:var(--ink);stroke:var(--ink)}
.own-text{font:600 12px system-ui,sans-serif;fill:var(--ink)}
.s0{stroke:var(--c0)}.s1{stroke:var(--c1)}.s2{stroke:var(--c2)}.s3{stroke:var(--c3)}.s4{stroke:var(--c4)}
.s5{stroke:var(--c5)}.f0{fill:var(--c0)}.f1{fill:var(--c1)}.f2{fill:var(--c2)}.f3{fill:var(--c3)}.f4{fill:var(--c4)}
.f5{fill:var(--c5)}.usual{stroke:var(--paper);stroke-width:1.5}
""".strip()

SHEET_STYLE = """
.paper{fill:var(--paper)}.heading{font:600 17px system-ui,sans-serif;fill:var(--ink)}
.title{font:600 13px system-ui,sans-serif;fill:var(--ink)}.said{font:12px system-ui,sans-serif;fill:var(--soft)}
""".strip()

PAGE_STYLE = """
*{box-sizing:border-box}body{margin:0;background:var(--paper);color:var(--ink);font:14px/1.45 system-ui,sans-serif}
main{max-width:920px;margin:0 auto;padding:18px 20px}h1{font-size:20px;margin:0 0 4px}p{margin:4px 0}
h2{font-size:14px;margin:22px 0 2px}.said{color:var(--soft)}svg{width:100%;height:auto;display:block}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;margin-top:6px}
th,td{padding:3px 8px;border-bottom:1px solid var(--line);text-align:right;vertical-align:top}
th{color:var(--soft);font-weight:500}th:first-child,td:first-child{text-align:left}
""".strip()

Form = Callable[[float], str]


@dataclass(frozen=True)
class Chart:
    """A drawing; as a text it is an SVG for a page that has :data:`STYLE`.

    Attributes
    ----------
    height
        Of the drawing, whose width is :data:`WIDTH`.
    title
        What it shows.
    body
        SVG text.
    key
        (class, text) of what the colours mean; a page has its own.
    """

    height: float
    title: str
    body: str
    key: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return (
            f'<svg viewBox="0 0 {WIDTH} {self.height:g}" role="img" aria-label="{text(self.title)}"'
            f' xmlns="http://www.w3.org/2000/svg">{self.body}</svg>'
        )


@dataclass(frozen=True)
class Table:
    """Figures under the charts of a page that stands by itself."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[Any]]


ILLEGAL = dict.fromkeys([*range(9), 11, 12, *range(14, 32), 127, *range(0xD800, 0xE000), 0xFFFE, 0xFFFF], "\ufffd")
"""What XML has no characters for."""


def text(value: Any) -> str:
    """Any value as text that is safe in HTML and SVG; neither may hold control characters."""
    return escape(str(value), quote=True).translate(ILLEGAL)


def short(label: str) -> str:
    """A label that fits."""
    return label if len(label) <= LABEL_CHARS_MAX else f"{label[: LABEL_CHARS_MAX - 1]}…"


def nice_ticks(low: float, high: float) -> list[float]:
    """Round numbers that cover a range.

    >>> nice_ticks(0.0, 0.37)
    [0.0, 0.1, 0.2, 0.3, 0.4]
    >>> nice_ticks(-0.1, 0.3)
    [-0.1, 0.0, 0.1, 0.2, 0.3]
    """
    span = high - low
    if not math.isfinite(span) or span <= 0:
        low, span = (low if math.isfinite(low) else 0.0), 1.0
    raw = span / TICKS
    size = 10.0 ** math.floor(math.log10(raw))
    unit = next(factor * size for factor in (1, 2, 2.5, 5, 10) if factor * size >= raw * 0.999)
    first, last = math.floor(low / unit + 1e-9), math.ceil((low + span) / unit - 1e-9)
    return [round(unit * k, 12) for k in range(first, last + 1)]


def percent(value: float) -> str:
    """A share on an axis.

    >>> percent(0.25)
    '25 %'
    """
    return f"{value * 100:g} %"


def grid(ticks: Sequence[float], y_of: Callable[[float], float], form: Form, label: str = "") -> str:
    """Horizontal lines with their numbers, and above them what they count."""
    parts = []
    for tick in ticks:
        y = y_of(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" text-anchor="end" x="{LEFT - 6}" y="{y + 4:.1f}">{text(form(tick))}</text>')
    if label:
        parts.append(f'<text class="tick" x="2" y="{TOP - 13}">{text(label)}</text>')
    return "".join(parts)


def below(label: str, y: float) -> str:
    """What the horizontal axis counts."""
    return f'<text class="tick" text-anchor="end" x="{WIDTH - RIGHT}" y="{y:g}">{text(label)}</text>'


def sheet(heading: str, said: Sequence[str], charts: Sequence[Chart]) -> str:
    """One SVG that stands by itself: a heading, and charts below each other with their titles and keys."""
    y: float = SHEET_MARGIN + 34
    parts = [f'<text class="heading" x="{SHEET_MARGIN}" y="{SHEET_MARGIN + 14}">{text(heading)}</text>']
    for line in (line for paragraph in said for line in wrap(paragraph, SAID_CHARS)):
        parts.append(f'<text class="said" x="{SHEET_MARGIN}" y="{y:g}">{text(line)}</text>')
        y += SAID_LINE
    for chart in charts:
        parts.append(f'<text class="title" x="{SHEET_MARGIN}" y="{y + 14:g}">{text(chart.title)}</text>')
        parts.append(_key(chart.key, SHEET_MARGIN, y + 34))
        head = CHART_HEAD if chart.key else CHART_HEAD - 22
        inner = f'<svg x="{SHEET_MARGIN}" y="{y + head:g}" width="{WIDTH}" height="{chart.height:g}"'
        parts.append(f'{inner} viewBox="0 0 {WIDTH} {chart.height:g}">{chart.body}</svg>')
        y += head + chart.height + 14
    width, height = WIDTH + 2 * SHEET_MARGIN, y + SHEET_MARGIN / 2
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:g}" width="{width}" height="{height:g}"'
        f' role="img" aria-label="{text(heading)}"><style>{STYLE}{SHEET_STYLE}</style>'
        f'<rect class="paper" width="{width}" height="{height:g}"/>{"".join(parts)}</svg>\n'
    )


def document(heading: str, said: Sequence[str], charts: Sequence[Chart], tables: Sequence[Table] = ()) -> str:
    """One HTML page that stands by itself: charts, and the figures as tables."""
    lines = "".join(f'<p class="said">{text(line)}</p>' for line in said)
    drawn = "".join(f"<h2>{text(chart.title)}</h2>{_key_svg(chart.key)}{chart}" for chart in charts)
    figures = "".join(f"<h2>{text(t.title)}</h2>{_rows(t)}" for t in tables)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{text(heading)}</title>'
        '<meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark">'
        f"<style>{STYLE}{SHEET_STYLE}{PAGE_STYLE}</style>"
        f"<main><h1>{text(heading)}</h1>{lines}{drawn}{figures}</main></html>\n"
    )


def _rows(table: Table) -> str:
    def row(cells: Sequence[Any], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{text(cell)}</{tag}>' for cell in cells)}</tr>"

    return f"<table>{row(table.head, 'th')}{''.join(row(cells, 'td') for cells in table.rows)}</table>"


def _key_svg(key: Sequence[tuple[str, str]]) -> str:
    return f'<svg viewBox="0 0 {WIDTH} 16">{_key(key, 0, 12)}</svg>' if key else ""


def _key(key: Sequence[tuple[str, str]], x: float, y: float) -> str:
    parts = []
    for kind, label in key:
        parts.append(f'<rect class="{kind}" x="{x:g}" y="{y - 9:g}" width="11" height="10"/>')
        parts.append(f'<text class="said" x="{x + 16:g}" y="{y:g}">{text(label)}</text>')
        x += KEY_GAP + KEY_CHAR * len(label)
    return "".join(parts)
