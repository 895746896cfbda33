"""What flows, what is wrong and what waits for people: everything that ``flywheel status`` and the page tell.

Only reads: SQL, and what the broker said of its logs (:mod:`streams.ends`). A broker that is away, a database without
rows and a model that nobody registered are states to be told, not errors. Times leave as ISO 8601 texts.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from labeling import queries
from retrain.registry import CHAMPION
from retrain.tables import alias_event, model_version, retrain_decision, retrain_run, run_candidate
from schemas.database import open_database, read, unreachable
from schemas.database.outbox import outbox
from schemas.errors import FlywheelError, UsageError
from schemas.events import SOURCES, topic
from schemas.parts import N_TRUTH, N
from schemas.registry import Codec
from schemas.times import format_us, now_us
from streams.config import Config
from streams.days import quality_days
from streams.ends import LogEnds
from streams.logic.coverage import coverage as coverage_of
from streams.logic.coverage import in_words
from streams.parity import last as last_parity
from streams.tables import alert, dead_letter, monitor_state, progress
from streams.tables import staleness as staleness_table
from streams.windows import LogTotals, WindowReader

QUALITY_DAYS = 7
RUNS_SHOWN = 5
PARITY_SHOWN = 3
COUNTED = ("duplicates", "misplaced", "orphans", "dead", "gap", "late", "behind")
"""What may become of a record but being worked on, as segments count it."""
RARE = ("misplaced", "orphans", "behind")
"""Shown where there are any."""
SEVERITIES = ("critical", "page", "warn", "info")
CLOSED = "closed"


@dataclass
class StatusReader:
    """Gathers the status again and again; may be asked from several threads.

    Parameters
    ----------
    config, engine, codec
        Of the installation that is looked at.
    """

    config: Config
    engine: sa.Engine
    codec: Codec
    windows: WindowReader = field(init=False)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.windows = WindowReader(self.codec)

    def gather(self, ends: LogEnds, *, model: str | None = None, time_us: int | None = None) -> dict[str, Any]:
        """The status as one JSON object.

        Parameters
        ----------
        ends
            What the broker said.
        model
            Only this model; default: all that are configured or have left a trace.
        time_us
            Processing time, for leases; default: now.

        Raises
        ------
        ConfigError
            If ``model`` is neither configured nor known.
        """
        moment = now_us() if time_us is None else time_us
        with self.lock, looking_at(self.engine) as connection:
            names = self._models(connection, model)
            logs = self.windows.logs(connection)
            models = {name: self._model(connection, name, moment) for name in names}
            events = events_of(logs, ends)
            told = {
                "time": format_us(moment),
                "broker": _broker(ends),
                "events": events,
                "monitored": sum(each["monitored"] for each in models.values()),
                "coverage": None,
                "lag": sum(each["lag"] for each in events.values()) if ends.is_known else None,
                "dead_letters": _dead_letters(connection, events),
                "watermark": _time(watermark(logs, ends)),
                "judged_until": _time(_judged_us(connection)),
                "outbox": _count(connection, outbox),
                "plane_alerts": _alerts(connection, ""),
                "models": models,
            }
        if model is None:
            told["coverage"] = coverage(told["monitored"], events)
        return told

    def _models(self, connection: sa.Connection, wanted: str | None) -> list[str]:
        known = set(self.config.models) | self.windows.models(connection)
        known |= set(connection.execute(sa.select(model_version.c.model).distinct()).scalars())
        if wanted is None:
            return sorted(known)
        if wanted not in known:
            self.config.model(wanted)
        return [wanted]

    def _model(self, connection: sa.Connection, name: str, moment_us: int) -> dict[str, Any]:
        totals = self.windows.totals(connection, name)
        queue = queries.stats(connection, name, moment_us).as_dict()
        return {
            "monitored": sum(counts.get(N, 0) for counts in totals.values()),
            "truths": sum(counts.get(N_TRUTH, 0) for counts in totals.values()),
            "coverage": self._coverage(connection, name),
            "versions": [
                {"version": version, "role": role, "monitored": counts.get(N, 0), "truths": counts.get(N_TRUTH, 0)}
                for (version, role), counts in sorted(totals.items())
            ],
            "champion": _champion(connection, name),
            "parity": _parity(self.config, name),
            "alerts": _alerts(connection, name),
            "staleness": _staleness(connection, name),
            "queue": {key: queue[key] for key in ("items", "open", "leased", "flagged", "done", "duplicate", "rules")},
            "labels": {key: queue[key] for key in ("labels", "labels_today", "verdicts", "answers", "reviewers")},
            "proposals": _proposals(connection, name),
            "retrain": {
                "last": _decision(connection, name, None),
                "last_yes": _decision(connection, name, True),
                "last_no": _decision(connection, name, False),
                "runs": _runs(connection, name),
            },
            **self._quality(connection, name),
        }

    def _coverage(self, connection: sa.Connection, name: str) -> dict[str, Any]:
        """Which checks are made of the model's features; ``why_not`` says it of the others, in sentences."""
        query = sa.select(monitor_state.c.learning).where(monitor_state.c.model == name)
        learning = connection.execute(query).scalar()
        silent = [f"{channel}: not monitored yet, because {why}" for channel, why in sorted((learning or {}).items())]
        if learning is None:
            silent = ["every channel: not monitored yet, because no worker has judged an hour"]
        configured = self.config.models.get(name)
        if configured is None:
            return {"why_not": [f"{name}: not monitored, because it is not configured"]}
        try:
            found = coverage_of(configured.contract.fields, configured.own_profile, configured.monitor)
        except FlywheelError as error:
            return {"why_not": [f"{name}: not monitored, because of its configuration: {error}"]}
        told = found.as_dict()
        return told | {"learning": learning, "why_not": [*silent, *in_words(told["not_monitored"])]}

    def _quality(self, connection: sa.Connection, name: str) -> dict[str, Any]:
        try:
            days = quality_days(self.windows, connection, self.config, name, last=QUALITY_DAYS)
        except FlywheelError as error:  # a contract that is gone or broken
            return {"quality": [], "quality_error": str(error)}
        return {"quality": [day.as_dict() for day in days]}


