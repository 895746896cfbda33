"""Keeps what parity checks find, tells of features that differ, and makes a check of every day.

The last result of a model is a JSON file in the state directory. The check of a day runs in a thread, and the user's
code in a process, so that neither holds the worker up; while one is under way, only the newest day waits.
"""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import structlog

from retrain.parity import FeatureParity, Parity, check
from retrain.paths import Paths
from schemas.database import read, write
from schemas.database.outbox import enqueue
from schemas.errors import FlywheelError
from schemas.times import DAY_US, HOUR_US, format_us
from streams.config import Config
from streams.logic.counts import LocalHours
from streams.logic.incident import WARN
from streams.runtime import Runtime, as_json
from streams.tables import alert as alert_table
from streams.watch import keep_alert

CHANNEL = "parity"

log = structlog.get_logger("flywheel.parity")


def checked(
    config: Config, engine: sa.Engine, model: str, since_us: int, until_us: int, *, sample: int | None = None
) -> dict[str, Any]:
    """Check a model's inputs of ``[since, until)``, keep what was found, and tell of it; what was found.

    A check that fails is kept with its error, so that it does not go unseen.
    """
    known = config.model(model)
    policy = known.parity if sample is None else known.parity.model_copy(update={"sample": sample})
    told: dict[str, Any] = {
        "model": model, "function": known.parity.function, "since": format_us(since_us), "until": format_us(until_us),
        "until_us": until_us, "max_share": known.parity.max_share, "error": None, "wrong": [],
    }  # fmt: skip
    try:
        found = check(config.archive_dir, known.contract, policy, since_us, until_us, config.root)
    except FlywheelError as error:
        keep(config.state_dir, told | {"error": str(error)})
        raise
    wrong = found.wrong(known.parity.max_share)
    told |= found.as_dict() | {"wrong": [each.feature for each in wrong]}
    keep(config.state_dir, told)
    if found.recomputed:
        _tell(config, engine, model, found, wrong, (since_us, until_us))
    return told


def keep(state_dir: Path, told: dict[str, Any]) -> None:
    """Write a result in the place of the last one."""
    path = Paths(state_dir).parity(told["model"])
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    draft.write_text(json.dumps(told, indent=1, default=str), encoding="utf-8")
    draft.replace(path)


def last(state_dir: Path, model: str) -> dict[str, Any] | None:
    """The last result of a model; None if there is none that can be read."""
    try:
        told: dict[str, Any] = json.loads(Paths(state_dir).parity(model).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return told


def _tell(
    config: Config, engine: sa.Engine, model: str, found: Parity, wrong: list[FeatureParity], span: tuple[int, int]
) -> None:
    """Open an incident with the first feature that differs, extend it with others, close it when none does."""
    columns = alert_table.c
    mine = (columns.model == model, columns.channel == CHANNEL, columns.closed_us.is_(None), columns.state != "closed")
    with read(engine) as connection:
        rows = connection.execute(sa.select(alert_table).where(*mine)).all()
    incident = rows[0].incident_id if rows else f"{model}-{format_us(span[1])}-{CHANNEL}"
    known = {row.subject for row in rows}
    records: list[dict[str, Any]] = []
    for each in wrong:
        if each.feature not in known:
            state = "extended" if rows or records else "opened"
            message = (
                f"{each.feature} differs from what the feature code of training gives in {each.beyond} of {each.rows}"
                f" sampled rows; {each.exact_share:.0%} are equal: training-serving skew."
            )
            detail = {"exact": each.exact, "beyond": each.beyond, "rows": each.rows, "examples": list(each.examples)}
            records.append(_record(model, incident, state, each.feature, message, detail, span))
    if rows and not wrong:
        message = f"All of {found.recomputed} sampled rows agree again."
        records.append(_record(model, incident, "closed", rows[0].subject, message, {}, span))
    for record in records:
        with write(engine) as connection:
            keep_alert(connection, record, config.notify)
            enqueue(connection, "alerts", model, record)


def _record(
    model: str, incident: str, state: str, subject: str, message: str, detail: dict[str, Any], span: tuple[int, int]
) -> dict[str, Any]:
    return {
        "alert_id": f"{incident}/{'closed' if state == 'closed' else subject}", "incident_id": incident,
        "model": model, "version": "", "event_time": span[1], "severity": WARN, "state": state, "channel": CHANNEL,
        "subject": subject, "slice": "all", "window_start": span[0], "window_end": span[1], "topic": None,
        "partition": None, "offset": None, "message": message, "detail": as_json(detail),
    }  # fmt: skip


class DailyParity:
    """Checks yesterday's inputs of every model that has feature code, at the first full hour of a local day."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        named = [name for name in runtime.plans if runtime.config.model(name).parity.function is not None]
        self._local = {name: LocalHours(runtime.plans[name].contract.timezone) for name in named}
        self._wanted: dict[str, int] = {}
        self._changed = threading.Condition()
        self._is_stopped = False
        if named:
            threading.Thread(target=self._work, name="parity", daemon=True).start()

    def look(self, moment_us: int) -> None:
        """A full hour has come."""
        for model, local in self._local.items():
            if local(moment_us // HOUR_US)[1] == 0:
                with self._changed:
                    self._wanted[model] = moment_us
                    self._changed.notify()

    def stop(self) -> None:
        """Take no more."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._wanted or self._is_stopped)
                if self._is_stopped:
                    return
                model, until_us = self._wanted.popitem()
            known = last(self._runtime.config.state_dir, model)
            if known is not None and known["until_us"] >= until_us:  # judged again after a restart
                continue
            try:
                told = checked(self._runtime.config, self._runtime.engine, model, until_us - DAY_US, until_us)
                log.info("parity_checked", model=model, rows=told["recomputed"], wrong=told["wrong"])
            except FlywheelError as error:
                log.error("parity_failed", model=model, reason=str(error))
            except Exception:
                log.exception("parity_failed", model=model)
