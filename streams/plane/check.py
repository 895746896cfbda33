"""Which decoded events can be placed, and in what columns; the others leave as dead letters.

A value may decode and still be no event of ours: written with another topic's schema, for a model that nobody
configured, with a feature of another type, or at an impossible time. Nothing after this module meets such a one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from schemas.contract import RESERVED
from schemas.events import FEEDBACK_KINDS, SOURCES
from streams.plane.columns import filled
from streams.plane.decode import Bad, Decoded, without
from streams.plane.plan import TOPIC_FEEDBACK, TOPIC_INPUTS, TOPIC_PREDICTIONS, ModelPlan
from streams.plane.source import Chunk

REASON_FOREIGN = "foreign_schema"
REASON_MODEL = "unknown_model"
REASON_KIND = "unknown_kind"
REASON_FUTURE = "future_event"
REASON_TIME = "bad_event_time"
REASON_FEATURES = "foreign_features"

TIME_US_MAX = 253_402_300_800_000_000
"""The year 10000: sums with a later time could leave 64 bits."""
COMMON: Mapping[str, Any] = {"prediction_id": pl.String, "model": pl.String, "event_time": pl.Int64}
FACT = pl.Struct({"name": pl.String, "value": pl.Float64})
REQUIRED: tuple[Mapping[str, Any], ...] = (
    COMMON,
    {**COMMON, "version": pl.String, "role": pl.String},
    {**COMMON, "feedback_id": pl.String, "kind": pl.String},
)
OPTIONAL: tuple[Mapping[str, Any], ...] = (
    {"subject": pl.String},
    {"score": pl.Float64, "label": pl.String, "truth_due": pl.Int64},
    {"label": pl.String, "value": pl.Float64, "facts": pl.List(FACT), "note": pl.String},
)
"""Columns that a value written with another version of the envelope may lack; what it may have more is left out."""
KEPT = frozenset((pl.Boolean, pl.Int32, pl.Int64, pl.Float32, pl.Float64, pl.String))
"""Of the features that a contract does not name those go on to the archive that one could name: no others lie in one
column with what another schema has under that name, and not all can be written."""


class Checker:
    """Checks the events of one topic.

    Parameters
    ----------
    topic
        Its place among the sources.
    skew_us
        How far an event time may be ahead of the broker's clock.
    """

    def __init__(self, topic: int, plans: Mapping[str, ModelPlan], skew_us: int) -> None:
        self._topic = topic
        self._plans = plans
        self._models = list(plans)
        self._skew_us = skew_us
        self._own = {*REQUIRED[topic], *OPTIONAL[topic], *(("features",) if topic == TOPIC_INPUTS else ())}
        self.foreign: list[tuple[str, Any, Any]] = []
        """Of the last check: model, places and event times of inputs whose features are of other types."""

    def check(self, decoded: Sequence[Decoded], chunk: Chunk) -> tuple[list[tuple[Decoded, str]], list[Bad]]:
        """Events that can be placed, by model, and the ones that cannot.

        They have the columns of their topic and no others, whatever more their writer's envelope has. Input features
        are lifted to columns, a feedback's facts to ``fact_NAME``.
        """
        good: list[tuple[Decoded, str]] = []
        bad: list[Bad] = []
        self.foreign = []
        for part in decoded:
            frame = self._formed(part.frame)
            if frame is None:
                detail = f"Schema {part.schema_id} is none of {SOURCES[self._topic]}."
                bad += [Bad(int(place), REASON_FOREIGN, detail) for place in part.places]
                continue
            reason = self._reasons(frame, chunk.timestamps[part.places])
            places = part.places
            if reason.any():
                for i in np.flatnonzero(reason):
                    bad.append(Bad(int(places[i]), *_words(int(reason[i]), frame.row(int(i), named=True))))
                kept = reason == 0
                frame, places = frame.filter(pl.Series(kept)), places[kept]
            if frame.height:
                self._by_model(Decoded(part.schema_id, places, frame), good, bad)
        return good, bad

    def _by_model(self, part: Decoded, good: list[tuple[Decoded, str]], bad: list[Bad]) -> None:
        models = [only] if (only := constant(part.frame["model"])) else part.frame["model"].unique(maintain_order=True)
        for model in models:
            own, places = part.frame, part.places
            if len(models) > 1:
                same = part.frame["model"] == model
                own, places = part.frame.filter(same), part.places[same.to_numpy()]
            lifted = _lift(own, self._topic, self._plans[model])
            if lifted is None:
                detail = (
                    f"The features of schema {part.schema_id} are not of the types that the contract of {model} has."
                )
                bad += [Bad(int(place), REASON_FEATURES, detail) for place in places]
                self.foreign.append((model, places, own["event_time"].to_numpy()))
            else:
                good.append((Decoded(part.schema_id, places, lifted), model))

    def _formed(self, frame: pl.DataFrame) -> pl.DataFrame | None:
        """The frame with the topic's columns in their types; None if it cannot have them."""
        have = frame.schema
        required, optional = REQUIRED[self._topic], OPTIONAL[self._topic]
        if self._topic == TOPIC_INPUTS and not isinstance(have.get("features"), pl.Struct):
            return None
        changed: list[pl.Expr] = []
        for name, wanted in (*required.items(), *optional.items()):
            found = have.get(name)
            if found == wanted:
                continue
            if found is None and name in required:
                return None
            if found is None or found == pl.Null:
                empty = pl.lit(None, wanted) if found is None else pl.col(name).cast(wanted)
                changed.append(empty.alias(name))
            elif found.is_numeric() and wanted in (pl.Int64, pl.Float64):
                changed.append(pl.col(name).cast(wanted, strict=False))
            else:
                return None
        more = have.keys() - self._own
        frame = without(frame, more) if more else frame
        return frame.with_columns(changed) if changed else frame

    def _reasons(self, frame: pl.DataFrame, timestamps: np.ndarray[Any, np.dtype[np.int64]]) -> Any:
        """For every row 0, or the number of what is wrong with it (see ``_words``)."""
        event = filled(frame["event_time"], -1)
        reason = np.zeros(len(event), np.int64)
        if self._topic == TOPIC_PREDICTIONS:
            due = filled(frame["truth_due"], 0)
            reason[(due < 0) | (due > TIME_US_MAX)] = 5
        reason[event < 0] = 4
        reason[event > timestamps * 1000 + self._skew_us] = 3
        if self._topic == TOPIC_FEEDBACK:
            reason[_are_others(frame["kind"], FEEDBACK_KINDS)] = 2
        reason[_are_others(frame["model"], self._models)] = 1
        for name in REQUIRED[self._topic]:
            if frame[name].null_count():
                reason[frame[name].is_null().to_numpy() & (reason == 0)] = 6
        return reason


