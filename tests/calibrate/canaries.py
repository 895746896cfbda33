"""How often canaries are rolled back and promoted rightly, looked at every 400 rows, for ``make calibrate``.

Judged by :func:`streams.logic.canary.judge` on counts and on means, beside the test of two proportions that stops as
soon as it is significant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy import stats

from streams.logic.bets import Floats, Ints
from streams.logic.canary import Counts, Plan, Values, Verdict, judge
from streams.logic.intervals import Moments

BASE, SHARE, MARGIN = 0.10, 0.05, 0.10
LOOK_ROWS = 400
CYCLE_ROWS = 50_000
CASES: tuple[tuple[str, float, float], ...] = (
    ("equal", 1.0, 0.0),
    ("equal, base rate cycles by half", 1.0, 0.5),
    ("+10 % (the margin)", 1.1, 0.0),
    ("+20 %", 1.2, 0.0),
    ("+50 %", 1.5, 0.0),
    ("+100 %", 2.0, 0.0),
    ("-10 %", 0.9, 0.0),
)
Ended = tuple[Verdict, int]
"""Of one canary: how, and after how many rows of both versions."""


@dataclass(frozen=True)
class Canary:
    """What became of the canaries of one kind under one rule.

    Attributes
    ----------
    rollback, promote
        Share of them.
    rollback_rows, promote_rows
        Median rows of both versions until then; None without any.
    """

    case: str
    rule: str
    runs: int
    rollback: float
    promote: float
    rollback_rows: float | None
    promote_rows: float | None


@dataclass(frozen=True)
class _Run:
    """Cumulative rows and failures at every look."""

    rows: Ints
    canary_rows: Ints
    canary: Ints
    stable: Ints


def _peeking(run: _Run, plan: Plan) -> Ended:
    """Stops at the first p < alpha of the one-sided test of two proportions."""
    other = run.rows - run.canary_rows
    share = (run.canary + run.stable) / run.rows
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.sqrt(share * (1 - share) * (1 / run.canary_rows + 1 / other))
        z: Floats = (run.canary / run.canary_rows - run.stable / other) / error
    over = np.flatnonzero(z > stats.norm.isf(plan.alpha_rollback))
    return ("rollback", int(run.rows[over[0]])) if len(over) else ("inconclusive", int(run.rows[-1]))


def _judged(metric: Callable[[int, int, int, int], Counts | Values], run: _Run, plan: Plan) -> Ended:
    for rows, n, x, y in zip(*(each.tolist() for each in (run.rows, run.canary_rows, run.canary, run.stable)),
                             strict=True):  # fmt: skip
        verdict = judge(n, rows, [metric(rows, n, x, y)], plan).verdict
        if verdict != "continue":
            break
    return verdict, rows


def _as_counts(_rows: int, _n: int, x: int, y: int) -> Counts:
    return Counts("wrong", x, x + y)


def _as_values(rows: int, n: int, x: int, y: int) -> Values:
    return Values("wrong", Moments(n, x, x), Moments(rows - n, y, y))


RULES: dict[str, Callable[[_Run, Plan], Ended]] = {
    "peeking z-test": _peeking,
    "exact e-process": lambda run, plan: _judged(_as_counts, run, plan),
    "sequence of means, burn-in": lambda run, plan: _judged(_as_values, run, plan),
}


def canaries(runs: int, rows_max: int, seed: int) -> list[Canary]:
    """Every case under every rule, on the same failures."""
    plan = Plan(SHARE, rows_max, MARGIN)
    found = []
    for at, (case, ratio, cycle) in enumerate(CASES):
        drawn = list(_draw(runs, rows_max, ratio, cycle, np.random.default_rng((seed, at))))
        for rule, ends in RULES.items():
            ended = [ends(run, plan) for run in drawn]
            back, on = ([rows for verdict, rows in ended if verdict == told] for told in ("rollback", "promote"))
            middles = (float(np.median(rows)) if rows else None for rows in (back, on))
            found.append(Canary(case, rule, runs, len(back) / runs, len(on) / runs, *middles))
    return found


def _draw(runs: int, rows_max: int, ratio: float, cycle: float, rng: np.random.Generator) -> Iterator[_Run]:
    rows = np.arange(LOOK_ROWS, rows_max + 1, LOOK_ROWS)
    rate = BASE * (1 + cycle * np.sin(2 * np.pi * rows / CYCLE_ROWS))
    for _ in range(runs):
        n = rng.binomial(LOOK_ROWS, SHARE, len(rows))
        x, y = rng.binomial(n, rate * ratio), rng.binomial(LOOK_ROWS - n, rate)
        yield _Run(rows, np.cumsum(n), np.cumsum(x), np.cumsum(y))


def table(found: list[Canary]) -> Iterator[str]:
    """For the README: a row a case, a column a rule."""
    yield "| canary: rolled back / promoted (median rows) | " + " | ".join(RULES) + " |"
    yield "|---" * (len(RULES) + 1) + "|"
    by = {(each.case, each.rule): each for each in found}
    for case in dict.fromkeys(each.case for each in found):
        yield f"| {case} | " + " | ".join(_told(by[case, rule]) for rule in RULES) + " |"


def _told(one: Canary) -> str:
    def part(share: float, rows: float | None) -> str:
        return f"{share:.1%}" + ("" if rows is None else f" ({rows:,.0f})")

    back = part(one.rollback, one.rollback_rows)
    return back if one.rule == "peeking z-test" else f"{back} / {part(one.promote, one.promote_rows)}"
