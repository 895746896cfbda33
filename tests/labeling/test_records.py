"""What goes to the ``labels`` topic fits its schema, and tells retraining the same story as the store."""

from __future__ import annotations

import io
from typing import Any

import fastavro
import pytest

from labeling.leases import Filters
from labeling.policy import LabelingPolicy
from labeling.store import LabelStore
from labeling.testing import ManualClock, new_item, small_contract
from retrain.labels import fold
from schemas.database import read
from schemas.database.outbox import pending
from schemas.events import envelope


def records(store: LabelStore) -> list[dict[str, Any]]:
    with read(store.engine) as connection:
        return [row.record for row in pending(connection)]


@pytest.fixture
def busy(store: LabelStore, clock: ManualClock) -> LabelStore:
    """A queue of two answers an item on which every kind of event has happened."""
    policy = LabelingPolicy(required_n=2, proposal_after=2)
    two = LabelStore(store.engine, "small", policy, clock=clock, contract=small_contract())
    two.ingest([new_item(i, features={"delay_known": 30.0}, severity=9.0 - i) for i in range(6)])

    def decide(who: str, verdict: str, state: str = "open") -> None:
        claim = two.next(who, Filters(state=state))
        assert claim is not None
        two.submit(claim.token, verdict=verdict)

    decide("ann", "meaning_changed")
    decide("ben", "meaning_changed")
    undone = two.undo("ben")
    assert undone is not None
    assert undone.claim is not None
    two.submit(undone.claim.token, verdict="world")
    decide("cy", "unpredictable", "flagged")
    decide("ann", "meaning_changed")
    two.accept(two.proposals("open")[0].proposal_id, "ann")
    for _ in range(2):
        decide("ben", "input_broken")
    two.refuse(two.proposals("open")[0].proposal_id, "ann")
    for finish in (two.skip, two.flag):
        claim = two.next("dora")
        assert claim is not None
        finish(claim.token, "hm")
    return two


def test_every_kind_of_record_fits_the_schema(busy: LabelStore) -> None:
    schema = fastavro.parse_schema(envelope("labels"))
    found = records(busy)
    kinds = {record["kind"] for record in found}
    assert kinds == {
        "submitted",
        "skipped",
        "flagged",
        "undone",
        "proposal_made",
        "proposal_withdrawn",
        "proposal_accepted",
        "proposal_refused",
    }
    for record in found:
        out = io.BytesIO()
        fastavro.schemaless_writer(out, schema, record, strict=True)
        out.seek(0)
        assert fastavro.schemaless_reader(out, schema, schema) == record


def test_the_records_are_the_chain_in_order(busy: LabelStore) -> None:
    assert [record["seq"] for record in records(busy)] == list(range(1, busy.verify_chain() + 1))
    assert [record["event_id"] for record in records(busy)] == [event.event_id for event in busy.events()]
    assert [event.seq for event in busy.events(after_seq=3, limit=2)] == [4, 5]


def test_retraining_understands_what_the_store_understands(busy: LabelStore) -> None:
    facts = fold(records(busy))
    done = {row["prediction_id"]: (row["answer"], row["verdict"]) for row in busy.items(state="done")}
    assert done["p0"] == (None, "unpredictable"), "the adjudicator's word"
    for name, said in done.items():
        assert (facts.decided[name].answer, facts.decided[name].verdict) == said
    accepted = [p for p in busy.proposals() if p.state == "accepted"]
    assert [p.proposal_id for p in facts.proposals] == [p.proposal_id for p in accepted]
