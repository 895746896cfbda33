"""What is done for a model once a local day, beside the stream: every day that has predictions, one after the other.

A day is looked at when it has been judged, as it was known then (:mod:`streams.cuts`): what comes later, and how long
the look had to wait, changes nothing. How far a model is stands in a file of its own; what waits follows from it.
"""

from __future__ import annotations

import json
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from retrain.paths import Paths
from schemas.errors import FlywheelError
from schemas.times import HOUR_US
from streams.config import Config
from streams.cuts import Cut, cut_at, first_us
from streams.logic.counts import LocalHours

log = structlog.get_logger("flywheel.daily")


@dataclass(frozen=True)
class Day:
    """A local day that is over, and what had come of it by then."""

    since_us: int
    until_us: int
    cut: Cut


class Daily(ABC):
    """Does something for each model when a local day is over, in a thread of its own.

    Parameters
    ----------
    name
        Of the thread, of the file of progress, and in the log.
    clocks
        The models, each with its contract's clock; without any there is no thread.
    share
        At most so much of the time is worked.
    """

    def __init__(self, name: str, config: Config, clocks: Mapping[str, LocalHours], *, share: float = 1.0) -> None:
        self._name, self._config, self._clocks, self._share = name, config, clocks, share
        self._wanted: dict[str, int] = {}
        self._told: dict[str, int] = {}
        self._changed = threading.Condition()
        self._is_stopped = False
        if clocks:
            threading.Thread(target=self._work, name=name, daemon=True).start()

    def look(self, moment_us: int, *, is_start: bool = False) -> None:
        """A full hour was judged.

        Parameters
        ----------
        is_start
            By another worker, or before this start: what is left of the days before it is not known here.
        """
        with self._changed:
            for model, local in self._clocks.items():
                day = local(moment_us // HOUR_US)[0]
                if is_start or day != self._told.get(model):
                    self._told[model], self._wanted[model] = day, moment_us
                    self._changed.notify()

    def stop(self) -> None:
        """Take no more."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify()

    @property
    def models(self) -> list[str]:
        """For which it is done."""
        return list(self._clocks)

    @abstractmethod
    def do(self, model: str, day: Day) -> None:
        """Do it for this day; what was done of a day that was cut short is done again, and must change nothing."""

    def step(self, model: str, judged_us: int) -> bool:
        """Do the oldest day that waits, of those that are over at this moment; False: there is none."""
        path = Paths(self._config.state_dir).daily(self._name, model)
        known = kept(path)
        earlier = None if known is None else Cut.of(known["cut"])
        reached_us = first_us(self._config.archive_dir, model) if known is None else known["until_us"]
        if reached_us is None:
            return False
        while (until_us := self._end_of_day(model, reached_us)) <= judged_us:
            cut = cut_at(self._config.archive_dir, self._config.disorder_ms * 1000, until_us, earlier)
            if cut is None:
                return False
            if earlier is None or cut.stamp_ms > earlier.stamp_ms:  # else no prediction came on that day
                self.do(model, Day(self._start_of_day(model, until_us), until_us, cut))
                keep(path, {"until_us": until_us, "cut": cut.as_dict()})
                return True
            reached_us = max(until_us, cut.left_us)
        return False

    def _end_of_day(self, model: str, moment_us: int) -> int:
        """When the local day of a moment ends."""
        local, hour = self._clocks[model], moment_us // HOUR_US
        return (local.hours_of(local(hour)[0])[-1] + 1) * HOUR_US

    def _start_of_day(self, model: str, until_us: int) -> int:
        local = self._clocks[model]
        return local.hours_of(local(until_us // HOUR_US - 1)[0])[0] * HOUR_US

    def _work(self) -> None:
        rest_s = 0.0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_stopped, timeout=rest_s)
                self._changed.wait_for(lambda: self._wanted or self._is_stopped)
                if self._is_stopped:
                    return
                model, judged_us = next(iter(self._wanted.items()))
            started, is_done = time.monotonic(), True  # what fails is tried again with the next day
            try:
                is_done = not self.step(model, judged_us)
            except FlywheelError as error:
                log.error("daily_failed", what=self._name, model=model, reason=str(error))
            except Exception:
                log.exception("daily_failed", what=self._name, model=model)
            with self._changed:
                newest_us = self._wanted.pop(model)
                if not is_done or newest_us > judged_us:
                    self._wanted[model] = newest_us  # after those of other models
            rest_s = (time.monotonic() - started) * (1 / self._share - 1)


def keep(path: Path, told: dict[str, Any]) -> None:
    """Write a result in the place of the last one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    draft.write_text(json.dumps(told, indent=1, default=str), encoding="utf-8")
    draft.replace(path)


def kept(path: Path) -> dict[str, Any] | None:
    """The last result; None if there is none that can be read."""
    try:
        told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return told
