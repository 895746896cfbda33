"""From a table of past rows to a contract with expectations, and to rows that a first model can be trained from.

Pure: reads no configuration, writes nothing (:mod:`streams.cli.init` does). Ranges and null rates get a margin, because
the past never holds the most extreme value that is still right; a person is meant to read the contract afterwards.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import polars as pl

from streams.tabular import TEXTS, TableError, event_times, feature_name, label_texts

ROWS_MIN = 10
ROWS_FEW = 100
"""With fewer rows than this ranges and null rates are guesses, and nothing is compared with training."""
LABELS_MAX = 100
"""More distinct labels than this are an identifier or a number, not classes."""
CLASSES_MAX = 20
"""Whole numbers with at most so many values are classes."""
DOMAIN_MAX = 64
"""Texts with more values than this are an open vocabulary."""
SEEN_MIN = 3
"""A vocabulary is closed only if each value was seen so often: unseen ones are then rare (Good and Turing)."""
SLICES_MAX = 20
RANGE_MARGIN = 0.25
UNTIMED_US = 946_684_800_000_000
"""2000-01-01: rows without a time are older than whatever is replayed or served after them."""
NULL_MARGIN = 0.01
NULL_SIGMAS = 4.0
DIGITS = 2
LONGS = -(1 << 63), (1 << 63) - 1
"""A contract is JSON, which knows no infinity, and its whole numbers are Avro's longs: no margin leads out of these."""


@dataclass(frozen=True)
class Columns:
    """Which columns of the table are not features."""

    target: str
    time: str | None = None
    id: str | None = None
    drop: tuple[str, ...] = ()
    slices: tuple[str, ...] = ()

    @property
    def all(self) -> list[str]:
        """Every named column."""
        return [name for name in (self.target, self.time, self.id, *self.drop, *self.slices) if name is not None]


@dataclass
class Inference:
    """What was read off a table.

    Attributes
    ----------
    document
        The contract.
    base
        ``prediction_id``, ``event_time`` (microseconds), the features, ``label``: rows with a truth, in event order.
    failure_rules
        A beginning: predictions that were sure and wrong.
    notes
        What a person should know or decide.
    """

    document: dict[str, Any]
    base: pl.DataFrame
    failure_rules: dict[str, str]
    notes: list[str] = field(default_factory=list)


def infer(
    table: pl.DataFrame,
    model: str,
    columns: Columns,
    *,
    positive: str | None = None,
    task: str | None = None,
    timezone: str = "UTC",
) -> Inference:
    """Read the contract off a table.

    Parameters
    ----------
    positive
        The label whose probability the score is; default: ``true``, ``1``, ``yes``, or else the rarer one.
    task
        ``binary``, ``multiclass`` or ``regression``; default: by the target's values.
    timezone
        Of times that have none, and of the contract's hours.

    Raises
    ------
    TableError
        If the table is too small, a column is missing or of a type that no feature can have, or the target is constant.
    """
    _check_timezone(timezone)
    _check_columns(table, columns)
    notes: list[str] = []
    known = table.filter(pl.col(columns.target).is_not_null())
    if known.height < table.height:
        notes.append(f"{table.height - known.height} rows without '{columns.target}' were left out.")
    if known.height < ROWS_MIN:
        raise TableError(
            f"The table has {known.height} rows with a '{columns.target}'; {ROWS_MIN} are needed.",
            action="Ranges, null rates and a first model need some past to be read off.",
        )
    if known.height < ROWS_FEW:
        notes.append(
            f"{known.height} rows are few: read the contract with care; see 'flywheel status' for what is off."
        )
    target, label = _target(known[columns.target], positive, task)
    features = _features(known, columns, notes)
    times = (
        event_times(known[columns.time], timezone)
        if columns.time is not None
        else pl.Series("event_time", [UNTIMED_US], dtype=pl.Int64).new_from_index(0, known.height)
    )
    names = [feature_name(name) for name in features]
    base = known.select(features).rename(dict(zip(features, names, strict=True)))
    base = base.with_columns(pl.col(name).cast(pl.String) for name in names if isinstance(base[name].dtype, TEXTS))
    base = base.with_columns(
        pl.col(name).cast(pl.Float64) for name in names if base[name].dtype.is_float() or base[name].dtype.is_decimal()
    )
    base = base.with_columns(pl.col(name).cast(pl.Int64) for name in names if base[name].dtype.is_integer())
    fields = [
        _field(base[name], column, column in columns.slices, notes)
        for name, column in zip(names, features, strict=True)
    ]
    ids = _ids(known, columns.id)
    base = base.insert_column(0, times.alias("event_time")).insert_column(0, ids).with_columns(label.alias("label"))
    document = {
        "type": "record",
        "name": _record_name(model),
        "namespace": "flywheel.features",
        "doc": f"The features of {model}, inferred from {known.height} rows: read it, and correct what is not so.",
        "model": model,
        "version": 1,
        "timezone": timezone,
        "target": target,
        "facts": [],
        "fields": fields,
    }
    return Inference(document, base.sort("event_time", "prediction_id"), _failure_rules(target, label), notes)


