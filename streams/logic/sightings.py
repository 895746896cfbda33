"""What the channels found, in words and with the evidence that an alert carries."""

from __future__ import annotations

from dataclasses import asdict

from schemas.parts import ALL_SLICE
from streams.logic.bias import BiasWindow
from streams.logic.drift import Candidate
from streams.logic.impact import ImpactEvidence
from streams.logic.incident import PAGE, WARN, Sighting
from streams.logic.invariants import Breach
from streams.logic.policy import MonitorPolicy
from streams.logic.users import UserChange

PIPE, WORLD = "pipe", "world"


def _where(slice_name: str) -> str:
    return "all rows" if slice_name == ALL_SLICE else slice_name


def breach_sighting(breach: Breach) -> Sighting:
    """A broken rule of the contract."""
    where = _where(breach.slice)
    what = {
        "null": f"is missing in {breach.share:.0%} of {breach.rows} rows",
        "nan": f"is NaN or infinite in {breach.share:.0%} of {breach.rows} rows",
        "unseen": f"holds a category that training never saw in {breach.share:.0%} of {breach.rows} rows",
        "outside": f"is outside the contract in {breach.share:.0%} of {breach.rows} rows",
        "frozen": f"has not moved for {breach.rows} rows, where {breach.limit:.0f} is long",
    }[breach.rule]
    message = f"{breach.feature} {what} ({where}, {breach.hours} h): the pipe, not the world."
    detail = {**asdict(breach), "verdict": PIPE}
    return Sighting(
        "contract", breach.feature, breach.slice, breach.hours, breach.severity, message, detail, scope=breach.rule
    )


def drift_sighting(candidate: Candidate, impact: ImpactEvidence | None, policy: MonitorPolicy) -> Sighting:
    """A feature that left its baseline, and what that does to the answers."""
    head = (
        f"{candidate.feature} {candidate.direction}: {candidate.observed:.0%} of {candidate.rows} rows"
        f" where {candidate.expected:.0%} is usual at these hours"
        f" ({_where(candidate.slice)}, {candidate.hours} h, z {candidate.z:+.1f})"
    )
    detail = {**asdict(candidate), "verdict": PIPE, "limit": policy.impact}
    window = (candidate.slice, candidate.hours)
    if impact is None:
        message = f"{head}; no model was there to say whether it matters."
        return Sighting("drift", candidate.feature, *window, WARN, message, detail)
    direction = "higher" if impact.impact > 0 else "lower"
    message = f"{head}; it makes the answers {abs(impact.impact):.3f} {direction}: look at the pipe first."
    detail |= {"impact": impact.impact, "impact_rows": impact.rows, "served": impact.served}
    detail["put_back"] = impact.put_back
    return Sighting("drift", candidate.feature, *window, PAGE, message, detail)


def bias_sighting(window: BiasWindow, scope: str, *, is_pipe: bool) -> Sighting:
    """Answers that are too high or too low, and whether the inputs are to blame."""
    verdict = PIPE if is_pipe else WORLD
    reading = "the inputs moved too: the pipe" if is_pipe else "every input is as usual: the world, not the pipe"
    message = (
        f"{_where(window.slice)}: {window.predicted:.3f} answered, {window.observed:.3f} came true"
        f" over {window.rows} due rows ({window.hours} h, z {window.z:+.1f},"
        f" usual bias {window.usual:+.3f}); {reading}."
    )
    detail = {**asdict(window), "bias": window.predicted - window.observed, "verdict": verdict}
    return Sighting("bias", "bias", window.slice, window.hours, PAGE, message, detail, scope=scope)


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
