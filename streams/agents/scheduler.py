"""When to train: looks at full hours of event time, audit rows for yes and no, a thread that runs what was decided.

The clock is event time, so a replay of the past decides what the past would have decided. A decision's moment is the
full hour, whatever the pace at which the stream arrives.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any
from zoneinfo import ZoneInfo

import sqlalchemy as sa
import structlog
from croniter import croniter

from retrain.errors import RunInProgressError
from retrain.joined import archive_ends
from retrain.recipes import Incident
from retrain.run import RunRequest, run_retrain
from retrain.triggers import OpenAlert, audit, decide, gather, ripe_us
from schemas.database import read
from schemas.errors import FlywheelError
from schemas.times import HOUR_US, from_us, to_us
from streams.parity import DailyParity
from streams.runtime import Runtime
from streams.tables import alert
from streams.weak import DailyScan

ROUND_US = 6 * HOUR_US
"""A look costs some 10 ms of SQL; volume and ripe proposals can wait for a quarter of a day of event time."""

log = structlog.get_logger("flywheel.retrain")


class Scheduler:
    """Decides for every model, and runs one training after the other.

    Parameters
    ----------
    truths
        How many truths of a model were due before an event time.
    """

    def __init__(self, runtime: Runtime, truths: Callable[[str, int], int]) -> None:
        self._runtime, self._truths = runtime, truths
        self._looked_us: int | None = None
        self._wanted: queue.Queue[tuple[str, RunRequest] | None] = queue.Queue()
        self._lock = threading.Lock()
        self._pending: set[str] = set()
        self._ripe_us: dict[str, int] = {}
        self._scan = DailyScan(runtime)
        self._parity = DailyParity(runtime)
        threading.Thread(target=self._work, name="retrain", daemon=True).start()

    def look(self, moment_us: int, *, is_news: bool = False) -> None:
        """Decide at a full hour, if it is one at which something may have changed.

        That is every sixth hour of the day, an hour in which a schedule is due, or one with news (an alert).
        """
        with self._lock:
            before, self._looked_us = self._looked_us, moment_us
            self._scan.look(moment_us)
            self._parity.look(moment_us)
            for model in self._runtime.plans:
                is_round = moment_us % ROUND_US == 0 or before is None
                if is_news or is_round or self._is_due(model, before or moment_us, moment_us):
                    self._look(model, moment_us)

    def begin(self, judged_us: int) -> None:
        """It was judged up to here, by another worker or before this start."""
        self._scan.look(judged_us, is_start=True)
        self._parity.look(judged_us, is_start=True)

    def look_again(self) -> None:
        """Decide once more at the last hour, because people decided something."""
        with self._lock:
            for model in self._runtime.plans:
                if self._looked_us is not None:
                    self._look(model, self._looked_us)

    def _is_due(self, model: str, after_us: int, moment_us: int) -> bool:
        """Whether a schedule's time, or that of an accepted change of meaning, lies in between."""
        if after_us < self._ripe_us.get(model, 0) <= moment_us:
            return True
        cron = self._runtime.config.model(model).retrain.cron
        if cron is None:
            return False
        zone = ZoneInfo(self._runtime.plans[model].contract.timezone)
        since = from_us(after_us).astimezone(zone)
        return to_us(croniter(cron, since).get_next(type(since))) <= moment_us

    def _look(self, model: str, moment_us: int) -> None:
        runtime, plan = self._runtime, self._runtime.plans[model]
        if model in self._pending or runtime.models.resolve(model) is None:
            return
        evidence = gather(
            runtime.engine, model, plan.contract.timezone, moment_us,
            labels=self._truths(model, moment_us), alerts=self._open_alerts(model),
        )  # fmt: skip
        policy = runtime.config.model(model).retrain
        changes = [p.from_us for p in evidence.proposals if p.kind == "new_contract_version" and p.from_us is not None]
        if changes:
            self._ripe_us[model] = ripe_us(policy, max(changes))
        decision = decide(policy, evidence)
        decision_id = audit(runtime.engine, model, decision, moment_us)
        if decision.is_yes:
            log.info("retrain_decided", model=model, trigger=decision.trigger, reason=decision.reason)
            request = RunRequest(
                decision.trigger, decision.reason, moment_us, archive_ends(runtime.config.archive_dir),
                self._incidents(model), labels=evidence.labels, decision_id=decision_id,
            )  # fmt: skip
            self._enqueue(model, request)

    def request(self, record: dict[str, Any]) -> None:
        """A training that somebody asked for on the ``retrain`` topic; asked twice while one waits, it is done once."""
        model = record["model"]
        if model not in self._runtime.plans or model in self._pending:
            return
        ends = archive_ends(self._runtime.config.archive_dir)
        labels = self._truths(model, record["time"])
        self._enqueue(
            model, RunRequest("manual", record["reason"], record["time"], ends, self._incidents(model), labels=labels)
        )

    def stop(self) -> None:
        """Take no more; a run under way is given up with the process, and its parts are found by the next one."""
        self._wanted.put(None)
        self._scan.stop()
        self._parity.stop()

    @property
    def is_busy(self) -> bool:
        """Whether a training runs or waits."""
        return bool(self._pending)

    def _enqueue(self, model: str, request: RunRequest) -> None:
        self._pending.add(model)
        self._wanted.put((model, request))

    def _work(self) -> None:
        while (wanted := self._wanted.get()) is not None:
            model, request = wanted
            contract, policy = self._runtime.plans[model].contract, self._runtime.config.model(model).retrain
            try:
                result = run_retrain(self._runtime.engine, self._runtime.paths, contract, policy, request)
                log.info("retrain_finished", model=model, run=result.run_id, state=result.state, reason=result.reason)
            except RunInProgressError as error:
                log.info("retrain_elsewhere", model=model, reason=error.message)
            except FlywheelError as error:
                log.error("retrain_failed", model=model, reason=str(error))
            except Exception:
                log.exception("retrain_failed", model=model)
            finally:
                self._pending.discard(model)

    def _open_alerts(self, model: str) -> list[OpenAlert]:
        columns = alert.c
        query = sa.select(alert).where(columns.model == model, columns.closed_us.is_(None), columns.state != "closed")
        with read(self._runtime.engine) as connection:
            rows = connection.execute(query.order_by(columns.time_us)).all()
        return [OpenAlert(row.alert_id, row.time_us, row.severity) for row in rows]

    def _incidents(self, model: str) -> tuple[Incident, ...]:
        columns = alert.c
        query = sa.select(alert).where(columns.model == model, columns.severity.in_(("page", "critical")))
        with read(self._runtime.engine) as connection:
            rows = connection.execute(query.order_by(columns.time_us)).all()
        found: dict[str, Incident] = {}
        for row in rows:
            if row.state == "closed" or row.incident_id in found:
                continue
            start = row.detail.get("window_start") or row.time_us
            found[row.incident_id] = Incident(row.incident_id, start, row.closed_us, row.channel)
        return tuple(found.values())
