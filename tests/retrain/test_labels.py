"""What reviewers decided, folded from their events."""

from __future__ import annotations

from typing import Any

from retrain.labels import fold, ingest, load_facts, load_records
from retrain.recipes import Proposal
from retrain.testing import World
from schemas.database import read, write


def event(seq: int, kind: str = "submitted", **told: Any) -> dict[str, Any]:
    given = {"prediction_id": "a", "actor": "r1", "answer": None, "verdict": "world", "selection_probability": 0.5}
    return {"event_id": f"small:{seq}:x", "seq": seq, "model": "small", "kind": kind} | given | told


def test_a_decision_counts_until_it_is_undone() -> None:
    assert fold([event(1)]).decided["a"].verdict == "world"
    assert fold([event(1), event(2, "undone", reverts="small:1:x")]).decided == {}


def test_the_majority_counts_and_a_draw_decides_nothing() -> None:
    two = [event(1, answer="late", verdict=None), event(2, answer="on_time", verdict=None, actor="r2")]
    assert fold(two).decided == {}
    three = fold([*two, event(3, answer="late", verdict=None, actor="r3")])
    assert three.decided["a"].answer == "late"
    assert three.decided["a"].actors == ("r1", "r3")


def test_a_proposal_counts_once_it_is_accepted() -> None:
    made = event(1, "proposal_made", proposal_id="p", proposal_kind="new_contract_version", from_us=5, to_us=None)
    accepted = made | {"event_id": "small:2:x", "seq": 2, "kind": "proposal_accepted"}
    withdrawn = made | {"event_id": "small:3:x", "seq": 3, "kind": "proposal_withdrawn"}
    assert fold([made]).proposals == ()
    assert fold([made, accepted]).proposals == (Proposal("p", "new_contract_version", 5, None),)
    assert fold([made, accepted, withdrawn]).proposals == ()


def test_an_event_that_comes_twice_is_taken_once_and_order_is_that_of_the_chain(world: World) -> None:
    events = [event(2, "undone", reverts="small:1:x"), event(1), event(1)]
    with write(world.engine) as connection:
        assert [ingest(connection, record) for record in events] == [True, True, False]
    with read(world.engine) as connection:
        facts = load_facts(connection, "small")
        assert load_records(connection, "other") == []
    assert facts.event_ids == ("small:1:x", "small:2:x")
    assert facts.decided == {}
