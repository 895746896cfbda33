"""The past as batches of events in event order, one batch an hour.

A batch holds what a service would log in that hour: the inputs that were asked (the predictions follow from them) and
the truths that came in, which belong to earlier inputs, in the order of their arrival and not of their departure. Pure:
the wall clock takes no part, so two runs give the same events.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from schemas.times import HOUR_US

INPUT_COLUMNS = ("prediction_id", "event_time", "truth_due")
FEEDBACK_COLUMNS = ("feedback_id", "prediction_id", "event_time", "label")


@dataclass(frozen=True)
class Batch:
    """The events of ``[start, end)``, microseconds UTC.

    Attributes
    ----------
    inputs
        ``prediction_id``, ``event_time``, ``truth_due`` (null where nothing decides the truth but a person), then one
        column a feature; in event order.
    truths
        ``feedback_id``, ``prediction_id``, ``event_time``, ``label``, then one column a fact; in event order. Send them
        after the inputs of the same batch: no truth comes before its prediction.
    """

    start: int
    end: int
    inputs: pl.DataFrame
    truths: pl.DataFrame

    @property
    def event_count(self) -> int:
        """Inputs, as many predictions, and truths."""
        return 2 * self.inputs.height + self.truths.height


def batches(inputs: pl.DataFrame, truths: pl.DataFrame, step_us: int = HOUR_US) -> Iterator[Batch]:
    """Cut both tables, sorted by ``event_time``, into steps; a step without events is an empty batch, so time goes on.

    >>> inputs = pl.DataFrame({"prediction_id": ["a", "b"], "event_time": [5, 25], "truth_due": [9, 29]})
    >>> truths = pl.DataFrame({"prediction_id": ["a"], "event_time": [31]})
    >>> [(b.start, b.inputs.height, b.truths.height) for b in batches(inputs, truths, 10)]
    [(0, 1, 0), (10, 0, 0), (20, 1, 0), (30, 0, 1)]
    """
    asked, came = inputs["event_time"].to_numpy(), truths["event_time"].to_numpy()
    moments = np.concatenate([asked, came])
    if not len(moments):
        return
    starts = range(int(moments.min()) // step_us * step_us, int(moments.max()) + 1, step_us)
    for start in starts:
        end = start + step_us
        i, j = np.searchsorted(asked, [start, end])
        k, m = np.searchsorted(came, [start, end])
        yield Batch(start, end, inputs[int(i) : int(j)], truths[int(k) : int(m)])


def input_events(model: str, inputs: pl.DataFrame) -> Iterator[dict[str, Any]]:
    """The rows of a batch's ``inputs`` as input events."""
    features = [name for name in inputs.columns if name not in INPUT_COLUMNS]
    heads = inputs.select("prediction_id", "event_time").iter_rows()
    for (prediction_id, event_time), row in zip(heads, inputs.select(features).iter_rows(named=True), strict=True):
        yield {
            "prediction_id": prediction_id,
            "model": model,
            "event_time": event_time,
            "subject": None,
            "features": row,
        }


def prediction_events(
    model: str, inputs: pl.DataFrame, version: str, scores: Sequence[float], labels: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """The champion's answers to a batch's ``inputs`` as events; a prediction is made the moment it is asked."""
    heads = inputs.select(INPUT_COLUMNS).iter_rows()
    for (prediction_id, event_time, truth_due), score, label in zip(heads, scores, labels, strict=True):
        yield {
            "prediction_id": prediction_id,
            "model": model,
            "version": version,
            "role": "champion",
            "event_time": event_time,
            "score": float(score),
            "label": label,
            "truth_due": truth_due,
        }


def truth_events(model: str, truths: pl.DataFrame) -> Iterator[dict[str, Any]]:
    """The rows of a batch's ``truths`` as feedback events; an unknown fact is left out."""
    return _feedback_events(model, truths, "truth")


def user_events(model: str, flags: pl.DataFrame) -> Iterator[dict[str, Any]]:
    """What users said of predictions as feedback events; columns as in a batch's ``truths``."""
    return _feedback_events(model, flags, "user")


def _feedback_events(model: str, rows: pl.DataFrame, kind: str) -> Iterator[dict[str, Any]]:
    facts = [name for name in rows.columns if name not in FEEDBACK_COLUMNS]
    for row in rows.iter_rows(named=True):
        known = [{"name": name, "value": row[name]} for name in facts if row[name] is not None]
        head = {name: row[name] for name in FEEDBACK_COLUMNS}
        yield {**head, "model": model, "kind": kind, "value": None, "facts": known, "note": None}
