"""What rules for alerts would have done in the past: alarms a month, and how soon planted changes are told of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import polars as pl
from scipy import stats

from retrain.registry import Version
from schemas.errors import UsageError
from schemas.times import DAY_US, HOUR_US, format_us
from streams.history import predict_of, version_rows
from streams.lab.arrivals import counted, recorded_facts
from streams.lab.planted import Outcome, Plant, outcome, plant, shares
from streams.lab.recording import MONTH_DAYS, Recording, Watched, watch
from streams.lab.rules import Rule
from streams.lab.runs import Past, Performance, RuleRun, matched, run_of
from streams.logic.policy import MonitorPolicy
from streams.runtime import Runtime

HISTORY_DAYS = 60
"""Of a past without a training table so much is history, or half of it."""


REFERENCE_ROWS_MIN = 100


class NoPastError(UsageError):
    """There is not enough recorded to run a rule over."""

    action: ClassVar[str] = (
        "Let it run for some weeks, or train with 'flywheel retrain run --initial TABLE' on a longer table."
    )


@dataclass
class Backtest:
    """One policy over one past.

    Attributes
    ----------
    months
        How long it watched.
    """

    watched: Watched
    months: float
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def pages_a_month(self) -> float:
        """Incidents that would have woken somebody."""
        return len(self.watched.pages) / self.months

    @property
    def is_hurting(self) -> list[bool]:
        """Which of the planted changes move the answers by the policy's impact."""
        limit = self.watched.policy.impact * self.watched.recording.contract.target.answer_scale
        return [not o.hurt < limit for o in self.outcomes]

    def interval(self, alpha: float = 0.05) -> tuple[float, float]:
        """Of the pages a month, were they independent (Garwood's exact interval of a Poisson mean)."""
        n = len(self.watched.pages)
        low = float(stats.chi2.ppf(alpha / 2, 2 * n)) / 2 if n else 0.0
        return low / self.months, float(stats.chi2.ppf(1 - alpha / 2, 2 * n + 2)) / 2 / self.months

    def told(self) -> dict[str, Any]:
        """As JSON; planted changes that move the answers by the policy's impact apart from those that do not."""
        hurting = [o for o, hurts in zip(self.outcomes, self.is_hurting, strict=True) if hurts]
        harmless = [o for o, hurts in zip(self.outcomes, self.is_hurting, strict=True) if not hurts]
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
                "told": shares([o.told for o in hurting]),
                "named_right": round(sum(named) / len(named), 3) if named else None,
            },
            "harmless": shares([o.hours for o in harmless]) | {"told": shares([o.told for o in harmless])},
            "planted": [
                {"kind": o.plant.kind, "feature": o.plant.feature, "slice": o.plant.slice, "size": o.plant.amount,
                 "time": format_us(o.plant.moment_us), "hurt": None if o.hurt != o.hurt else round(o.hurt, 4),
                 "hours": o.hours, "told": o.told, "named": o.named}
                for o in self.outcomes
            ],
        }  # fmt: skip


@dataclass(frozen=True)
class Ruled:
    """A usual rule over the same past and the same changes as a policy.

    Attributes
    ----------
    run
        Of the rule.
    policy
        What it stands beside.
    """

    run: RuleRun
    policy: Backtest

    @cached_property
    def usual(self) -> Performance:
        """At its own limit."""
        return self.run.usual()

    @cached_property
    def swept(self) -> list[Performance]:
        """At limits from the strictest on."""
        return self.run.sweep()

    @property
    def matched(self) -> Performance | None:
        """With the limit at which as many windows are in alarm as the policy has pages; None: it is never so quiet."""
        return matched(self.swept, len(self.policy.watched.pages))

    def told(self) -> dict[str, Any]:
        """As JSON: at its limit, at the policy's number of pages, and at all limits that were tried."""
        hurting = self.policy.is_hurting
        quiet = [not each for each in hurting]
        fitting = self.matched
        return self.usual.told(hurting) | {
            "what": self.run.rule.kind.told,
            "harmless": shares(self.usual.of(quiet)),
            "matched": None if fitting is None else fitting.told(hurting),
            "limits": [each.told(hurting) for each in self.swept],
        }


