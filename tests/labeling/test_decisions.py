"""Leases, decisions, undoing: what one person does is never lost, and never done to another person's item."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from labeling import projection
from labeling.errors import (
    AlreadyLabeledError,
    ChainBrokenError,
    InvalidDecisionError,
    ItemNotOpenError,
    StaleLeaseError,
)
from labeling.leases import Claim, Filters
from labeling.policy import LabelingPolicy
from labeling.store import LabelStore
from labeling.tables import label_event
from labeling.testing import ManualClock, new_item, small_contract
from schemas.database import read, write
from schemas.database.outbox import pending
from schemas.errors import UsageError


def take(store: LabelStore, who: str = "ann", filters: Filters | None = None) -> Claim:
    claim = store.next(who, filters)
    assert claim is not None
    return claim


def policy_of(store: LabelStore, **changes: object) -> LabelStore:
    policy = LabelingPolicy.model_validate(changes)
    return LabelStore(store.engine, "small", policy, clock=store.clock, contract=small_contract())


def test_an_item_is_served_to_one_reviewer_at_a_time(both: LabelStore) -> None:
    both.ingest([new_item(i) for i in range(3)])
    claims = [both.next("ann"), both.next("ben"), both.next("ann"), both.next("cy")]
    assert claims[3] is None
    assert len({claim.item for claim in claims if claim}) == 3


def test_a_lease_that_runs_out_gives_the_item_back(both: LabelStore, clock: ManualClock) -> None:
    both.ingest([new_item(1)])
    late = take(both)
    clock.advance(both.policy.lease_s - 1)
    assert both.next("ben") is None
    clock.advance(1)
    assert take(both, "ben").item == late.item


def test_a_stale_token_is_refused_and_the_words_are_kept(both: LabelStore, clock: ManualClock) -> None:
    both.ingest([new_item(1)])
    late = take(both)
    clock.advance(both.policy.lease_s)
    current = take(both, "ben")
    with pytest.raises(StaleLeaseError, match="kept"):
        both.submit(late.token, verdict="world", note="a long thought")
    assert both.stats().labels == 0
    (kept,) = both.kept("ann")
    assert (kept["reason"], kept["verdict"], kept["actor"]) == ("a long thought", "world", late.holder)
    assert both.kept("ben") == []
    assert both.submit(current.token, verdict="unpredictable").state == "done"


def test_a_lease_that_ran_out_but_was_not_taken_still_stands(store: LabelStore, clock: ManualClock) -> None:
    store.ingest([new_item(1)])
    claim = take(store)
    clock.advance(86_400)
    assert store.submit(claim.token, verdict="world").state == "done"


def test_a_token_decides_once(store: LabelStore) -> None:
    store.ingest([new_item(1)])
    claim = take(store)
    store.submit(claim.token, verdict="world")
    with pytest.raises(StaleLeaseError):
        store.submit(claim.token, verdict="world")


@pytest.mark.parametrize("token", ["", "1", "1-", "x-1-r1", "1-1-r1; DROP TABLE item", "1-1", "٣-1-r1"])
def test_what_is_not_a_token_is_refused(store: LabelStore, token: str) -> None:
    with pytest.raises(UsageError, match="not a lease token"):
        store.submit(token, verdict="world")


def test_a_heartbeat_keeps_a_lease_and_a_lost_one_says_so(both: LabelStore, clock: ManualClock) -> None:
    both.ingest([new_item(1)])
    claim = take(both)
    clock.advance(both.policy.lease_s - 1)
    until_us = both.heartbeat(claim.token)
    assert until_us == clock.now_us + both.policy.lease_s * 1_000_000
    clock.advance(both.policy.lease_s - 1)
    assert both.next("ben") is None
    clock.advance(1)
    take(both, "ben")
    with pytest.raises(StaleLeaseError):
        both.heartbeat(claim.token)


def test_a_released_item_is_open_at_once(store: LabelStore) -> None:
    store.ingest([new_item(1)])
    claim = take(store)
    assert store.release(claim.token)
    assert not store.release(claim.token)
    assert take(store, "ben").item == claim.item


def test_the_lease_follows_from_how_long_decisions_take(store: LabelStore, clock: ManualClock) -> None:
    store.ingest([new_item(i) for i in range(12)])
    for _ in range(11):
        store.submit(take(store).token, verdict="world", seconds=9.0)
    claim = take(LabelStore(store.engine, "small", clock=clock))
    assert claim.until_us - clock.now_us == 90 * 1_000_000


def test_every_reviewer_decides_once_and_the_overlap_is_not_exceeded(both: LabelStore) -> None:
    two = policy_of(both, required_n=2)
    two.ingest([new_item(1)])
    assert two.submit(take(two, "ann").token, verdict="world").state == "open"
    assert two.next("ann") is None
    assert two.submit(take(two, "ben").token, verdict="world").state == "done"
    assert two.next("cy") is None


def test_more_answers_can_be_asked_for_later(store: LabelStore) -> None:
    store.ingest([new_item(1)])
    store.submit(take(store).token, verdict="world")
    store.require("p1/confident", 2)
    assert store.submit(take(store, "ben").token, verdict="world").state == "done"
    store.require("p1/confident", 1)
    assert store.stats().done == 1


def test_a_tie_goes_to_an_adjudicator_whose_word_ends_it(store: LabelStore) -> None:
    two = policy_of(store, required_n=2)
    two.ingest([new_item(1)])
    two.submit(take(two, "ann").token, verdict="world")
    assert two.submit(take(two, "ben").token, verdict="unpredictable").state == "flagged"
    assert two.next("cy") is None
    assert two.submit(take(two, "cy", Filters(state="flagged")).token, verdict="unpredictable").state == "done"
    assert two.items()[0]["verdict"] == "unpredictable"


def test_a_flag_hands_the_item_on_and_the_one_who_flagged_may_adjudicate(store: LabelStore) -> None:
    store.ingest([new_item(1)])
    assert store.flag(take(store).token, "odd").state == "flagged"
    claim = take(store, "ann", Filters(state="flagged"))
    assert store.submit(claim.token, answer="on_time").state == "done"
    undone = store.undo("ann")
    assert undone is not None
    assert store.items()[0]["state"] == "flagged"


def test_a_skipped_item_goes_behind_the_others_and_not_to_the_same_person(store: LabelStore) -> None:
    store.ingest([new_item(1), new_item(2)])
    first = take(store)
    assert store.skip(first.token, "not my field").state == "open"
    second = take(store)
    assert second.item != first.item
    assert store.next("ann") is None
    assert take(store, "ben").item == first.item


def test_one_who_skipped_may_take_the_item_by_name(store: LabelStore) -> None:
    store.ingest([new_item(1)])
    store.skip(take(store).token)
    claim = store.claim("ann", "p1/confident")
    assert store.submit(claim.token, verdict="world").state == "done"
    with pytest.raises(ItemNotOpenError):
        store.claim("ann", "p1/confident")


def test_a_second_decision_needs_the_first_one_taken_back(store: LabelStore) -> None:
    two = policy_of(store, required_n=2)
    two.ingest([new_item(1)])
    two.submit(take(two).token, verdict="world")
    claim = two.claim("ann", "p1/confident")
    with pytest.raises(AlreadyLabeledError):
        two.submit(claim.token, verdict="unpredictable")


@pytest.mark.parametrize(
    "given",
    [{}, {"answer": "maybe"}, {"verdict": "bad luck"}, {"answer": ""}, {"verdict": "world", "feature": "nothing"}],
)
def test_a_decision_that_does_not_exist_is_refused(store: LabelStore, given: dict[str, Any]) -> None:
    store.ingest([new_item(1)])
    claim = take(store)
    with pytest.raises(InvalidDecisionError):
        store.submit(claim.token, **given)
    assert store.submit(claim.token, answer="late").state == "done"


def test_the_oldest_item_is_served_now_and_then_whatever_its_priority(store: LabelStore) -> None:
    store.ingest([new_item(0, score=0.5)] + [new_item(i, score=0.99) for i in range(1, 30)])
    served = []
    for _ in range(10):
        claim = take(store)
        served.append(claim.item)
        store.submit(claim.token, verdict="unpredictable")
    assert served.index(1) == 9


def test_filters_choose_the_part_of_the_queue(store: LabelStore) -> None:
    store.ingest([new_item(1), new_item(2, rule="audit"), new_item(3, rule="flag", kind="answer")])
    assert take(store, "ann", Filters(rule="audit")).item == 2
    assert take(store, "ann", Filters(kind="answer")).item == 3
    assert take(store, "ann", Filters(cluster="confident|-")).item == 1


def test_undo_gives_the_item_back_to_the_same_person(both: LabelStore) -> None:
    both.ingest([new_item(1)])
    both.submit(take(both).token, verdict="world", note="hm")
    undone = both.undo("ann")
    assert undone is not None
    assert undone.reverted.body["reason"] == "hm"
    assert undone.claim is not None
    assert both.stats().labels == 0
    assert both.submit(undone.claim.token, verdict="unpredictable").state == "done"


def test_undo_is_ten_deep_and_survives_a_restart(store: LabelStore, clock: ManualClock) -> None:
    store.ingest([new_item(i) for i in range(12)])
    for _ in range(12):
        store.submit(take(store).token, verdict="world")
    restarted = LabelStore(store.engine, "small", clock=clock, contract=small_contract())
    undone = [restarted.undo("ann") for _ in range(11)]
    assert undone[10] is None
    assert [u.reverted.seq for u in undone[:10] if u] == list(range(12, 2, -1))
    assert restarted.stats().labels == 2
    assert restarted.verify_chain() == 22


def test_undo_takes_back_only_ones_own_decisions(store: LabelStore) -> None:
    store.ingest([new_item(1), new_item(2)])
    store.submit(take(store, "ann").token, verdict="world")
    store.submit(take(store, "ben").token, verdict="world")
    undone = store.undo("ann")
    assert undone is not None
    assert undone.reverted.seq == 1
    assert store.undo("cy") is None


def test_undo_of_an_item_that_another_one_holds_gives_no_lease(store: LabelStore) -> None:
    two = policy_of(store, required_n=2)
    two.ingest([new_item(1)])
    two.submit(take(two, "ann").token, verdict="world")
    held = take(two, "ben")
    undone = two.undo("ann")
    assert undone is not None
    assert undone.claim is None
    assert two.submit(held.token, verdict="world").state == "open"


def test_a_label_event_goes_to_the_outbox_with_the_decision_or_not_at_all(both: LabelStore) -> None:
    both.ingest([new_item(1)])
    decision = both.submit(take(both).token, verdict="world", answer="late")
    with read(both.engine) as connection:
        (row,) = pending(connection)
    assert (row.noun, row.key) == ("labels", "p1")
    assert row.record["event_id"] == decision.event.event_id
    assert (row.record["answer"], row.record["verdict"], row.record["item_id"]) == ("late", "world", "p1/confident")


def test_events_say_what_the_reviewer_saw(store: LabelStore) -> None:
    store.ingest([new_item(1)])
    body = store.submit(take(store).token, verdict="world", seconds=4.25, is_blind=True).event.body
    assert body["saw"] == {"version": "1", "label": "late", "score": 0.95, "truth": "on_time"}
    assert (body["seconds"], body["is_blind"]) == (4.25, True)


def test_the_labels_as_of_a_time_can_be_asked(store: LabelStore, clock: ManualClock) -> None:
    store.ingest([new_item(1), new_item(2)])
    store.submit(take(store).token, verdict="world")
    then = clock()
    clock.advance(60)
    store.undo("ann")
    assert [a.verdict for a in store.labels_as_of(then).annotations()] == ["world"]
    assert store.labels_as_of(then - 1).annotations() == []
    assert store.labels_as_of().annotations() == []


def test_reviewers_are_known_by_pseudonym_and_can_be_forgotten_without_their_labels(store: LabelStore) -> None:
    store.ingest([new_item(1)])
    store.submit(take(store, "Ann Example").token, verdict="world")
    store.forget_reviewer("Ann Example")
    (label,) = store.export()
    assert label["actor"] == "r1"
    assert store.pseudonym("Ann Example") == "r2"
    assert store.stats().labels == 1


@pytest.mark.parametrize("name", ["", "x" * 129, "a\x00b"])
def test_a_name_that_cannot_be_stored_is_refused(store: LabelStore, name: str) -> None:
    with pytest.raises(UsageError, match="name"):
        store.next(name)


def test_any_text_of_a_person_can_be_stored(both: LabelStore) -> None:
    both.ingest([new_item(1)])
    both.submit(take(both).token, verdict="world", note="nul \x00, emoji 🙂, quote ' \" and " + "x" * 20_000)
    (label,) = both.export()
    assert label["note"].startswith("nul , emoji 🙂, quote ' \" and")
    assert len(label["note"]) == 10_000
    assert both.verify_chain() == 1


def tampered(store: LabelStore) -> list[sa.sql.dml.UpdateBase]:
    where = label_event.c.seq == 2
    return [
        sa.update(label_event).where(where).values(actor="r9"),
        sa.update(label_event).where(where).values(time_us=label_event.c.time_us + 1),
        sa.update(label_event).where(where).values(body={"verdict": "unpredictable"}),
        sa.update(label_event).where(where).values(kind="skipped"),
        sa.update(label_event).where(where).values(hash="0" * 64),
        sa.delete(label_event).where(where),
        sa.delete(label_event).where(label_event.c.seq == 3),
        sa.delete(label_event),
    ]


@pytest.mark.parametrize("number", range(8))
def test_a_changed_or_missing_event_breaks_the_chain(store: LabelStore, number: int) -> None:
    store.ingest([new_item(i) for i in range(3)])
    for _ in range(3):
        store.submit(take(store).token, verdict="world")
    assert store.verify_chain() == 3
    with write(store.engine) as connection:
        connection.execute(tampered(store)[number])
    with pytest.raises(ChainBrokenError, match="broken"):
        store.verify_chain()


def test_a_rebuilt_state_is_the_same_state(both: LabelStore) -> None:
    both.ingest([new_item(i) for i in range(8)])
    both.submit(take(both).token, verdict="unpredictable")
    both.skip(take(both).token)
    both.flag(take(both).token)
    both.submit(take(both).token, answer="late")
    both.undo("ann")
    before = both.items(limit=100)
    with write(both.engine) as connection:
        connection.execute(sa.text("UPDATE item SET state = 'done', rank = 0, skips = 7"))
        connection.execute(sa.text("DELETE FROM annotation"))
    both.rebuild()
    leases = {"leased_to", "leased_until"}
    assert [{k: v for k, v in row.items() if k not in leases} for row in both.items(limit=100)] == [
        {k: v for k, v in row.items() if k not in leases} for row in before
    ]
    assert isinstance(both.labels_as_of(), projection.Projection)
