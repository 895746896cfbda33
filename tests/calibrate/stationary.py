"""The e-detector on synthetic streams, beside the usual rules: ``make calibrate`` (see README, "The stated budget").

False alarms of thirty features without drift against the stated bound; delays of eleven planted changes; streams whose
windows differ or have a season; intervals and canaries that are looked at often. Prints Markdown; ``--json`` writes it.

    make calibrate                      everything
    make calibrate ARGS="--small"       the same on a fraction: to see that it works
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from streams.logic.bets import Bets, Ints
from streams.logic.edetector import Bools, Budget, Running, evaluate
from streams.logic.policy import MonitorPolicy
from tests.calibrate.canaries import canaries
from tests.calibrate.canaries import table as canary_table
from tests.calibrate.rivals import (
    RULES,
    adwin_delay,
    adwin_false_alarms,
    adwin_matched,
    delay,
    false_alarms,
    matched_limit,
)
from tests.calibrate.synthetic import KINDS, REFERENCE_ROWS, SCENARIOS, Scenario, delta_counts
from tests.calibrate.windows import DISTURBED, Disturbed, Peeking, disturbed, peeking

A = (20.0, 200.0, 10_000.0)
DELTA_ROWS, WINDOW_ROWS = 100, 1000
PER_WINDOW = WINDOW_ROWS // DELTA_ROWS
WARM_WINDOWS = 20
"""Served before a change: the pooled term has as much of the healthy stream."""
BLOCK_WINDOWS = 10


@dataclass(frozen=True)
class Sizes:
    """How much is run."""

    tables: int
    windows: int
    replicates: int
    horizon: int
    scenarios: int
    disturbances: int
    streams: int
    stream_windows: int
    looks: int
    look_rows: int
    null_windows: int
    adwin_windows: int
    canaries: int
    canary_rows: int


FULL = Sizes(10, 200, 40, 60_000, len(SCENARIOS), len(DISTURBED), 8, 360, 600, 50_000, 60_000, 300, 400, 400_000)
SMALL = Sizes(1, 10, 8, 6_000, 3, 2, 4, 40, 40, 5_000, 1_000, 3, 60, 20_000)


@dataclass(frozen=True)
class Quiet:
    """False alarms without drift; ``bound`` is the stated one."""

    name: str
    alarms: int
    windows: int
    bound: float | None


@dataclass(frozen=True)
class Delay:
    """Rows from a change to its alarm, by scenario: one a replicate, None: not within the horizon."""

    name: str
    rows: dict[str, list[float | None]]


def _budget(features: int, a: float) -> Budget:
    """The share of one of thirty features, whatever runs side by side."""
    policy = MonitorPolicy()
    return Budget(np.full(features, 1.0 / len(KINDS)), a, a, policy.alpha0, policy.floor)


def quiet(sizes: Sizes, seed: int) -> list[Quiet]:
    """Thirty features without drift, looked at after every delta by each budget; an alarm restarts its feature."""
    alarms, levels = dict.fromkeys(A, 0), MonitorPolicy().levels
    for table in range(sizes.tables):
        rng = np.random.default_rng((seed, table))
        features = [kind.learn(kind.draw(rng, REFERENCE_ROWS)) for kind in KINDS]
        bets = Bets.of(features)
        running, restarts = Running(levels, np.zeros(len(bets.weights))), {a: np.zeros(len(KINDS), np.int64) for a in A}
        for _ in range(0, sizes.windows, BLOCK_WINDOWS):
            blocks = [
                delta_counts(kind, feature, kind.draw(rng, BLOCK_WINDOWS * WINDOW_ROWS), DELTA_ROWS)
                for kind, feature in zip(KINDS, features, strict=True)
            ]
            for delta in np.concatenate(blocks, axis=1):
                running.add(delta, DELTA_ROWS)
                for a in A if _is_near(running, bets, np.min([*restarts.values()], axis=0)) else ():
                    over = _over(running, bets, _budget(len(KINDS), a), restarts[a])
                    alarms[a] += 1 if over.all() else int(over.sum())
                    restarts[a][over] = running.deltas
    windows = sizes.tables * -(-sizes.windows // BLOCK_WINDOWS) * BLOCK_WINDOWS
    return [Quiet(f"Flywheel, A = {a:,.0f}", alarms[a], windows, windows / a) for a in A]


def _is_near(running: Running, bets: Bets, restarts: Ints) -> bool:
    """Whether any feature may be above the lowest line: one screen for all budgets, with the largest cap of them."""
    low, high = _budget(len(KINDS), A[0]), _budget(len(KINDS), A[-1])
    floor = high.floor * float(np.sqrt(low.line[0] / high.line[0]))
    budget = replace(low, floor=floor)
    evidence = evaluate(running, bets, budget, PER_WINDOW, restarts=restarts, pick=lambda _near: np.empty(0, np.int64))
    return bool(evidence.is_near.any())


def _over(running: Running, bets: Bets, budget: Budget, restarts: Ints) -> Bools:
    """Features in alarm; all of them where only their mean is."""
    evidence = evaluate(running, bets, budget, PER_WINDOW, restarts=restarts)
    over = evidence.is_exact & (evidence.statistic >= budget.line)
    return np.ones_like(over) if not over.any() and evidence.dataset >= math.log(2 * budget.a) else over


def delays(a: float, scenario: Scenario, sizes: Sizes, seed: int) -> list[float | None]:
    """All replicates side by side, each with a reference and a moment of its own."""
    rng, kind, n = np.random.default_rng(seed), scenario.kind, sizes.replicates
    features = [kind.learn(kind.draw(rng, REFERENCE_ROWS)) for _ in range(n)]
    bets, budget = Bets.of(features), _budget(n, a)
    moments = WARM_WINDOWS * WINDOW_ROWS + rng.integers(0, WINDOW_ROWS, n)
    total = (WARM_WINDOWS + 1) * WINDOW_ROWS + sizes.horizon
    counts = []
    for feature, moment in zip(features, moments.tolist(), strict=True):
        rows = np.concatenate([kind.draw(rng, moment), scenario.after(rng, total - moment)])
        counts.append(delta_counts(kind, feature, rows, DELTA_ROWS))
    running = Running(MonitorPolicy().levels, np.zeros(len(bets.weights)))
    found: list[float | None] = [None] * n
    still = np.arange(n)
    for at, delta in enumerate(np.concatenate(counts, axis=1)):
        running.add(delta, DELTA_ROWS)
        end = (at + 1) * DELTA_ROWS
        if end <= moments.min():
            continue
        own = bets.columns(still)
        view = Running(running.levels, running.total[own], running.rows, running.squares, running.deltas)
        view.marks = {start: (mark[own], rows, squares) for start, (mark, rows, squares) in running.marks.items()}
        evidence = evaluate(view, bets.only(still), _budget(len(still), a), PER_WINDOW)
        line = budget.line[still]
        over = evidence.is_exact & (evidence.statistic >= line) & (end > moments[still])
        for f in still[over].tolist():
            found[f] = float(end - moments[f])
        still = still[~over]
        if not len(still):
            break
    return found


def run(sizes: Sizes, seed: int, say: Callable[[str], None]) -> dict[str, list[Any]]:
    """Everything."""
    quiets, found = [], []
    scenarios = SCENARIOS[: sizes.scenarios]
    quiets += quiet(sizes, seed)
    say("no drift")
    for a in A:
        own = {s.name: delays(a, s, sizes, seed + 1 + i) for i, s in enumerate(scenarios)}
        found.append(Delay(f"Flywheel, A = {a:,.0f}", own))
        say(f"A = {a:,.0f}")
    windows = sizes.tables * sizes.windows
    rng = np.random.default_rng(seed + 100)
    for rule in RULES:
        alarms, _ = false_alarms(rule, windows, rng)
        quiets.append(Quiet(rule.name, alarms, windows, None))
        limits: dict[str, float] = {}
        for is_matched in (False, True):
            rows: dict[str, list[float | None]] = {}
            for s in scenarios:
                limit = rule.limit
                if is_matched:
                    if s.kind.name not in limits:
                        limits[s.kind.name] = matched_limit(rule, s.kind, sizes.null_windows, rng)
                    limit = limits[s.kind.name]
                rows[s.name] = [delay(rule, limit, s, sizes.horizon, rng) for _ in range(sizes.replicates)]
            found.append(Delay(f"{rule.name.split()[0]}, matched" if is_matched else rule.name, rows))
        say(rule.name)
    alarms = adwin_false_alarms(0.002, sizes.adwin_windows, rng)
    quiets.append(Quiet("ADWIN, delta = .002 (numbers only)", alarms, sizes.adwin_windows, None))
    matched = adwin_matched(sizes.adwin_windows, rng)
    for name, delta in (("ADWIN, delta = 0.002", 0.002), (f"ADWIN, matched ({matched:g})", matched)):
        numbers = [s for s in scenarios if s.kind.is_number]
        own = {
            s.name: [adwin_delay(delta, s, sizes.horizon // 2, rng) for _ in range(sizes.replicates)] for s in numbers
        }
        found.append(Delay(name, own))
    say("ADWIN")
    differ = disturbed(DISTURBED[-sizes.disturbances :], sizes.streams, sizes.stream_windows, seed + 200)
    say("windows that differ")
    peeks = peeking(sizes.looks, sizes.look_rows, seed)
    say("intervals")
    judged = canaries(sizes.canaries, sizes.canary_rows, seed + 300)
    return {"quiet": quiets, "delay": found, "disturbed": differ, "peeking": peeks, "canary": judged}


def median_interval(rows: Sequence[float | None], alpha: float = 0.05) -> tuple[float, float, float]:
    """Median and an interval of order statistics; what was not found is infinite."""
    x = np.sort([math.inf if each is None else each for each in rows])
    low = int(stats.binom.ppf(alpha / 2, len(x), 0.5))
    return float(x[(len(x) - 1) // 2]), float(x[max(0, low - 1)]), float(x[min(len(x) - 1, len(x) - low)])


def report(result: dict[str, list[Any]]) -> Iterator[str]:
    """The tables of the README."""
    yield "| no drift, 30 features | windows | false alarms | one in | stated: at most |"
    yield "|---|---|---|---|---|"
    each: Quiet
    for each in result["quiet"]:
        often = f"{each.windows / each.alarms:,.1f} windows" if each.alarms else "-"
        bound = "-" if each.bound is None else f"{each.bound:g}"
        yield f"| {each.name} | {each.windows:,} | {each.alarms:,} | {often} | {bound} |"
    yield ""
    found: list[Delay] = result["delay"]
    names = list(found[0].rows)
    yield "| rows until told: median (95 % interval) | " + " | ".join(names) + " |"
    yield "|---" * (len(names) + 1) + "|"
    for row in found:
        yield f"| {row.name} | " + " | ".join(_told(row.rows.get(name)) for name in names) + " |"
    yield ""
    yield "| windows differ | correction | false alarms | windows | delay to .25 sd, windows | a row counts for |"
    yield "|---|---|---|---|---|---|"
    one: Disturbed
    for one in result["disturbed"]:
        middle = median_interval([None if math.isnan(x) else x for x in one.found])[0]
        told = "never" if math.isinf(middle) else f"{middle:g}"
        yield f"| {one.name} | {one.correction} | {one.alarms} | {one.windows:,} | {told} | {one.weight:.2f} |"
    yield ""
    peeks: list[Peeking] = result["peeking"]
    yield (
        "| 95 % interval, looked at every 100 rows | ever misses the truth | "
        + " | ".join(f"width at {n:,}" for n in peeks[0].widths)
        + " |"
    )
    yield "|---" * (len(peeks[0].widths) + 2) + "|"
    for peek in peeks:
        yield f"| {peek.name} | {peek.missed:.1%} | " + " | ".join(f"{w:.4f}" for w in peek.widths.values()) + " |"
    yield ""
    yield from canary_table(result["canary"])


def _told(rows: list[float | None] | None) -> str:
    if rows is None:
        return "-"
    middle, low, high = (("never" if math.isinf(x) else f"{x:,.0f}") for x in median_interval(rows))
    return middle if middle == low == high else f"{middle} ({low}-{high})"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make calibrate", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--small", action="store_true", help="a fraction, to see that it works")
    parser.add_argument("--seed", type=int, default=20130401, help="of everything")
    parser.add_argument("--json", type=Path, help="write everything there, too")
    given = parser.parse_args(argv)
    began = time.monotonic()
    sizes = SMALL if given.small else FULL

    def say(what: str) -> None:
        print(f"{time.monotonic() - began:5.0f} s: {what}", file=sys.stderr)

    result = run(sizes, given.seed, say)
    say("done")
    print("\n".join(report(result)))
    if given.json is not None:
        told = {name: [asdict(each) for each in rows] for name, rows in result.items()}
        given.json.write_text(json.dumps({"sizes": asdict(sizes), "seed": given.seed, **told}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
