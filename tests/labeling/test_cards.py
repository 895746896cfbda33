"""A card shows what a person needs to decide, on 80 x 24, and nothing that could steer the terminal."""

from __future__ import annotations

import pytest

from labeling.cards import Card, build_card
from labeling.estimate import Selected, hajek
from labeling.evidence import breaches, differences
from labeling.items import NewItem
from labeling.policy import LabelingPolicy
from labeling.render import HEIGHT, WIDTH, label_keys, render
from labeling.store import LabelStore
from labeling.testing import START_US, new_item, small_contract


def card_of(store: LabelStore, items: list[NewItem]) -> Card:
    store.ingest(items)
    claim = store.claim("ann", f"{items[0].prediction_id}/{items[0].rule}")
    return build_card(store, claim)


def text_of(card: Card, *, is_ascii: bool = False) -> str:
    return "\n".join(line.text for line in render(card, now_us=START_US, is_ascii=is_ascii))


def test_the_card_shows_why_it_is_here_and_what_was_said(store: LabelStore) -> None:
    text = text_of(card_of(store, [new_item(1, note="no way", user_label="wrong")]))
    assert "rule confident, picks 100% of such predictions (rules abcd)" in text
    assert "late, score 0.950 (version 1), asked 2026-03-02T09:01:00Z" in text
    assert "Truth    on_time" in text
    assert 'User     wrong "no way"' in text


def test_the_card_shows_the_input_beside_the_truth_feed(store: LabelStore) -> None:
    card = card_of(store, [new_item(1, features={"delay_known": 19.0})])
    assert "Input    delay_known 19, truth feed delay 3: +16" in text_of(card)
    assert "*delay_known 19" in text_of(card)


def test_a_difference_within_the_tolerance_is_said_to_be_one(store: LabelStore) -> None:
    text = text_of(card_of(store, [new_item(1, features={"delay_known": 5.0})]))
    assert "truth feed delay 3: +2, within 5" in text
    assert "*" not in text


def test_features_outside_the_contract_are_marked(store: LabelStore) -> None:
    text = text_of(card_of(store, [new_item(1, features={"wind": 1048.36, "carrier": "XX"})]))
    assert "Contract wind 1048.36 is above 100" in text
    assert "Contract carrier XX is not in the contract" in text


def test_the_card_says_how_many_are_like_it_and_what_they_share(store: LabelStore) -> None:
    others = [new_item(100 + i, rule="audit", features={"carrier": ("AA", "UA", "EV")[i % 3]}) for i in range(9)]
    alike = [new_item(i, features={"carrier": "EV", "delay_known": 0.0}, facts={"delay": 50.0 + i}) for i in range(13)]
    card = card_of(store, alike + others)
    text = " ".join(text_of(card).split())
    assert "12 more open, 12 in carrier=EV, off by -62 to -51" in text
    assert card.similar.first_us == START_US + 60_000_000


def test_the_card_tells_what_was_said_of_others_like_it(store: LabelStore) -> None:
    items = [new_item(i, features={"delay_known": 30.0}) for i in range(4)]
    store.ingest(items)
    for verdict in ("meaning_changed", "meaning_changed", "unpredictable"):
        claim = store.next("ann")
        assert claim is not None
        store.submit(claim.token, verdict=verdict)
    claim = store.next("ann")
    assert claim is not None
    assert "So far   2 meaning changed, 1 unpredictable" in text_of(build_card(store, claim))


def test_an_audited_item_says_that_chance_picked_it(store: LabelStore) -> None:
    card = card_of(store, [new_item(1, rule="audit", selection_probability=0.01, truth="late")])
    assert card.is_audit
    assert "picked by chance (1 in 100)" in text_of(card)


@pytest.mark.parametrize("names", [[f"p{i // 8}{i % 8}" for i in range(64)], [f"pixel_{i:02d}" for i in range(64)]])
@pytest.mark.parametrize("is_ascii", [False, True])
def test_sixty_four_pixels_are_shown_as_a_picture(store: LabelStore, names: list[str], is_ascii: bool) -> None:
    plain = LabelStore(store.engine, "digits", LabelingPolicy(labels=tuple("0123456789")), clock=store.clock)
    pixels = {name: 16.0 if i % 8 == 3 else 0.0 for i, name in enumerate(names)}
    new = new_item(1, kind="answer", truth=None, label="7", facts={})
    item = NewItem(**(vars(new) | {"features": pixels}))
    lines = text_of(card_of(plain, [item]), is_ascii=is_ascii).splitlines()
    ink = "##" if is_ascii else "██"
    assert sum(f"|      {ink}        |" in line for line in lines) == 8
    assert "0-9 the digit" in lines[-1] + lines[-2]


