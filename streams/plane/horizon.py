"""How far apart the records of one id may come and still meet.

Broker time is cut into epochs, an eighth of the join horizon each. The **life** of an id begins with its first record
and lasts through that epoch and the eight after it, so that records of one horizon always meet. Within its life an id
has one input, one prediction and one sequence of feedback; what comes later begins a new life and meets nothing of the
old one. So what meets is a function of the logs and not of when memory was cleaned up, and no correction can take back
half of a pair. Feedback in whose life no prediction came is an orphan.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from streams.plane.plan import ORDER_TOPICS

EPOCHS = 8


def kept_s(horizon_s: int) -> int:
    """How long a source topic must keep its records, so that a worker without its join store can read enough of them
    again, and has another epoch for it.

    >>> kept_s(8 * 3600) / 3600
    18.0
    """
    return 2 * (EPOCHS + 1) * Horizon.of(horizon_s).epoch_ms // 1000


@dataclass(frozen=True)
class Horizon:
    """The join horizon in epochs of broker time.

    >>> Horizon.of(80).epoch_ms
    10000
    """

    epoch_ms: int

    @classmethod
    def of(cls, horizon_s: int) -> Horizon:
        """From the configuration's ``join_horizon_s``."""
        return cls(max(1, -(-horizon_s * 1000 // EPOCHS)))

    def epoch(self, order_ts: Any) -> Any:
        """The epoch of an order time stamp."""
        return order_ts // self.epoch_ms

    def begin(self, epoch: int) -> int:
        """The order time stamp at which an epoch begins."""
        return epoch * self.epoch_ms

    def end(self, epoch: int) -> int:
        """The order time stamp at which an epoch has ended."""
        return (epoch + 1) * self.epoch_ms

    def over_us(self, life: Any) -> Any:
        """Broker time, in microseconds, at which a life that began in an epoch is over."""
        return (life + EPOCHS + 1) * self.epoch_ms * 1000

    def life_of_over(self, over_us: Any) -> Any:
        """The inverse of :meth:`over_us`."""
        return over_us // (self.epoch_ms * 1000) - EPOCHS - 1

    def lives(self, rows: Any) -> Any:
        """The epoch in which each row's life began."""
        return rows["order"] // (self.epoch_ms * ORDER_TOPICS) - rows["age"].astype(np.int64)
