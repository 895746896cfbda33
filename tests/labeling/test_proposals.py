"""Equal verdicts become a proposal that says from where, in which slice, and what follows."""

from __future__ import annotations

import pytest

from labeling.errors import NotOwnerError, ProposalClosedError, UnknownProposalError
from labeling.items import NewItem, Position
from labeling.policy import LabelingPolicy
from labeling.projection import Proposal
from labeling.store import LabelStore
from labeling.testing import START_US, ManualClock, new_item, small_contract
from schemas.database import read
from schemas.database.outbox import pending
from schemas.times import DAY_US, HOUR_US

MINUTE_US = 60_000_000


def shifted(number: int, **changes: object) -> NewItem:
    """An item whose delay is 17 minutes over the truth feed."""
    position = Position("main", "flywheel.inputs.v1", number % 4, 100 + number)
    features = {"delay_known": 20.0, "carrier": ("AA", "EV", "UA")[number % 3]}
    return new_item(number, **({"features": features, "position": position} | changes))


def decide(store: LabelStore, verdict: str, n: int = 1, who: str = "ann", **given: str) -> list[Proposal]:
    """The proposals that ``n`` equal verdicts on the next items made."""
    made = []
    for _ in range(n):
        claim = store.next(who)
        assert claim is not None
        decision = store.submit(claim.token, verdict=verdict, **given)  # type: ignore[arg-type]
        made += [decision.proposal] if decision.proposal else []
    return made


def test_the_fifth_equal_verdict_makes_a_proposal_and_the_fourth_does_not(both: LabelStore) -> None:
    both.ingest([shifted(i) for i in range(8)])
    assert decide(both, "meaning_changed", 4) == []
    (made,) = decide(both, "meaning_changed")
    assert (made.kind, made.verdict, made.cause) == (
        "new_contract_version",
        "meaning_changed",
        "feature:delay_known:over",
    )
    assert made.detail["feature"] == "delay_known"
    assert made.detail["support"] == 5
    assert made.detail["to_us"] is None
    assert made.detail["slice"] is None


def test_it_begins_at_the_first_item_of_the_cause_also_if_nobody_looked_at_that_one(store: LabelStore) -> None:
    store.ingest([shifted(0, score=0.5)] + [shifted(i) for i in range(1, 7)])
    (made,) = decide(store, "meaning_changed", 5)
    assert made.detail["from_us"] == START_US
    assert made.detail["position"] == {"cluster": "main", "topic": "flywheel.inputs.v1", "partition": 0, "offset": 100}


def test_an_item_of_the_same_cause_long_before_is_another_incident(store: LabelStore) -> None:
    store.ingest([shifted(99, score=0.5, event_time_us=START_US - 9 * DAY_US)] + [shifted(i) for i in range(5)])
    (made,) = decide(store, "meaning_changed", 5)
    assert made.detail["from_us"] == START_US


def test_an_open_incident_of_the_feature_moves_the_beginning_to_its_first_event(store: LabelStore) -> None:
    first = Position("main", "flywheel.inputs.v1", 2, 5123)
    store.note_incident("inc", START_US - HOUR_US, feature="delay_known", message="drift", position=first)
    store.note_incident("inc", START_US - HOUR_US, feature="delay_known", message="drift", position=first)
    store.ingest([shifted(i) for i in range(5)])
    (made,) = decide(store, "meaning_changed", 5)
    assert made.detail["from_us"] == START_US - HOUR_US
    assert made.detail["position"] == vars(first)
    assert made.detail["incident_id"] == "inc"


