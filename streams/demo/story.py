"""The flights' story, 1 April to 26 May 2013: the loop turns once.

Real: flights, truths, their delays, weather, 22 April. Injected: the fault. Simulated: the reviewer under ``--auto``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import polars as pl
import sqlalchemy as sa

from labeling.cards import build_card
from labeling.leases import Filters
from labeling.store import LabelStore
from retrain.initial import register_initial
from retrain.paths import Paths
from retrain.registry import CHAMPION, Registry
from retrain.tables import retrain_run, run_candidate
from schemas.database import open_database, read
from schemas.events import SOURCES, topic
from schemas.profile import build_profile
from schemas.times import from_us, to_us
from streams.config import Config
from streams.demo import flights
from streams.demo.drive import Driver, figures
from streams.demo.events import Batch
from streams.demo.faults import fault_named
from streams.demo.reviewer import review_flight
from streams.demo.service import PredictionService
from streams.demo.workspace import Workspace
from streams.logic.quality import Quality
from streams.plane.plan import RULE_NO_TRUTH
from streams.supervisor import Supervisor
from streams.tables import alert, dead_letter, source_partition

REVIEWS_A_DAY = 12
"""What the simulated reviewer answers each morning of each kind: the median day has 10 failures."""
BATCHES_AT_ONCE = 24
"""Hours that are answered in one go, once the day has begun."""
REVIEWER, OWNER = "auto", "auto-owner"
BEFORE = (date(2013, 4, 1), date(2013, 5, 5))
DURING = (date(2013, 5, 6), date(2013, 5, 13))
AFTER = (date(2013, 5, 14), date(2013, 5, 26))
ZONE = ZoneInfo("America/New_York")

TOML = """# Written by 'flywheel demo'; every key is explained by 'flywheel config schema'.
[flywheel]
partitions = 1
segment_records = 256       # half a day a partition; the default suits 100,000 predictions a day and more
summary_interval_ms = 50
archive_interval_ms = 50
order_slack_ms = 20
window_s = 3600
web_port = 0

[models.flights]
contract = "flights.avsc"
profile = "profile.json"

[models.flights.failures]
{rules}

[models.flights.retrain]
cron = "0 4 6 * *"          # each 6th of the month at 4 h, New York time
on_alert = false            # the schedule and accepted proposals train, a page alone does not
trainer = "sklearn_hgb"

[models.flights.retrain.params]
{parameters}

[models.flights.retrain.gate]
min_days = 4                # to learn from after a change of meaning, and as many to be judged by
"""

Say = Callable[[str], None]
Review = Callable[[LabelStore], None]
"""Lets a person answer the store's open items."""


@dataclass
class Told:
    """What the story has said already."""

    alerts: set[str] = field(default_factory=set)
    runs: set[str] = field(default_factory=set)


def local_us(day: date, hour: int = 0) -> int:
    """Microseconds of a local hour of New York."""
    return to_us(datetime(day.year, day.month, day.day, hour, tzinfo=ZONE))


def day_of(time_us: int) -> date:
    """The local day of a moment."""
    return from_us(time_us).astimezone(ZONE).date()


def prepare(workspace: Workspace, departures: pl.DataFrame, say: Say, **overrides: Any) -> Config:
    """Configuration, profile and the first champion, if they are not there yet."""
    contract = flights.contract()
    rules = "\n".join(f"{name} = {json.dumps(rule)}" for name, rule in flights.FAILURE_RULES.items())
    parameters = "\n".join(f"{name} = {json.dumps(value)}" for name, value in flights.TRAINER_PARAMETERS.items())
    config = workspace.configure(
        contract, flights.CONTRACT_FILE, TOML.format(rules=rules, parameters=parameters), **overrides
    )
    engine = open_database(config.database_url)
    model = config.model(flights.MODEL)
    training = flights.training_table(departures)
    try:
        if Registry(engine).resolve(flights.MODEL) is None:
            say(f"1. Training the champion on January to March: {training.height:,} flights.")
            profile_file = workspace.folder / "profile.json"
            profile = build_profile(
                training, contract.fields, model=flights.MODEL, fingerprint=contract.fingerprint,
                labels=contract.target.labels,
            )  # fmt: skip
            profile_file.write_text(profile.to_json(), encoding="utf-8")
            version = register_initial(engine, Paths(config.state_dir), contract, model.retrain, training, actor="demo")
            shown = {k: round(v, 4) for k, v in version.metrics.items() if isinstance(v, float)}
            say(f"   version {version.version}: {json.dumps(shown)}")
    finally:
        engine.dispose()
    return config


