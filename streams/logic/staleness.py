"""How far serving has moved away from training: the e-detector on the hours since a version was deployed.

One delta and one window is an hour with rows. On real traffic, which is never exchangeable with its training rows, this
is a meter: it says by how many orders of magnitude each feature is above the line, since when, by how much and in which
cells, and wakes nobody. Of a stream that its owner declares stationary (``stationary = true``) it pages, and keeps its
budget: ``a_page`` hours for one false alarm over all features.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass, field
from itertools import compress
from typing import Any, Literal

import numpy as np

from schemas.profile import CELL_NEW, CELL_NULL, LABEL_FEATURE, SCORE_FEATURE
from schemas.times import HOUR_US, format_us
from streams.logic.bets import Bets, Floats, Ints
from streams.logic.counts import Hour, Layout, LocalHours
from streams.logic.coverage import TRAINING, gap
from streams.logic.edetector import LN10, Bools, Budget, Evidence, Running, affected, evaluate
from streams.logic.policy import MonitorPolicy
from streams.logic.scores import DistanceScores, compare
from streams.logic.tempering import DAY, WEEK, WEEKS_MIN, WINDOWS_LEARNT, WINDOWS_MIN, Spread

Level = Literal["quiet", "info", "warn", "page", "critical"]
ANSWERS = (SCORE_FEATURE, LABEL_FEATURE)
ANSWER_WEIGHT = 10.0
"""The model's answers get so many times a feature's share of the budget, and at most half of it together."""
EPS_WARN, EPS_CRITICAL = 0.1, 0.5
OUT_OF_RANGE, NULLS_MORE, NEW_SHARE = 0.05, 0.10, 0.05
BACK_WINDOWS, EPS_BACK = 10, 0.05
"""A feature is back when it was this close to training over so many windows, and M from its alarm on is low."""
EXACT_MAX = 6
"""Features evaluated exactly in one look between the hours; each takes some milliseconds."""
TAUGHT_WINDOWS = (WEEKS_MIN + 1) * WEEK
"""Newest windows of history that teach."""


@dataclass(frozen=True)
class Staleness:
    """One feature against training.

    Attributes
    ----------
    feature
        Its name.
    level
        Of its drift: ``quiet``, ``info``, ``warn``, ``page`` or ``critical``; the last two of stationary streams only.
    orders, skew_orders
        log10 of M and of E0 in units of the page's lines: orders of magnitude above.
    is_exact
        False: ``orders`` is an upper bound, far below the line.
    since
        Hour of the best start: the estimate of when it left.
    scores
        Distance of the rows since then; None of a feature that was not evaluated.
    top
        (cell in words, pull) of the cells that moved most.
    """

    feature: str
    level: Level
    orders: float
    skew_orders: float
    is_exact: bool
    since: Hour
    scores: DistanceScores | None
    top: tuple[tuple[str, float], ...]

    def as_dict(self) -> dict[str, Any]:
        """As JSON, for the status."""
        told = {
            "feature": self.feature, "level": self.level, "orders": _rounded(self.orders),
            "skew_orders": _rounded(self.skew_orders), "is_exact": self.is_exact,
        }  # fmt: skip
        if self.scores is None:
            return told
        scores = {name: round(getattr(self.scores, name), 4) for name in ("eps", "eps_low", "shift", "psi")}
        top = [[cell, round(pull, 4)] for cell, pull in self.top]
        return told | {"since": format_us(self.since * HOUR_US), "rows": self.scores.rows, **scores, "top": top}


@dataclass(frozen=True)
class Reading:
    """All features at one moment.

    Attributes
    ----------
    features
        In the profile's order; those that training knows nothing of are left out, and take no share of the budget.
    is_learning
        Whether only E0 speaks as yet, because nothing is known of how windows differ.
    windows
        Closed hours since deployment.
    """

    features: tuple[Staleness, ...]
    is_learning: bool
    windows: int

    def as_dict(self) -> dict[str, Any]:
        """As JSON, for the status: the most stale first."""
        order = sorted(self.features, key=lambda s: (-s.orders, s.feature))
        return {
            "is_learning": self.is_learning, "windows": self.windows,
            "features": [each.as_dict() for each in order],
        }  # fmt: skip


def _rounded(x: float) -> float | None:
    return round(x, 2) if math.isfinite(x) else None


@dataclass(frozen=True)
class Verdicts:
    """What is to be told of a stationary stream after a closed hour.

    Attributes
    ----------
    told
        Features in alarm at ``warn`` or above.
    still
        Names of features that were paged and are not back.
    is_thin
        Many features moved a little, and none is in alarm alone.
    affected
        Names of the features that moved, too (e-BH: the share of false ones among them is bounded).
    """

    told: tuple[Staleness, ...]
    still: tuple[str, ...]
    is_thin: bool
    affected: tuple[str, ...]


@dataclass
class Meter:
    """The detector of one model version, over all rows.

    Attributes
    ----------
    layout, policy
        Where counts lie; budgets and floor.
    running
        Closed hours.
    spread
        How windows differ; None while that is learnt.
    local
        The contract's clock.
    taught
        Hour -> counts of the windows that teach, until they are enough.
    restarts
        int64[feature]: after an alarm only starts from there on count.
    told_skew
        bool[feature]: E0 is told once.
    paged
        bool[feature]: told, and not back yet.
    first
        The first hour.
    hours
        Start -> hour.
    recent
        Hour -> counts of the newest windows.
    """

    layout: Layout
    policy: MonitorPolicy
    local: LocalHours
    running: Running = field(init=False)
    spread: Spread | None = None
    taught: dict[Hour, Ints] = field(default_factory=dict)
    restarts: Ints = field(init=False)
    told_skew: Bools = field(init=False)
    paged: Bools = field(init=False)
    first: Hour = 0
    hours: dict[int, Hour] = field(default_factory=dict)
    recent: dict[Hour, Ints] = field(default_factory=dict)
    _seen: dict[int, tuple[int, Staleness]] = field(default_factory=dict)
    _looks: int = 0

    def __post_init__(self) -> None:
        features = self.layout.profile.features
        self.bets = Bets.of(features)
        self.running = Running(self.policy.levels, np.zeros(self.layout.columns))
        self.restarts = np.zeros(len(features), np.int64)
        self.told_skew = np.zeros(len(features), np.bool_)
        self.paged = np.zeros(len(features), np.bool_)
        self.is_known = np.array([gap(TRAINING, feature, self.policy) is None for feature in features], np.bool_)
        shares = np.zeros(len(features))
        shares[self.is_known] = shares_of([feature.name for feature in compress(features, self.is_known)])
        budgets = self.policy.a_page, min(self.policy.a_warn, self.policy.a_page)
        self.budget = Budget(shares, *budgets, self.policy.alpha0, self.policy.floor)

    def learn(self, windows: Iterable[tuple[Hour, Ints]]) -> None:
        """Learn how windows differ from those before deployment, in the order of time."""
        enough = [(hour, x) for hour, x in windows if _rows(self.layout, x) >= self.policy.rows_min]
        if len(enough) >= WINDOWS_MIN:
            newest = enough[-TAUGHT_WINDOWS:]
            counts = np.stack([x for _, x in newest]).astype(np.float64)
            self.spread = Spread.of(counts, np.array([self._local(hour) for hour, _ in newest]), self.bets)

    def copy(self) -> Meter:
        """Another one, to judge an hour with."""
        ahead = copy(self)
        ahead.running = self.running.copy()
        ahead.taught, ahead.recent = dict(self.taught), dict(self.recent)
        ahead.restarts, ahead.told_skew, ahead.paged = self.restarts.copy(), self.told_skew.copy(), self.paged.copy()
        return ahead

    def add(self, hour: Hour, counts: Ints) -> None:
        """A closed hour's rows, int64[column]; an hour without any is no window."""
        if _rows(self.layout, counts) <= 0:
            return
        self._count(hour, counts)
        if self.spread is None and _rows(self.layout, counts) >= self.policy.rows_min:
            self.taught[hour] = counts.astype(np.int64)
            if len(self.taught) >= WINDOWS_LEARNT:
                self.learn(self.taught.items())
                self.taught, self.restarts[:] = {}, self.running.deltas  # drift is looked for from here on

    def _count(self, hour: Hour, counts: Ints) -> None:
        if not self.running.deltas:
            self.first = hour
        hours = {**self.hours, self.running.deltas: hour}
        self.running.add(self._usual(hour, counts), _rows(self.layout, counts))
        self.hours = {start: hours[start] for start in self.running.marks}
        self.recent[hour] = counts.astype(np.int64)
        for old in sorted(self.recent)[:-BACK_WINDOWS]:
            del self.recent[old]

    def _usual(self, hour: Hour, counts: Ints) -> Floats:
        """The counts as they would be at a usual hour."""
        x = counts.astype(np.float64)
        return (
            x if self.spread is None else self.spread.without_season(x, _rows(self.layout, counts), self._local(hour))
        )

    def _local(self, hour: Hour) -> int:
        day, of_day = self.local(hour)
        return day * DAY + of_day

    # -- what it says --------------------------------------------------------------------------------------------------

    def read(self, only: int | None = None) -> Reading:
        """Every feature exactly, by the closed hours; or the one at a place, and of the others a bound."""
        if only is None:
            return self._reading(self.running, self._evaluate(self.running, is_screened=False))
        return self._reading(self.running, self._evaluate(self.running, pick=lambda _near: np.array([only])))

    def look(self, fresh: Iterable[tuple[Hour, Ints]] = ()) -> Reading:
        """A provisional reading with the hours that are still open, for people: at most some milliseconds a feature.

        Features that may be above the line are evaluated in turn, :data:`EXACT_MAX` in one look; of the others the
        result of the last one is shown.
        """
        ahead = self.running
        for hour, counts in fresh:
            if _rows(self.layout, counts) > 0:
                ahead = ahead.copy() if ahead is self.running else ahead
                ahead.add(self._usual(hour, counts), _rows(self.layout, counts))
        self._looks += 1

        def in_turn(near: Ints) -> Ints:
            turns = sorted(near.tolist(), key=lambda f: (self._seen[f][0] if f in self._seen else 0, f))
            return np.array(sorted(turns[:EXACT_MAX]), np.int64)

        return self._reading(ahead, self._evaluate(ahead, pick=in_turn))

    def judge(self) -> Verdicts:
        """What a closed hour of a stationary stream says; it depends on the closed hours only.

        A page restarts its feature: from then on only evidence of a change after it counts, and what is critical by
        then is told again.
        """
        evidence = self._evaluate(self.running)
        told, still = [], []
        for f, feature in enumerate(self.layout.profile.features):
            is_hot = evidence.is_exact[f] and evidence.statistic[f] >= self.budget.low_line[f]
            is_skew = evidence.is_exact[f] and evidence.skew[f] >= self.budget.skew_line[f] and not self.told_skew[f]
            said = self._say(self.running, evidence, f) if is_hot or is_skew else None
            is_worse = said is not None and said.level not in (("info", "warn") if self.paged[f] else ("info",))
            if said is not None and is_worse:
                told.append(said)
                if said.level != "warn":
                    self.told_skew[f] |= is_skew
                    self.restarts[f], self.paged[f] = self.running.deltas, True
            elif self.paged[f]:
                scores = self._compare(f, np.sum([*self.recent.values()], axis=0)[self._own(f)])
                self.paged[f] = scores.eps_low >= EPS_BACK
                if self.paged[f]:
                    still.append(feature.name)
        is_thin = evidence.dataset >= math.log(2.0 * self.policy.a_page) and not told
        if is_thin:
            self.restarts[:] = self.running.deltas
        names = [self.layout.profile.features[f].name for f in affected(evidence, self.budget)]
        return Verdicts(tuple(told), tuple(still), is_thin, tuple(names) if told or is_thin else ())

    def restart(self, features: Iterable[str]) -> None:
        """Somebody said what it was: look for what comes next."""
        for name in features:
            f = self.layout.profile.index.get(name)
            if f is not None:
                self.restarts[f], self.paged[f] = self.running.deltas, False

    def _evaluate(self, running: Running, **how: Any) -> Evidence:
        spread = self.spread
        how_much = None if spread is None else spread.how_much(self.bets)
        # Nothing is known of how windows differ: no start counts, and only E0 speaks.
        restarts = np.full_like(self.restarts, running.deltas) if spread is None else self.restarts
        return evaluate(running, self.bets, self.budget, restarts=restarts, how_much=how_much, **how)

    def _reading(self, running: Running, evidence: Evidence) -> Reading:
        found = []
        for f, feature in enumerate(self.layout.profile.features):
            if not self.is_known[f]:
                continue
            known = self._seen.get(f)
            if evidence.is_exact[f]:
                said = self._say(running, evidence, f)
                self._seen[f] = (self._looks, said)
            elif evidence.is_near[f] and known is not None:
                said = known[1]
            else:
                self._seen.pop(f, None)
                orders, skew_orders, start = self._orders(evidence, f)
                said = Staleness(feature.name, "quiet", orders, skew_orders, False, self._hour(start), None, ())
            found.append(said)
        return Reading(tuple(found), self.spread is None, running.deltas)

    def _orders(self, evidence: Evidence, f: int) -> tuple[float, float, int]:
        orders = float(evidence.statistic[f] - self.budget.line[f]) / LN10
        skew_orders = float(evidence.skew[f] - self.budget.skew_line[f]) / LN10
        return orders, skew_orders, int(evidence.start[f])

    def _hour(self, start: int) -> Hour:
        return self.hours.get(start, self.first)

    def _say(self, running: Running, evidence: Evidence, f: int) -> Staleness:
        feature = self.layout.profile.features[f]
        orders, skew_orders, start = self._orders(evidence, f)
        is_hot = bool(evidence.statistic[f] >= self.budget.low_line[f])
        is_page = orders >= 0 or skew_orders >= 0
        if not is_hot and is_page:
            start = 0  # what E0 is about
        own = self._own(f)
        before = running.marks[start][0][own] if start in running.marks else 0.0
        counts = np.rint(np.maximum(running.total[own] - before, 0.0)).astype(np.int64)
        scores = self._compare(f, counts)
        level: Level = self._level(f, scores, counts, is_page=is_page) if is_hot or is_page else "quiet"
        top = tuple((feature.cell_label(cell), pull) for cell, pull in scores.top)
        return Staleness(feature.name, level, orders, skew_orders, True, self._hour(start), scores, top)

    def _level(self, f: int, scores: DistanceScores, counts: Ints, *, is_page: bool) -> Level:
        """The table of severities."""
        if not (self.policy.stationary and is_page and scores.eps_low >= EPS_WARN):
            return "warn" if scores.eps >= EPS_WARN else "info"
        feature = self.layout.profile.features[f]
        q = counts / max(1, int(counts.sum()))
        outside = float(q[feature.specials] + q[-1]) if feature.is_number else 0.0
        usual = float(feature.shares[feature.specials] + feature.shares[-1]) if feature.is_number else 0.0
        new = 0.0 if feature.is_number else float(q[CELL_NEW])
        is_critical = (
            scores.eps_low >= EPS_CRITICAL
            or outside - usual >= OUT_OF_RANGE
            or float(q[CELL_NULL] - feature.shares[CELL_NULL]) >= NULLS_MORE
            or new >= NEW_SHARE
        )
        return "critical" if is_critical else "page"

    def _compare(self, f: int, counts: Ints) -> DistanceScores:
        return compare(self.layout.profile.features[f], counts)

    def _own(self, f: int) -> slice:
        return slice(int(self.layout.offsets[f]), int(self.layout.offsets[f + 1]))


def _rows(layout: Layout, counts: Ints) -> int:
    """Every row is in one cell of the first feature."""
    return int(counts[: layout.offsets[1]].sum()) if layout.profile.features else 0


def shares_of(names: Sequence[str]) -> Floats:
    """u of every feature: the model's own answers weigh more.

    >>> shares_of(["a", "b"]).tolist()
    [0.5, 0.5]
    """
    answers = np.array([name in ANSWERS for name in names])
    usual, count = 1.0 / max(1, len(names)), int(answers.sum())
    if not count or count == len(names):
        return np.full(len(names), usual)
    own = min(ANSWER_WEIGHT * usual, 0.5 / count)
    return np.where(answers, own, (1.0 - count * own) / (len(names) - count))
