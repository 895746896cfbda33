"""Quality of one model by local day of the prediction, from the counters of its windows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from schemas import parts as codes
from schemas.parts import ALL_SLICE, SCORE_BINS, N, Part
from schemas.times import DAY_US, from_us
from streams.config import Config
from streams.windows import WindowReader, summed

CHAMPION = "champion"


@dataclass(frozen=True)
class Interval:
    """An estimate with its anytime-valid interval; ``low`` and ``high`` None: too few rows to say."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Day:
    """Quality of one local day's predictions.

    Attributes
    ----------
    day
        ISO 8601.
    n, truths, matured_share
        Predictions, those whose truth is known, and their share: of a fresh day the rows whose truth came early are
        not like the others, so its figures are not what they will be.
    log_loss, bias
        With an interval that stays valid however often it is looked at; of a regression: mean absolute error.
    auc
        From the calibration bins; None without both kinds of truth.
    versions
        Predictions by version.
    """

    day: str
    n: int
    truths: int
    undecided: int
    corrected: int
    matured_share: float
    bias: Interval | None
    log_loss: Interval | None
    abs_error: float | None
    auc: float | None
    accuracy: float | None
    versions: dict[str, int]


def quality_days(
    reader: WindowReader,
    connection: sa.Connection,
    config: Config,
    model: str,
    *,
    last: int,
    slice_name: str = ALL_SLICE,
) -> list[Day]:
    """The newest ``last`` local days that have predictions in the champion's role, oldest first.

    Raises
    ------
    ContractError
        If the model's contract cannot be read.
    """
    newest = reader.newest_us(connection, model)
    if newest is None:
        return []
    zone, kind, alpha, rows_a_day = ZoneInfo("UTC"), "binary", 0.05, 1000
    if model in config.models:
        configured = config.model(model)
        zone, kind = ZoneInfo(configured.contract.timezone), configured.contract.target.kind
        alpha, rows_a_day = configured.monitor.quality_alpha, configured.monitor.quality_rows_a_day
    found: dict[date, list[Part]] = {}
    first = from_us(newest).astimezone(zone).date() - timedelta(days=last - 1)
    since_us = newest - (last + 1) * DAY_US  # a local day may have 25 hours
    for part in reader.parts(connection, model, slice_name=slice_name, from_us=since_us):
        day = from_us(part.window_us).astimezone(zone).date()
        if day >= first and part.role == CHAMPION:
            found.setdefault(day, []).append(part)
    return [_day(day, found[day], kind, alpha, rows_a_day) for day in sorted(found)]


def _day(day: date, parts: list[Part], kind: str, alpha: float, rows_a_day: int) -> Day:
    counts = summed(parts)
    versions: dict[str, int] = {}
    for part in parts:
        versions[part.version] = versions.get(part.version, 0) + int(part.counts[part.codes == N].sum())
    n, truths = counts.get(N, 0), counts.get(codes.N_TRUTH, 0)
    bias = log_loss = abs_error = accuracy = None
    if truths:
        mean = (counts.get(codes.SUM_P, 0) - counts.get(codes.SUM_Y, 0)) / codes.MICRO / truths
        spread = max(0.0, counts.get(codes.BRIER, 0) / codes.MICRO / truths - mean * mean)
        bias = _interval(mean, spread, truths, alpha, rows_a_day)
        if kind == "regression":
            abs_error = counts.get(codes.ABS_ERROR, 0) / codes.MICRO / truths
        else:
            loss = counts.get(codes.LOG_LOSS, 0) / codes.MICRO / truths
            spread = max(0.0, counts.get(codes.LOG_LOSS_SQ, 0) / codes.MICRO / truths - loss * loss)
            log_loss = _interval(loss, spread, truths, alpha, rows_a_day)
            accuracy = counts.get(codes.N_CORRECT, 0) / truths
    return Day(
        day=day.isoformat(),
        n=n,
        truths=truths,
        undecided=counts.get(codes.N_UNDECIDED, 0),
        corrected=counts.get(codes.N_CORRECTED, 0),
        matured_share=round(truths / n, 6) if n else 0.0,
        bias=bias,
        log_loss=log_loss,
        abs_error=abs_error,
        auc=_auc(counts) if kind == "binary" else None,
        accuracy=accuracy,
        versions={name: number for name, number in sorted(versions.items()) if number},
    )


def _interval(mean: float, variance: float, n: int, alpha: float, rows_a_day: int) -> Interval:
    """Asymptotic confidence sequence: the normal mixture boundary with the variance plugged in.

    I. Waudby-Smith, D. Arbour, R. Sinha, E. Kennedy, A. Ramdas, "Time-uniform central limit theory and asymptotic
    confidence sequences", Annals of Statistics.
    """
    if n < 2:
        return Interval(mean, None, None)
    rho = rows_a_day / (2 * math.log(1 / alpha) + math.log(1 + 2 * math.log(1 / alpha)))
    radius = math.sqrt(variance) * math.sqrt((n + rho) * (math.log(1 + n / rho) + 2 * math.log(1 / alpha))) / n
    return Interval(mean, mean - radius, mean + radius)


def _auc(counts: Mapping[int, int]) -> float | None:
    """Area under the curve with the scores of a bin taken as equal."""
    below = wins = 0.0
    positives = negatives = 0
    for b in range(SCORE_BINS):
        yes = counts.get(codes.CALIBRATION_Y + b, 0)
        no = counts.get(codes.CALIBRATION_N + b, 0) - yes
        wins += yes * (below + no / 2)
        below += no
        positives, negatives = positives + yes, negatives + no
    return wins / (positives * negatives) if positives and negatives else None
