"""What is usual instead: daily PSI, Kolmogorov-Smirnov and chi-square, Wasserstein, and river's ADWIN; same rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
from river.drift import ADWIN
from scipy import stats

from schemas.times import DAY_US
from streams.lab.recording import Change, Recording

Floats = npt.NDArray[np.float64]
PSI_LIMIT, KS_ALPHA, W1_LIMIT = 0.2, 0.05, 0.1
"""The rule of thumb; 5 % over all features of a day (Bonferroni); a popular tool's default, in standard deviations."""
FLOOR = 1e-4


@dataclass(frozen=True)
class Daily:
    """A rule that gives every feature a number a day, and is in alarm above a limit."""

    name: str
    limit: float
    judge: Callable[[Recording, pl.DataFrame, str], float]

    def scores(self, recording: Recording, rows: pl.DataFrame) -> tuple[npt.NDArray[np.int64], Floats]:
        """Days, and the rule's number by day and feature."""
        days = rows["event_time"].to_numpy() // DAY_US
        names, distinct = recording.contract.feature_names, np.unique(days)
        found = np.zeros((len(distinct), len(names)))
        for i, day in enumerate(distinct.tolist()):
            first, last = np.searchsorted(days, (day, day + 1)).tolist()
            some = rows[first:last]
            found[i] = [self.judge(recording, some, name) for name in names]
        return distinct, found


def _psi(recording: Recording, rows: pl.DataFrame, name: str) -> float:
    feature = recording.profile.features[recording.profile.index[name]]
    served = np.bincount(feature.codes(rows[name]), minlength=feature.cell_count)
    p = np.maximum(np.asarray(feature.counts) / max(1, sum(feature.counts)), FLOOR)
    q = np.maximum(served / max(1, served.sum()), FLOOR)
    return float(((q - p) * np.log(q / p)).sum())


def _p_value(recording: Recording, rows: pl.DataFrame, name: str) -> float:
    """1 - p, times the number of features: above 1 - alpha is an alarm."""
    known = recording.between(0, recording.start_us)[name].drop_nulls()
    served = rows[name].drop_nulls()
    if len(served) < 2:
        return 0.0
    if served.dtype.is_numeric():
        p = float(stats.ks_2samp(known.to_numpy(), served.to_numpy(), method="asymp").pvalue)
    else:
        words = sorted(set(known.unique()) | set(served.unique()))
        counts = [[int((column == word).sum()) for word in words] for column in (known, served)]
        p = float(stats.chi2_contingency(np.array(counts) + 0.5).pvalue)
    return 1.0 - min(1.0, p * len(recording.contract.feature_names))


def _wasserstein(recording: Recording, rows: pl.DataFrame, name: str) -> float:
    known, served = recording.between(0, recording.start_us)[name].drop_nulls(), rows[name].drop_nulls()
    if not served.dtype.is_numeric() or len(served) < 2:
        return 0.0
    deviation = float(known.std() or 1.0)  # type: ignore[arg-type]
    return float(stats.wasserstein_distance(known.to_numpy()[::10], served.to_numpy())) / deviation


DAILY = (
    Daily("PSI > 0.2", PSI_LIMIT, _psi),
    Daily("KS, chi-square, Bonferroni", 1.0 - KS_ALPHA, _p_value),
    Daily("Wasserstein > 0.1 sd", W1_LIMIT, _wasserstein),
)


@dataclass(frozen=True)
class Peer:
    """A rule beside Flywheel's.

    Attributes
    ----------
    alarms_a_month
        Feature-days in alarm without a planted fault.
    days_in_alarm
        Share of the days with any.
    found
        Share of the faults that it told of within a day, by an alarm that is not there without the fault.
    found_matched
        The same with its limit raised until as many days are in alarm as Flywheel has pages.
    """

    name: str
    alarms_a_month: float
    days_in_alarm: float
    found: float
    found_matched: float | None


Planted = tuple[int, Change, Sequence[str]]
"""When, what, and which features it changes."""


def daily(rule: Daily, recording: Recording, end_us: int, planted: Sequence[Planted], pages: int) -> Peer:
    """Run a daily rule over the served rows, and over each planted fault's first day."""
    days, scores = rule.scores(recording, recording.between(recording.start_us, end_us))
    months = (end_us - recording.start_us) / DAY_US / 30.44
    highest = np.sort(scores.max(axis=1))
    matched = float(highest[-1 - pages])
    names = list(recording.contract.feature_names)
    hits = {limit: 0 for limit in (rule.limit, matched)}
    for moment_us, change, features in planted:
        first, last = moment_us // DAY_US * DAY_US, moment_us + DAY_US
        whole = pl.concat(
            [recording.between(first, moment_us), _changed(recording, moment_us, last, change)], how="vertical_relaxed"
        )
        own_days, own = rule.scores(recording, whole)
        places = [names.index(feature) for feature in features]
        usual = scores[np.searchsorted(days, own_days)][:, places]
        ended = (own_days + 1) * DAY_US <= last
        for limit in hits:
            is_new = (own[:, places] > limit) & (usual <= limit)
            hits[limit] += bool(is_new[ended].any())
    return Peer(
        rule.name,
        float((scores > rule.limit).sum()) / months,
        float((scores > rule.limit).any(axis=1).mean()),
        hits[rule.limit] / len(planted),
        hits[matched] / len(planted),
    )


def adwin(recording: Recording, end_us: int, planted: Sequence[Planted]) -> Peer:
    """River's ADWIN at its defaults, one a numeric feature, row by row."""
    rows = recording.between(recording.start_us, end_us)
    names = [field.name for field in recording.contract.fields if field.kind == "number"]
    months = (end_us - recording.start_us) / DAY_US / 30.44
    times = rows["event_time"].to_numpy()
    alarms = {name: _adwin_alarms(times, rows[name]) for name in names}
    hits = 0
    for moment_us, change, features in planted:
        first, last = moment_us - 7 * DAY_US, moment_us + DAY_US
        before = recording.between(first, moment_us)
        after = _changed(recording, moment_us, last, change)
        for name in set(features) & set(names):
            column = pl.concat([before[name], after[name].cast(before[name].dtype)])
            own = _adwin_alarms(np.concatenate([before["event_time"], after["event_time"]]), column)
            healthy = recording.between(first, last)
            usual = _adwin_alarms(healthy["event_time"].to_numpy(), healthy[name])
            if (own > moment_us).sum() > (usual > moment_us).sum():
                hits += 1
                break
    count = sum(map(len, alarms.values()))
    days = np.unique(np.concatenate([*alarms.values()]) // DAY_US)
    share = len(days) * DAY_US / (end_us - recording.start_us)
    return Peer("ADWIN", count / months, share, hits / len(planted), None)


def _adwin_alarms(times: npt.NDArray[np.int64], values: pl.Series) -> npt.NDArray[np.int64]:
    detector, found = ADWIN(), []
    for time_us, value in zip(times.tolist(), values.to_list(), strict=True):
        if value is None:
            continue
        detector.update(value)
        if detector.drift_detected:
            found.append(time_us)
    return np.array(found, np.int64)


def _changed(recording: Recording, start_us: int, end_us: int, change: Change) -> pl.DataFrame:
    rows = recording.between(start_us, end_us)
    return change(rows).select(rows.columns)
