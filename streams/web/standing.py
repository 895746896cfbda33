"""The page's section on how good the newest version is, and how sure that is."""

from __future__ import annotations

from html import escape
from typing import Any

from streams import sentences


def section(report: dict[str, Any] | None, weak: dict[str, Any] | None) -> str:
    """From :meth:`streams.quality.QualityReader.gather` of one slice, and the last look for weak slices."""
    if report is None or not report["versions"]:
        return ""
    version, metric = report["versions"][0], report["metric"]
    whole = version["slices"][0]
    told = {"headline": sentences.headline(whole["headline"]), "truths": sentences.maturity(report["maturity"])}
    if whole["expected"] is not None:
        told["expected"] = sentences.expected(whole["expected"], metric)
    if whole["early"] and whole["early"]["accuracy"] is not None:
        told["provisional"] = sentences.early(whole["early"])
    if version["users"] is not None:
        told["users"] = sentences.users(version["users"])
    listed = "".join(f"<dt>{name}</dt><dd>{escape(text)}</dd>" for name, text in told.items())
    title = escape(f"Version {version['version']} since {report['since']}, {whole['slice']}")
    return f"<h2>{title}</h2><dl>{listed}</dl>{_gaps(version['days'], metric)}{_weak(weak)}"


def _gaps(days: list[dict[str, Any]], metric: str) -> str:
    if not any(day["expected"] is not None for day in days):
        return ""
    rows = []
    for day in reversed(days):
        gap = "-"
        if day["difference"] is not None:
            gap = f"{day['difference']:+.3f} ({day['interval'][0]:+.3f} to {day['interval'][1]:+.3f})"
        rows.append([day["day"], f"{day['rows']:,}", _figure(day["realised"]), _figure(day["expected"]), gap])
    head = ["day", "n", metric, "expected", "expected less realised"]
    return f"<details><summary>Expected by the scores against realised</summary>{_table(head, rows)}</details>"


def _weak(weak: dict[str, Any] | None) -> str:
    if weak is None or not weak["slices"]:
        return ""
    rows = [
        [
            each["name"], f"{each['rows']:,}", _figure(each["error"]), _figure(each["rest"]),
            _figure(each["expected"]), f"{each['low']:+.3f}", " ".join(each["ids"][:2]),
        ]
        for each in weak["slices"]
    ]  # fmt: skip
    head = ["slice", "rows", "error", "elsewhere", "by its scores", "difference at least", "worst"]
    summary = f"Weak slices of {escape(sentences.weak(weak))}"
    return f"<details><summary>{summary}</summary>{_table(head, rows)}</details>"


def _table(head: list[str], rows: list[list[Any]]) -> str:
    listed = [("th", head), *(("td", row) for row in rows)]
    body = "".join(
        f"<tr>{''.join(f'<{tag}>{escape(str(cell))}</{tag}>' for cell in cells)}</tr>" for tag, cells in listed
    )
    return f"<table>{body}</table>"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
