"""How good a model's answers are, per version and slice: what ``flywheel quality`` and the page tell.

Figures are of mature rows: those older than the age by which 95 % of the truths of every outcome have come. Where
nearly every answer gets its truth the headline is the realised figure; elsewhere it is an estimate from the truths of
the random audit, whether they came by feedback or from people's answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from typing import Any

import numpy as np
import sqlalchemy as sa

from labeling.estimate import AuditLabel, audit_labels
from schemas import parts
from schemas.errors import UsageError
from schemas.parts import ALL_SLICE, MICRO
from schemas.times import DAY_US, HOUR_US, SECOND_US, format_us
from streams.config import Config
from streams.ledger import Ledger, Look, counters, read_delays, read_ledgers
from streams.logic.fairness import gaps
from streams.logic.headline import LABELS_MIN, Headline, Stratum, estimate
from streams.logic.intervals import share_interval
from streams.logic.maturity import Delays, early
from streams.logic.outcomes import METRICS, Counters, Labelled, Metric, audited, calibrated, expected, matured, traffic
from streams.logic.quality import Quality, confusion, measure, reliability
from streams.windows import WindowReader

SPAN_DAYS = 7
EARLIER_DAYS = 28
"""Days before the span (and before each day of the series) on which expectations are calibrated and lambda is tuned."""
REALISED_COVERAGE = 0.95
"""With so large a share of mature rows known, what is known is what there is."""
FIGURES = ("log_loss", "brier", "accuracy", "auc", "ece", "bias", "mae", "rmse")
QUANTILES = (0.5, 0.8, 0.95, 0.99)
REALISED, AUDIT, UNKNOWN = "realised", "audit", "unknown"
ASSUMES = "assumes no concept drift"


@dataclass(frozen=True)
class Wanted:
    """What to tell of: None is every version, every declared slice, the last seven days; ``since`` is a local day."""

    version: str | None = None
    slice: str | None = None
    since: date | None = None


@dataclass
class QualityReader:
    """Gathers the report of one model.

    Parameters
    ----------
    config, windows
        Of the installation that is looked at.
    """

    config: Config
    windows: WindowReader

    def gather(self, connection: sa.Connection, model: str, wanted: Wanted) -> dict[str, Any] | None:
        """The report as one JSON object; None where nothing was monitored yet.

        Raises
        ------
        UsageError
            If there is no such slice, or no answer of such a version in the span.
        """
        configured = self.config.model(model)
        newest = self.windows.newest_us(connection, model)
        if newest is None:
            return None
        window_us = self.config.window_s * SECOND_US
        look = Look.of(self.config, model, newest + window_us)
        delays = read_delays(self.windows, connection, self.config, look)
        since = wanted.since or look.day(newest - (SPAN_DAYS - 1) * DAY_US)
        first = since - timedelta(days=EARLIER_DAYS)
        names = [ALL_SLICE, *(each.name for each in configured.contract.slices())]
        if wanted.slice is not None and wanted.slice not in names:
            raise UsageError(f"There is no slice '{wanted.slice}' in the contract of '{model}'.")
        people = audit_labels(connection, model, look.now_us - ((look.day(look.now_us) - first).days + 1) * DAY_US)
        horizon_us = delays.horizon_us or 0
        told: dict[str, list[dict[str, Any]]] = {}
        sums: dict[str, dict[str, Counters]] = {}
        series: dict[str, dict[str, Any]] = {}
        for name in names if wanted.slice is None else [wanted.slice]:
            found = read_ledgers(
                self.windows, connection, look, horizon_us, first, window_us=window_us, slice_name=name
            )
            for version, ledger in found.items():
                if wanted.version in (None, version) and max(ledger.whole) >= since:
                    own = [each for each in people if each.version == version and _is_in(each, name)]
                    told.setdefault(version, []).append(_entry(look, ledger, own, since, delays, name))
                    sums.setdefault(version, {})[name] = counters(ledger.mature, since)
                    if name == (wanted.slice or ALL_SLICE):
                        series[version] = {"days": _days(look, ledger, since), "users": _users(look, ledger, since)}
        if wanted.version is not None and not told:
            raise UsageError(f"Version '{wanted.version}' of '{model}' answered nothing since {since.isoformat()}.")
        return {
            "model": model,
            "since": since.isoformat(),
            "until": format_us(look.now_us),
            "metric": look.metric,
            "maturity": _maturity(look, delays),
            "versions": [
                {
                    "version": version,
                    "slices": told[version],
                    "fairness": _fairness(look, sums[version], configured.contract.fairness),
                    **series.get(version, {"days": [], "users": None}),
                }
                for version in sorted(told, key=lambda v: -told[v][0]["rows"])
            ],
        }


def _is_in(label: AuditLabel, slice_name: str) -> bool:
    field, _, value = slice_name.partition("=")
    return slice_name == ALL_SLICE or label.features.get(field) == value


def _maturity(look: Look, delays: Delays) -> dict[str, Any]:
    """Arrival quantiles, in hours, of all truths and of each outcome."""
    outcomes: dict[str, int | None] = {"all": None}
    if look.kind == "binary":
        other = next((label for label in look.labels if label != look.positive), "other")
        outcomes |= {look.positive or "positive": 1, other: 0}
    elif look.kind == "multiclass":
        outcomes |= {"right": 1, "wrong": 0}
    hours = {
        name: {f"{share:g}": _hours(delays.quantile_us(share, place)) for share in QUANTILES}
        for name, place in outcomes.items()
    }
    return {
        "truths": delays.truths,
        "hours": _hours(delays.horizon_us),
        "is_provisional": delays.is_provisional,
        "quantile_hours": hours,
    }


def _hours(us: int | None) -> float | None:
    return None if us is None else round(us / HOUR_US, 2)


def _entry(
    look: Look, ledger: Ledger, people: Sequence[AuditLabel], since: date, delays: Delays, name: str
) -> dict[str, Any]:
    """One version's quality in one slice."""
    whole, mature = counters(ledger.whole, since), counters(ledger.mature, since)
    found = measure(mature, labels=look.labels, unit=look.unit, alpha=look.alpha, rows_a_day=look.rows_a_day)
    young = [(age, own) for day, age, own in ledger.young if day >= since]
    fit = calibrated(matured(counters(ledger.mature, None, since - timedelta(days=1)), look.metric, look.kind))
    rows = traffic(whole, look.kind)
    headlines = [_headline(look, metric, ledger, people, since, found) for metric in METRICS[look.kind]]
    return {
        "slice": name,
        "rows": whole.get(parts.N, 0),
        "truths": whole.get(parts.N_TRUTH, 0),
        "coverage": _share(whole.get(parts.N_TRUTH, 0), whole.get(parts.N, 0)),
        "mature_rows": found.rows,
        "mature_coverage": found.coverage,
        "headline": headlines[0],
        "beside": headlines[1:],
        "expected": _rounded(None if fit is None or look.kind == "regression" else expected(rows, fit)),
        "early": asdict(early(young, delays, look.kind, look.positive_place)) if young else None,
        **{figure: _rounded(getattr(found, figure)) for figure in FIGURES},
        "intervals": {key: [_rounded(end) for end in pair] for key, pair in (found.intervals or {}).items()},
        "classes": [{**asdict(each), "f1": each.f1} for each in found.classes],
        "confusion": confusion(mature, look.labels),
        "reliability": [asdict(each) for each in reliability(mature)],
    }


