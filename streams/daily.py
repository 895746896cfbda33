"""What is done for a model once a local day, beside the stream; its last result is a file."""

from __future__ import annotations

import json
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog

from schemas.errors import FlywheelError
from schemas.times import HOUR_US
from streams.logic.counts import LocalHours

log = structlog.get_logger("flywheel.daily")


class Daily(ABC):
    """Does something for each model at the first full hour of its local day, in a thread of its own.

    Parameters
    ----------
    name
        Of the thread, and in the log.
    clocks
        The models, each with its contract's clock; without any there is no thread.
    share
        At most so much of the time is worked.
    """

    def __init__(self, name: str, clocks: Mapping[str, LocalHours], *, share: float = 1.0) -> None:
        self._name, self._clocks, self._share = name, clocks, share
        self._wanted: dict[str, int] = {}
        self._changed = threading.Condition()
        self._is_stopped = False
        if clocks:
            threading.Thread(target=self._work, name=name, daemon=True).start()

    def look(self, moment_us: int) -> None:
        """A full hour has come."""
        for model, local in self._clocks.items():
            if local(moment_us // HOUR_US)[1] == 0:
                with self._changed:
                    self._wanted[model] = moment_us
                    self._changed.notify()

    def stop(self) -> None:
        """Take no more."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify()

    @abstractmethod
    def last(self, model: str) -> dict[str, Any] | None:
        """The last result of a model: a day is not done twice, also after a restart."""

    @abstractmethod
    def do(self, model: str, until_us: int) -> None:
        """Do it for the day that ends here."""

    def _work(self) -> None:
        rest_s = 0.0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_stopped, timeout=rest_s)
                self._changed.wait_for(lambda: self._wanted or self._is_stopped)
                if self._is_stopped:
                    return
                model, until_us = self._wanted.popitem()
            known = self.last(model)
            if known is not None and known["until_us"] >= until_us:
                continue
            started = time.monotonic()
            try:
                self.do(model, until_us)
            except FlywheelError as error:
                log.error("daily_failed", what=self._name, model=model, reason=str(error))
            except Exception:
                log.exception("daily_failed", what=self._name, model=model)
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