class Story:
    """Tells the story and keeps what its JSON shows."""

    def __init__(self, driver: Driver, workspace: Workspace, say: Say, *, review: Review | None) -> None:
        self.driver, self.workspace, self.say, self._review = driver, workspace, say, review
        self.told = Told()
        self.before = driver.service.version
        self._asked_of: set[str] = set()

    def play(self, batches: Iterator[Batch]) -> None:
        """Send day after day; each morning see what the night decided, and review."""
        yesterday: date | None = None
        begun: date | None = None
        rest: list[Batch] = []
        for batch in batches:
            today = day_of(batch.start)
            rest.append(batch)
            if batch.inputs.height and today != begun:
                self.driver.settle_labels()  # the night's decisions know them
                self._send(rest)
                begun = today
                self._morning(yesterday)
                yesterday = today
            elif len(rest) == BATCHES_AT_ONCE:
                self._send(rest)
        self._send(rest)
        self.driver.settle()
        self._news()
        if yesterday is not None:
            self._tell_day(yesterday)

    def _send(self, batches: list[Batch]) -> None:
        if batches:
            self.driver.send(batches)
            batches.clear()

    def _morning(self, yesterday: date | None) -> None:
        """The first flights of a day are gone: the night is judged, and people come to work."""
        self.driver.settle()
        if yesterday is not None:
            self._tell_day(yesterday)
        self._news()
        self._ask()
        if self._review_auto():
            self.driver.settle()  # what the owner decided counts before the day goes on
        self._news()

    def _ask(self) -> None:
        """The first cards of every page are the person's, where there is one; all others the simulated reviewer's."""
        pages = self._open_pages()
        if self._review is not None and pages - self._asked_of:
            self._review(self.driver.store)
            self.driver.settle()
        self._asked_of = pages

    def _tell_day(self, day: date) -> None:
        self.workspace.done(day.isoformat())
        seen = self.driver.quality(local_us(day), local_us(day + timedelta(days=1)))
        self.say(self._line(day, seen))

    def _line(self, day: date, seen: Quality) -> str:
        stats = self.driver.store.stats()
        mature = seen.coverage or 0.0
        pages = self._open_pages()
        state = f"{len(pages)} open: {', '.join(sorted(pages))[:40]}" if pages else "quiet"
        loss, bias = seen.log_loss or 0.0, seen.bias or 0.0
        return (
            f"{day:%d %b}  {seen.rows:5,} flights  {mature:4.0%} known  log loss {loss:.3f}  bias {bias:+.3f}  "
            f"queue {stats.open:4d}  labels {stats.labels:3d}  {state}"
        )

    def _open_pages(self) -> set[str]:
        columns = alert.c
        query = sa.select(alert).where(columns.closed_us.is_(None), columns.severity.in_(("page", "critical")))
        with read(self.driver.engine) as connection:
            return {row.subject for row in connection.execute(query) if row.state != "closed"}

    def _news(self) -> None:
        """Alerts, proposals and runs that were not told yet."""
        with read(self.driver.engine) as connection:
            alerts = connection.execute(sa.select(alert).order_by(alert.c.time_us, alert.c.alert_id)).all()
            runs = connection.execute(sa.select(retrain_run).order_by(retrain_run.c.started_us)).all()
        for row in alerts:
            if row.alert_id not in self.told.alerts and row.severity in ("page", "critical"):
                place = row.detail.get("offset")
                where = (
                    f" First record: partition {row.detail['partition']}, offset {place}." if place is not None else ""
                )
                moment = from_us(row.time_us).astimezone(ZONE)
                self.say(f"   {moment:%d %b %H:%M} {row.severity} {row.state}: {row.message}{where}")
            self.told.alerts.add(row.alert_id)
        for row in runs:
            if row.run_id not in self.told.runs and row.state not in ("running", "dead") and row.trigger != "initial":
                self.told.runs.add(row.run_id)
                self._tell_run(row)

    def _tell_run(self, row: Any) -> None:
        moment = from_us(row.as_of_us).astimezone(ZONE)
        self.say(f"   {moment:%d %b %H:%M} retrain {row.run_id} ({row.trigger}: {row.reason}) -> {row.state}")
        candidates = self._candidates(row.run_id)
        if not candidates:
            self.say(f"      {row.detail['outcome']}")
        for candidate in candidates:
            self.say(f"      {candidate['recipe']:<24} {candidate['verdict']:<12} {candidate['reason']}")
        if row.version and row.state == "promoted":
            self.say(f"      champion is now version {row.version}")

    def _candidates(self, run_id: str) -> list[dict[str, Any]]:
        query = sa.select(run_candidate).where(run_candidate.c.run_id == run_id)
        with read(self.driver.engine) as connection:
            return [dict(row._mapping) for row in connection.execute(query)]  # noqa: SLF001

    def _review_auto(self) -> bool:
        """The simulated reviewer: rules over the card, a few cards each morning; the owner accepts proposals.

        Returns
        -------
        Whether the owner decided something.
        """
        store = self.driver.store
        for rule in (*flights.FAILURE_RULES, RULE_NO_TRUTH):  # not the audit: here the truth comes by itself
            for _ in range(REVIEWS_A_DAY):
                claim = store.next(REVIEWER, Filters(rule=rule))
                if claim is None:
                    break
                given = review_flight(build_card(store, claim).as_dict())
                store.submit(
                    claim.token, verdict=given.verdict, answer=given.label, feature=given.feature, note=given.reason
                )
        answered = {(p.kind, p.cause) for p in store.proposals("accepted")}
        proposals = store.proposals("open")
        for proposal in proposals:
            if (proposal.kind, proposal.cause) in answered:
                store.refuse(proposal.proposal_id, OWNER, "answered already: the new meaning is the contract now")
                continue
            store.accept(proposal.proposal_id, OWNER)
            self.say(f"   simulated owner: proposal accepted: {proposal.kind} ({proposal.cause})")
        return bool(proposals)

    # -- the end ------------------------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        driver, stats = self.driver, self.driver.store.stats()
        registry = Registry(driver.engine)
        after = registry.resolve(flights.MODEL)
        champions = [event.version for event in registry.history(flights.MODEL) if event.alias == CHAMPION]
        stretches = {"before": BEFORE, "during": DURING, "after": AFTER}
        quality = {
            name: figures(driver.quality(local_us(first_day), local_us(last_day + timedelta(days=1))))
            for name, (first_day, last_day) in stretches.items()
        }
        everything = driver.quality(0, 2**62)
        return {
            "events": self._events(),
            "monitored": everything.rows,
            "dead_letters": self._dead_letters(),
            "alerts": self._alerts(),
            "queue": {"open": stats.open, "leased": stats.leased, "done": stats.done, "items": stats.items},
            "labels": {"total": stats.labels, "verdicts": stats.verdicts, "answers": stats.answers},
            "runs": self._runs(),
            "champion": {
                "before": champions[0],
                "after": after.version if after else None,
            },
            "quality": quality,
        }

    def _events(self) -> dict[str, int]:
        with read(self.driver.engine) as connection:
            rows = connection.execute(sa.select(source_partition)).all()
        return {noun: self._count(rows, topic(noun)) for noun in SOURCES}

    def _count(self, rows: Any, name: str) -> int:
        from schemas.registry import Codec, FileRegistry
        from streams.merging import totals

        with read(self.driver.engine) as connection:
            found = totals(connection, Codec(FileRegistry(self.driver.config.registry_path)))
        own = [counters for (_, source, _), counters in found.items() if source == name]
        return sum(c.get("records", 0) - c.get("duplicates", 0) - c.get("dead", 0) for c in own)

    def _dead_letters(self) -> int:
        with read(self.driver.engine) as connection:
            return int(connection.execute(sa.select(sa.func.count()).select_from(dead_letter)).scalar_one())

    def _alerts(self) -> list[dict[str, Any]]:
        with read(self.driver.engine) as connection:
            rows = connection.execute(sa.select(alert).order_by(alert.c.time_us, alert.c.alert_id)).all()
        return [
            {
                "time": from_us(row.time_us).astimezone(ZONE).isoformat(),
                "subject": row.subject,
                "slice": row.slice,
                "channel": row.channel,
                "severity": row.severity,
                "state": row.state,
                "message": row.message,
            }
            for row in rows
        ]

    def _runs(self) -> list[dict[str, Any]]:
        with read(self.driver.engine) as connection:
            rows = connection.execute(sa.select(retrain_run).order_by(retrain_run.c.started_us)).all()
        return [
            {
                "run": row.run_id,
                "time": from_us(row.as_of_us).astimezone(ZONE).isoformat(),
                "trigger": row.trigger,
                "verdict": row.state,
                "reason": row.reason,
                "outcome": row.detail["outcome"],
                "version": row.version,
                "recipes": [
                    {name: candidate[name] for name in ("recipe", "verdict", "reason", "metrics")}
                    for candidate in self._candidates(row.run_id)
                ],
            }
            for row in rows
        ]


