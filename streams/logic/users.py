"""How people use the answers: do they accept them less, change them more, complain more often than they did?

What users say without being asked is a choice of theirs, so it is no measure of quality. It is a series of its own, and
worth a warning when it changes. The newest days' shares are compared with those of the weeks before: the spread between
healthy days is estimated from them, so weekdays and moods are in it, and a day with few words counts for little.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from schemas.parts import USER_EDITED, USER_RIGHT, USER_WRONG, N
from streams.logic.counts import HourlyCounts, LocalHours

WINDOW_DAYS = (1, 7)
BASELINE_DAYS = 28
BASELINE_DAYS_MIN = 14
WORDS_MIN = 20
"""Words (answers, of complaints) in a window, and in a day of the baseline, below which nothing is said."""
SHARE_CHANGE_MIN = 0.1
"""A change that is sure but smaller than this share of what is usual bothers nobody."""
DAYS_A_FALSE_WARNING = 200.0
"""All measures and windows together, while healthy days differ as those of the baseline do."""


@dataclass(frozen=True)
class UserDay:
    """What the model answered on a day, and what users said on it."""

    rows: int
    accepted: int
    edited: int
    rejected: int

    @property
    def words(self) -> int:
        """All that was said."""
        return self.accepted + self.edited + self.rejected


@dataclass(frozen=True)
class UserChange:
    """A share that got worse.

    Attributes
    ----------
    measure
        ``accept_rate``, ``edit_rate`` (of what was said), or ``complaint_rate`` (of all answers).
    days, count
        Length of the window, and words (answers) in it.
    share, usual
        Now, and in the baseline.
    p_value
        Of a change so large in a healthy window.
    """

    measure: str
    days: int
    count: int
    share: float
    usual: float
    p_value: float


def user_days(counts: HourlyCounts, local: LocalHours, first: int, day: int) -> list[UserDay]:
    """The days that are over when a local day begins, oldest first; ``first`` is the oldest that may count.

    What was said counts on the day on which it was said: of a day that is over nothing more can come.
    """
    newest = day - 1
    first = max(first, newest - BASELINE_DAYS - max(WINDOW_DAYS) + 1)
    found: list[UserDay] = []
    for past in range(first, newest + 1):
        rows, said = (counts.total(local.hours_of(past), axis) for axis in ("event", "due"))
        found.append(UserDay(int(rows[N]), *(int(said[code]) for code in (USER_RIGHT, USER_EDITED, USER_WRONG))))
    return found


def judge_users(days: Sequence[UserDay]) -> list[UserChange]:
    """The measures that are worse in the newest days than before them, the surest first.

    Parameters
    ----------
    days
        Consecutive days, oldest first.
    """
    words = np.array([day.words for day in days], np.float64)
    series = {
        "accept_rate": (np.array([day.accepted for day in days], np.float64), words, -1.0),
        "edit_rate": (np.array([day.edited for day in days], np.float64), words, 1.0),
        "complaint_rate": (
            np.array([day.rejected for day in days], np.float64), np.array([day.rows for day in days], np.float64), 1.0,
        ),
    }  # fmt: skip
    limit = 1.0 / (DAYS_A_FALSE_WARNING * len(series) * len(WINDOW_DAYS))
    found: dict[str, UserChange] = {}
    for measure, (x, n, worse) in series.items():
        for length in WINDOW_DAYS:
            change = _change(measure, x, n, worse, length)
            if change is not None and change.p_value <= limit:
                known = found.get(measure)
                found[measure] = change if known is None or change.p_value < known.p_value else known
    return sorted(found.values(), key=lambda change: (change.p_value, change.measure))


def _change(
    measure: str, x: np.ndarray[tuple[int], np.dtype[np.float64]], n: np.ndarray[tuple[int], np.dtype[np.float64]],
    worse: float, length: int,
) -> UserChange | None:  # fmt: skip
    newest = max(0, len(n) - max(WINDOW_DAYS))
    base = slice(max(0, newest - BASELINE_DAYS), newest)
    kept = n[base] >= WORDS_MIN
    own_x, own_n, count = x[base][kept], n[base][kept], float(n[-length:].sum())
    healthy = len(own_n)
    if healthy < BASELINE_DAYS_MIN or count < WORDS_MIN:
        return None
    usual, share = float(own_x.sum() / own_n.sum()), float(x[-length:].sum() / count)
    p = (float(own_x.sum()) + 0.5) / (float(own_n.sum()) + 1.0)
    noise = p * (1.0 - p)
    spread = max(0.0, float(np.var(own_x / own_n, ddof=1)) - noise * float(np.mean(1.0 / own_n)))
    variance = spread / length + noise / count + spread / healthy + noise / float(own_n.sum())
    z = worse * (share - usual) / math.sqrt(variance)
    if worse * (share - usual) < SHARE_CHANGE_MIN * usual:
        return None
    return UserChange(measure, length, int(count), share, usual, float(stats.t.sf(z, healthy - 1)))
