"""A table of the past made ready for the topics: everything is read and checked before anything is sent.

Pure: reads no configuration and no clock.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from schemas.contract import Contract, Field
from schemas.times import SECOND_US
from streams.config import ColumnsConfig
from streams.tabular import TableError, event_times, feature_name, label_texts

ASKED, CAME = 0, 1
"""Kinds of events: input and prediction together, and the truth."""
UNTIMED_STEP_S = 60.0


@dataclass(frozen=True)
class Past:
    """A table made ready.

    Attributes
    ----------
    rows
        ``prediction_id``, ``event_time``, ``truth_due`` and ``truth_time`` in microseconds, ``truth``, ``score``,
        ``label``, then the features and facts by the contract's names after ``x_`` and ``f_``.
    events
        ``time``, ``kind`` (asked or came) and ``row``, in the order in which they are sent.
    has_answers
        Whether the table holds predictions.
    """

    rows: pl.DataFrame
    events: pl.DataFrame
    has_answers: bool
    notes: tuple[str, ...] = ()

    def records(self, start: int, end: int) -> int:
        """How many records of the topics these events are: an input and a prediction, or the feedback."""
        kinds = self.events["kind"].slice(start, end - start)
        return kinds.len() + int((kinds == ASKED).sum())

    @property
    def digest(self) -> str:
        """Of what will be sent: a position is of one file with one reading."""
        parts = [self.rows.hash_rows(seed=1).to_numpy().tobytes(), self.events.hash_rows(seed=2).to_numpy().tobytes()]
        return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def prepare(
    table: pl.DataFrame,
    contract: Contract,
    columns: ColumnsConfig,
    *,
    start_us: int | None = None,
    step_s: float = UNTIMED_STEP_S,
    truth_delay_s: float = 0.0,
    truth_due_s: float | None = None,
) -> Past:
    """Read a table as the contract wants it, all of it before anything is sent.

    Parameters
    ----------
    start_us, step_s
        Times of a table without a time column: the first row's, and the seconds between rows.
    truth_delay_s
        When a truth arrived after its prediction, for a table without a column that says it.
    truth_due_s
        When a truth is due after its prediction; default: the contract's time-out, or the longest delay in the table.

    Raises
    ------
    TableError
        If a column is missing, a value does not fit the contract, or a label is unknown.
    """
    for role, name in columns.model_dump().items():
        if name is not None and name not in table.columns:
            raise TableError(f"The table has no column '{name}' ({role}).", action="Name its columns with the options.")
    if table.is_empty():
        raise TableError("The table has no rows.")
    zone = contract.timezone
    if columns.time is not None:
        asked = event_times(table[columns.time], zone)
    elif start_us is not None:
        asked = pl.Series([start_us + int(i * step_s * SECOND_US) for i in range(table.height)], dtype=pl.Int64)
    else:
        raise TableError("The rows have no time.", action="Name the column with --time, or give --start TIME.")
    renamed = {feature_name(name): name for name in table.columns}
    features = [_feature(table, f, renamed) for f in contract.fields]
    facts = [_fact(table, name, renamed) for name in contract.facts if name in renamed]
    truth, came = _truths(table, contract, columns, asked, truth_delay_s)
    delays = came - asked
    due_s = truth_due_s if truth_due_s is not None else contract.target.truth_timeout_s
    due_us = int(due_s * SECOND_US) if due_s is not None else int(delays.max() or 0)  # type: ignore[arg-type]
    score, label = _answers(table, contract, columns)
    rows = pl.DataFrame(
        [
            _ids(table, contract, columns, asked, features),
            asked.alias("event_time"),
            (asked + due_us).alias("truth_due"),
            came.alias("truth_time"),
            truth.alias("truth"),
            score.alias("score"),
            label.alias("label"),
            *features,
            *facts,
        ]
    )
    notes = []
    if rows["prediction_id"].n_unique() < rows.height:
        notes.append("Some ids stand twice: only the first row of each counts.")
    has_answers = columns.score is not None or columns.label is not None
    return Past(rows, _in_order(rows), has_answers, tuple(notes))


def _feature(table: pl.DataFrame, f: Field, renamed: Mapping[str, str]) -> pl.Series:
    if f.name not in renamed:
        if f.is_nullable:
            return pl.Series(f"x_{f.name}", [None], dtype=pl.String).new_from_index(0, table.height)
        raise TableError(f"The table has no column for the feature '{f.name}'.")
    values = table[renamed[f.name]]
    types: dict[str, Any] = {"double": pl.Float64, "long": pl.Int64, "boolean": pl.Boolean, "string": pl.String}
    cast = values.cast(types[f.avro_type], strict=False)
    lost = cast.null_count() - values.null_count()
    if f.avro_type == "long" and values.dtype.is_float():
        lost += int((values % 1 != 0).sum())
    if lost:
        raise TableError(f"{lost} values of '{renamed[f.name]}' ({values.dtype}) do not fit the type {f.avro_type}.")
    if cast.null_count() and not f.is_nullable:
        raise TableError(f"'{renamed[f.name]}' has {cast.null_count()} nulls, which the contract does not allow.")
    return cast.alias(f"x_{f.name}")


def _fact(table: pl.DataFrame, name: str, renamed: Mapping[str, str]) -> pl.Series:
    values = table[renamed[name]]
    fact = values.cast(pl.Float64, strict=False)
    if fact.null_count() > values.null_count():
        lost = fact.null_count() - values.null_count()
        raise TableError(f"{lost} values of the fact '{renamed[name]}' ({values.dtype}) are no numbers.")
    return fact.alias(f"f_{name}")


def _truths(
    table: pl.DataFrame, contract: Contract, columns: ColumnsConfig, asked: pl.Series, delay_s: float
) -> tuple[pl.Series, pl.Series]:
    """The truth of every row (null: none came), and when it came."""
    late = asked + int(delay_s * SECOND_US)
    if columns.target is None:
        return pl.Series([None], dtype=pl.String).new_from_index(0, table.height), late
    column = table[columns.target]
    if contract.target.kind == "regression":
        truth = column.cast(pl.Float64, strict=False)
        if truth.null_count() > column.null_count():
            raise TableError(f"The target '{columns.target}' holds values that are no numbers.")
    else:
        truth = label_texts(column)
        unknown = sorted(set(truth.drop_nulls().unique()) - set(contract.target.labels))
        if unknown:
            known = ", ".join(contract.target.labels)
            raise TableError(f"The target '{columns.target}' holds '{unknown[0]}'; the labels are {known}.")
    if columns.truth_time is not None:
        given = table[columns.truth_time]
        has_time = given.is_not_null()
        came = event_times(given.filter(has_time), contract.timezone) if has_time.any() else late.head(0)
        frame = pl.DataFrame({"row": pl.arg_where(has_time, eager=True), "came": came})
        at = pl.DataFrame({"row": pl.int_range(table.height, dtype=pl.UInt32, eager=True)})
        joined = at.join(frame, on="row", how="left", maintain_order="left")["came"]
        truth = pl.select(pl.when(joined.is_not_null()).then(truth)).to_series()
        late = joined.fill_null(asked)
        if bool((late < asked).any()):
            raise TableError(f"Some truths arrived before their prediction ('{columns.truth_time}').")
    return truth, late


def _answers(table: pl.DataFrame, contract: Contract, columns: ColumnsConfig) -> tuple[pl.Series, pl.Series]:
    """Scores and labels that the table holds."""
    target = contract.target
    nothing = pl.Series([None], dtype=pl.Float64).new_from_index(0, table.height)
    score = nothing if columns.score is None else table[columns.score].cast(pl.Float64, strict=False)
    label = nothing.cast(pl.String) if columns.label is None else label_texts(table[columns.label])
    if columns.score is not None and score.null_count() > table[columns.score].null_count():
        raise TableError(f"The scores in '{columns.score}' are not all numbers.")
    if target.kind == "binary" and columns.score is not None:
        if bool(((score < 0) | (score > 1)).any()):
            raise TableError(
                f"The scores in '{columns.score}' are not all between 0 and 1.",
                action=f"They must be the probability of '{target.positive}'.",
            )
        if columns.label is None:
            other = next(name for name in target.labels if name != target.positive)
            label = pl.select(
                pl.when(score >= 0.5).then(pl.lit(target.positive)).when(score < 0.5).then(pl.lit(other))
            ).to_series()
    unknown = sorted(set(label.drop_nulls().unique()) - set(target.labels)) if target.kind != "regression" else []
    if unknown:
        raise TableError(f"The answers in '{columns.label}' hold '{unknown[0]}', which is no label of the contract.")
    return score, label


def _ids(
    table: pl.DataFrame, contract: Contract, columns: ColumnsConfig, asked: pl.Series, features: list[pl.Series]
) -> pl.Series:
    if columns.id is not None:
        ids = table[columns.id].cast(pl.String)
        if ids.null_count() or bool((ids == "").any()):
            raise TableError(f"The id column '{columns.id}' has rows without an id.")
        return ids.alias("prediction_id")
    seen: dict[str, int] = {}
    ids_made = []
    for row in pl.DataFrame([asked, *features]).iter_rows():
        text = hashlib.sha256(f"{contract.model}{row!r}".encode()).hexdigest()[:24]
        seen[text] = seen.get(text, 0) + 1  # equal rows are different predictions, in the order of the file
        ids_made.append(text if seen[text] == 1 else f"{text}-{seen[text]}")
    return pl.Series("prediction_id", ids_made)


def _in_order(rows: pl.DataFrame) -> pl.DataFrame:
    index = pl.int_range(rows.height, dtype=pl.UInt32, eager=True)
    asked = pl.DataFrame({"time": rows["event_time"], "row": index}).with_columns(kind=pl.lit(ASKED, pl.Int8))
    has_truth = rows["truth"].is_not_null()
    came = pl.DataFrame({"time": rows["truth_time"].filter(has_truth), "row": index.filter(has_truth)})
    return pl.concat([asked, came.with_columns(kind=pl.lit(CAME, pl.Int8))]).sort("time", "kind", "row")