def run(
    folder: Path,
    say: Say,
    *,
    fault: str,
    fresh: bool,
    review: Review | None,
    at_end: Callable[[dict[str, Any], str], None],
) -> None:
    """Play the flights; what is found is told at the end, while the page is still up."""
    planted = fault_named(fault)
    workspace = Workspace.open(folder, {"demo": "flights", "fault": fault}, fresh=fresh)
    departures = flights.load_departures(folder.parent / "cache")
    config = prepare(workspace, departures, say)
    first_day = flights.DEMO_FIRST_DAY
    if workspace.continues_from is not None:
        first_day = date.fromisoformat(workspace.continues_from) + timedelta(days=1)
        say(f"Continuing the run that was stopped after {workspace.continues_from} (--fresh starts over).")
    from_local = local_us(first_day)
    with Supervisor(config, log_file=folder / "worker.log") as up:
        up.wait_ready()
        config = config.model_copy(update={"web_port": up.web_port})
        say(f"2. Replaying {first_day:%d %B} to 26 May; status page: http://{config.web_host}:{up.web_port}/")
        contract = folder / "flights.avsc"
        with PredictionService(up.brokers, flights.MODEL, config.state_dir, config.registry_path, contract) as service:
            engine = open_database(config.database_url)
            driver = Driver(config, flights.MODEL, engine, up, service)
            champion = Registry(engine).resolve(flights.MODEL)
            assert champion is not None
            service.wait_for(champion.version)
            story = Story(driver, workspace, say, review=review)
            story.play(b for b in flights.demo_events(departures, fault=planted) if b.start >= from_local)
            result = story.to_json()
            workspace.done(flights.DEMO_LAST_DAY.isoformat(), is_finished=True)
            driver.close()
            at_end(result, f"http://{config.web_host}:{up.web_port}/")
            engine.dispose()
