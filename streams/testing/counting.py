"""What the data plane counts of a table of rows: its own counting, without a log."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from schemas.parts import Ints, Part
from streams.plane.count import count_pairs, count_truths
from streams.plane.join import Pairs, Truths
from streams.plane.plan import ORDER_TOPICS, TOPIC_FEEDBACK, ModelPlan, Versions
from streams.plane.reached import Reached
from streams.plane.segments import NO_EVENT


class _OneSegment:
    """All records lie in one segment."""

    def places(self, _topics: Ints, offsets: Ints) -> Ints:
        return np.zeros(len(offsets), np.int64)


def plane_parts(plan: ModelPlan, rows: pl.DataFrame, *, version: str = "v1", partition: int = 0) -> list[Part]:
    """Parts of the champion's answers and of what is known of them; every truth comes in its own hour.

    Parameters
    ----------
    rows
        ``prediction_id``, ``event_time``, the features, ``score``, ``answer`` (the label), ``truth_due`` (may be null);
        ``truth`` (label), ``value`` (of a regression) and ``truth_time``, null where no truth came; ``user``: a word,
        null where nobody said anything.
    """
    versions = Versions()
    head = rows.select("prediction_id", "event_time", "score", "truth_due", label=pl.col("answer").cast(pl.String))
    predictions = plan.predictions(head.with_columns(version=pl.lit(version), role=pl.lit("champion")), versions)
    inputs = plan.inputs(rows)
    offsets = np.arange(rows.height, dtype=np.int64)
    inputs["offset"] = predictions["offset"] = offsets
    order = offsets * ORDER_TOPICS + ORDER_TOPICS
    cuts: Any = _OneSegment()
    reached = Reached(0, NO_EVENT)
    found = count_pairs(plan, Pairs(inputs, predictions, order, offsets), cuts, reached)
    said = [
        ("truth", pl.col("truth_time"), pl.col("truth"), pl.col("value")),
        ("user", pl.col("event_time"), pl.col("user"), pl.lit(None, pl.Float64)),
    ]
    for kind, time, label, value in said:
        events = rows.with_row_index("at").select(
            "at", "prediction_id", event_time=time, label=label.cast(pl.String), value=value, kind=pl.lit(kind),
            feedback_id=pl.col("prediction_id") + f"/{kind}",
            **{f"fact_{name}": pl.lit(None, pl.Float64) for name in plan.contract.facts},
        )  # fmt: skip
        events = events.filter(pl.col("label").is_not_null() | pl.col("value").is_not_null())
        if events.height:
            at = events["at"].to_numpy().astype(np.int64)
            feedback, nobody = plan.feedback(events), np.zeros(len(at), bool)
            truths = Truths(
                inputs.take(at), predictions.take(at), feedback, np.ones(len(at), np.int64),
                order[at] + TOPIC_FEEDBACK, offsets[at], nobody, feedback, ~nobody, feedback, nobody,
            )  # fmt: skip
            found += count_truths(plan, truths, cuts, partition, reached)
    own = (plan.model, version, "champion")
    return [Part(*own, a.slice, a.axis, a.window_us, a.codes, a.counts, plan.profile.profile_id) for a in found]
