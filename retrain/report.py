"""The gate's reports on disk: JSON for machines, one small page of HTML for people."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

from retrain.gate import Report

STYLE = (
    "body{font:14px sans-serif;margin:2em;max-width:75em}table{border-collapse:collapse}"
    "td,th{border:1px solid #ccc;padding:.3em .6em;text-align:left}"
    ".pass{color:#060}.fail{color:#a00}.inconclusive{color:#850}"
)


def write_report(folder: Path, name: str, report: Report, head: dict[str, Any]) -> Path:
    """Write ``name.json`` and ``name.html``; returns the path of the former.

    Parameters
    ----------
    head
        What the report is about: run, recipe, dataset, versions.
    """
    folder.mkdir(parents=True, exist_ok=True)
    document = head | report.to_json()
    path = folder / f"{name}.json"
    path.write_text(json.dumps(document, indent=1, sort_keys=True))
    (folder / f"{name}.html").write_text(page(document))
    return path


def page(document: dict[str, Any]) -> str:
    """The report as HTML."""
    title = f"{document.get('model', '')} {document.get('recipe', '')}: {document['verdict']}"
    rows = "".join(_row(check) for check in document["checks"])
    facts = "".join(
        f"<tr><th>{_text(key)}</th><td>{_text(value)}</td></tr>"
        for key, value in document.items()
        if key not in {"checks", "metrics"}
    )
    figures = "".join(
        f"<tr><th>{_text(key)}</th><td>{_text(value)}</td></tr>" for key, value in document["metrics"].items()
    )
    head = "".join(
        f"<th>{name}</th>" for name in ("check", "slice", "verdict", "value", "interval", "threshold", "n", "reason")
    )
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{_text(title)}</title><style>{STYLE}</style>"
        f"<h1>{_text(title)}</h1><table>{facts}</table><h2>Checks</h2><table><tr>{head}</tr>{rows}</table>"
        f"<h2>Figures</h2><table>{figures}</table></html>\n"
    )


def _row(check: dict[str, Any]) -> str:
    interval = " to ".join(_text(end) for end in check["interval"]) if check["interval"] else "-"
    cells = [check["name"], check["slice"], check["verdict"], check["value"], None, check["threshold"], check["n"]]
    told = [_text(cell) for cell in [*cells, check["reason"]]]
    told[4] = interval
    told[2] = f"<b class='{told[2]}'>{told[2]}</b>"
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in told)}</tr>"


def _text(value: Any) -> str:
    return "-" if value is None else html.escape(str(value))
