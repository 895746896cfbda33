"""A table of past rows as the parts that serving would have made of it.

So the monitor starts with a past: the training rows give the baseline, the spread and the record of the first weeks,
and a new model version's own scores of the last weeks give its usual bias. Imports polars; keeps no state.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from schemas.contract import Field
from schemas.parts import (
    ALL_SLICE,
    N_INPUT,
    N_SCORED,
    OUTSIDE,
    PAIRED,
    PAIRED_DIFFER,
    SCORED,
    SUM_SCORE,
    Axis,
    CodeArray,
    Ints,
    N,
    Part,
    cell_code,
    due_counters,
    group,
    micro,
    score_bin,
    truth_counters,
)
from schemas.profile import LABEL_FEATURE, SCORE_FEATURE, Profile
from schemas.times import HOUR_US, SECOND_US

Counters = list[tuple[CodeArray | int, Ints | int]]


def history_parts(
    table: pl.DataFrame,
    profile: Profile,
    *,
    version: str,
    slices: Sequence[tuple[str, str]] = (),
    kind: Literal["binary", "multiclass", "regression"] = "binary",
    unit: float = 1.0,
    role: str = "champion",
    with_cells: bool = True,
) -> list[Part]:
    """Hourly parts of past rows.

    Parameters
    ----------
    table
        The profile's features and ``event_time`` (microseconds); optional ``score`` and ``label`` (the model's answers;
        of training rows out of fold, or the bias that they show is too good), ``y`` (1.0 and 0.0, or the value; null:
        unknown), ``due_time`` (microseconds), ``due_y``, if the due axis has another truth, and ``met_us``: rows whose
        hour was over by then are left out of the event axis.
    profile
        The cells.
    version, role
        Whose parts they are.
    slices
        (field, value) of the slices beside ``all``.
    kind, unit
        The target's.
    with_cells
        False: only the sums of outcomes.
    """
    counters = _event_counters(table, profile, kind, unit, with_cells)
    in_time = _in_time(table)
    if in_time is not None:
        counters = [(in_time if used is None else used & in_time, listed) for used, listed in counters]
    parts: list[Part] = []
    for membership, names in _groupings(table, slices):
        for axis, hours, listed in _axes(table, counters, kind, unit):
            parts += _parts(membership, names, hours, listed, (profile.model, version, role), axis, profile.profile_id)
    return parts


def fact_parts(
    table: pl.DataFrame,
    profile: Profile,
    fields: Iterable[Field],
    *,
    version: str,
    slices: Sequence[tuple[str, str]] = (),
    role: str = "champion",
) -> list[Part]:
    """Hourly parts of inputs held against the facts that came for them.

    Parameters
    ----------
    table
        The features, ``fact_time`` (microseconds; null: no feedback came) and a column ``fact_NAME`` for every fact
        that is there.
    fields
        The contract's; those without a fact are skipped.
    """
    has_come = table["fact_time"].is_not_null().to_numpy()
    hours = table["fact_time"].fill_null(0).to_numpy() // HOUR_US
    listed: list[tuple[npt.NDArray[np.bool_] | None, Counters]] = []
    for field in fields:
        if field.fact is None or f"fact_{field.fact}" not in table.columns:
            continue
        served = table[field.name].cast(pl.Float64).fill_null(np.nan).to_numpy()
        true = table[f"fact_{field.fact}"].cast(pl.Float64).fill_null(np.nan).to_numpy()
        allowed = np.maximum(field.tolerance, field.relative_tolerance * np.abs(true))
        differs = ~(np.abs(served - true) <= allowed)
        place = profile.index[field.name]
        both = has_come & np.isfinite(true) & ~np.isnan(served)
        listed.append((both, [(PAIRED + place, 1), (PAIRED_DIFFER + place, differs.astype(np.int64))]))
    owner = (profile.model, version, role)
    return [
        part
        for membership, names in _groupings(table, slices)
        for part in _parts(membership, names, hours, listed, owner, "fact", profile.profile_id)
    ]


def outside_parts(
    table: pl.DataFrame,
    profile: Profile,
    fields: Iterable[Field],
    *,
    version: str,
    slices: Sequence[tuple[str, str]] = (),
    role: str = "champion",
) -> list[Part]:
    """Hourly parts of the values that the contract does not allow: range, domain, and a feed's time stamp's age."""
    counters: Counters = []
    in_time = _in_time(table)
    for field in fields:
        column = table[field.name]
        out = np.zeros(table.height, np.bool_)
        if field.min is not None or field.max is not None or field.max_age_s is not None:
            x = column.cast(pl.Float64).fill_null(np.nan).to_numpy()
            has_value = column.is_not_null().to_numpy()
            if field.min is not None:
                out |= x < field.min
            if field.max is not None:
                out |= ~(x <= field.max) & has_value
            if field.max_age_s is not None:
                out |= table["event_time"].to_numpy() / SECOND_US - x > field.max_age_s
        if field.domain is not None:
            text = column.cast(pl.String)
            out |= (~text.is_in(list(field.domain)) & text.is_not_null()).fill_null(value=False).to_numpy()
        if out.any():
            counters.append((OUTSIDE + profile.index[field.name], out.astype(np.int64)))
    hours, owner = table["event_time"].to_numpy() // HOUR_US, (profile.model, version, role)
    return [
        part
        for membership, names in _groupings(table, slices)
        for part in _parts(membership, names, hours, [(in_time, counters)], owner, "event", profile.profile_id)
    ]


def _in_time(table: pl.DataFrame) -> npt.NDArray[np.bool_] | None:
    """Which rows the event axis holds; None: all."""
    if "met_us" not in table.columns:
        return None
    return (table["met_us"] <= table["event_time"]).fill_null(value=True).to_numpy()


def _groupings(table: pl.DataFrame, slices: Sequence[tuple[str, str]]) -> list[tuple[Ints, list[str]]]:
    """All rows, and for every field with slices the place of each row's among them, -1 for none."""
    fields: dict[str, list[str]] = {}
    for field, value in slices:
        fields.setdefault(field, []).append(value)
    groupings = [(np.zeros(table.height, np.int64), [ALL_SLICE])]
    for field, values in fields.items():
        text = table[field].cast(pl.String)
        place = text.replace_strict(values, list(range(len(values))), default=-1, return_dtype=pl.Int64)
        groupings.append((place.fill_null(-1).to_numpy(), [f"{field}={value}" for value in values]))
    return groupings


