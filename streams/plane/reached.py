"""Which hour of event time was open when a record of a partition number came.

An hour is judged once, when event time has left it, by the counts that it has then. What belongs to an hour that is
over, and comes only now (a truth), must not stand there: nobody would judge it, or somebody would by chance. It stands
in the hour that is open. Event time is that of the predictions, less the disorder that is allowed, as in the plane's
watermark; of records of one broker time stamp none is said to be the first, so those before it decide.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from schemas.parts import Ints
from schemas.times import HOUR_US

if TYPE_CHECKING:
    from streams.plane.numbered import Clock

Mark = tuple[int, int]
"""The order time stamp of the first prediction of an hour, or after it, and that hour."""
BEGINNING = -1
"""An order time stamp before all others."""


class Reached:
    """The hours of a log, from the oldest that a restart may ask for.

    Parameters
    ----------
    disorder_us
        See the configuration's ``disorder_ms``.
    newest_us
        The newest event time before the log's part that is read.
    marks
        What is known of the log already: hours beyond that part, too.
    """

    def __init__(self, disorder_us: int, newest_us: int, marks: Iterable[Mark] = ()) -> None:
        self._disorder_us = disorder_us
        self._marks = list(marks) or [(BEGINNING, (newest_us - disorder_us) // HOUR_US)]

    @property
    def marks(self) -> tuple[Mark, ...]:
        """For a checkpoint."""
        return tuple(self._marks)

    def advance(self, clock: Clock) -> None:
        """Take in how event time went on along predictions; those that were taken in before change nothing."""
        hours = (clock.newest_us - self._disorder_us) // HOUR_US
        new = np.flatnonzero((np.diff(hours, prepend=hours[0] - 1) > 0) & (hours > self._marks[-1][1]))
        self._marks += zip(clock.order_ts[new].tolist(), hours[new].tolist(), strict=True)

    def not_before(self, times_us: Ints, orders_ts: Ints) -> Ints:
        """These event times, or the beginning of the hour that was open at each order time stamp if it is later.

        >>> reached = Reached(0, 0, [(BEGINNING, 0), (50, 7)])
        >>> (reached.not_before(np.array([1, 1]), np.array([50, 51])) // HOUR_US).tolist()
        [0, 7]
        """
        stamps, hours = np.array(self._marks, np.int64).T
        at = np.maximum(np.searchsorted(stamps, orders_ts, "left") - 1, 0)
        return np.asarray(np.maximum(times_us, hours[at] * HOUR_US))

    def forget(self, before_ts: int) -> None:
        """No record below this order time stamp will be asked for any more."""
        del self._marks[: max(0, bisect_left(self._marks, (before_ts, -(2**62))) - 1)]
