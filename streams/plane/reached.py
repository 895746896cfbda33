"""Which hour of event time was open when a record of a partition number came.

An hour is judged once, when event time has left it, by the counts that it has then. What belongs to an hour that is
over, and comes only now (a truth), must not stand there: nobody would judge it, or somebody would by chance. It stands
in the hour that is open. Event time is that of the predictions, less the disorder that is allowed, as in the plane's
watermark; of records of one broker time stamp none is said to be the first, so those before it decide.
"""

from __future__ import annotations

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
FEW = 8
"""Of the hours that begin in a step."""


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
        known = list(marks) or [(BEGINNING, (newest_us - disorder_us) // HOUR_US)]
        self._stamps, self._hours = np.array(known, np.int64).T

    @property
    def marks(self) -> tuple[Mark, ...]:
        """For a checkpoint."""
        return tuple(zip(self._stamps.tolist(), self._hours.tolist(), strict=True))

    def advance(self, clock: Clock) -> None:
        """Take in how event time went on along predictions; those that were taken in before change nothing."""
        hours = (clock.newest_us - self._disorder_us) // HOUR_US
        if hours[-1] <= self._hours[-1]:
            return
        new = np.flatnonzero((np.diff(hours, prepend=hours[0] - 1) > 0) & (hours > self._hours[-1]))
        self._stamps = np.append(self._stamps, clock.order_ts[new])
        self._hours = np.append(self._hours, hours[new])

    def not_before(self, times_us: Ints, orders_ts: Ints) -> Ints:
        """These event times, or the beginning of the hour that was open at each order time stamp if it is later.

        >>> reached = Reached(0, 0, [(BEGINNING, 0), (50, 7)])
        >>> (reached.not_before(np.array([1, 1]), np.array([50, 51])) // HOUR_US).tolist()
        [0, 7]
        """
        if not len(times_us):
            return times_us
        first, last = (max(0, int(self._stamps.searchsorted(at)) - 1) for at in (orders_ts.min(), orders_ts.max()))
        if times_us.min() >= self._hours[last] * HOUR_US:  # the usual case: nothing is late
            return times_us
        if last - first <= FEW:  # a comparison is a tenth of a search
            open_us = np.full(len(times_us), self._hours[first] * HOUR_US)
            for stamp, hour in zip(self._stamps[first + 1 : last + 1], self._hours[first + 1 : last + 1], strict=True):
                open_us[orders_ts > stamp] = hour * HOUR_US
            return np.asarray(np.maximum(times_us, open_us))
        at = np.maximum(np.searchsorted(self._stamps, orders_ts, "left") - 1, 0)
        return np.asarray(np.maximum(times_us, self._hours[at] * HOUR_US))

    def forget(self, before_ts: int) -> None:
        """No record below this order time stamp will be asked for any more."""
        first = max(0, int(np.searchsorted(self._stamps, before_ts, "left")) - 1)
        self._stamps, self._hours = self._stamps[first:], self._hours[first:]