@pytest.mark.parametrize("n_features", [0, 4, 20, 200])
def test_every_card_fits_the_terminal(store: LabelStore, n_features: int) -> None:
    more = {f"a_rather_long_feature_name_{i}": 1.5 * i for i in range(n_features)}
    new = new_item(1, note="word " * 400, user_label="x" * 200, prediction_id="p" * 300, truth=None)
    card = card_of(store, [NewItem(**(vars(new) | {"features": dict(new.features) | more}))])
    lines = render(card, now_us=START_US)
    assert len(lines) <= HEIGHT
    assert max(len(line.text) for line in lines) <= WIDTH
    assert "Keys" in text_of(card)


def test_text_from_elsewhere_cannot_steer_the_terminal(store: LabelStore) -> None:
    evil = "\x1b[2J\x07\u202e\r\n"
    features = {"carrier": evil}
    text = text_of(card_of(store, [new_item(1, note=evil, label=evil, user_label=evil, features=features)]))
    assert not set(text) & {"\x1b", "\x07", "\u202e", "\r"}


def test_the_lease_left_is_shown(store: LabelStore) -> None:
    assert "yours for 10:00" in text_of(card_of(store, [new_item(1)]))


def test_keys_of_labels() -> None:
    assert label_keys(("3", "8")) == {"3": "3", "8": "8"}
    assert label_keys(tuple("abcdefghijkl"))["0"] == "j"
    assert label_keys(()) == {}


def test_redacted_values_are_compared_with_nothing() -> None:
    contract = small_contract()
    features = {"carrier": "[redacted]", "delay_known": "[redacted]", "wind": None, "name": None}
    assert differences(features, {"delay": 3.0}, contract) == []
    assert breaches({"delay_known": 1.0, "wind": None, "carrier": "AA"}, contract) == {}


def test_quality_from_failures_alone_is_not_known() -> None:
    estimate = hajek([Selected({"flag": 1.0}, False)] * 9 + [Selected({"audit": 0.1}, None)])
    assert (estimate.unweighted, estimate.weighted) == (0.0, None)
    assert hajek([]).reviewed == 0


def test_a_rule_reviewed_in_part_stands_for_all_that_it_picked() -> None:
    flagged = [Selected({"flag": 1.0}, False)] * 10 + [Selected({"flag": 1.0}, None)] * 90
    audited = [Selected({"audit": 0.1}, True)] * 90
    assert hajek(flagged + audited).weighted == pytest.approx(900 / 1000)


def test_what_both_rule_and_audit_picked_counts_once() -> None:
    both_rules = [Selected({"flag": 1.0, "audit": 0.1}, False)]
    assert hajek(both_rules + [Selected({"audit": 0.1}, True)] * 9).weighted == pytest.approx(90 / 91)


def test_quality_by_the_audit_is_unbiased_where_the_unweighted_one_is_not(store: LabelStore) -> None:
    """A model that is right on 80 %: all errors are failures, 5 % of all are audited."""
    items = []
    for i in range(2000):
        truth = "on_time" if i % 5 == 0 else "late"
        if truth == "on_time":
            items.append(new_item(i, truth=truth))
        if i % 20 == 7 or i % 100 == 5:  # 100 audited right ones of 80 % x 2000, 20 wrong ones
            items.append(new_item(i, truth=truth, rule="audit", selection_probability=0.0625))
    store.ingest(items)
    while (claim := store.next("ann")) is not None:
        store.submit(claim.token, verdict="unpredictable")
    estimate = store.quality()
    assert estimate.unweighted is not None
    assert estimate.weighted is not None
    assert estimate.low is not None
    assert estimate.high is not None
    assert estimate.unweighted < 0.3
    assert estimate.low < 0.8 < estimate.high
    assert estimate.weighted == pytest.approx(0.8, abs=0.01)


def test_a_broken_input_is_out_of_quality_and_a_given_label_wins_over_the_truth(store: LabelStore) -> None:
    store.ingest([new_item(i, rule="audit", truth="late") for i in range(3)])
    for given in ({"verdict": "input_broken"}, {"answer": "on_time"}, {"verdict": "unpredictable"}):
        claim = store.next("ann")
        assert claim is not None
        store.submit(claim.token, **given)  # type: ignore[arg-type]
    estimate = store.quality()
    assert (estimate.reviewed, estimate.weighted) == (2, 0.5)
