"""What the channels found, in words and with the evidence that an alert carries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace

from schemas.parts import ALL_SLICE
from schemas.times import HOUR_US, format_us
from streams.logic.arrivals import PAIRS, Arrival
from streams.logic.bias import BiasWindow
from streams.logic.drift import Candidate
from streams.logic.impact import ImpactEvidence
from streams.logic.incident import CRITICAL, PAGE, WARN, Sighting
from streams.logic.invariants import Breach
from streams.logic.paired import PairedWindow
from streams.logic.policy import MonitorPolicy
from streams.logic.staleness import Staleness, Verdicts
from streams.logic.users import UserChange

PIPE, WORLD, STALE = "pipe", "world", "stale"
ALL_FEATURES = "all features"
TINY = 1e-12


def _where(slice_name: str) -> str:
    return "all rows" if slice_name == ALL_SLICE else slice_name


def orders_of_share(rows: int, share: float, limit: float) -> float:
    """By how many orders of magnitude chance falls short of a share of rows, were the limit the true one.

    Chernoff's bound n KL(share||limit), in decimal orders: 0 at the limit.

    >>> round(orders_of_share(100, 1.0, 0.8), 2)
    9.69
    """
    kl = 0.0
    for q, p in ((share, limit), (1.0 - share, 1.0 - limit)):
        kl += q * math.log(q / max(p, TINY)) if q > 0 else 0.0
    return max(0.0, rows * kl) / math.log(10.0)


def orders_of_z(z: float, limit: float) -> float:
    """The same of standard deviations beyond their limit: the log likelihood ratio of the two."""
    return max(0.0, z * z - limit * limit) / 2.0 / math.log(10.0)


def orders_of_volume(rows: int, usual: float) -> float:
    """The same of so few rows where so many are usual: Chernoff's bound of a Poisson law."""
    kept = rows * math.log(rows / usual) if rows else 0.0
    return max(0.0, usual - rows + kept) / math.log(10.0)


def breach_sighting(breach: Breach, slices: Sequence[str], policy: MonitorPolicy) -> Sighting:
    """A broken rule of the contract; ``slices``: all that break it."""
    where = _where(breach.slice)
    what = {
        "null": f"is missing in {breach.share:.0%} of {breach.rows} rows",
        "missing": f"is missing in {breach.share:.0%} of {breach.rows} rows, where {breach.limit:.0%} is much",
        "nan": f"is NaN or infinite in {breach.share:.0%} of {breach.rows} rows",
        "unseen": f"holds a category that training never saw in {breach.share:.0%} of {breach.rows} rows",
        "outside": f"is outside the contract in {breach.share:.0%} of {breach.rows} rows",
        "stale": f"is older than the contract allows in {breach.share:.0%} of {breach.rows} rows",
        "frozen": f"has not moved for {breach.rows} rows, where {breach.limit:.0f} is long",
    }[breach.rule]
    message = f"{breach.feature} {what} ({where}, {breach.hours} h): the pipe, not the world."
    is_run = breach.rule == "frozen"
    orders = (
        math.log10(breach.rows / breach.limit) if is_run else orders_of_share(breach.rows, breach.share, breach.limit)
    )
    is_gross = breach.slice == ALL_SLICE and breach.share >= policy.critical_share and not is_run
    is_critical = breach.severity == PAGE and is_gross
    detail = {**asdict(breach), "verdict": PIPE, "orders": orders, "slices": list(slices)}
    place = breach.feature, breach.slice, breach.hours, breach.severity
    return Sighting("contract", *place, message, detail, scope=breach.rule, is_critical=is_critical)


