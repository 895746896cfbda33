"""Real flights with the planted change of meaning: what the gate says on 6 and on 14 May, against the design's figures.

No Kafka: the archive is written from the demo's events, with the answers of the first version in it.
"""

from __future__ import annotations

from datetime import date, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl
import pytest
import sqlalchemy as sa

from retrain.artifacts import ArtifactStore
from retrain.dataset import rebuild_dataset
from retrain.initial import register_initial
from retrain.labels import ingest, load_records
from retrain.metrics import auc, judge_scores
from retrain.paths import Paths
from retrain.policy import GatePolicy, RetrainPolicy
from retrain.registry import Registry
from retrain.run import RunRequest, RunResult, run_retrain
from retrain.testing import write_log
from schemas.database import open_database, read, write
from schemas.times import to_us
from streams.demo import flights
from streams.demo.faults import FAULT_FROM, FAULTS

pytestmark = pytest.mark.slow
ZONE = ZoneInfo(flights.TIMEZONE)
POLICY = RetrainPolicy(params=dict(flights.TRAINER_PARAMETERS), gate=GatePolicy(min_days=4))


def local(month: int, day: int) -> int:
    return to_us(datetime(2013, month, day, 5, tzinfo=ZONE))


def quality(rows: pl.DataFrame, scores: Any) -> dict[str, float]:
    y = (rows["label"].fill_null("late") == "late").cast(pl.Float64).to_numpy()
    judged = judge_scores(scores, y)
    return {
        "log_loss": float(judged.loss.mean()),
        "auc": auc(y, scores),
        "accuracy": float(judged.is_right.mean()),
        "bias": float((scores - y).mean()),
    }


class Story:
    """The state of 26 May, seen from 6 and from 14 May."""

    def __init__(self, root: Path) -> None:
        self.contract, self.paths = flights.contract(), Paths(root)
        self.engine: sa.Engine = open_database(f"sqlite:///{root / 'db.sqlite'}")
        departures = flights.load_departures(root / "cache")
        self.first = register_initial(
            self.engine, self.paths, self.contract, POLICY, flights.training_table(departures)
        )
        faulty = FAULTS["gate-to-runway"].apply(departures, FAULT_FROM)
        self.rows = flights.between(faulty, flights.DEMO_FIRST_DAY, flights.DEMO_LAST_DAY)
        champion = ArtifactStore(self.paths).load(self.first.artifact_sha256)
        self.scores = champion.predict(self.rows).scores
        self.ends = write_log(self.paths.archive, self.rows, self.contract, self.scores)
        self.sixth = self.run("cron", local(5, 6))
        accepted = {
            "event_id": "flights:1:a",
            "seq": 1,
            "model": "flights",
            "kind": "proposal_accepted",
            "actor": "ann",
        }
        change = {"proposal_id": "p1", "proposal_kind": "new_contract_version", "from_us": FAULT_FROM, "to_us": None}
        with write(self.engine) as connection:
            ingest(connection, accepted | change)
        self.fourteenth = self.run("proposal", local(5, 14))

    def run(self, trigger: str, as_of_us: int) -> RunResult:
        request = RunRequest(trigger, "the story", as_of_us, self.ends)
        return run_retrain(self.engine, self.paths, self.contract, POLICY, request)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    return Story(tmp_path_factory.mktemp("flights"))


def test_the_first_version_is_the_one_of_the_design(story: Story) -> None:
    assert story.first.metrics["rows"] == 78_146
    in_april = story.rows["day"] < date(2013, 5, 6)
    told = quality(story.rows.filter(in_april), story.scores[in_april.to_numpy()])
    assert told["auc"] == pytest.approx(0.8878, abs=0.005)
    assert told["log_loss"] == pytest.approx(0.3225, abs=0.01)


def test_on_6_may_the_scheduled_challenger_is_refused_for_what_it_learnt_from_the_strike(story: Story) -> None:
    """The last week of April taught it to expect delays; the quiet first week of May shows it."""
    (mixed,) = story.sixth.candidates
    assert (story.sixth.state, mixed.recipe, mixed.verdict) == ("refused", "mixed", "fail")
    ours, theirs = mixed.metrics["challenger"], mixed.metrics["champion"]
    assert mixed.metrics["n"] == 6492
    assert ours["log_loss"] > theirs["log_loss"] + POLICY.gate.margin
    assert ours["bias"] > POLICY.gate.bias_max > abs(theirs["bias"])
    assert "calibration error" in mixed.reason
    assert "worse" in mixed.reason


def test_on_14_may_the_recipes_compete_and_the_version_column_wins(story: Story) -> None:
    found = {c.recipe.partition("(")[0]: c for c in story.fourteenth.candidates}
    verdicts = {name: candidate.verdict for name, candidate in found.items()}
    assert verdicts["mixed"] == verdicts["exclude"] == "fail"
    assert verdicts["version_column"] == "pass"
    losses = {name: c.metrics["challenger"]["log_loss"] for name, c in found.items()}
    champion = found["mixed"].metrics["champion"]["log_loss"]
    assert losses["version_column"] < losses["since"] < losses["mixed"] < champion < losses["exclude"]
    assert "bias" in found["mixed"].reason
    assert "bias" in found["exclude"].reason
    assert story.fourteenth.state == "promoted"
    version = Registry(story.engine).at("flights", local(5, 14))
    assert version is not None
    assert version.recipe["name"].startswith("version_column")
    assert version.constants == {"contract_version": 2.0}
    before = Registry(story.engine).at("flights", local(5, 14) - 1)
    assert before is not None
    assert before.version == "v1"


def test_from_14_to_26_may_the_new_version_is_as_good_as_the_design_says(story: Story) -> None:
    after = story.rows["day"] >= date(2013, 5, 14)
    rows = story.rows.filter(after)
    assert rows.height == 11_528
    broken = quality(rows, story.scores[after.to_numpy()])
    version = Registry(story.engine).resolve("flights")
    assert version is not None
    mended = quality(rows, ArtifactStore(story.paths).load(version.artifact_sha256).predict(rows).scores)
    assert broken["log_loss"] == pytest.approx(0.4899, abs=0.03)
    assert broken["accuracy"] == pytest.approx(0.801, abs=0.02)
    assert broken["auc"] == pytest.approx(0.9232, abs=0.005)
    assert mended["log_loss"] == pytest.approx(0.2554, abs=0.01)
    assert mended["accuracy"] == pytest.approx(0.906, abs=0.005)
    assert mended["auc"] == pytest.approx(0.9265, abs=0.005)
    assert abs(mended["bias"]) < 0.02


def test_the_dataset_of_14_may_can_be_built_again(story: Story) -> None:
    assert story.fourteenth.dataset is not None
    with read(story.engine) as connection:
        records = load_records(connection, "flights")
    again = rebuild_dataset(story.paths, story.fourteenth.dataset, story.contract, records)
    assert again.hash == story.fourteenth.dataset
    assert np.isclose(again.counts["gate"], 3537, atol=5)