def test_broken_inputs_of_one_carrier_propose_a_contract_rule_in_that_slice(store: LabelStore) -> None:
    healthy = [new_item(100 + i, rule="audit", features={"carrier": ("AA", "UA", "EV")[i % 3]}) for i in range(30)]
    broken = [
        shifted(i, features={"delay_known": 0.0, "carrier": "EV"}, facts={"delay": 40.0 + i}, severity=9.0)
        for i in range(6)
    ]
    store.ingest(healthy + broken)
    (made,) = decide(store, "input_broken", 5)
    assert (made.kind, made.detail["slice"]) == ("contract_rule", "carrier=EV")
    assert made.detail["contract_rule"] == "delay_known must not be 0.0 more often than in the reference"
    assert made.detail["to_us"] == START_US + 5 * MINUTE_US


def test_broken_inputs_that_vary_propose_to_hold_them_to_the_truth_feed(store: LabelStore) -> None:
    store.ingest([shifted(i, features={"delay_known": 20.0 + i}) for i in range(5)])
    (made,) = decide(store, "input_broken", 5)
    assert made.detail["contract_rule"] == "delay_known must be within 5 of delay"


def test_broken_inputs_without_a_suspect_propose_to_leave_the_range_out(store: LabelStore) -> None:
    store.ingest([new_item(i) for i in range(5)])
    (made,) = decide(store, "input_broken", 5)
    assert (made.kind, made.cause) == ("exclude_range", "rule:confident")
    assert (made.detail["from_us"], made.detail["to_us"]) == (START_US, START_US + 4 * MINUTE_US)


def test_a_reviewer_may_name_another_feature_than_the_suspected_one(store: LabelStore) -> None:
    store.ingest([new_item(i) for i in range(5)])
    (made,) = decide(store, "input_broken", 5, feature="wind")
    assert (made.cause, made.detail["feature"]) == ("feature:wind", "wind")


def test_the_world_is_an_answer_to_an_incident_and_nothing_without_one(store: LabelStore) -> None:
    store.ingest([new_item(i) for i in range(12)])
    assert decide(store, "world", 6) == []
    store.note_incident("storm", START_US, message="quality fell")
    (made,) = decide(store, "world", 5)
    assert (made.kind, made.detail["incident_id"]) == ("answer_incident", "storm")


def test_an_incident_that_is_over_does_not_explain_later_items(store: LabelStore) -> None:
    store.note_incident("storm", START_US - DAY_US, until_us=START_US - HOUR_US)
    store.ingest([new_item(i) for i in range(5)])
    assert decide(store, "world", 5) == []


@pytest.mark.parametrize("verdict", ["unpredictable", "truth_wrong"])
def test_some_verdicts_ask_for_nothing(store: LabelStore, verdict: str) -> None:
    store.ingest([shifted(i) for i in range(7)])
    assert decide(store, verdict, 7) == []


def test_further_equal_verdicts_support_the_same_proposal(both: LabelStore) -> None:
    both.ingest([shifted(i) for i in range(12)])
    (made,) = decide(both, "meaning_changed", 9)
    accepted = both.accept(made.proposal_id, "ann")
    assert (accepted.state, accepted.detail["support"]) == ("accepted", 9)
    assert decide(both, "meaning_changed", 3) == []
    assert both.labels_as_of().support == dict.fromkeys([1, 2, 3, 4, 5, 7, 8, 9, 10, 12, 13, 14], made.proposal_id)


def test_the_same_cause_much_later_is_proposed_again(store: LabelStore) -> None:
    store.ingest([shifted(i) for i in range(5)])
    (made,) = decide(store, "meaning_changed", 5)
    store.accept(made.proposal_id, "ann")
    store.ingest([shifted(i, event_time_us=START_US + 30 * DAY_US + i) for i in range(20, 25)])
    (again,) = decide(store, "meaning_changed", 5)
    assert again.proposal_id != made.proposal_id
    assert again.detail["from_us"] == START_US + 30 * DAY_US + 20


