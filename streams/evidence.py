"""The rows that show an alert: since when, a few of their ids, and where they are in the log, segment by segment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from labeling.render import plain
from schemas.contract import Contract, Field
from schemas.events import topic
from schemas.parts import ALL_SLICE
from schemas.profile import CELL_NEW, FeatureProfile, Profile
from schemas.times import SECOND_US, format_us
from streams.logic.incident import AlertRecord

SAMPLES = 5
SEGMENTS_MAX = 20
TOLD = frozenset(
    "orders since window_start window_end cells slices samples rows_shown topic partition offset segments".split()
)
"""Keys of a detail that :func:`in_words` tells."""
NOTHING: dict[str, Any] = {"since": None, "samples": [], "segments": [], "rows_shown": 0}
Mask = npt.NDArray[np.bool_]


def evidence(rows: pl.DataFrame, alert: AlertRecord, contract: Contract, profile: Profile) -> dict[str, Any]:
    """What an alert's detail tells of its rows.

    Parameters
    ----------
    rows
        The archived inputs of the alert's window and slice.

    Returns
    -------
    ``since``: event time of the first row that shows it; ``samples``: ids, spread over the window; ``segments``: the
    segments of the log that hold such rows, with their first and last offset.
    """
    if not rows.height:
        return dict(NOTHING)
    rows = rows.sort("event_time", "partition", "offset")
    shown = rows.filter(pl.Series(_shows(rows, alert, contract, profile)))
    shown = shown if shown.height else rows
    places = np.unique(np.linspace(0, shown.height - 1, SAMPLES).astype(np.int64))
    return {
        "since": format_us(int(shown["event_time"][0])),
        "samples": shown["prediction_id"].gather(places).to_list(),
        "segments": segments_of(shown),
        "rows_shown": shown.height,
    }


def segments_of(shown: pl.DataFrame) -> list[dict[str, Any]]:
    """The segments of the log that hold some inputs, with the first and the last offset of these."""
    by_segment = (
        shown.group_by("cluster", "partition", "segment", maintain_order=True)
        .agg(
            pl.col("offset").min().alias("first"), pl.col("offset").max().alias("last"), pl.len().alias("rows"),
        )
        .sort("cluster", "partition", "segment")
    )  # fmt: skip
    return [{"topic": topic("inputs"), **row} for row in by_segment.head(SEGMENTS_MAX).iter_rows(named=True)]


def _shows(rows: pl.DataFrame, alert: AlertRecord, contract: Contract, profile: Profile) -> Mask:
    """Which rows show it; where none can be told from the others, all do."""
    name, rule = alert.subject, alert.detail.get("rule")
    field = next((each for each in contract.fields if each.name == name), None)
    if field is None or name not in rows.columns or rows[name].dtype == pl.Null:
        return np.ones(rows.height, bool)
    column, feature = rows[name], profile.feature(name)
    if alert.channel == "drift":
        return _moved(column, feature, str(alert.detail["direction"]), is_more=alert.detail["z"] > 0)
    if rule in ("null", "missing"):
        return column.is_null().to_numpy()
    if rule == "nan":
        return (~column.cast(pl.Float64).is_finite()).fill_null(value=False).to_numpy()
    if rule == "unseen":
        return np.asarray(feature.codes(column) == CELL_NEW)
    if rule == "outside":
        return _outside(column, field)
    if rule == "stale":
        old = rows["event_time"] / SECOND_US - column.cast(pl.Float64) > field.max_age_s
        return old.fill_null(value=False).to_numpy()
    return np.ones(rows.height, bool)


def _outside(column: pl.Series, field: Field) -> Mask:
    out = np.zeros(len(column), bool)
    if field.min is not None:
        out |= (column < field.min).fill_null(value=False).to_numpy()
    if field.max is not None:
        out |= (column > field.max).fill_null(value=False).to_numpy()
    if field.domain is not None:
        out |= (~column.is_in(list(field.domain)) & column.is_not_null()).fill_null(value=False).to_numpy()
    return out


def _moved(column: pl.Series, feature: FeatureProfile, direction: str, *, is_more: bool) -> Mask:
    """Rows in the direction that there are more of, or outside the one that there are fewer of."""
    codes = feature.codes(column)
    below = [e for e, edge in enumerate(feature.edges) if direction == f"< {edge:g}"]
    if below:
        inside = (codes >= feature.specials) & (codes <= feature.specials + below[0])
    else:
        cells = [k for k in range(feature.cell_count) if feature.cell_label(k) == direction]
        inside = np.isin(codes, cells)
    return np.asarray(inside if is_more else ~inside)


def in_words(detail: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What an alert's detail says of its evidence, as titles and texts, for people."""
    found: list[tuple[str, str]] = []
    if detail.get("orders"):
        found.append(("evidence", f"{detail['orders']:.1f} orders of magnitude above the line"))
    if detail.get("since"):
        found.append(("since", f"{detail['since']}, the first row that shows it"))
    if detail.get("window_start") is not None:
        found.append(("window", f"{format_us(detail['window_start'])} .. {format_us(detail['window_end'])}"))
    if detail.get("cells"):
        moved = [f"{plain(c['cell'])} {c['observed']:.1%} for {c['expected']:.1%}" for c in detail["cells"]]
        found.append(("why", "; ".join(moved)))
    slices = [plain(name) for name in detail.get("slices", ())]
    if slices and slices != [ALL_SLICE]:
        found.append(("slices", ", ".join(slices)))
    if detail.get("samples"):
        more = f" (of {detail['rows_shown']:,} rows)"
        found.append(("samples", ", ".join(plain(str(each)) for each in detail["samples"]) + more))
    if detail.get("topic") is not None:
        found.append(("first at", f"{detail['topic']}-{detail['partition']} offset {detail['offset']}"))
    found += [("segment", _segment(each)) for each in detail.get("segments", ())]
    return found


def _segment(each: Mapping[str, Any]) -> str:
    where = f"{each['topic']}-{each['partition']} from {each['segment']}"
    return f"{where}: {each['rows']} rows, offsets {each['first']} to {each['last']}"
