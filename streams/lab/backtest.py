"""What a monitor's policy would have done in the past: pages a month, and how soon planted changes are told of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from scipy import stats

from retrain.registry import Version
from schemas.errors import FlywheelError
from schemas.times import DAY_US, HOUR_US, format_us
from streams.history import predict_of, version_rows
from streams.lab.planted import Outcome, Plant, plant, shares
from streams.lab.recording import Recording, Watched, watch
from streams.logic.policy import MonitorPolicy
from streams.runtime import Runtime

MONTH_DAYS = 30.44
HISTORY_DAYS = 60
"""Of a past without a training table so much is history, or half of it."""


class NoPastError(FlywheelError):
    """There is not enough recorded to run a rule over."""

    action: ClassVar[str] = "Let it run for some weeks, or train with 'flywheel retrain initial' on a longer table."


@dataclass(frozen=True)
class Backtest:
    """One policy over one past.

    Attributes
    ----------
    months
        How long it watched.
    """

    watched: Watched
    outcomes: Sequence[Outcome]
    months: float

    @property
    def pages_a_month(self) -> float:
        """Incidents that would have woken somebody."""
        return len(self.watched.pages) / self.months

    def interval(self, alpha: float = 0.05) -> tuple[float, float]:
        """Of the pages a month, were they independent (Garwood's exact interval of a Poisson mean)."""
        n = len(self.watched.pages)
        low = float(stats.chi2.ppf(alpha / 2, 2 * n)) / 2 if n else 0.0
        return low / self.months, float(stats.chi2.ppf(1 - alpha / 2, 2 * n + 2)) / 2 / self.months

    def told(self) -> dict[str, Any]:
        """As JSON; planted changes that move the answers by the policy's impact apart from those that do not."""
        limit = self.watched.policy.impact
        hurting = [o for o in self.outcomes if not o.hurt < limit]
        harmless = [o for o in self.outcomes if o.hurt < limit]
        named = [o.is_right for o in hurting if o.is_right is not None]
        low, high = self.interval()
        return {
            "months": round(self.months, 2),
            "pages": [
                {"time": format_us(p.event_time_us), "incident": p.incident_id, "channel": p.channel,
                 "subject": p.subject, "slice": p.slice, "message": p.message}
                for p in self.watched.pages
            ],
            "pages_a_month": round(self.pages_a_month, 3),
            "pages_a_month_interval": [round(low, 3), round(high, 3)],
            "hurting": shares([o.hours for o in hurting]) | {
                "named_right": round(sum(named) / len(named), 3) if named else None
            },
            "harmless": shares([o.hours for o in harmless]),
            "planted": [
                {"kind": o.plant.kind, "feature": o.plant.feature, "slice": o.plant.slice,
                 "time": format_us(o.plant.moment_us), "hurt": round(o.hurt, 4), "hours": o.hours, "named": o.named}
                for o in self.outcomes
            ],
        }  # fmt: skip


def recorded(
    runtime: Runtime, version: Version, *, since_us: int | None = None, until_us: int | None = None
) -> Recording:
    """The past of a model as one of its versions sees it, from its training table and the archive.

    Parameters
    ----------
    since_us
        When watching begins; what is before teaches. Default: where the training table ends, or after history enough.

    Raises
    ------
    NoPastError
        If nothing is recorded after the beginning.
    """
    model, plan = version.model, runtime.plans[version.model]
    rows = version_rows(runtime, version, 0, until_us or 1 << 62)
    if not rows.height:
        raise NoPastError(f"Nothing is recorded of '{model}'.")
    rows = rows.sort("event_time", "prediction_id")
    first, last = int(rows["event_time"][0]), int(rows["event_time"][-1])
    if since_us is None:
        history_us = min(HISTORY_DAYS * DAY_US, (last - first) // 2)
        since_us = version.trained_until_us if first < version.trained_until_us < last else first + history_us
    since_us = -(-since_us // HOUR_US) * HOUR_US
    if since_us >= last:
        raise NoPastError(f"Nothing is recorded of '{model}' after {format_us(since_us)}.")
    predict = predict_of(runtime, version)
    return Recording(rows, plan.contract, plan.profile, since_us, predict, version.version)


def backtest(
    recording: Recording,
    policy: MonitorPolicy,
    plants: Sequence[Plant] = (),
    progress: Callable[[int], None] = lambda _done: None,
) -> Backtest:
    """Run a policy over a past, and over the same past with each change planted.

    Parameters
    ----------
    progress
        Is told after the past, and after each change.
    """
    healthy = watch(recording, policy, remember_us=[each.moment_us for each in plants])
    progress(1)
    outcomes = []
    for each in plants:
        outcomes.append(plant(healthy, each))
        progress(1)
    months = (recording.end_us - recording.start_us) / DAY_US / MONTH_DAYS
    return Backtest(healthy, outcomes, months)
