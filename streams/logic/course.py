"""The course of channel D: every field's strongest evidence of each local day, and the line that it has to cross.

For people only, it decides nothing. Evidence below the line is worked out once a day, at its last hour, whose windows
of a day and more hold it; above the line every hour counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta

import numpy as np

from streams.logic.counts import Floats, Layout
from streams.logic.drift import line
from streams.logic.policy import MonitorPolicy

EPOCH = date(1970, 1, 1)
Z_MIN = 1.0
"""Below it evidence is told as none."""
DIGITS = 3


@dataclass(frozen=True)
class DriftDay:
    """One local day of a version.

    Attributes
    ----------
    day
        ISO 8601.
    evidence
        By slice and field: |z| and its line, of the window length that came nearest to its line.
    """

    version: str
    day: str
    evidence: Mapping[str, Mapping[str, tuple[float, float]]]


@dataclass
class Course:
    """The day that is under way, and those that nobody has kept yet.

    Attributes
    ----------
    day
        Since the epoch.
    best
        float64[2, slice, feature]: z and line of that day; 0: nothing was judged.
    """

    layout: Layout
    version: str
    day: int | None = None
    best: Floats = field(default_factory=lambda: np.zeros(0))
    over: list[DriftDay] = field(default_factory=list)

    def see(self, day: int, strongest: Floats, record: Floats, policy: MonitorPolicy) -> None:
        """Take in an hour's max |z| and the records, both by [length, slice, feature]."""
        if day != self.day:
            self.over = self.days()
            self.day, self.best = day, np.zeros((2, *strongest.shape[1:]))
        limit = line(record, policy)
        length = np.argmax(strongest / limit, axis=0)[None]
        z, own = (np.take_along_axis(x, length, axis=0)[0] for x in (strongest, limit))
        is_more = z * self.best[1] >= self.best[0] * own  # z / line, where the line may still be 0
        self.best = np.where(is_more & (own > 0), np.stack([z, own]), self.best)

    def days(self) -> list[DriftDay]:
        """The days that are over, and the one under way."""
        return [*self.over, *self._told()]

    def _told(self) -> list[DriftDay]:
        if self.day is None:
            return []
        names = [feature.name for feature in self.layout.profile.features]
        evidence: dict[str, dict[str, tuple[float, float]]] = {}
        for s, f in np.argwhere(self.best[0] >= Z_MIN).tolist():
            if not names[f].startswith("@"):  # never candidates
                z, line = (round(float(x), DIGITS) for x in self.best[:, s, f])
                evidence.setdefault(self.layout.slices[s], {})[names[f]] = (z, line)
        return [DriftDay(self.version, (EPOCH + timedelta(days=self.day)).isoformat(), evidence)]