def arrival_sighting(arrival: Arrival, policy: MonitorPolicy) -> Sighting:
    """What does not come, comes late, twice, or in a form that cannot be used."""
    noun = {PAIRS: "predictions with their input"}.get(arrival.subject, arrival.subject.removeprefix("@"))
    window = f"{_where(arrival.slice)}, {arrival.hours} h{f' until {arrival.ago} h ago' if arrival.ago else ''}"
    message = {
        "volume": f"{arrival.rows:,} {noun} came where {arrival.usual:,.0f} are usual at these hours of the week"
        f" ({window}): the stream is {'low' if arrival.rows else 'silent'}.",
        "late": f"Half of {arrival.rows:,} {noun} came later than {duration(arrival.limit / 2)} after their event time;"
        f" nine of ten used to come within {duration(arrival.usual)} ({window}).",
        "duplicate": f"{arrival.share:.0%} of {arrival.rows:,} {noun} have an id that came before ({window}):"
        " they count once.",
        "type": f"{arrival.share:.0%} of {arrival.rows:,} {noun} have features of other types than the contract's"
        f" ({window}): they are dead letters, and their predictions are not monitored.",
        "unscored": f"{arrival.share:.0%} of {arrival.rows:,} {noun} have no finite score: null, NaN or infinite"
        f" ({window}).",
    }[arrival.rule]
    orders, is_gross = 0.0, arrival.share >= policy.critical_share
    if arrival.rule == "volume":
        orders, is_gross = orders_of_volume(arrival.rows, arrival.usual), not arrival.rows
    elif arrival.rule != "late":
        orders = orders_of_share(arrival.rows, arrival.share, arrival.limit)
    detail = {**arrival.as_dict(), "verdict": PIPE, "orders": orders, "slices": [arrival.slice]}
    place = arrival.subject, arrival.slice, arrival.hours + arrival.ago, arrival.severity
    is_critical = arrival.severity == PAGE and is_gross
    return Sighting("contract", *place, message, detail, scope=arrival.rule, is_critical=is_critical)


def duration(seconds: float) -> str:
    """A time span for people.

    >>> duration(45), duration(600), duration(7_200), duration(400_000)
    ('45 s', '10 min', '2 h', '5 days')
    """
    for size, word in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {word}"
    return f"{seconds:.0f} s"


def _head(candidate: Candidate) -> str:
    return (
        f"{candidate.feature} {candidate.direction}: {candidate.observed:.0%} of {candidate.rows} rows"
        f" where {candidate.expected:.0%} is usual at these hours"
        f" ({_where(candidate.slice)}, {candidate.hours} h, z {candidate.z:+.1f})"
    )


def drift_sighting(
    candidate: Candidate, impact: ImpactEvidence | None, policy: MonitorPolicy, slices: Sequence[str]
) -> Sighting:
    """A feature that left its baseline, and what that does to the answers; ``slices``: where else it did."""
    head = _head(candidate)
    detail = {**asdict(candidate), "verdict": PIPE, "limit": policy.impact, "slices": list(slices)}
    detail["orders"] = orders_of_z(candidate.z, abs(candidate.z) / candidate.strength)
    names = ("cell", "observed", "expected")
    detail["cells"] = [dict(zip(names, cell, strict=True)) for cell in candidate.cells]
    window = (candidate.slice, candidate.hours)
    if impact is None:
        message = f"{head}; no model was there to say whether it matters."
        return Sighting("drift", candidate.feature, *window, WARN, message, detail)
    effect = f"{abs(impact.impact):.3f} {'higher' if impact.impact > 0 else 'lower'}"
    if impact.scatter > abs(impact.impact):
        effect = f"{impact.scatter:.3f} higher or lower"
    message = f"{head}; it makes the answers {effect}: look at the pipe first."
    detail |= {"impact": impact.impact, "impact_rows": impact.rows, "scatter": impact.scatter, "served": impact.served}
    detail |= {"put_back": impact.put_back, "limit": policy.impact * impact.scale}
    is_critical = impact.weight >= policy.critical_impact
    return Sighting("drift", candidate.feature, *window, PAGE, message, detail, is_critical=is_critical)


def far_sighting(
    candidate: Candidate, impact: ImpactEvidence | None, policy: MonitorPolicy, slices: Sequence[str]
) -> Sighting:
    """A feature, or the answers themselves (no impact), further from the baseline than settled days ever were."""
    told = drift_sighting(candidate, impact, policy, slices)
    usual = f"{candidate.strength * policy.gross:.1f} times as far as anything before"
    effect = "every input is as usual: the model answers otherwise than it did"
    if impact is not None:
        effect = f"the answers hardly follow ({abs(impact.impact):.3f}), so nobody is woken"
    message = f"{_head(candidate)}, {usual}; {effect}."
    return replace(told, severity=WARN, is_critical=False, message=message)


