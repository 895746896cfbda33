"""Models that cannot be judged: each is tried again by itself, keeps no other one waiting, and is told of."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from schemas.database import will_pass, write
from schemas.errors import FlywheelError
from schemas.events import plane_alert
from schemas.times import format_us
from streams.raised import raise_alert
from streams.runtime import Runtime

AGAIN_S = (0.0, 1.0, 5.0, 15.0, 60.0)
"""After the first failure, the second and so on; the last for ever."""
TOLD_AFTER_S = 10.0
"""A disk that answers again soon wakes nobody."""

log = structlog.get_logger("flywheel.monitor")


@dataclass
class Trouble:
    """What keeps a model from being judged.

    Attributes
    ----------
    at_us
        The event time from which on it was not judged when it began.
    since_s, again_s
        On the clock of this process: when it began, and before which it is not tried again.
    failures
        So far.
    why
        In words that hold nothing of the rows.
    """

    at_us: int
    since_s: float
    again_s: float = 0.0
    failures: int = 0
    why: str = ""
    is_told: bool = False


class Troubles:
    """Guards the work on each model."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._known: dict[str, Trouble] = {}

    @property
    def models(self) -> set[str]:
        """Those that cannot be judged."""
        return set(self._known)

    def why(self, model: str) -> str | None:
        """Why a model is not judged; None: it is."""
        return self._known[model].why if model in self._known else None

    def guard(self, model: str, work: Callable[[], None], stands_at: Callable[[], int]) -> None:
        """Do something for a model, unless it failed a moment ago.

        What will pass by itself (the database is away) is the caller's: it holds for every model.

        Parameters
        ----------
        stands_at
            The event time from which on the model is not judged.
        """
        known = self._known.get(model)
        if known is not None and time.monotonic() < known.again_s:
            return
        try:
            work()
        except Exception as error:
            if will_pass(error):
                raise
            known = self._known.get(model) or Trouble(stands_at(), time.monotonic())
            self._known[model] = known
            self._failed(model, known, error)
            return
        if self._known.pop(model, None) is not None:
            log.info("judged_again", model=model)

    def _failed(self, model: str, known: Trouble, error: Exception) -> None:
        now = time.monotonic()
        if known.failures == 0:
            log.exception("judging_failed", model=model, at=format_us(known.at_us))
        known.why = str(error) if isinstance(error, FlywheelError) else f"{type(error).__name__}, see the worker's log"
        known.again_s = now + AGAIN_S[min(known.failures, len(AGAIN_S) - 1)]
        known.failures += 1
        if now - known.since_s >= TOLD_AFTER_S and not known.is_told:
            self._tell(model, known)
            known.is_told = True

    def _tell(self, model: str, known: Trouble) -> None:
        """A page that a person closes."""
        since = format_us(known.at_us)
        message = f"{model} is not judged from {since} on: {known.why.rstrip('.')}. Its hours wait until it can be."
        record = plane_alert(f"judging/{model}/{known.at_us}", message, known.at_us, model)
        with write(self._runtime.engine) as connection:
            raise_alert(connection, record, self._runtime.config.notify)