# -- the headline ----------------------------------------------------------------------------------------------------


def _headline(
    look: Look, metric: Metric, ledger: Ledger, people: Sequence[AuditLabel], since: date, realised: Quality
) -> dict[str, Any]:
    """The one figure, and how it was come by."""
    told: dict[str, Any] = {"metric": metric, "kind": UNKNOWN, "value": None, "interval": None}
    if realised.coverage is not None and realised.coverage >= REALISED_COVERAGE:
        interval = (realised.intervals or {}).get(metric)
        value = _rounded(getattr(realised, metric))
        told |= {"kind": REALISED, "value": value, "labels": realised.matured, "rows": realised.rows}
        return told | {"interval": None if interval is None else [_rounded(end) for end in interval]}
    sources = {
        "truths": _strata(look, metric, {day: _sums(own) for day, own in ledger.mature.items()}, since),
        "people": _strata(look, metric, _with_people(look, ledger, people), since),
    }
    source = max(sources, key=lambda name: sum(s.labelled.rows for s in sources[name][0]))
    now, earlier = sources[source]
    before = [s.labelled for s in earlier]
    known = matured(counters(ledger.mature, None, since - timedelta(days=1)), metric, look.kind, look.unit)
    most = max([known, *before], key=lambda labelled: labelled.rows)
    proxy = None if look.kind == "regression" else calibrated(most)
    found: Headline = estimate(now, earlier, proxy, alpha=look.alpha, rows_a_day=look.rows_a_day)
    told |= {"labels": found.labels, "effective": round(found.effective, 1), "rows": found.rows}
    told |= {"labels_needed": LABELS_MIN, "source": source, "tuning": round(found.tuning, 3)}
    days = (day for day in ledger.mature if day >= since)
    picked_of_truths = round(sum(int(ledger.mature[day][parts.AUDIT_SHARE]) for day in days) / MICRO)
    picked_of_people = sum(look.day(label.event_time_us) >= since for label in people)
    told["picked"] = picked_of_truths if source == "truths" else picked_of_people
    if found.value is None or found.interval is None:
        return told
    low, high = found.interval
    if metric != "mae":
        low, high = max(0.0, low), min(1.0, high)
    interval_ = [_rounded(low), _rounded(high)]
    return told | {"kind": AUDIT, "value": _rounded(found.value), "interval": interval_}


