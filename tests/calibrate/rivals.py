"""The usual rules on the same synthetic rows: those of ``streams.lab``, which ``flywheel backtest`` runs.

Each at its default, and with its limit raised until thirty features without drift give one alarm in 200 windows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from schemas.profile import FieldSpec
from streams.lab.classic import Known, Served
from streams.lab.rules import KINDS as FAMILIES
from streams.lab.runs import ADWIN_LIMITS, detections
from tests.calibrate.synthetic import KINDS, REFERENCE_ROWS, Floats, Kind, Scenario

WINDOW_ROWS = 1000
MATCHED_WINDOWS = 200
CHUNK = 500
DELTAS = tuple(delta for delta in ADWIN_LIMITS if delta <= FAMILIES["adwin"].usual)


@dataclass(frozen=True)
class Rule:
    """A family of the laboratory at its usual limit, for each feature alone."""

    name: str
    family: str

    @property
    def limit(self) -> float:
        """In the statistic's own numbers: of a test, -log10 of its p-value."""
        family = FAMILIES[self.family]
        return -math.log10(family.usual) if family.is_p else family.usual

    def known(self, kind: Kind, rng: np.random.Generator) -> Known:
        """A reference of its own."""
        field = FieldSpec(kind.name, "number" if kind.is_number else "category")
        return Known.of(field, kind.series(kind.draw(rng, REFERENCE_ROWS)))

    def scores(self, kind: Kind, known: Known, windows: Floats) -> Floats:
        """Of float64[window, row]."""
        statistic = FAMILIES[self.family].statistic
        assert statistic is not None
        cells = known.feature.cell_count
        codes = known.feature.codes(kind.series(windows.ravel())).astype(np.int64).reshape(windows.shape)
        return np.array(
            [
                statistic(known, Served(np.bincount(own, minlength=cells), rows[~np.isnan(rows)]))
                for own, rows in zip(codes, windows, strict=True)
            ]
        )


RULES = (
    Rule("PSI > 0.2", "psi"),
    Rule("KS (categories: chi-square) p < 0.05", "ks"),
    Rule("W1 > 0.1 sd (categories: JS > 0.1)", "w1"),
)


def matched_limit(rule: Rule, kind: Kind, windows: int, rng: np.random.Generator) -> float:
    """The limit that so many windows without drift, of many references, exceed once in 200 x 30."""
    if rule.family == "ks" and kind.is_number:  # its law is known
        return math.log10(MATCHED_WINDOWS * len(KINDS))
    scores = []
    for _ in range(-(-windows // CHUNK)):
        known = rule.known(kind, rng)
        scores.append(rule.scores(kind, known, kind.draw(rng, CHUNK * WINDOW_ROWS).reshape(CHUNK, WINDOW_ROWS)))
    return float(np.quantile(np.concatenate(scores), 1.0 - 1.0 / (MATCHED_WINDOWS * len(KINDS))))


def false_alarms(rule: Rule, windows: int, rng: np.random.Generator) -> tuple[int, int]:
    """(alarms, windows with any) of thirty features without drift."""
    over = np.zeros((len(KINDS), windows), np.bool_)
    for f, kind in enumerate(KINDS):
        known = rule.known(kind, rng)
        for first in range(0, windows, CHUNK):
            count = min(CHUNK, windows - first)
            served = kind.draw(rng, count * WINDOW_ROWS).reshape(count, WINDOW_ROWS)
            over[f, first : first + count] = rule.scores(kind, known, served) > rule.limit
    return int(over.sum()), int(over.any(0).sum())


def delay(rule: Rule, limit: float, scenario: Scenario, horizon: int, rng: np.random.Generator) -> float | None:
    """Rows from a change inside a window to the end of the first window in alarm; None: not within the horizon."""
    known = rule.known(scenario.kind, rng)
    healthy = int(rng.integers(0, WINDOW_ROWS))
    after = scenario.after(rng, horizon + WINDOW_ROWS)
    rows = np.concatenate([scenario.kind.draw(rng, healthy), after])
    windows = rows[: len(rows) // WINDOW_ROWS * WINDOW_ROWS].reshape(-1, WINDOW_ROWS)
    for first in range(0, len(windows), 10):
        over = rule.scores(scenario.kind, known, windows[first : first + 10]) > limit
        if over.any():
            return float((first + int(np.argmax(over)) + 1) * WINDOW_ROWS - healthy)
    return None


def _adwin_alarms(values: Floats, delta: float) -> Iterator[int]:
    """Rows at which it alarms; it has no word for a null."""
    is_known = ~np.isnan(values)
    yield from detections(np.flatnonzero(is_known), values[is_known], delta).tolist()


def adwin_false_alarms(delta: float, windows: int, rng: np.random.Generator) -> int:
    """Alarms of the numbers among the thirty features, without drift."""
    return sum(
        sum(1 for _ in _adwin_alarms(kind.draw(rng, windows * WINDOW_ROWS), delta)) for kind in KINDS if kind.is_number
    )


def adwin_matched(windows: int, rng: np.random.Generator) -> float:
    """The largest delta of the list with at most one alarm in 200 windows of the table."""
    for delta in DELTAS:
        if adwin_false_alarms(delta, windows, rng) <= windows / MATCHED_WINDOWS:
            return delta
    return DELTAS[-1]


def adwin_delay(delta: float, scenario: Scenario, horizon: int, rng: np.random.Generator) -> float | None:
    """Rows from the change to the first alarm after it; it has seen as many rows before as a reference holds."""
    healthy = REFERENCE_ROWS
    values = np.concatenate([scenario.kind.draw(rng, healthy), scenario.after(rng, horizon)])
    later = (i for i in _adwin_alarms(values, delta) if i >= healthy)
    found = next(later, None)
    return None if found is None else float(found + 1 - healthy)