def constant(column: pl.Series) -> Any:
    """The value that all rows have, None if they differ: the usual case of a model's or a version's name, for a fifth
    of what it takes to collect the distinct ones."""
    first = column[0]
    return first if first is not None and not column.null_count() and (column == first).all() else None


def _are_others(column: pl.Series, known: Collection[str]) -> Any:
    """Rows that have none of the known values; usually no row."""
    only = constant(column)
    if only in known if only is not None else set(column.unique()) <= set(known):
        return slice(0, 0)
    return ~column.is_in(list(known)).fill_null(value=False).to_numpy()


def _words(reason: int, row: dict[str, Any]) -> tuple[str, str]:
    return {
        1: (REASON_MODEL, "No model of that name is configured."),
        2: (REASON_KIND, "The feedback's kind is neither truth nor user."),
        3: (REASON_FUTURE, f"The event time {row['event_time']} is ahead of the broker's clock."),
        4: (REASON_TIME, f"The event time {row['event_time']} is before 1970."),
        5: (REASON_TIME, f"The truth's due time {row.get('truth_due')} is impossible."),
        6: (REASON_FOREIGN, "A field that every event has is null."),
    }[reason]


def _lift(frame: pl.DataFrame, topic: int, plan: ModelPlan) -> pl.DataFrame | None:
    if topic == TOPIC_INPUTS:
        features = frame["features"].struct.unnest()
        if not _fit(features.schema, plan):
            return None
        unused = [name for name, dtype in features.schema.items() if name in RESERVED or dtype not in KEPT]
        features = without(features, unused) if unused else features
        return without(frame, ("features",)).hstack(features)
    if topic != TOPIC_FEEDBACK:
        return frame
    names = plan.contract.facts
    if not names:
        return without(frame, ("facts",))
    values = np.full((frame.height, len(names)), np.nan)
    if frame["facts"].list.len().sum():
        flat = frame.select(pl.int_range(pl.len()).alias("row"), "facts").explode("facts")
        flat = flat.drop_nulls("facts").unnest("facts")
        for i, name in enumerate(names):
            some = flat.filter(pl.col("name") == name)
            values[some["row"].to_numpy(), i] = some["value"].to_numpy()
    columns = [pl.Series(f"fact_{name}", values[:, i]).fill_nan(None) for i, name in enumerate(names)]
    return without(frame, ("facts",)).hstack(columns)


def _fit(schema: pl.Schema, plan: ModelPlan) -> bool:
    """Whether the features are of the contract's types; one that is absent was not yet in the writer's contract."""
    for field in plan.contract.fields:
        found = schema.get(field.name)
        if found is None or found == pl.Null:
            continue
        fits = (
            found.is_numeric() if field.kind == "number"
            else found == pl.String if field.kind == "category"
            else found == pl.Boolean
        )  # fmt: skip
        if not fits:
            return False
    return True
