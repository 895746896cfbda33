"""When to train: a pure decision, and its audit row for both answers."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa
from pydantic import ValidationError

from retrain.labels import ingest
from retrain.policy import GatePolicy, RetrainPolicy
from retrain.recipes import Proposal
from retrain.tables import retrain_decision, retrain_run
from retrain.testing import World
from retrain.triggers import Decision, Evidence, OpenAlert, audit, decide, gather, ripe_us
from schemas.database import read, write
from schemas.database.outbox import pending
from schemas.events import envelope
from schemas.times import DAY_US, HOUR_US, parse_time

MONDAY = parse_time("2013-05-06T09:00:00+00:00")  # 05:00 in New York
ZONE = "America/New_York"
WEEKLY = RetrainPolicy(cron="0 5 * * mon")
CHANGE = Proposal("p1", "new_contract_version", MONDAY)


def seen(**told: Any) -> Evidence:
    usual: dict[str, Any] = {"now_us": MONDAY, "timezone": ZONE, "cron_anchor_us": MONDAY - 7 * DAY_US}
    return Evidence(**(usual | told))


@pytest.mark.parametrize(
    ("hours", "is_yes"),
    [(-1, False), (0, True), (1, True), (24 * 6, True)],
)
def test_the_schedule_fires_at_its_hour_or_at_the_first_look_after_it(hours: int, is_yes: bool) -> None:
    found = decide(WEEKLY, seen(now_us=MONDAY + hours * HOUR_US))
    assert (found.is_yes, found.trigger) == ((True, "cron") if is_yes else (False, "none"))


def test_the_schedule_fires_once_however_many_times_were_missed() -> None:
    now = MONDAY + 30 * DAY_US
    assert decide(WEEKLY, seen(now_us=now)).is_yes
    assert not decide(WEEKLY, seen(now_us=now + HOUR_US, cron_anchor_us=now)).is_yes


def test_the_schedule_waits_for_a_champion() -> None:
    assert "waits for a champion" in decide(WEEKLY, seen(cron_anchor_us=None)).reason


def test_the_schedule_speaks_local_time_across_a_change_of_clocks() -> None:
    winter, summer = parse_time("2013-03-04T10:00:00+00:00"), parse_time("2013-03-11T09:00:00+00:00")
    for moment in (winter, summer):
        assert decide(WEEKLY, seen(now_us=moment, cron_anchor_us=moment - DAY_US)).is_yes
        assert not decide(WEEKLY, seen(now_us=moment - 1, cron_anchor_us=moment - DAY_US)).is_yes


def test_volume_counts_what_no_run_has_seen() -> None:
    policy = RetrainPolicy(min_new_labels=100)
    assert not decide(policy, seen(labels=199, labels_at_last_run=100)).is_yes
    assert decide(policy, seen(labels=200, labels_at_last_run=100)).trigger == "volume"


def test_a_page_asks_for_training_when_enough_labels_are_new() -> None:
    policy = RetrainPolicy(gate=GatePolicy(min_rows=500))
    page = OpenAlert("bias-7", MONDAY - HOUR_US, "page")
    assert not decide(policy, seen(alerts=(page,), labels=499)).is_yes
    assert decide(policy, seen(alerts=(page,), labels=500)).trigger == "alert"
    assert not decide(policy, seen(alerts=(replace(page, severity="warn"),), labels=500)).is_yes
    assert not decide(policy.model_copy(update={"on_alert": False}), seen(alerts=(page,), labels=500)).is_yes


def test_a_page_that_a_run_has_seen_asks_again_only_with_new_labels_after_the_cooldown() -> None:
    policy = RetrainPolicy(cooldown_s=6 * 3600)
    page = OpenAlert("bias-7", MONDAY - HOUR_US, "critical")
    ran = seen(alerts=(page,), labels=1000, labels_at_last_run=1000, last_run_us=MONDAY - 12 * HOUR_US)
    assert "only 0 labels are new" in decide(policy, ran).reason
    assert decide(policy, replace(ran, labels=1600)).is_yes
    hot = replace(ran, labels=1600, last_run_us=MONDAY - 5 * HOUR_US)
    assert "cooling down until 2013-05-06T10:00:00Z" in decide(policy, hot).reason


def test_an_accepted_change_waits_until_it_can_be_judged_and_is_judged_once() -> None:
    policy = RetrainPolicy(gate=GatePolicy(min_days=4), on_alert=False)
    ripe = ripe_us(policy, MONDAY)
    assert ripe == MONDAY + 8 * DAY_US
    waiting = decide(policy, seen(proposals=(CHANGE,), now_us=ripe - HOUR_US, last_run_us=MONDAY))
    assert "can be judged from 2013-05-14T09:00:00Z" in waiting.reason
    assert decide(policy, seen(proposals=(CHANGE,), now_us=ripe, last_run_us=MONDAY)).trigger == "proposal"
    quiet = policy.model_copy(update={"on_proposal": False})
    assert not decide(quiet, seen(proposals=(CHANGE,), now_us=ripe, last_run_us=MONDAY)).is_yes
    again = decide(policy, seen(proposals=(CHANGE,), now_us=ripe + HOUR_US, last_run_us=ripe))
    assert "was judged by the run" in again.reason


def test_nothing_starts_while_a_run_is_under_way() -> None:
    found = decide(WEEKLY, seen(is_running=True))
    assert (found.is_yes, found.reason) == (False, "a run is under way")


def rows(world: World) -> list[Any]:
    with read(world.engine) as connection:
        query = sa.select(retrain_decision).where(retrain_decision.c.model == "small")
        return [r for r in connection.execute(query.order_by(retrain_decision.c.id)) if r.trigger != "initial"]


def test_both_answers_are_written_down_and_equal_noes_count_up(world: World) -> None:
    for at in range(3):
        audit(world.engine, "small", Decision(False, "none", f"{at} of 100 new labels", {"labels": at}), at)
    audit(world.engine, "small", Decision(True, "volume", "100 new labels", {"labels": 100}), 3)
    audit(world.engine, "small", Decision(False, "none", "1 of 100 new labels", {"labels": 101}), 4)
    told = [(r.is_yes, r.times, r.time_us, r.last_us, r.evidence["labels"]) for r in rows(world)]
    assert told == [(False, 3, 0, 2, 2), (True, 1, 3, 3, 100), (False, 1, 4, 4, 101)]
    with read(world.engine) as connection:
        events = [row.record for row in pending(connection) if row.noun == "retrain"]
    assert [e["reason"] for e in events][-3:] == ["0 of 100 new labels", "100 new labels", "1 of 100 new labels"]
    assert events[-1].keys() == {field["name"] for field in envelope("retrain")["fields"]}
    assert json.loads(events[-1]["detail"]) == {"labels": 101}


def test_evidence_comes_from_the_database(world: World) -> None:
    with write(world.engine) as connection:
        for seq, (trigger, state, labels) in enumerate(
            [("cron", "refused", 10), ("volume", "promoted", 20), ("cron", "dead", 30)]
        ):
            connection.execute(
                sa.insert(retrain_run).values(
                    run_id=f"x{seq}",
                    model="small",
                    trigger=trigger,
                    reason="",
                    state=state,
                    as_of_us=MONDAY + seq,
                    started_us=seq,
                    detail={"labels": labels},
                )
            )
        told = {"model": "small", "actor": "r", "prediction_id": None}
        ingest(
            connection,
            told
            | {"event_id": "e", "seq": 1, "kind": "proposal_accepted", "proposal_id": "p1"}
            | {"proposal_kind": "new_contract_version", "from_us": MONDAY, "to_us": None},
        )
    found = gather(world.engine, "small", ZONE, MONDAY + HOUR_US, labels=25)
    assert (found.last_run_us, found.labels_at_last_run, found.new_labels) == (MONDAY + 1, 20, 5)
    assert found.cron_anchor_us == MONDAY
    assert found.proposals == (CHANGE,)
    assert not found.is_running


@pytest.mark.parametrize(
    "told",
    [{"cron": "every day"}, {"cron": "0 5 * * * *"}, {"recipes": ("magic",)}, {"recipes": ()}, {"trainer": "x"},
     {"n": 1}, {"gate": {"alpha": 0.7}}, {"holdout_days": 0}],
)  # fmt: skip
def test_a_policy_that_makes_no_sense_is_refused(told: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RetrainPolicy(**told)


def test_a_policy_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        WEEKLY.cron = None
