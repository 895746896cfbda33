"""``flywheel retrain`` and ``flywheel models``, as a user and a script meet them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from click.testing import CliRunner, Result

from retrain.testing import BASE_DAYS, LOG_DAYS, served_scores, small_contract, small_rows, write_log
from streams.cli import Session
from streams.cli.models import models
from streams.cli.retrain import retrain

CONFIG = """
[flywheel]
state_dir = "state"

[models.small]
contract = "small.avsc"

[models.small.retrain]
trainer = "sklearn_logistic"
holdout_days = 4
gate = { min_rows = 200, min_days = 3, slice_min_rows = 50, bias_max = 0.08, ece_max = 0.08 }
"""
Run = Callable[..., Result]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    contract = small_contract()
    (tmp_path / "flywheel.toml").write_text(CONFIG)
    (tmp_path / "small.avsc").write_text(json.dumps(contract.document))
    small_rows(BASE_DAYS).write_parquet(tmp_path / "past.parquet")
    rows = small_rows(LOG_DAYS, first_day=BASE_DAYS, seed=1)
    write_log(tmp_path / "state" / "archive", rows, contract, served_scores(rows))
    return tmp_path


@pytest.fixture
def call(home: Path) -> Run:
    def invoke(group: Any, *arguments: str, code: int = 0) -> Result:
        session = Session(home / "flywheel.toml")
        result = CliRunner().invoke(group, arguments, obj=session, catch_exceptions=False)
        assert result.exit_code == code, result.output
        return result

    return invoke


def test_from_the_first_version_to_a_rollback(home: Path, call: Run) -> None:
    first = call(retrain, "run", "--initial", str(home / "past.parquet"))
    assert "small v1 is the champion (sklearn_logistic, 2000 rows)" in first.output
    told = json.loads(call(retrain, "run", "--json").stdout)
    assert (told["state"], told["version"]) == ("promoted", "v2")
    shown = json.loads(call(retrain, "show", told["run_id"], "--json").stdout)
    assert {c["verdict"] for c in shown["candidates"][0]["checks"]} == {"pass"}
    assert "slice_not_proven_worse [route=A]" in call(retrain, "show", told["run_id"]).output
    assert "promoted -> v2" in call(retrain, "history").output
    decisions = json.loads(call(retrain, "history", "--decisions", "--json").stdout)["decisions"]
    assert [d["trigger"] for d in decisions] == ["manual", "initial"]
    built = json.loads(call(retrain, "rebuild", told["dataset"][:12], "--json").stdout)
    assert built == {"dataset": told["dataset"], "same": True, "counts": built["counts"]}
    listed = json.loads(call(models, "list", "--json").stdout)
    assert [(v["version"], v["is_champion"]) for v in listed["versions"]] == [("v1", False), ("v2", True)]
    assert "* v2" in call(models, "list").output
    assert "small v2 (champion)" in call(models, "show").output
    back = json.loads(call(models, "rollback", "--reason", "it lied", "--json").stdout)
    assert (back["version"], back["previous"], back["action"]) == ("v1", "v2", "rolled-back")
    ledger = call(models, "history").output.splitlines()
    assert [line.split()[-1] for line in ledger[-1:]] == ["lied"]
    before = json.loads(call(models, "history", "--at", "2024-01-15T00:00:00Z", "--json").stdout)
    assert before["champion"] == "v1"
    assert call(models, "promote", "v2", "--reason", "after all", "--override").output.startswith(
        "small: champion v1 -> v2"
    )


def test_the_first_version_is_trained_on_the_reference_of_the_configuration(home: Path, call: Run) -> None:
    config = home / "flywheel.toml"
    config.write_text(config.read_text().replace("[models.small]\n", '[models.small]\nreference = "past.parquet"\n'))
    assert "small v1 is the champion (sklearn_logistic, 2000 rows)" in call(retrain, "run").output
    told = json.loads(call(retrain, "run", "--json").stdout)
    assert (told["state"], told["version"]) == ("promoted", "v2"), "once there is a champion, it is a challenger's turn"


def test_a_refusal_ends_with_code_3_and_its_reason(home: Path, call: Run) -> None:
    call(retrain, "run", "--initial", str(home / "past.parquet"))
    refused = call(retrain, "run", "--as-of", "2024-01-13T00:00:00Z", code=3)
    assert "inconclusive" in refused.output
    assert "champion stays v1" in refused.output
    told = json.loads(call(retrain, "run", "--as-of", "2024-01-13T00:00:00Z", "--json", code=3).stdout)
    assert told["state"] == "refused"


def test_rows_to_judge_by_may_be_given(home: Path, call: Run) -> None:
    call(retrain, "run", "--initial", str(home / "past.parquet"))
    small_rows(5, first_day=60).write_parquet(home / "judge.parquet")
    told = json.loads(call(retrain, "run", "--gate-table", str(home / "judge.parquet"), "--json").stdout)
    assert told["candidates"][0]["metrics"]["n"] == 1000


@pytest.mark.parametrize(
    ("group", "arguments", "message"),
    [
        (retrain, ["run", "--recipe", "magic"], "'magic' is not a recipe"),
        (retrain, ["run", "--as-of", "noon"], "'noon' is not a time"),
        (retrain, ["run", "--initial", "nothing.parquet"], "no file"),
        (retrain, ["show", "small-r9"], "no run 'small-r9'"),
        (retrain, ["rebuild", "abc"], "no dataset 'abc'"),
        (retrain, ["history", "--model", "large"], "large"),
        (models, ["show"], "no champion"),
        (models, ["show", "v3"], "no version 'v3'"),
        (models, ["rollback", "--reason", "x"], "no champion to roll back"),
    ],
)
def test_mistakes_are_told_with_code_2(home: Path, group: Any, arguments: list[str], message: str) -> None:
    from schemas.errors import UsageError

    with pytest.raises(UsageError, match=message) as told:
        CliRunner().invoke(group, arguments, obj=Session(home / "flywheel.toml"), catch_exceptions=False)
    assert told.value.exit_code == 2


def test_nothing_yet_is_said_in_words(call: Run) -> None:
    assert "No version yet" in call(models, "list").output
    assert "No version was promoted yet" in call(models, "history").output
    assert "No run yet" in call(retrain, "history").output


def test_a_table_of_other_columns_is_named_by_options(home: Path, call: Run) -> None:
    past = pl.read_parquet(home / "past.parquet").rename({"label": "outcome", "event_time": "when"})
    past.with_columns(pl.col("when").cast(pl.Datetime("us", "UTC"))).write_parquet(home / "other.parquet")
    done = call(
        retrain, "run", "--initial", str(home / "other.parquet"), "--label", "outcome", "--time", "when", "--json"
    )
    assert json.loads(done.stdout)["version"] == "v1"
