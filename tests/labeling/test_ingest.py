"""Items come in once, with the reason why they are here, and without what may not be stored."""

from __future__ import annotations

import json
from typing import Any

import pytest
import sqlalchemy as sa
from pydantic import SecretStr

from labeling.ingest import IngestCounts
from labeling.items import REDACTED, Protector, hashes, split_id
from labeling.policy import LabelingPolicy
from labeling.store import LabelStore
from labeling.tables import item
from labeling.testing import new_item, small_contract
from schemas.database import read
from schemas.errors import UsageError


def rows(store: LabelStore) -> list[sa.Row[Any]]:
    with read(store.engine) as connection:
        return list(connection.execute(sa.select(item).order_by(item.c.id)))


def test_the_same_items_again_change_nothing(both: LabelStore) -> None:
    batch = [new_item(i) for i in range(50)]
    assert both.ingest(batch) == IngestCounts(added=50)
    before = rows(both)
    assert both.ingest(batch) == IngestCounts(redelivered=50)
    assert rows(both) == before


def test_an_item_says_why_it_is_here(both: LabelStore) -> None:
    both.ingest([new_item(1, rule="audit", selection_probability=0.01, policy="f00d")])
    (row,) = rows(both)
    assert (row.rule, row.policy, row.selection_probability) == ("audit", "f00d", 0.01)


def test_a_further_complaint_raises_counter_and_priority_but_makes_no_second_item(both: LabelStore) -> None:
    both.ingest([new_item(1, occurrence="feedback-1"), new_item(2, occurrence="feedback-2")])
    again = [new_item(2, occurrence="feedback-3"), new_item(2, occurrence="feedback-4")]
    assert both.ingest(again) == IngestCounts(repeated=2)
    assert both.ingest(again) == IngestCounts(redelivered=2)
    first, second = rows(both)
    assert (first.duplicates, second.duplicates) == (0, 2)
    claim = both.next("ann")
    assert claim is not None
    assert claim.item_id == "p2/confident"


def test_the_same_item_twice_in_one_batch_is_one_item(both: LabelStore) -> None:
    assert both.ingest([new_item(1), new_item(1)]) == IngestCounts(added=1, redelivered=1)


def test_two_rules_that_pick_one_prediction_ask_one_question(both: LabelStore) -> None:
    picked = [new_item(1), new_item(1, rule="audit", selection_probability=0.01)]
    assert both.ingest(picked) == IngestCounts(added=1, merged=1)
    assert both.ingest(picked) == IngestCounts(redelivered=2)
    first, second = rows(both)
    assert (second.state, second.same_as) == ("duplicate", first.id)
    assert first.duplicates == 1
    assert both.next("ann") is not None
    assert both.next("ben") is None


def test_an_equal_picture_is_asked_once_but_equal_inputs_of_two_flights_are_two_verdicts(both: LabelStore) -> None:
    pictures = [new_item(i, kind="answer", truth=None) for i in (1, 2)]
    assert both.ingest(pictures) == IngestCounts(added=1, merged=1)
    flights = [new_item(i, kind="verdict") for i in (3, 4)]
    assert both.ingest(flights) == IngestCounts(added=2)


def test_two_models_have_two_queues(store: LabelStore) -> None:
    other = LabelStore(store.engine, "other", clock=store.clock)
    store.ingest([new_item(1)])
    assert other.ingest([new_item(1)]) == IngestCounts(added=1)
    assert other.stats().items == 1


def test_sensitive_values_are_never_stored_as_they_are(store: LabelStore) -> None:
    policy = LabelingPolicy(hash_key=SecretStr("k"), sensitive={"carrier": "secret"})
    keyed = LabelStore(store.engine, "small", policy, clock=store.clock, contract=small_contract())
    people = [new_item(i, features={"name": name}, subject="whom") for i, name in enumerate(["Bo", "Bo", "Cy"])]
    keyed.ingest(people)
    stored = rows(store)
    names = [row.payload["features"]["name"] for row in stored]
    assert names[0] == names[1] != names[2]
    assert all(row.payload["features"]["carrier"] == REDACTED for row in stored)
    assert len({row.subject_hash for row in stored}) == 1
    text = json.dumps([dict(row._mapping) for row in stored])
    assert "Bo" not in text
    assert "Cy" not in text
    assert "whom" not in text


def test_without_a_key_a_personal_value_is_redacted_and_a_subject_not_stored(store: LabelStore) -> None:
    store.ingest([new_item(1, features={"name": "Bo"}, subject="whom")])
    (row,) = rows(store)
    assert row.payload["features"]["name"] == REDACTED
    assert row.subject_hash is None


def test_the_fact_of_a_sensitive_field_is_as_sensitive() -> None:
    policy = LabelingPolicy(sensitive={"delay_known": "secret"})
    assert Protector(policy, small_contract()).protect("delay", 7.0) == REDACTED


def test_input_hashes_tell_secrets_apart_only_with_the_key() -> None:
    one, two = new_item(1, features={"name": "Bo"}), new_item(1, features={"name": "Cy"})
    assert hashes(one, "k")[0] != hashes(two, "k")[0]
    assert hashes(one, "k")[0] != hashes(one, "other")[0]


def test_missing_numbers_are_stored_as_missing(both: LabelStore) -> None:
    both.ingest([new_item(1, score=float("nan"), features={"wind": float("inf")}, facts={"delay": float("nan")})])
    (row,) = rows(both)
    assert row.payload["score"] is None
    assert row.payload["features"]["wind"] is None
    assert row.payload["facts"]["delay"] is None


def test_the_suspected_feature_comes_from_the_truth_feed_before_the_contract(store: LabelStore) -> None:
    store.ingest(
        [
            new_item(1, features={"delay_known": 30.0, "wind": 1048.0}),
            new_item(2, features={"wind": 1048.0}),
            new_item(3),
            new_item(4, features={"delay_known": -9.0}),
        ]
    )
    suspects = [row.suspect for row in rows(store)]
    assert suspects == ["delay_known:over", "wind:contract", None, "delay_known:under"]


def test_a_surer_error_is_more_urgent_and_a_known_unpredictable_kind_less(store: LabelStore) -> None:
    store.ingest([new_item(1, score=0.6), new_item(2, score=0.99)])
    claim = store.next("ann")
    assert claim is not None
    assert claim.item_id == "p2/confident"
    store.submit(claim.token, verdict="unpredictable")
    store.ingest([new_item(3, score=0.99)])
    before, after = rows(store)[1], rows(store)[2]
    assert after.urgency < before.urgency


@pytest.mark.parametrize(
    "changes",
    [
        {"rule": "a/b"},
        {"rule": "a|b"},
        {"prediction_id": ""},
        {"prediction_id": "a\x00b"},
        {"prediction_id": "p" * 513},
        {"rule": ""},
        {"selection_probability": 0.0},
        {"selection_probability": 1.5},
    ],
)
def test_an_item_that_cannot_be_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        new_item(1, **changes)


def test_an_item_is_found_by_its_public_name_even_with_a_slash_in_the_prediction_id(store: LabelStore) -> None:
    store.ingest([new_item(1, prediction_id="2013/05/06-UA-1")])
    assert store.find("2013/05/06-UA-1/confident") == 1
    assert split_id("2013/05/06-UA-1/confident") == ("2013/05/06-UA-1", "confident")
    with pytest.raises(UsageError, match="no item"):
        store.find("nobody/confident")
    with pytest.raises(UsageError, match="not an item id"):
        store.find("nobody")