def _sums(own: Any) -> dict[int, int]:
    return counters({date.min: own})


def _strata(
    look: Look, metric: Metric, days: Mapping[date, Counters], since: date
) -> tuple[list[Stratum], list[Stratum]]:
    """Rows and audited truths by the audit's share, of the span and of the days before it.

    Days without an audit are not in it: nothing was picked of them.
    """
    found: tuple[list[Stratum], list[Stratum]] = ([], [])
    for place, is_now in enumerate((True, False)):
        by_share: dict[float, dict[int, int]] = {}
        for day, own in days.items():
            rows = own.get(parts.N_INPUT, 0)
            share = round(own.get(parts.AUDIT_SHARE, 0) / rows / MICRO, 6) if rows > 0 else 0.0
            if (day >= since) == is_now and share > 0:
                total = by_share.setdefault(share, {})
                for code, count in own.items():
                    total[code] = total.get(code, 0) + count
        for share, own in sorted(by_share.items()):
            labelled = audited(own, metric, look.kind, look.unit)
            found[place].append(Stratum(share, traffic(own, look.kind), labelled))
    return found


AUDIT_CODES = {parts.N_AUDIT_TRUTH, parts.AUDIT_ERROR, parts.AUDIT_ERROR_SQ, *range(parts.AUDIT_N, parts.DELAY)}


def _with_people(look: Look, ledger: Ledger, people: Sequence[AuditLabel]) -> dict[date, Counters]:
    """All rows with what people said of the audit's in place of the truths that came."""
    days = {
        day: {code: count for code, count in _sums(own).items() if code not in AUDIT_CODES}
        for day, own in ledger.whole.items()
    }
    for label in people:
        own = days.get(look.day(label.event_time_us))
        if own is not None and label.truth is not None and label.score is not None:
            for code, count in _counted(look, label.score, label.label, label.truth):
                own[code] = own.get(code, 0) + count
    return dict(days)