def _axes(
    table: pl.DataFrame, counters: list[tuple[npt.NDArray[np.bool_] | None, Counters]], kind: str, unit: float
) -> list[tuple[Axis, Ints, list[tuple[npt.NDArray[np.bool_] | None, Counters]]]]:
    axes: list[tuple[Axis, Ints, list[tuple[npt.NDArray[np.bool_] | None, Counters]]]] = [
        ("event", table["event_time"].to_numpy() // HOUR_US, counters)
    ]
    if {"due_time", "y", "score"} <= set(table.columns):
        truth = table["due_y" if "due_y" in table.columns else "y"]
        is_known = (truth.is_not_null() & table["score"].is_not_null() & table["due_time"].is_not_null()).to_numpy()
        p, y = table["score"].fill_null(0.0).to_numpy(), truth.fill_null(0.0).cast(pl.Float64).to_numpy()
        due: Counters = [(N, 1), *due_counters(p, y, kind, unit)]  # type: ignore[arg-type]
        axes.append(("due", table["due_time"].fill_null(0).to_numpy() // HOUR_US, [(is_known, due)]))
    return axes


def _event_counters(
    table: pl.DataFrame, profile: Profile, kind: str, unit: float, with_cells: bool
) -> list[tuple[npt.NDArray[np.bool_] | None, Counters]]:
    rows: Counters = [(N, 1), (N_INPUT, 1)]
    if with_cells:
        names = {SCORE_FEATURE: "score", LABEL_FEATURE: "label"}
        for f, feature in enumerate(profile.features):
            column = table.get_column(names.get(feature.name, feature.name), default=None)
            values = column if column is not None else pl.repeat(None, table.height, dtype=pl.String, eager=True)
            rows.append((feature.codes(values).astype(np.int32) + np.int32(cell_code(f, 0)), 1))
    listed: list[tuple[npt.NDArray[np.bool_] | None, Counters]] = [(None, rows)]
    if "score" not in table.columns:
        return listed
    has_score = table["score"].is_not_null().to_numpy()
    p = table["score"].fill_null(0.0).to_numpy()
    scored: Counters = [(N_SCORED, 1), (SUM_SCORE, micro(p / unit))]
    if kind != "regression":
        scored.append((score_bin(p).astype(np.int32) + np.int32(SCORED), 1))
    listed.append((has_score, scored))
    if "y" in table.columns:
        y = table["y"].fill_null(0.0).cast(pl.Float64).to_numpy()
        is_known = has_score & table["y"].is_not_null().to_numpy()
        listed.append((is_known, truth_counters(p, y, kind, unit)))  # type: ignore[arg-type]
    return listed


def _parts(
    place: Ints,
    names: list[str],
    hours: Ints,
    listed: list[tuple[npt.NDArray[np.bool_] | None, Counters]],
    owner: tuple[str, str, str],
    axis: Axis,
    profile: str,
) -> list[Part]:
    first = int(hours.min(initial=0)) if len(hours) else 0
    parts = []
    for is_used, counters in listed:
        used = place >= 0 if is_used is None else (place >= 0) & is_used
        keys = np.where(used, (hours - first) * len(names) + place, -1)
        for key, codes, counts in group(keys, counters):
            hour, name = first + key // len(names), names[key % len(names)]
            parts.append(Part(*owner, name, axis, hour * HOUR_US, codes, counts, profile))
    return parts
