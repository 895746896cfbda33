"""Is it time to train? A pure decision from evidence, and its audit row, for yes and for no.

A trigger cannot loop on its own output: an alert or a proposal that a run has seen asks for another run only when
enough new truths came since, and after the cooldown.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa
from croniter import croniter

from retrain.labels import load_proposals
from retrain.lease import is_held
from retrain.manifest import canonical
from retrain.policy import RetrainPolicy
from retrain.recipes import Proposal, unsolved
from retrain.registry import CHAMPION, current, find_version
from retrain.tables import alias_event, retrain_decision, retrain_run
from schemas.database import read, write
from schemas.database.outbox import enqueue
from schemas.times import DAY_US, SECOND_US, format_us, from_us, to_us

NONE = "none"


@dataclass(frozen=True)
class OpenAlert:
    """An alert about the model that is open; only pages ask for a training."""

    alert_id: str
    start_us: int
    severity: str


@dataclass(frozen=True)
class Evidence:
    """What is known at an evaluation; all times are event times.

    Parameters
    ----------
    labels
        Truths and answers so far, of all time.
    labels_at_last_run
        The same, when the last run began.
    cron_anchor_us
        The schedule counts from here: the last scheduled run, or the first champion.
    """

    now_us: int
    timezone: str
    labels: int = 0
    labels_at_last_run: int = 0
    last_run_us: int | None = None
    cron_anchor_us: int | None = None
    is_running: bool = False
    alerts: tuple[OpenAlert, ...] = ()
    proposals: tuple[Proposal, ...] = ()

    @property
    def new_labels(self) -> int:
        """Labels that no run has seen."""
        return self.labels - self.labels_at_last_run


@dataclass(frozen=True)
class Decision:
    """Whether to train, why, and on what evidence."""

    is_yes: bool
    trigger: str
    reason: str
    evidence: dict[str, Any]


def decide(policy: RetrainPolicy, evidence: Evidence) -> Decision:
    """The decision; the first trigger that says yes counts, and a no tells of each trigger why not."""
    told = asdict(evidence)
    if evidence.is_running:
        return Decision(False, NONE, "a run is under way", told)
    noes: list[str] = []
    for trigger, ask in (("proposal", _proposal), ("cron", _cron), ("alert", _alert), ("volume", _volume)):
        is_yes, reason = ask(policy, evidence)
        if is_yes:
            return Decision(True, trigger, reason, told)
        if reason:
            noes.append(reason)
    return Decision(False, NONE, "; ".join(noes) or "no trigger is configured", told)


def ripe_us(policy: RetrainPolicy, change: int) -> int:
    """When a change of meaning is old enough to be judged: days to learn from, and as many to be held out."""
    return change + 2 * policy.gate.min_days * DAY_US


def _proposal(policy: RetrainPolicy, evidence: Evidence) -> tuple[bool, str]:
    changes = [p for p in evidence.proposals if p.kind == "new_contract_version" and p.from_us is not None]
    if not policy.on_proposal or not changes:
        return False, ""
    newest = max(changes, key=lambda p: p.from_us or 0)
    assert newest.from_us is not None
    ripe = ripe_us(policy, newest.from_us)
    if evidence.now_us < ripe:
        return False, (
            f"the change of {format_us(newest.from_us)} can be judged from {format_us(ripe)}: "
            f"{policy.gate.min_days} days to learn from and {policy.gate.min_days} held out"
        )
    if evidence.last_run_us is not None and evidence.last_run_us >= ripe:
        return (
            False,
            f"the change of {format_us(newest.from_us)} was judged by the run of {format_us(evidence.last_run_us)}",
        )
    return (
        True,
        f"accepted proposal {newest.proposal_id}: the meaning of an input changed at {format_us(newest.from_us)}",
    )


def _cron(policy: RetrainPolicy, evidence: Evidence) -> tuple[bool, str]:
    if policy.cron is None:
        return False, ""
    if evidence.cron_anchor_us is None:
        return False, "the schedule waits for a champion"
    from zoneinfo import ZoneInfo

    now = from_us(evidence.now_us + 1).astimezone(ZoneInfo(evidence.timezone))
    due = to_us(croniter(policy.cron, now).get_prev(type(now)))
    if due > evidence.cron_anchor_us:
        return True, f"scheduled for {format_us(due)}"
    return False, f"the schedule's last time was {format_us(due)}"


def _cooldown(policy: RetrainPolicy, evidence: Evidence) -> str | None:
    if evidence.last_run_us is None:
        return None
    until = evidence.last_run_us + policy.cooldown_s * SECOND_US
    return f"cooling down until {format_us(until)}" if evidence.now_us < until else None


def _alert(policy: RetrainPolicy, evidence: Evidence) -> tuple[bool, str]:
    pages = [alert for alert in evidence.alerts if alert.severity in {"page", "critical"}]
    if not policy.on_alert or not pages:
        return False, "no page is open" if policy.on_alert else ""
    cooling = _cooldown(policy, evidence)
    if cooling:
        return False, cooling
    oldest = min(pages, key=lambda alert: alert.start_us)
    fresh = [alert for alert in pages if evidence.last_run_us is None or alert.start_us > evidence.last_run_us]
    if evidence.new_labels < policy.gate.min_rows:
        return (
            False,
            f"a page is open, but only {evidence.new_labels} labels are new ({policy.gate.min_rows} are needed)",
        )
    word = "is open" if fresh else "is still open"
    return True, f"alert {(fresh or [oldest])[0].alert_id} {word}, {evidence.new_labels} labels are new"


def _volume(policy: RetrainPolicy, evidence: Evidence) -> tuple[bool, str]:
    if policy.min_new_labels is None:
        return False, ""
    if evidence.new_labels < policy.min_new_labels:
        return False, f"{evidence.new_labels} of {policy.min_new_labels} new labels"
    cooling = _cooldown(policy, evidence)
    return (False, cooling) if cooling else (True, f"{evidence.new_labels} new labels")


def gather(
    engine: sa.Engine, model: str, timezone: str, now_us: int, *, labels: int, alerts: Sequence[OpenAlert] = ()
) -> Evidence:
    """Evidence from the database; the caller counts the labels and names the open alerts.

    Parameters
    ----------
    now_us
        Event time: the wall clock takes no part in decisions.
    """
    with read(engine) as connection:
        runs = (
            sa.select(retrain_run)
            .where(retrain_run.c.model == model, retrain_run.c.state.not_in(("running", "dead")))
            .order_by(retrain_run.c.as_of_us.desc())
        )
        done = [row for row in connection.execute(runs) if row.trigger != "initial"]
        first = sa.select(sa.func.min(alias_event.c.time_us)).where(
            alias_event.c.model == model, alias_event.c.alias == CHAMPION
        )
        anchors = [row.as_of_us for row in done if row.trigger == "cron"][:1] or [connection.execute(first).scalar()]
        proposals = load_proposals(connection, model)
        champion = current(connection, model)
        known = find_version(connection, model, champion).boundaries if champion else ()
    return Evidence(
        now_us=now_us,
        timezone=timezone,
        labels=labels,
        labels_at_last_run=int(done[0].detail.get("labels", 0)) if done else 0,
        last_run_us=done[0].as_of_us if done else None,
        cron_anchor_us=anchors[0],
        is_running=is_held(engine, model),
        alerts=tuple(alerts),
        proposals=unsolved(proposals, known),
    )


def audit(engine: sa.Engine, model: str, decision: Decision, time_us: int) -> int:
    """Write the decision down and return its row's id.

    A no that equals the one before it only counts up: a timer that asks every minute leaves a row a change, not a row
    a minute. A new row is told on the ``retrain`` topic.
    """
    with write(engine) as connection:
        return write_decision(connection, model, decision, time_us)


def write_decision(connection: sa.Connection, model: str, decision: Decision, time_us: int) -> int:
    """See :func:`audit`; inside the caller's transaction."""
    newest = connection.execute(
        sa.select(retrain_decision)
        .where(retrain_decision.c.model == model)
        .order_by(retrain_decision.c.id.desc())
        .limit(1)
    ).first()
    if (
        newest is not None
        and not decision.is_yes
        and not newest.is_yes
        and _shape(newest.reason) == _shape(decision.reason)
    ):
        values = {
            "last_us": time_us,
            "times": newest.times + 1,
            "reason": decision.reason,
            "evidence": decision.evidence,
        }
        connection.execute(sa.update(retrain_decision).where(retrain_decision.c.id == newest.id).values(values))
        return int(newest.id)
    row = {
        "model": model,
        "time_us": time_us,
        "last_us": time_us,
        "times": 1,
        "is_yes": decision.is_yes,
        "trigger": decision.trigger,
        "reason": decision.reason,
        "evidence": decision.evidence,
    }
    added = connection.execute(sa.insert(retrain_decision).values(row))
    tell(connection, "decided", model, decision.trigger, decision.reason, None, time_us, decision.evidence)
    assert added.inserted_primary_key is not None
    return int(added.inserted_primary_key[0])


def _shape(reason: str) -> str:
    """A reason without its figures: a no that only counts further is the same no."""
    return re.sub(r"\d+", "#", reason)


def tell(
    connection: sa.Connection,
    kind: str,
    model: str,
    trigger: str,
    reason: str,
    run_id: str | None,
    time_us: int,
    detail: dict[str, Any],
) -> None:
    """Put an event of the ``retrain`` topic into the outbox."""
    record = {
        "event_id": uuid.uuid4().hex,
        "kind": kind,
        "model": model,
        "trigger": trigger,
        "reason": reason,
        "run_id": run_id,
        "time": time_us,
        "detail": canonical(detail),
    }
    enqueue(connection, "retrain", model, record)