def _counted(look: Look, score: float, answer: str | None, truth: str) -> list[tuple[int, int]]:
    """One answer of a person as the counters of an audited truth."""
    if look.kind == "regression":
        try:
            y = float(truth)
        except ValueError:
            return []
    else:
        y = float(truth == look.positive) if look.kind == "binary" else float(truth == answer)
    right = np.array([truth == answer])
    listed = parts.audit_counters(np.array([score]), np.array([y]), right, look.kind, look.unit)
    return [(int(np.ravel(code)[0]), int(np.ravel(amount)[0])) for code, amount in listed]


def _fairness(look: Look, sums: Mapping[str, Counters], pairs: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """The pairs that the contract declares, of the slices that are told of."""
    found = []
    for first, second in pairs:
        if first in sums and second in sums:
            listed = gaps(
                sums[first], sums[second], look.kind, positive=look.positive_place, unit=look.unit, alpha=look.alpha,
                rows_a_day=look.rows_a_day,
            )  # fmt: skip
            found.append({"groups": [first, second], "measures": [asdict(gap) for gap in listed]})
    return found


# -- series ----------------------------------------------------------------------------------------------------------


def _days(look: Look, ledger: Ledger, since: date) -> list[dict[str, Any]]:
    """Expected against realised, day by day: their difference is what concept drift looks like."""
    found = []
    for day in sorted(day for day in ledger.whole if day >= since):
        whole, mature = counters(ledger.whole, day, day), counters(ledger.mature, day, day)
        quality = measure(mature, labels=look.labels, unit=look.unit, alpha=look.alpha, rows_a_day=look.rows_a_day)
        before = counters(ledger.mature, day - timedelta(days=EARLIER_DAYS), day - timedelta(days=1))
        row: dict[str, Any] = {"day": day.isoformat(), "rows": whole.get(parts.N, 0)}
        row |= {"coverage": _share(whole.get(parts.N_TRUTH, 0), row["rows"]), "mature_rows": quality.rows}
        row |= {"realised": _rounded(getattr(quality, look.metric)), "expected": None, "difference": None}
        row |= {"interval": None}
        fit = None if look.kind == "regression" else calibrated(matured(before, look.metric, look.kind))
        if fit is not None:
            row["expected"] = _rounded(expected(traffic(whole, look.kind), fit))
            row |= _gap(look, quality, matured(mature, look.metric, look.kind), fit)
        found.append(row)
    return found


def _gap(look: Look, quality: Quality, known: Labelled, fit: Any) -> dict[str, Any]:
    """Expected less realised, over the same rows: those of the day whose truth is known."""
    interval = (quality.intervals or {}).get(look.metric)
    promised = expected(known.n, fit)
    if promised is None or interval is None:
        return {}
    realised = float(known.z.sum()) / known.rows
    low, high = promised - interval[1], promised - interval[0]
    return {"difference": _rounded(promised - realised), "interval": [_rounded(low), _rounded(high)]}


def _users(look: Look, ledger: Ledger, since: date) -> dict[str, Any] | None:
    """What users said, of how many answers; None where nobody said anything."""

    def said(own: Counters) -> dict[str, int]:
        codes = {"accepted": parts.USER_RIGHT, "edited": parts.USER_EDITED, "rejected": parts.USER_WRONG}
        return {name: own.get(code, 0) for name, code in codes.items()}

    whole = counters(ledger.whole, since)
    total = said(whole)
    words = sum(total.values())
    if not words:
        return None
    interval = share_interval(total["accepted"], words, alpha=look.alpha, n_best=look.rows_a_day)
    days = [
        {"day": day.isoformat(), "rows": own.get(parts.N, 0), **said(own)}
        for day in sorted(ledger.whole)
        if day >= since
        for own in [counters(ledger.whole, day, day)]
    ]
    shares = {"accept_rate": _share(total["accepted"], words), "words_share": _share(words, whole.get(parts.N, 0))}
    return {**total, **shares, "interval": None if interval is None else [_rounded(e) for e in interval], "days": days}


def _share(some: int, of: int) -> float | None:
    return round(some / of, 6) if of > 0 else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