def _check_timezone(timezone: str) -> None:
    try:
        ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise TableError(f"'{timezone}' is not a time zone.", action="Such as Europe/Berlin or UTC.") from error


def _check_columns(table: pl.DataFrame, columns: Columns) -> None:
    from difflib import get_close_matches

    for name in columns.all:
        if name not in table.columns:
            near = get_close_matches(name, table.columns, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else f" It has: {', '.join(table.columns[:30])}."
            raise TableError(f"The table has no column '{name}'.{hint}")
    roles = [name for name in (columns.target, columns.time, columns.id, *columns.drop) if name is not None]
    twice = sorted({name for name in roles if roles.count(name) > 1})
    if twice:
        raise TableError(f"The column '{twice[0]}' is named for two things.")


def _record_name(model: str) -> str:
    words = re.split(r"[^A-Za-z0-9]+", model)
    return feature_name("".join(word[:1].upper() + word[1:] for word in words if word))


# ---------------------------------------------------------------------- target


def _target(column: pl.Series, positive: str | None, task: str | None) -> tuple[dict[str, Any], pl.Series]:
    """The contract's target, and the label of every row."""
    name, distinct = column.name, column.n_unique()
    if distinct < 2:
        raise TableError(f"The target '{name}' has only one value, {column[0]!r}: there is nothing to learn.")
    if column.dtype != pl.Boolean and not column.dtype.is_numeric() and not isinstance(column.dtype, TEXTS):
        raise TableError(f"The target '{name}' is of type {column.dtype}; it must be a text, a number or a boolean.")
    is_whole = column.dtype == pl.Boolean or isinstance(column.dtype, TEXTS) or _is_whole(column)
    if task is None:
        is_class = (
            distinct == 2 or not column.dtype.is_numeric() or (column.dtype.is_integer() and distinct <= CLASSES_MAX)
        )
        task = ("binary" if distinct == 2 else "multiclass") if is_class and is_whole else "regression"
    if task == "regression":
        if not column.dtype.is_numeric():
            raise TableError(f"The target '{name}' does not hold numbers, so it cannot be a regression.")
        values = column.cast(pl.Float64)
        if not bool(values.is_finite().all()):
            raise TableError(f"The target '{name}' has values that are no finite numbers.")
        spread = float(values.std() or 1.0)  # type: ignore[arg-type]
        return {"kind": "regression", "unit": 10.0 ** round(math.log10(spread / 4))}, values
    if not is_whole:
        raise TableError(f"The target '{name}' holds fractions, so they cannot be labels.")
    text = label_texts(column)
    counts = text.value_counts(name="n").sort(["n", name], descending=[True, False])
    labels = [str(value) for value in counts[name]]
    if len(labels) > LABELS_MAX:
        raise TableError(
            f"The target '{name}' has {len(labels)} different labels; {LABELS_MAX} are the most.",
            action="Is it an identifier, or a number for --task regression?",
        )
    if task == "multiclass":
        return {"kind": "multiclass", "labels": sorted(labels)}, text
    if len(labels) != 2:
        raise TableError(f"The target '{name}' has {len(labels)} labels, so it is not binary.")
    if positive is None:
        usual = [label for label in labels if label.lower() in ("1", "true", "yes", "y")]
        positive = usual[0] if usual else labels[-1]
    if positive not in labels:
        raise TableError(f"'{positive}' is not a label of '{name}', which are {labels[0]} and {labels[1]}.")
    other = next(label for label in labels if label != positive)
    return {"kind": "binary", "labels": [positive, other], "positive": positive}, text


def _is_whole(column: pl.Series) -> bool:
    return column.dtype.is_integer() or bool((column.cast(pl.Float64) % 1 == 0).all())


def _failure_rules(target: dict[str, Any], label: pl.Series) -> dict[str, str]:
    if target["kind"] == "regression":
        spread = float(label.std() or 0.0)  # type: ignore[arg-type]
        return {"far_off": f"abs(score - value) > {_rounded(2 * spread, up=True):g}"}
    if target["kind"] == "multiclass":
        return {"sure_and_wrong": "score > 0.9 AND label <> truth"}
    positive, other = (_sql(text) for text in target["labels"])
    return {"sure_and_wrong": f"(score > 0.9 AND truth = {other}) OR (score < 0.1 AND truth = {positive})"}


def _sql(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


# ---------------------------------------------------------------------- features


def _features(table: pl.DataFrame, columns: Columns, notes: list[str]) -> list[str]:
    """The columns that are features; refuses what no feature can be, all at once."""
    left_out = {columns.target, columns.time, columns.id, *columns.drop}
    names = [name for name in table.columns if name not in left_out]
    if not names:
        raise TableError("No column is left to be a feature.")
    unsuitable = [f"{name} ({table[name].dtype})" for name in names if not _is_suitable(table[name])]
    if unsuitable:
        raise TableError(
            f"Columns cannot be features: {', '.join(unsuitable)}.",
            action="Name a row's time with --time; make other times numbers; leave columns out with --drop COLUMN.",
        )
    by_name: dict[str, str] = {}
    for name in names:
        clean = feature_name(name)
        if clean in by_name:
            raise TableError(f"The columns '{by_name[clean]}' and '{name}' would both be called '{clean}'.")
        by_name[clean] = name
    renamed = [f"'{name}' is '{clean}'" for clean, name in by_name.items() if clean != name]
    if renamed:
        more = f" and {len(renamed) - 3} more" if len(renamed) > 3 else ""
        notes.append(f"Names of the contract: {', '.join(renamed[:3])}{more}.")
    return names


def _is_suitable(column: pl.Series) -> bool:
    kind = column.dtype
    return kind == pl.Boolean or kind.is_numeric() or isinstance(kind, TEXTS)


def _field(values: pl.Series, column: str, is_sliced: bool, notes: list[str]) -> dict[str, Any]:
    """One feature with what its past values let one expect."""
    if values.dtype == pl.Boolean:
        kind = "boolean"
    elif values.dtype == pl.String:
        kind = "string"
    else:
        kind = "long" if values.dtype.is_integer() else "double"
    expected: dict[str, Any] = {"name": values.name, "type": ["null", kind], "default": None}
    if kind in ("long", "double"):
        expected |= _range(values)
    elif kind == "string":
        expected |= _vocabulary(values, is_sliced, notes)
    if is_sliced and kind != "string":
        raise TableError(f"'{column}' cannot be a slice: slices are of texts with few values.")
    share = values.null_count() / len(values)
    margin = NULL_SIGMAS * math.sqrt(share * (1 - share) / len(values)) + NULL_MARGIN
    expected["max_null_rate"] = min(1.0, math.ceil((share + margin) * 1000) / 1000)
    known = values.drop_nulls().drop_nans() if values.dtype.is_float() else values.drop_nulls()
    if not len(known):
        notes.append(f"'{values.name}' has no value at all: it cannot be monitored against these rows (--drop it?).")
    elif known.n_unique() == 1:
        notes.append(f"'{values.name}' has only one value: it teaches nothing (--drop it?).")
    return expected


def _range(values: pl.Series) -> dict[str, Any]:
    """Least and greatest with a margin; whole numbers with few values (codes, counts of a few) keep theirs.

    >>> _range(pl.Series([0.0, 3.7, 8.1]))
    {'min': 0.0, 'max': 11.0}
    """
    finite = values.drop_nulls().cast(pl.Float64)
    finite = finite.filter(finite.is_finite())
    if not len(finite):
        return {}
    low, high = float(finite.min()), float(finite.max())  # type: ignore[arg-type]
    if not (values.dtype.is_integer() and finite.n_unique() <= CLASSES_MAX):
        margin = RANGE_MARGIN * (high - low)
        low = low if low == 0 else max(_rounded(low - margin, up=False), 0.0 if low >= 0 else -math.inf)
        high = min(_rounded(high + margin, up=True), 0.0 if high <= 0 else math.inf)
    if values.dtype.is_integer():
        return {name: min(max(int(bound), LONGS[0]), LONGS[1]) for name, bound in (("min", low), ("max", high))}
    return {"min": max(low, -sys.float_info.max), "max": min(high, sys.float_info.max)}


def _rounded(value: float, *, up: bool) -> float:
    """Outwards to two digits, so that a person can read the bound."""
    if value == 0 or not math.isfinite(value):
        return value
    unit = 10.0 ** (math.floor(math.log10(abs(value))) - DIGITS + 1)
    steps = math.ceil(value / unit - 1e-9) if up else math.floor(value / unit + 1e-9)
    return float(f"{steps * unit:.12g}")


def _vocabulary(values: pl.Series, is_sliced: bool, notes: list[str]) -> dict[str, Any]:
    counts = values.drop_nulls().value_counts(name="n")
    words = sorted(str(word) for word in counts[values.name])
    if not words:
        return {}
    if is_sliced:
        if len(words) > SLICES_MAX:
            raise TableError(f"'{values.name}' has {len(words)} values; {SLICES_MAX} slices are the most.")
        return {"domain": words, "slices": words}
    if len(words) > 0.9 * len(values):
        notes.append(f"'{values.name}' is different in nearly every row: is it an identifier (--id or --drop)?")
        return {}
    if len(words) <= DOMAIN_MAX and int(counts["n"].min()) >= SEEN_MIN:  # type: ignore[arg-type]
        return {"domain": words}
    return {}


def _ids(table: pl.DataFrame, column: str | None) -> pl.Series:
    if column is None:
        return pl.Series("prediction_id", [f"base-{i:09d}" for i in range(table.height)])
    ids = table[column].cast(pl.String).alias("prediction_id")
    if ids.null_count() or bool((ids == "").any()):
        raise TableError(f"The id column '{column}' has rows without an id.")
    if ids.n_unique() < table.height:
        twice: Sequence[Any] = ids.filter(ids.is_duplicated()).head(1).to_list()
        raise TableError(f"The id column '{column}' has the id {twice[0]!r} twice.")
    return ids
