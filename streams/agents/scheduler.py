"""When to train: one look an hour of event time, an audit row for yes and no, and a thread that runs what was decided.

The clock is event time, so a replay of the past decides what the past would have decided. A decision's moment is the
full hour, whatever the pace at which the stream arrives.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
import structlog

from retrain.errors import RunInProgressError
from retrain.joined import archive_ends
from retrain.recipes import Incident
from retrain.run import RunRequest, run_retrain
from retrain.triggers import OpenAlert, audit, decide, gather
from schemas.database import read
from schemas.errors import FlywheelError
from schemas.times import HOUR_US
from streams.runtime import Runtime
from streams.tables import alert

LOOK_US = HOUR_US

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
        threading.Thread(target=self._work, name="retrain", daemon=True).start()

    def look(self, watermark_us: int | None) -> None:
        """Decide at every full hour up to the watermark that was not looked at; None: look again at the last one."""
        with self._lock:
            if watermark_us is None:
                if self._looked_us is not None:
                    self._look(self._looked_us)
                return
            reached = watermark_us // LOOK_US * LOOK_US
            first = reached if self._looked_us is None else self._looked_us + LOOK_US
            for moment_us in range(first, reached + 1, LOOK_US):
                self._looked_us = moment_us
                self._look(moment_us)

    def _look(self, moment_us: int) -> None:
        for model, plan in self._runtime.plans.items():
            policy = self._runtime.config.model(model).retrain
            if model in self._pending or self._runtime.models.resolve(model) is None:
                continue
            alerts = self._open_alerts(model)
            evidence = gather(
                self._runtime.engine, model, plan.contract.timezone, moment_us,
                labels=self._truths(model, moment_us), alerts=alerts,
            )  # fmt: skip
            decision = decide(policy, evidence)
            decision_id = audit(self._runtime.engine, model, decision, moment_us)
            if decision.is_yes:
                log.info("retrain_decided", model=model, trigger=decision.trigger, reason=decision.reason)
                request = RunRequest(
                    decision.trigger, decision.reason, moment_us, archive_ends(self._runtime.config.archive_dir),
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
