"""The simulated reviewer judges by the card alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
import sqlalchemy as sa

from labeling.proposals import VERDICTS
from schemas.database import open_database, write
from streams.demo import digits, flights
from streams.demo.faults import FAULT_FROM, FAULTS
from streams.demo.reviewer import review_digit, review_flight
from streams.demo.story import Story
from streams.demo.workspace import Workspace
from streams.tables import alert

AGREED = {"dep_delay": 4.0, "ground_min": 25.0, "usual_ground_min": 22.0, "air_min": 100.0, "usual_air_min": 102.0}


def card(given: float | None = 4.0, truth: str | None = "late", **facts: float | None) -> dict[str, Any]:
    known = {name: value for name, value in (AGREED | facts).items() if value is not None}
    return {"features": {"dep_delay_known": given}, "facts": known if truth else {}, "truth": truth}


@pytest.mark.parametrize(
    ("shown", "verdict", "reason"),
    [
        (card(given=0.0, dep_delay=52.0), "input_broken", "The input says +0 min, the truth feed +52 min."),
        (card(given=None, dep_delay=52.0), "input_broken", "The delay is missing"),
        (card(given=19.0, dep_delay=2.0), "meaning_changed", "The input says +19 min, the truth feed +2 min."),
        (card(given=0.0, dep_delay=-16.0), "meaning_changed", "a zero over the truth is no default"),
        (card(given=9.0), "unpredictable", "five minutes are within the tolerance"),
        (card(ground_min=60.0), "unpredictable", "Held on the ground: 60 min, usually 22."),
        (card(air_min=140.0), "unpredictable", "Held in the air: 140 min, usually 102."),
        (card(air_min=140.0, usual_air_min=None), "unpredictable", "Inputs and truth agree"),
        (card(truth=None), "truth_wrong", "diverted"),
    ],
)
def test_a_card_has_one_verdict(shown: dict[str, Any], verdict: str, reason: str) -> None:
    review = review_flight(shown)
    assert review.verdict == verdict
    if reason[0].isupper():
        assert review.reason.startswith(reason)


def test_only_a_missing_truth_gets_a_label_and_only_a_bad_input_names_a_feature() -> None:
    assert review_flight(card(truth=None)).label == "late"
    assert review_flight(card(given=0.0, dep_delay=52.0)).feature == "dep_delay_known"
    held = review_flight(card(ground_min=60.0))
    assert (held.label, held.feature) == (None, None)


def test_the_lines_of_a_card_are_read_as_its_features_by_name() -> None:
    shown = card(given=19.0, dep_delay=2.0)
    lines = [{"name": name, "value": value, "unit": None, "mark": None} for name, value in shown["features"].items()]
    assert review_flight(shown | {"features": lines}) == review_flight(shown)


def test_the_verdicts_are_those_of_the_store() -> None:
    given = [card(), card(truth=None), card(given=0.0, dep_delay=52.0), card(given=19.0, dep_delay=2.0)]
    assert {review_flight(shown).verdict for shown in given} <= set(VERDICTS)


@pytest.mark.parametrize(("fault", "share"), [("none", 0.0), ("gate-to-runway", 1.0), ("ev-zero", 1.0)])
def test_the_planted_faults_are_told_apart(departures: pl.DataFrame, fault: str, share: float) -> None:
    hit = pl.col("carrier") == "EV" if fault == "ev-zero" else pl.lit(value=True)
    after = departures.filter(pl.col("event_time").is_between(FAULT_FROM, FAULT_FROM + 86_400_000_000), hit)
    late = FAULTS[fault].apply(after).filter(pl.col("dep_delay") > 15).drop_nulls("truth_time")
    shown = [
        {
            "features": {name: row[name] for name in flights.FEATURES},
            "facts": {name: row[name] for name in flights.FACTS},
            "truth": row["label"],
        }
        for row in late.iter_rows(named=True)
    ]
    expected = {"gate-to-runway": "meaning_changed", "ev-zero": "input_broken", "none": "input_broken"}[fault]
    assert len(shown) > 20
    assert sum(review_flight(s).verdict == expected for s in shown) == share * len(shown)


def test_a_digit_is_named_by_its_id() -> None:
    names = digits.load_digits()["prediction_id"].head(300).to_list()
    assert all(review_digit(name).label == digits.true_label(name) for name in names)


def test_a_careless_reviewer_errs_as_often_as_told_and_always_the_same_way() -> None:
    names = digits.load_digits()["prediction_id"].to_list()
    first = [review_digit(name, 0.15, seed=1).label for name in names]
    wrong = sum(label != digits.true_label(name) for name, label in zip(names, first, strict=True))
    assert wrong / len(names) == pytest.approx(0.15, abs=0.03)
    assert first == [review_digit(name, 0.15, seed=1).label for name in names]
    assert first != [review_digit(name, 0.15, seed=2).label for name in names]
    assert {*first} <= set(digits.LABELS)


def test_a_person_is_asked_once_a_page_and_the_simulated_reviewer_goes_on(tmp_path: Path) -> None:
    engine = open_database(f"sqlite:///{tmp_path / 'flywheel.db'}")
    asked: list[object] = []
    claimed: list[int] = []
    store: Any = SimpleNamespace(next=lambda *_: claimed.append(1), proposals=lambda *_: [])
    driver: Any = SimpleNamespace(
        engine=engine, store=store, service=SimpleNamespace(version="v1"), settle=lambda: None
    )
    story = Story(driver, Workspace(tmp_path, {}), lambda _: None, review=asked.append)

    def morning(*opened: str) -> int:
        with write(engine) as connection:
            for subject in opened:
                texts = ("alert_id", "incident_id", "subject", "model", "version", "channel", "slice", "message")
                row = dict.fromkeys(texts, subject) | {"severity": "page", "state": "opened"}
                connection.execute(sa.insert(alert).values(**row, time_us=1, detail={}))
        story._morning(None)
        return len(asked)

    assert [morning(), morning("bias"), morning(), morning("dep_delay_known"), morning()] == [0, 1, 1, 2, 2]
    assert claimed
    engine.dispose()
