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
    truths = _truths(root, contract, columns, _hours(root, disorder_us))
    if not truths.height:
        return pl.DataFrame(schema={"prediction_id": pl.String, "came_us": pl.Int64})
    truths = truths.unique("prediction_id", keep="last", maintain_order=True)
    have = [name for name in columns if name in truths.columns]
    return truths.select("prediction_id", *have, came_us=pl.max_horizontal("event_time", "open_us"))


def meetings(root: Path, contract: Contract, disorder_us: int) -> pl.DataFrame:
    """When the input and the prediction of each id met.

    Returns
    -------
    ``prediction_id``, ``input_us`` and ``met_us`` (the beginnings of the hours that were open when the input, and when
    the later of both came; null: none was known) and ``met_ts`` (the order time stamp of the later one).
    """
    hours = _hours(root, disorder_us)
    sides = [_opened(_read(root, noun, contract, []), hours) for noun in ("inputs", "predictions")]
    firsts = [side.unique("prediction_id", keep="first", maintain_order=True) for side in sides if side.height]
    if not firsts:
        times = dict.fromkeys(("input_us", "met_us", "met_ts"), pl.Int64)
        return pl.DataFrame(schema={"prediction_id": pl.String, **times})
    both = pl.concat(firsts).group_by("prediction_id")
    of_input = firsts[0].select("prediction_id", input_us="open_us")
    met = both.agg(met_us=pl.col("open_us").max(), met_ts=pl.col("order_ts").max())
    return met.join(of_input, on="prediction_id", how="left")


def judged_labels(root: Path, contract: Contract, disorder_us: int, rows: pl.DataFrame) -> pl.DataFrame:
    """The labels by which rows that count as undecided are judged on the due axis.

    Parameters
    ----------
    rows
        ``prediction_id``, ``due_us`` and ``met_ts``.

    Returns
    -------
    ``prediction_id`` and ``judged_label``: of the last truth that came while the hour in which it is due was open, or
    before input and prediction met; ids without one are left out.
    """
    truths = _truths(root, contract, ["label"], _hours(root, disorder_us))
    if not truths.height:
        return pl.DataFrame(schema={"prediction_id": pl.String, "judged_label": pl.String})
    is_open = (pl.col("open_us") <= pl.col("due_us")).fill_null(value=True) | (pl.col("order_ts") < pl.col("met_ts"))
    known = truths.join(rows, on="prediction_id", maintain_order="left").filter(is_open)
    last = known.unique("prediction_id", keep="last", maintain_order=True)
    return last.select("prediction_id", judged_label=pl.col("label").cast(pl.String))


def _hours(root: Path, disorder_us: int) -> pl.DataFrame:
    """Which hour was open after each prediction, of whatever model."""
    hours = archive.retried(lambda: archive.scan(root, "predictions", columns=["event_time"]).collect())
    if not hours.height:
        return hours
    newest = pl.col("event_time").cum_max().over(PLACE) - disorder_us
    return _in_order(hours).select(*PLACE, "order_ts", open_us=newest // HOUR_US * HOUR_US)


def _truths(root: Path, contract: Contract, columns: list[str], hours: pl.DataFrame) -> pl.DataFrame:
    """What was said of the model's predictions to be true, in order; empty if there is no feedback."""
    said = _read(root, "feedback", contract, ["feedback_id", "kind", *columns])
    if not said.height:
        return said
    truths = _opened(said.filter(pl.col("kind") == "truth"), hours)
    return truths.unique(["prediction_id", "feedback_id"], keep="first", maintain_order=True)


def _read(root: Path, noun: str, contract: Contract, columns: list[str]) -> pl.DataFrame:
    wanted = ["prediction_id", "event_time", *columns]
    rows = archive.retried(lambda: archive.scan(root, noun, contract.model, columns=wanted).collect())
    return _in_order(rows) if rows.height else rows


def _in_order(records: pl.DataFrame) -> pl.DataFrame:
    """Records as the plane worked on them, with the running maximum of the brokers' time stamps."""
    records = records.sort(*PLACE, "offset")
    return records.with_columns(order_ts=pl.col("broker_ts").cum_max().over(PLACE))


def _opened(records: pl.DataFrame, hours: pl.DataFrame) -> pl.DataFrame:
    """Records in the order that counts, with the beginning of the hour that was open when they came."""
    if not records.height or not hours.height:
        return records.with_columns(open_us=pl.lit(None, pl.Int64))
    records = records.sort("order_ts", maintain_order=True).join_asof(
        hours.sort("order_ts", maintain_order=True),
        on="order_ts",
        by=PLACE,
        allow_exact_matches=False,
        check_sortedness=False,
    )
    return records.sort("order_ts", *PLACE, "offset")
