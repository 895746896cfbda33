"""When truths count: as the data plane has it (see :mod:`streams.plane.reached`), told from the archive."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from schemas import archive
from schemas.contract import Contract
from schemas.times import HOUR_US

PLACE = ["cluster", "partition"]


def last_truths(root: Path, contract: Contract, disorder_us: int, columns: list[str]) -> pl.DataFrame:
    """The last word on each prediction of a model.

    Parameters
    ----------
    disorder_us
        That is allowed of event times.
    columns
        Of the feedback, where the archive has them.

    Returns
    -------
    ``prediction_id``, ``came_us`` (its event time, or the beginning of the hour that was open when it came), and the
    columns; empty, with these two, if there is no feedback.
    """
    wanted = ["prediction_id", "event_time", "kind", *columns]
    said = archive.retried(lambda: archive.scan(root, "feedback", contract.model, columns=wanted).collect())
    if not said.height:
        return pl.DataFrame(schema={"prediction_id": pl.String, "came_us": pl.Int64})
    truths = _in_order(said).filter(pl.col("kind") == "truth")
    hours = archive.retried(lambda: archive.scan(root, "predictions", columns=["event_time"]).collect())
    if hours.height:
        newest = pl.col("event_time").cum_max().over(PLACE) - disorder_us
        hours = _in_order(hours).select(*PLACE, "order_ts", open_us=newest // HOUR_US * HOUR_US)
        truths = truths.sort("order_ts", maintain_order=True).join_asof(
            hours.sort("order_ts", maintain_order=True),
            on="order_ts",
            by=PLACE,
            allow_exact_matches=False,
            check_sortedness=False,
        )
    else:
        truths = truths.with_columns(open_us=pl.lit(None, pl.Int64))
    truths = truths.sort("order_ts", *PLACE, "offset").unique("prediction_id", keep="last", maintain_order=True)
    have = [name for name in columns if name in truths.columns]
    return truths.select("prediction_id", *have, came_us=pl.max_horizontal("event_time", "open_us"))


def _in_order(records: pl.DataFrame) -> pl.DataFrame:
    """Records as the plane worked on them, with the running maximum of the brokers' time stamps."""
    records = records.sort(*PLACE, "offset")
    return records.with_columns(order_ts=pl.col("broker_ts").cum_max().over(PLACE))
