"""A real year: every page of nine months beside what happened, and faults planted at random moments.

    make calibrate-flights
    make calibrate-flights ARGS="--moments 4 --seed 7 --json flights.json"

The champion of the demo (trained on January to March) serves April to December of 2013 in order. The policy is the
product's default; its parameters were chosen on April to July, August to December confirm them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import polars as pl

from schemas.profile import build_profile
from schemas.times import DAY_US, HOUR_US, format_us, parse_time
from streams.demo import flights
from streams.demo.faults import FAULTS, Fault
from streams.demo.testing import fit_flights, is_late
from streams.lab.planted import FOLLOWED_DAYS, WITHIN_HOURS, Trial, shares, tell
from streams.lab.recording import Change, Recording, Watched, watch
from streams.lab.rules import USUAL
from streams.lab.runs import Past, Performance, matched, run_of
from streams.logic.incident import WARN, AlertRecord
from streams.logic.policy import MonitorPolicy

START_US = parse_time("2013-04-01T00:00:00-04:00")
CONFIRM_US = parse_time("2013-08-01T00:00:00-04:00")
END_US = parse_time("2014-01-01T00:00:00-05:00")
FIRST_MOMENT_US = parse_time("2013-04-15T00:00:00-04:00")
LAST_MOMENT_US = parse_time("2013-12-23T00:00:00-05:00")
FOLDS = 3
FACTS = ("fact_time", "fact_dep_delay")
"""What the truth feed knows of the departure, when the flight arrives."""
MONTHS = {"chosen": 4, "confirmed": 5}
KINDS = tuple(name for name in FAULTS if name != "none")
SLICES = {"ev-zero": "carrier=EV", "weather-null": "origin=JFK", "delay-plus-10": "origin=LGA"}
"""Where a fault of one slice is; the others are everywhere."""
KNOWN = {
    "2013-04-11": "a storm front: 38 % of the day late",
    "2013-04-22": "air traffic controllers were sent home (sequester)",
    "2013-06-14": "storms",
    "2013-12-31": "the weather feed has no values on the last day of the table",
}
"""Real events of the year, where a page falls on their day."""


@dataclass(frozen=True)
class Found:
    """One planted fault.

    Attributes
    ----------
    hours
        From its beginning to the first page that shows it; None: not within a week.
    told
        The same of an alert of any severity.
    is_right
        Whether the first page that names a feature names one that was changed, in a slice where it was.
    """

    kind: str
    moment: str
    hours: float | None
    told: float | None
    first: str
    is_right: bool | None


def recording() -> tuple[Recording, pl.DataFrame]:
    """The year as the champion of January to March answers it, and the table that faults are planted in."""
    departures = flights.load_departures().sort("event_time", "prediction_id")
    contract, is_history = flights.contract(), pl.col("day") <= flights.TRAIN_LAST_DAY
    learnt = departures.filter(is_history)
    model = fit_flights(learnt)
    weeks = ((learnt["event_time"] - int(learnt["event_time"][0])) // (7 * DAY_US)).to_numpy()
    unseen = np.empty(learnt.height)
    for fold in range(FOLDS):
        other = pl.Series(weeks % FOLDS == fold)
        unseen[weeks % FOLDS == fold] = fit_flights(learnt.filter(~other))(learnt.filter(other))
    score = np.concatenate([unseen, model(departures.filter(~is_history))])
    rows = departures.with_columns(
        score=pl.Series(score),
        y=pl.Series(is_late(departures).astype(np.float64)),
        due_time=pl.coalesce("truth_due", "event_time"),
        label=pl.Series(np.where(score >= 0.5, "late", "on_time")),
        fact_time="truth_time",
        fact_dep_delay="dep_delay",
    )
    known = rows.filter(is_history)
    profile = build_profile(
        known, contract.fields, model=contract.model, fingerprint=contract.fingerprint, score=known["score"],
        label=known["label"], labels=contract.target.labels,
    )  # fmt: skip
    names = ["prediction_id", "event_time", "due_time", *contract.feature_names, "score", "y", "label", *FACTS]
    return Recording(rows.select(names), contract, profile, START_US, model), departures


def moments(rows: pl.DataFrame, count: int, seed: int) -> dict[str, list[int]]:
    """For every kind, whole hours in which there are flights."""
    hours = rows["event_time"].unique() // HOUR_US * HOUR_US
    served = np.unique(hours.filter(hours.is_between(FIRST_MOMENT_US, LAST_MOMENT_US)).to_numpy())
    rng = np.random.default_rng(seed)
    return {kind: sorted(int(each) for each in rng.choice(served, count, replace=False)) for kind in KINDS}


def planting(departures: pl.DataFrame, fault: Fault, moment: int) -> Change:
    """The fault from a moment on; it may need more of the table than the features."""

    def change(rows: pl.DataFrame) -> pl.DataFrame:
        served = fault.apply(departures, moment).drop("label")
        kept = rows.select("prediction_id", "due_time", "y", "label", "score", *FACTS)
        return kept.join(served, on="prediction_id", how="left", maintain_order="left")

    return change


def trial(whole: Recording, departures: pl.DataFrame, fault: Fault, moment: int) -> Trial:
    """The year with a fault in it."""
    change = planting(departures, fault, moment)
    return Trial(moment, fault.features, whole.changed(moment, moment + FOLLOWED_DAYS * DAY_US, change))


def planted(healthy: Watched, departures: pl.DataFrame, fault: Fault, moment: int) -> Found:
    """Plant a fault, and see when it is told."""
    said = tell(healthy, trial(healthy.recording, departures, fault, moment))
    if (named := said.named) is None:
        return Found(fault.name, format_us(moment), said.paged, said.told, "", None)
    where = SLICES.get(fault.name, "all")
    is_right = named.subject in fault.features and (where == "all" or named.slice in (where, "all"))
    return Found(fault.name, format_us(moment), said.paged, said.told, _short(named), is_right)


def _short(alert: AlertRecord) -> str:
    return f"{alert.channel} {alert.subject} {alert.slice}"


def report(healthy: Watched, found: Sequence[Found]) -> Iterator[str]:
    """The tables of the README."""
    local = {a.incident_id: format_us(a.event_time_us) for a in healthy.pages}
    for page in healthy.pages:
        day = local[page.incident_id][:10]
        yield f"{local[page.incident_id]}  {_short(page):<36} {KNOWN.get(day, '')}"
        yield f"    {page.message}"
    chosen = [p for p in healthy.pages if p.event_time_us < CONFIRM_US]
    confirmed = len(healthy.pages) - len(chosen)
    yield ""
    yield f"pages a month, April to July (chosen)          {len(chosen) / MONTHS['chosen']:.2f}"
    yield f"pages a month, August to December (confirmed)  {confirmed / MONTHS['confirmed']:.2f}"
    yield f"pages a month, all nine                        {len(healthy.pages) / sum(MONTHS.values()):.2f}"
    warned = sum(a.severity == WARN and a.state == "opened" for a in healthy.alerts)
    yield f"warnings a month beside them                   {warned / sum(MONTHS.values()):.2f}"
    if not found:
        return
    yield ""
    yield f"{'':<28}{'paged':>8}{'told: page or warning':>54}"
    within = f"{'in 4 h':>8}{'in 24 h':>9}{'in 7 d':>8}"
    yield f"{'planted fault':<20}{'moments':>8}{within}{'median':>10}{'right name':>13}{within}"
    for kind in (*dict.fromkeys(each.kind for each in found), "all"):
        some = [each for each in found if kind in (each.kind, "all")]
        got, named = shares([each.hours for each in some]), [e.is_right for e in some if e.is_right is not None]
        median = "-" if got["median_h"] is None else f"{got['median_h']:.0f} h"
        right = f"{sum(named) / len(named):.2f}" if named else "-"
        told = _within(shares([each.told for each in some]))
        yield f"{kind:<20}{got['planted']:>8}{_within(got)}{median:>10}{right:>13}{told}"


def _within(got: Mapping[str, float]) -> str:
    return "".join(
        f"{got[f'within_{limit}_h']:>{width}.2f}" for limit, width in zip(WITHIN_HOURS, (8, 9, 8), strict=True)
    )


@dataclass(frozen=True)
class Peer:
    """A usual rule on the same rows and faults."""

    name: str
    usual: Performance
    matched: Performance | None


def peers(whole: Recording, trials: Iterable[Trial], pages: int, until_us: int = END_US) -> list[Peer]:
    """The usual rules at their limits, and at the limit where as many days are in alarm as Flywheel has pages."""
    past = Past(whole, until_us)
    runs = [run_of(rule, past) for rule in USUAL]
    for each in trials:
        for run in runs:
            run.plant(each)
    return [Peer(run.rule.label, run.usual(), matched(run.sweep(), pages)) for run in runs]


def compared(healthy: Watched, found: Sequence[Found], rows: Sequence[Peer]) -> Iterator[str]:
    """Flywheel beside what is usual."""
    pages, months = len(healthy.pages), sum(MONTHS.values())
    yield ""
    head = f"{'rule, on the same rows':<22}{'alarms a month':>15}{'of features':>13}"
    yield f"{head}{'days':>7}{'in 24 h':>9}{'matched':>9}"
    yield f"{'Flywheel':<22}{pages / months:>15.1f}{'-':>13}{'-':>7}{_in_a_day([f.hours for f in found]):>9}{'-':>9}"
    for row in rows:
        usual = row.usual
        a_month, days = usual.feature_alarms / usual.months, usual.alarms / usual.windows
        fitting = "-" if row.matched is None else _in_a_day(row.matched.hours)
        yield (
            f"{row.name:<22}{usual.alarms_a_month:>15.1f}{a_month:>13.1f}{days:>7.0%}{_in_a_day(usual.hours):>9}"
            f"{fitting:>9}"
        )


def _in_a_day(hours: Sequence[float | None]) -> str:
    return f"{shares(hours)[f'within_{WITHIN_HOURS[1]}_h']:.2f}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make calibrate-flights", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--moments", type=int, default=16, help="at which each kind of fault is planted")
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=KINDS, help="of faults")
    parser.add_argument("--seed", type=int, default=20130401, help="of the moments")
    parser.add_argument("--policy", type=json.loads, default={}, metavar="JSON", help="changes of the default policy")
    parser.add_argument("--peers", action="store_true", help="also run the rules that are usual elsewhere (minutes)")
    parser.add_argument("--json", type=Path, help="write everything there, too")
    given = parser.parse_args(argv)
    began = time.monotonic()
    whole, departures = recording()
    drawn = {kind: at for kind, at in moments(whole.rows, given.moments, given.seed).items() if kind in given.kinds}
    wanted = [moment for each in drawn.values() for moment in each]
    healthy = watch(whole, MonitorPolicy(**given.policy), remember_us=wanted, until_us=END_US)
    print(f"{time.monotonic() - began:5.0f} s: nine months were watched", file=sys.stderr)
    found: list[Found] = []
    for kind, at in drawn.items():
        found += [planted(healthy, departures, FAULTS[kind], moment) for moment in at]
        print(f"{time.monotonic() - began:5.0f} s: {kind}", file=sys.stderr)
    print("\n".join(report(healthy, found)))
    if given.peers and found:
        trials = (trial(whole, departures, FAULTS[kind], moment) for kind, at in drawn.items() for moment in at)
        print("\n".join(compared(healthy, found, peers(whole, trials, len(healthy.pages)))))
    if given.json is not None:
        listed = [asdict(page) for page in healthy.pages]
        given.json.write_text(json.dumps({"pages": listed, "faults": [asdict(each) for each in found]}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