def paired_sighting(window: PairedWindow, fact: str, policy: MonitorPolicy) -> Sighting:
    """A field that differs from what feedback says it was."""
    message = (
        f"{window.feature} differs from {fact} in {window.share:.0%} of {window.rows} rows that feedback came for,"
        f" where {window.usual:.1%} is usual ({_where(window.slice)}, {window.hours} h, z {window.z:+.1f}):"
        " the pipe, not the world."
    )
    severity = PAGE if window.share >= policy.paired_share else WARN
    detail = {**asdict(window), "fact": fact, "verdict": PIPE}
    return Sighting("paired", window.feature, window.slice, window.hours, severity, message, detail)


def bias_sighting(window: BiasWindow, scope: str, policy: MonitorPolicy, *, is_pipe: bool) -> Sighting:
    """Answers that are too high or too low, and whether the inputs are to blame."""
    verdict = PIPE if is_pipe else WORLD
    reading = "the inputs moved too: the pipe" if is_pipe else "every input is as usual: the world, not the pipe"
    message = (
        f"{_where(window.slice)}: {window.predicted:.3f} answered, {window.observed:.3f} came true"
        f" over {window.rows} due rows ({window.hours} h, z {window.z:+.1f},"
        f" usual bias {window.usual:+.3f}); {reading}."
    )
    detail = {**asdict(window), "bias": window.predicted - window.observed, "verdict": verdict}
    is_part = scope != ALL_SLICE
    detail["orders"] = orders_of_z(window.z, policy.bias_slice_z if is_part else policy.bias_z)
    is_passing = is_part and not is_pipe and window.hours < policy.bias_slice_hours
    severity = WARN if is_passing else PAGE
    return Sighting("bias", "bias", window.slice, window.hours, severity, message, detail, scope=scope)


USER_WORDS = {
    "accept_rate": "{share:.1%} of what users said was that they take the answer, where {usual:.1%} is usual",
    "edit_rate": "{share:.1%} of what users said was that they changed the answer, where {usual:.1%} is usual",
    "complaint_rate": "users rejected {share:.2%} of the answers, where {usual:.2%} is usual",
}


def user_sighting(change: UserChange) -> Sighting:
    """People use the answers in another way: a warning, and no measure of quality."""
    said = USER_WORDS[change.measure].format(**asdict(change))
    unit = "answers" if change.measure == "complaint_rate" else "words"
    message = f"{said} ({change.count:,} {unit}, {change.days} d); people choose what to say, so it is no error rate."
    return Sighting("users", change.measure, ALL_SLICE, 24 * change.days, WARN, message, asdict(change))


def stale_sightings(verdicts: Verdicts, hour: int, policy: MonitorPolicy) -> list[Sighting]:
    """Features of a stationary stream that left training."""
    found = [_stale(each, hour, policy, verdicts.affected) for each in verdicts.told]
    for name in verdicts.still:
        found.append(Sighting(STALE, name, ALL_SLICE, 0, PAGE, is_new=False))
    if verdicts.is_thin:
        message = "Many features moved a little away from training, none of them far enough to be named alone."
        detail = {"affected": list(verdicts.affected), "verdict": STALE}
        found.append(Sighting(STALE, ALL_FEATURES, ALL_SLICE, 1, WARN, message, detail))
    return found


def _stale(said: Staleness, hour: int, policy: MonitorPolicy, affected: tuple[str, ...]) -> Sighting:
    hours, scores = hour + 1 - said.since, said.scores
    assert scores is not None, "what is told was evaluated"
    orders = max(said.orders, said.skew_orders)
    where = f"{abs(orders):.1f} orders of magnitude {'above' if orders >= 0 else 'below'}"
    cells = ", ".join(cell for cell, _ in said.top)
    message = (
        f"{said.feature} left training at {format_us(said.since * HOUR_US)}: {scores.shift:.2f} sd"
        f" (at least {scores.shift_low:.2f}) over {scores.rows} rows, most in {cells}; the evidence is {where} the line"
        f" of one false page in {policy.a_page:,.0f} hours: the model is stale."
    )
    detail = {**said.as_dict(), "since_us": said.since * HOUR_US, "affected": list(affected), "verdict": STALE}
    severity = WARN if said.level == "warn" else PAGE
    is_critical = said.level == CRITICAL
    return Sighting(STALE, said.feature, ALL_SLICE, hours, severity, message, detail, is_critical=is_critical)
