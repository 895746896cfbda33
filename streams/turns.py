"""Which version of a model that nobody registered answers: told by its own rows, hour by hour.

A version takes over at the first hour of its rows, and one that served before does when the other falls silent. That is
asked of hours that are over, so it does not depend on how the rows were cut into summaries. Shadows and canaries never
take over.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from schemas.parts import ALL_SLICE, N, Part
from schemas.times import HOUR_US

CHAMPION = "champion"


@dataclass
class Turns:
    """Rows of one model by hour and version, and the first hour of each version."""

    rows: dict[int, Counter[str]] = field(default_factory=dict)
    begun: dict[str, int] = field(default_factory=dict)

    def add(self, part: Part) -> None:
        """Take in a part of the model."""
        if part.axis != "event" or part.slice != ALL_SLICE or part.role != CHAMPION:
            return
        hour, number = part.window_us // HOUR_US, int(part.counts[part.codes == N].sum())
        self.rows.setdefault(hour, Counter())[part.version] += number
        if number > 0:
            self.begun[part.version] = min(hour, self.begun.get(part.version, hour))

    def next(self, version: str | None, first: int | None, after: int) -> tuple[int, str] | None:
        """The first hour in which another version than this one takes over, and which; None: none before ``after``.

        Parameters
        ----------
        version, first
            Who answers, and the first hour to ask of; None: nobody yet, from the beginning.
        """
        for hour in range(min(self.begun.values(), default=after) if first is None else first, after):
            rows = +self.rows.get(hour, Counter())
            taking = {name for name in rows if self.begun[name] == hour} or (set() if version in rows else set(rows))
            taker = max(taking, key=lambda name: (rows[name], name), default=version)
            if taker is not None and taker != version:
                return hour, taker
        return None