def _parity(config: Config, name: str) -> dict[str, Any] | None:
    """The last check of a model's served inputs against its feature code of training."""
    told = last_parity(config.state_dir, name)
    if told is None:
        return None
    names = ("since", "until", "sampled", "recomputed", "wrong", "error")
    worst = [{k: v for k, v in each.items() if k != "examples"} for each in told.get("features", [])[:PARITY_SHOWN]]
    return {each: told.get(each) for each in names} | {"features": worst}


@contextmanager
def looking_at(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A transaction that only reads; what the database refuses is told as one of our errors.

    Raises
    ------
    DatabaseUnreachableError
        If the server went away, the file cannot be read, or its tables are not ours.
    """
    try:
        with read(engine) as connection:
            yield connection
    except sa.exc.DBAPIError as error:
        raise unreachable(engine, error) from error


def open_status(config: Config) -> StatusReader:
    """A reader for the command line; where there is no database yet, of an empty one (nothing is created)."""
    from streams.registry import open_registry

    return StatusReader(config, open_for_reading(config), Codec(open_registry(config)))


def open_for_reading(config: Config) -> sa.Engine:
    """The database; where there is none yet, an empty one in memory.

    Raises
    ------
    DatabaseNewerError, DatabaseUnreachableError
    """
    return open_database("sqlite://" if _is_to_be_made(config) else config.database_url)


def open_for_writing(config: Config) -> sa.Engine:
    """The database; one that is not there is made for what is configured only, not in whatever folder this is.

    Raises
    ------
    UsageError
        If there is neither a configuration nor a database.
    DatabaseNewerError, DatabaseUnreachableError
    """
    if config.file is None and _is_to_be_made(config):
        raise UsageError(
            f"There is no flywheel.toml in {config.root} or above it, and no state in {config.state_dir}.",
            action="Go to the project's folder, or name its file: 'flywheel --config FILE ...'.",
        )
    return open_database(config.database_url)


def _is_to_be_made(config: Config) -> bool:
    path = sa.make_url(config.database_url).database
    return config.database_url.startswith("sqlite") and not (config.root / (path or "")).exists()


# -- logs ------------------------------------------------------------------------------------------------------------


def events_of(logs: Sequence[LogTotals], ends: LogEnds) -> dict[str, dict[str, int]]:
    """For each source topic: records produced (``in``), worked on (``read``), and what became of them.

    A record counts as produced when it was read, when it is known to be gone (``gap``), or while it waits on the
    broker (``lag``); logs of earlier brokers count with what was read of them.
    """
    found = {}
    for noun in SOURCES:
        own = [log for log in logs if log.topic == topic(noun)]
        read_records = sum(log.counters.get("records", 0) for log in own)
        counts = {name: sum(log.counters.get(name, 0) for log in own) for name in COUNTED}
        lag = _lag(own, ends, topic(noun))
        earlier = [log for log in own if log.cluster != current_cluster(logs, ends)]
        found[noun] = {
            "in": read_records + counts["gap"] + lag,
            "read": read_records,
            "lag": lag,
            "in_earlier_logs": sum(log.counters.get("records", 0) + log.counters.get("gap", 0) for log in earlier),
            **counts,
        }
    return found


def event_columns(events: dict[str, dict[str, int]]) -> list[str]:
    """What to show of :func:`events_of`; what is rare only where there is any."""
    return ["in", "read", "lag", *(n for n in COUNTED if n not in RARE or any(row[n] for row in events.values()))]


def current_cluster(logs: Iterable[LogTotals], ends: LogEnds) -> str | None:
    """The log that is being read: the broker's own word, else the one that was read last."""
    if ends.cluster is not None:
        return ends.cluster
    newest = max(logs, key=lambda log: log.updated_us, default=None)
    return newest.cluster if newest else None


def _lag(logs: Iterable[LogTotals], ends: LogEnds, name: str) -> int:
    reached = {log.partition: log.end for log in logs if log.cluster == ends.cluster}
    places = ((partition, low, high) for (known, partition), (low, high) in ends.ends.items() if known == name)
    return sum(max(0, high - max(low, reached.get(partition, low))) for partition, low, high in places)


def coverage(monitored: int, events: dict[str, dict[str, int]]) -> dict[str, float | None]:
    """Monitored pairs as a share of distinct predictions and of distinct inputs on the topics."""
    shares = {}
    for noun in ("predictions", "inputs"):
        distinct = events[noun]["in"] - events[noun]["duplicates"] - events[noun]["misplaced"]
        shares[noun] = round(monitored / distinct, 6) if distinct > 0 else None
    return shares


def watermark(logs: Sequence[LogTotals], ends: LogEnds) -> int | None:
    """How far event time has come: the least of the partitions that have something left to read, else the newest."""
    cluster = current_cluster(logs, ends)
    own = [log for log in logs if log.topic == topic("predictions") and log.cluster == cluster]
    own = own or [log for log in logs if log.topic == topic("predictions")]
    known = [(log.partition, log.end, log.watermark_us) for log in own if log.watermark_us is not None]
    busy = [us for partition, end, us in known if ends.ends.get((topic("predictions"), partition), (0, 0))[1] > end]
    return min(busy) if busy else max((us for _, _, us in known), default=None)


def _broker(ends: LogEnds) -> dict[str, Any]:
    return {
        "is_reachable": ends.is_known,
        "address": ends.brokers,
        "cluster": ends.cluster,
        "error": str(ends.error) if ends.error else None,
    }


def _dead_letters(connection: sa.Connection, events: dict[str, dict[str, int]]) -> dict[str, Any]:
    query = sa.select(dead_letter.c.reason, sa.func.count()).group_by(dead_letter.c.reason)
    reasons = {str(reason): int(count) for reason, count in connection.execute(query.order_by(dead_letter.c.reason))}
    counted = sum(each["dead"] for each in events.values())
    return {"total": max(counted, sum(reasons.values())), "by_reason": reasons}


# -- one model -------------------------------------------------------------------------------------------------------


def _time(us: int | None) -> str | None:
    return None if us is None else format_us(us)


def _count(connection: sa.Connection, table: sa.Table) -> int:
    return int(connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one())


def _judged_us(connection: sa.Connection) -> int | None:
    """Event time up to which alerts and triggers were judged, of the log that was read last."""
    query = sa.select(progress.c.judged_us).order_by(progress.c.updated_us.desc()).limit(1)
    found: int | None = connection.execute(query).scalar()
    return found


def _alerts(connection: sa.Connection, name: str) -> list[dict[str, Any]]:
    """Alerts of incidents that are open, the gravest and oldest first."""
    over = sa.select(alert.c.incident_id).where(
        alert.c.model == name, sa.or_(alert.c.state == CLOSED, alert.c.closed_us.is_not(None))
    )
    query = sa.select(alert).where(alert.c.model == name, alert.c.incident_id.not_in(over))
    rows = connection.execute(query.order_by(alert.c.time_us, alert.c.alert_id)).all()
    shown = (
        "alert_id", "incident_id", "version", "severity", "channel", "subject", "slice", "state", "message", "detail",
    )  # fmt: skip
    found = [{key: getattr(row, key) for key in shown} | {"since": format_us(row.time_us)} for row in rows]
    return sorted(found, key=lambda a: SEVERITIES.index(a["severity"]) if a["severity"] in SEVERITIES else -1)


def _champion(connection: sa.Connection, name: str) -> dict[str, Any] | None:
    query = (
        sa.select(alias_event, model_version.c.trainer, model_version.c.recipe, model_version.c.dataset)
        .join(
            model_version,
            sa.and_(model_version.c.model == alias_event.c.model, model_version.c.version == alias_event.c.version),
        )
        .where(alias_event.c.model == name, alias_event.c.alias == CHAMPION)
    )
    row = connection.execute(query.order_by(alias_event.c.id.desc()).limit(1)).first()
    if row is None:
        return None
    return {
        "version": row.version,
        "since": format_us(row.time_us),
        "previous": row.previous,
        "action": row.action,
        "actor": row.actor,
        "reason": row.reason,
        "trainer": row.trainer,
        "recipe": row.recipe.get("name"),
        "dataset": row.dataset,
    }


def _staleness(connection: sa.Connection, name: str) -> dict[str, Any] | None:
    """How far the inputs are from training, the most stale feature first; None before the first look."""
    row = connection.execute(sa.select(staleness_table).where(staleness_table.c.model == name)).first()
    return None if row is None else {"version": row.version, "looked": format_us(row.looked_us), **row.reading}


def _proposals(connection: sa.Connection, name: str) -> dict[str, Any]:
    rows = queries.proposals(connection, name)
    shown = ("proposal_id", "kind", "verdict", "cause", "state")
    return {
        "open": sum(row["state"] == "open" for row in rows),
        "newest": [{key: row[key] for key in shown} | {"since": format_us(row["created_us"])} for row in rows[:5]],
    }


def _decision(connection: sa.Connection, name: str, is_yes: bool | None) -> dict[str, Any] | None:
    query = sa.select(retrain_decision).where(retrain_decision.c.model == name)
    if is_yes is not None:
        query = query.where(retrain_decision.c.is_yes == is_yes)
    row = connection.execute(query.order_by(retrain_decision.c.id.desc()).limit(1)).first()
    if row is None:
        return None
    return {
        "is_yes": row.is_yes,
        "trigger": row.trigger,
        "reason": row.reason,
        "since": format_us(row.time_us),
        "last": format_us(row.last_us),
        "times": row.times,
        "run_id": row.run_id,
    }


def _runs(connection: sa.Connection, name: str) -> list[dict[str, Any]]:
    """The newest runs, with what was said of each challenger."""
    query = sa.select(retrain_run).where(retrain_run.c.model == name)
    rows = connection.execute(query.order_by(retrain_run.c.started_us.desc()).limit(RUNS_SHOWN)).all()
    tried = sa.select(run_candidate).where(run_candidate.c.run_id.in_([row.run_id for row in rows]))
    challengers: dict[str, list[dict[str, Any]]] = {}
    for row in connection.execute(tried.order_by(run_candidate.c.run_id, run_candidate.c.recipe)):
        said = {"recipe": row.recipe, "verdict": row.verdict, "reason": row.reason}
        challengers.setdefault(row.run_id, []).append(said)
    return [
        {
            "run_id": row.run_id,
            "trigger": row.trigger,
            "reason": row.reason,
            "state": row.state,
            "outcome": row.detail.get("outcome") or row.reason,
            "as_of": format_us(row.as_of_us),
            "champion": row.champion,
            "version": row.version,
            "candidates": challengers.get(row.run_id, []),
        }
        for row in rows
    ]