def test_a_refused_proposal_comes_back_only_with_as_many_fresh_verdicts(store: LabelStore) -> None:
    store.ingest([shifted(i) for i in range(12)])
    (made,) = decide(store, "meaning_changed", 5)
    refused = store.refuse(made.proposal_id, "ann", "a known change")
    assert (refused.state, refused.reason) == ("refused", "a known change")
    assert decide(store, "meaning_changed", 4) == []
    assert len(decide(store, "meaning_changed")) == 1


def test_a_proposal_whose_support_is_taken_back_is_withdrawn_and_can_come_again(both: LabelStore) -> None:
    both.ingest([shifted(i) for i in range(6)])
    (made,) = decide(both, "meaning_changed", 5)
    undone = both.undo("ann")
    assert undone is not None
    assert undone.withdrawn is not None
    assert both.proposals("open") == []
    with pytest.raises(ProposalClosedError, match="withdrawn"):
        both.accept(made.proposal_id, "ann")
    assert undone.claim is not None
    again = both.submit(undone.claim.token, verdict="meaning_changed").proposal
    assert again is not None
    assert again.proposal_id != made.proposal_id


def test_a_decided_proposal_stays_decided(store: LabelStore) -> None:
    store.ingest([shifted(i) for i in range(5)])
    (made,) = decide(store, "meaning_changed", 5)
    store.accept(made.proposal_id, "ann")
    for decide_again in (store.accept, store.refuse):
        with pytest.raises(ProposalClosedError, match="accepted"):
            decide_again(made.proposal_id, "ann")
    with pytest.raises(UnknownProposalError):
        store.accept("p0", "ann")


def test_only_an_owner_decides_where_owners_are_named(store: LabelStore, clock: ManualClock) -> None:
    policy = LabelingPolicy(owners=("olga",))
    owned = LabelStore(store.engine, "small", policy, clock=clock, contract=small_contract())
    owned.ingest([shifted(i) for i in range(5)])
    (made,) = decide(owned, "meaning_changed", 5)
    with pytest.raises(NotOwnerError):
        owned.accept(made.proposal_id, "ann")
    assert owned.accept(made.proposal_id, "olga").decided_by == owned.pseudonym("olga")


def test_the_owner_may_correct_where_it_begins(store: LabelStore) -> None:
    store.ingest([shifted(i) for i in range(5)])
    (made,) = decide(store, "meaning_changed", 5)
    accepted = store.accept(made.proposal_id, "ann", from_us=START_US - DAY_US)
    assert accepted.detail["from_us"] == START_US - DAY_US


def test_proposals_are_events_that_say_all_that_retraining_needs(both: LabelStore) -> None:
    both.ingest([shifted(i) for i in range(5)])
    (made,) = decide(both, "meaning_changed", 5)
    both.accept(made.proposal_id, "ann", "as announced")
    with read(both.engine) as connection:
        made_event, accepted = [row.record for row in pending(connection)][-2:]
    assert (made_event["kind"], made_event["actor"]) == ("proposal_made", "flywheel")
    assert accepted["kind"] == "proposal_accepted"
    assert accepted["proposal_id"] == made.proposal_id
    assert accepted["proposal_kind"] == "new_contract_version"
    assert accepted["verdict"] == "meaning_changed"
    assert accepted["feature"] == "delay_known"
    assert accepted["cause"] == "feature:delay_known:over"
    assert (accepted["from_us"], accepted["to_us"]) == (START_US, None)
    position = [accepted[name] for name in ("cluster", "topic", "partition", "offset")]
    assert position == ["main", "flywheel.inputs.v1", 0, 100]
    assert (accepted["support"], accepted["reason"]) == (5, "as announced")


def test_proposals_are_rebuilt_from_the_events(both: LabelStore) -> None:
    both.ingest([shifted(i) for i in range(12)])
    (made,) = decide(both, "meaning_changed", 6)
    both.accept(made.proposal_id, "ann")
    decide(both, "meaning_changed", 1)
    before = both.proposals()
    both.rebuild()
    assert both.proposals() == before
    assert decide(both, "meaning_changed", 3) == []
