"""The put-back: would the answers be other ones if this feature were as it used to be?

Rows of the window are scored as served and again with the feature replaced by draws from healthy rows of the same slice
and hour of day; the mean difference is the impact of the change. It costs a few hundred predictions and is asked for
candidates only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

from schemas.times import HOUR_US
from streams.logic.counts import LocalHours
from streams.logic.policy import MonitorPolicy

Predict = Callable[[pl.DataFrame], npt.NDArray[np.float64]]

DONORS_MIN = 5
"""With fewer healthy rows of the same hour of day, rows of every hour are drawn."""
PROBE_ROWS = 50
PROBE_DRAWS = 2
"""A first look at 100 predictions; a change that shows less than half of the limit there is not looked at again."""


@dataclass(frozen=True)
class ImpactEvidence:
    """What the put-back gave.

    Attributes
    ----------
    rows
        Served rows that were scored again.
    served, put_back
        Mean score as served, and with the feature as it used to be.
    scale
        Of the answers (:attr:`schemas.contract.Target.answer_scale`): the policy's limits are in it.
    scatter
        Mean absolute change beyond what two draws of healthy values differ by: a clock that is an hour off makes some
        answers higher and others lower.
    """

    rows: int
    served: float
    put_back: float
    scale: float = 1.0
    scatter: float = 0.0

    @property
    def impact(self) -> float:
        """I: positive where the change makes the answers higher."""
        return self.served - self.put_back

    @property
    def weight(self) -> float:
        """How much that is, whatever the model predicts: what the policy's limits are held against."""
        return max(abs(self.impact), self.scatter) / self.scale


class Impact(Protocol):
    """Asked by the monitor for a candidate; the caller has the rows and the model."""

    def __call__(self, slice_name: str, feature: str, start_us: int, end_us: int) -> ImpactEvidence | None:
        """Put a feature back in the rows of a slice and window; None when there are no rows to judge by."""


def put_back(
    served: pl.DataFrame,
    donors: pl.DataFrame,
    feature: str,
    predict: Predict,
    local: LocalHours,
    policy: MonitorPolicy,
    scale: float = 1.0,
) -> ImpactEvidence | None:
    """Score rows as served and with one feature drawn from healthy rows.

    Parameters
    ----------
    served, donors
        Rows of the slice: of the window, and of the baseline; the model's features, ``event_time`` (microseconds) and
        ``prediction_id``.
    feature
        The candidate.
    predict
        The model; a score a row.
    local
        The contract's clock.
    policy
        Rows, draws and the limit.
    scale
        Of the answers.

    Notes
    -----
    Rows and donors are taken at even steps through time, not by chance: the same rows give the same impact.
    """
    if not served.height or not donors.height:
        return None
    order = ["event_time", "prediction_id"]
    rows = _evenly(served.sort(order), policy.put_back_rows)
    known = donors.select(*order, feature).sort(order)
    probe = _score(_evenly(rows, PROBE_ROWS), known, feature, predict, local, PROBE_DRAWS, scale)
    if probe.weight < policy.impact / 2:
        return probe
    return _score(rows, known, feature, predict, local, policy.put_back_draws, scale)


def _score(
    rows: pl.DataFrame,
    donors: pl.DataFrame,
    feature: str,
    predict: Predict,
    local: LocalHours,
    draws: int,
    scale: float,
) -> ImpactEvidence:
    places = _donor_places(_local_hours(rows, local), _local_hours(donors, local), draws)
    repeated = rows[np.repeat(np.arange(rows.height), draws)].with_columns(donors[feature].gather(places.ravel()))
    scores = predict(pl.concat([rows, repeated]))
    served, replaced = float(scores[: rows.height].mean()), float(scores[rows.height :].mean())
    drawn = np.asarray(scores[rows.height :]).reshape(rows.height, draws)
    change = np.abs(np.asarray(scores[: rows.height])[:, None] - drawn).mean()
    scatter = float(change - np.abs(np.diff(drawn, axis=1)).mean()) if draws > 1 else 0.0
    return ImpactEvidence(rows.height, served, replaced, scale, scatter)


def _donor_places(asked: npt.NDArray[np.int64], offered: npt.NDArray[np.int64], draws: int) -> npt.NDArray[np.int64]:
    places = np.empty((len(asked), draws), np.int64)
    for hour in np.unique(asked):
        pool = np.flatnonzero(offered == hour)
        if len(pool) < DONORS_MIN:
            pool = np.arange(len(offered))
        mine = np.flatnonzero(asked == hour)
        wanted = len(mine) * draws
        # Draw k goes to row k modulo the rows: every row meets early and late days.
        steps = (np.arange(wanted) * len(pool)) // wanted
        places[mine] = pool[steps].reshape(draws, len(mine)).T
    return places


def _local_hours(rows: pl.DataFrame, local: LocalHours) -> npt.NDArray[np.int64]:
    hours, where = np.unique(rows["event_time"].to_numpy() // HOUR_US, return_inverse=True)
    return np.array([local(int(hour))[1] for hour in hours], np.int64)[where]


def _evenly(rows: pl.DataFrame, count: int) -> pl.DataFrame:
    if rows.height <= count:
        return rows
    return rows[(np.arange(count) * rows.height) // count]