@dataclass(frozen=True)
class Found:
    """What was found: policies and rules by what they are called; all have seen the same."""

    policies: Mapping[str, Backtest]
    rules: Mapping[str, Ruled]


def recorded(
    runtime: Runtime,
    version: Version,
    *,
    since_us: int | None = None,
    until_us: int | None = None,
    reference_from_us: int | None = None,
) -> Recording:
    """The past of a model as one of its versions sees it, from its training table and the archive.

    Parameters
    ----------
    since_us
        When watching begins; what is before teaches. Default: where the training table ends, or after history enough.
    reference_from_us
        Older rows do not teach.

    Raises
    ------
    NoPastError
        If nothing is recorded after the beginning, or too little before it.
    """
    model, plan = version.model, runtime.plans[version.model]
    rows = version_rows(runtime, version, reference_from_us or 0, until_us or 1 << 62)
    if not rows.height:
        raise NoPastError(f"Nothing is recorded of '{model}'.")
    rows = rows.sort("event_time", "prediction_id")
    first, last = int(rows["event_time"][0]), int(rows["event_time"][-1])
    if since_us is None and first < version.trained_until_us < last:
        since_us = version.trained_until_us
    start_us = beginning(first, last, since_us)
    if start_us >= last:
        raise NoPastError(f"Nothing is recorded of '{model}' after {format_us(start_us)}.")
    known = int((rows["event_time"] < start_us).sum())
    if known < REFERENCE_ROWS_MIN:
        raise NoPastError(
            f"{known} rows before {format_us(start_us)} are the reference; {REFERENCE_ROWS_MIN} are needed.",
            action="Choose another --since or --learn-from.",
        )
    predict = predict_of(runtime, version)
    log, unjudged = counted(runtime, model, last)
    facts = recorded_facts(runtime.config.archive_dir, plan.contract, runtime.config.disorder_ms * 1000)
    if facts.height:
        rows = rows.join(facts, on="prediction_id", how="left", maintain_order="left")
        come = pl.when(pl.col("fact_time").is_not_null()).then(pl.max_horizontal("fact_time", "met_us"))
        rows = rows.with_columns(fact_time=come)
    return Recording(
        rows, plan.contract, plan.profile, start_us, predict, version.version, log=log, unjudged=unjudged
    )  # fmt: skip


def beginning(first_us: int, last_us: int, since_us: int | None) -> int:
    """The whole hour at which watching begins: the one that is asked for, or after history enough."""
    if since_us is None:
        since_us = first_us + min(HISTORY_DAYS * DAY_US, (last_us - first_us) // 2)
    return -(-since_us // HOUR_US) * HOUR_US


def backtest(
    recording: Recording,
    policies: Mapping[str, MonitorPolicy],
    rules: Sequence[Rule] = (),
    plants: Sequence[Plant] = (),
    progress: Callable[[int], None] = lambda _done: None,
) -> Found:
    """Run policies and rules over a past, and over the same past with each change planted.

    Parameters
    ----------
    policies
        By what they are called; the rules are held beside the first.
    progress
        Is told after each of them over the past, and after each change.
    """
    months = (recording.end_us - recording.start_us) / DAY_US / MONTH_DAYS
    runs: dict[str, Backtest] = {}
    for label, policy in policies.items():
        healthy = watch(recording, policy, remember_us=[each.moment_us for each in plants])
        runs[label] = Backtest(healthy, months)
        progress(1)
    past, first = Past(recording, recording.end_us), next(iter(runs.values()))
    ruled: dict[str, Ruled] = {}
    for rule in rules:
        ruled[rule.label] = Ruled(run_of(rule, past), first)
        progress(1)
    for each in plants:
        trial = plant(recording, each)
        for run in runs.values():
            run.outcomes.append(outcome(run.watched, each, trial))
        for beside in ruled.values():
            beside.run.plant(trial)
        progress(1)
    return Found(runs, ruled)
