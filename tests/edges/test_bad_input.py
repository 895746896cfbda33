"""Tables and profiles that nothing can be learnt from: what is off is told with its reason, and nothing breaks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner

from schemas.history import history_parts
from schemas.profile import CELL_NULL
from schemas.registry import Codec
from schemas.times import DAY_US, HOUR_US, SECOND_US
from streams.cli import cli
from streams.cli.status import lines
from streams.config import Config, load_config
from streams.ends import LogEnds
from streams.logic.monitor import Monitor, MonitorInfo
from streams.registry import open_registry
from streams.runtime import plan_of
from streams.status import StatusReader, open_for_reading
from streams.tabular import TableError

ROWS, START_S, STEP_S = 7_200, 1_700_000_000, 300
RNG = np.random.default_rng(5)
SCORES = RNG.random(ROWS)
AWAY = LogEnds("embedded")


def table(rows: int = ROWS, **columns: Any) -> pl.DataFrame:
    """A row every five minutes, an ordinary feature, and what is given."""
    data = {
        "time": START_S + np.arange(rows) * STEP_S,
        "usual": RNG.normal(size=rows),
        "truth": np.where(SCORES[:rows] > 0.5, "yes", "no"),
    }
    return pl.DataFrame(data | columns)


def begun(folder: Path, rows: pl.DataFrame) -> Config:
    """The configuration that `flywheel init` makes of a table."""
    rows.write_parquet(folder / "past.parquet")
    argv = ["init", str(folder / "past.parquet"), "--model", "m", "--target", "truth", "--time", "time"]
    done = CliRunner().invoke(cli, [*argv, "--out", str(folder)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return load_config(folder / "flywheel.toml")


def gaps(config: Config, feature: str) -> dict[str, str]:
    """Check to code of what is off, as `flywheel status --json` has it."""
    told = told_of(config)
    assert len(told["not_monitored"]) == told["checks"] - told["checks_monitored"]
    return {gap["check"]: gap["code"] for gap in told["not_monitored"] if gap["feature"] == feature}


def told_of(config: Config) -> dict[str, Any]:
    reader = StatusReader(config, open_for_reading(config), Codec(open_registry(config)))
    status = reader.gather(AWAY)
    reader.engine.dispose()
    coverage: dict[str, Any] = status["models"]["m"]["coverage"]
    shown = "\n".join(lines(status))
    assert f"{coverage['checks_monitored']} of {coverage['checks']} checks" in shown
    assert "because" in shown
    return coverage


def alerts(config: Config, rows: pl.DataFrame) -> list[str]:
    """What a monitor with history says of these rows, served in event order after they taught it."""
    plan = plan_of(config, "m")
    names = plan.contract.feature_names
    known = pl.read_parquet(config.models["m"].reference or "").select("event_time", *names)
    length = int(known["event_time"].max()) - int(known["event_time"].min()) + STEP_S * SECOND_US  # type: ignore[arg-type]
    length = -(-length // DAY_US) * DAY_US
    served = rows.select(*names).with_columns(event_time=known["event_time"] + length)
    start_us = int(served["event_time"].min()) // HOUR_US * HOUR_US  # type: ignore[arg-type]
    policy = config.models["m"].monitor
    monitor = Monitor(policy, MonitorInfo("m", "1", "UTC"), plan.profile, start_us, is_history_honest=True)
    for some in (known, served):
        monitor.add(history_parts(some, plan.profile, version="1"))
    found = monitor.advance(int(served["event_time"].max()), None)  # type: ignore[arg-type]
    assert monitor.staleness()
    return [f"{a.severity} {a.subject} {a.detail.get('rule', a.channel)}" for a in found if a.state != "closed"]


def nothing_is_wrong(config: Config, rows: pl.DataFrame) -> None:
    assert [said for said in alerts(config, rows) if said.startswith("page")] == []


NO_VALUES = {"unseen": "no_values", "frozen": "no_values", "drift": "no_values", "training": "no_values"}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pl.Series([None] * ROWS, dtype=pl.Float64), NO_VALUES | {"null": "often_null", "outside": "undeclared"}),
        (pl.Series([None] * ROWS, dtype=pl.String), NO_VALUES | {"null": "often_null", "outside": "undeclared"}),
        (pl.Series([float("nan")] * ROWS), NO_VALUES | {"nan": "often_nan", "outside": "undeclared"}),
        (pl.Series([3.5] * ROWS), {"frozen": "constant"}),
        (pl.Series(["one"] * ROWS), {"frozen": "constant"}),
        (pl.Series([True] * ROWS), {"frozen": "constant"}),
        (pl.Series([7.0] + [None] * (ROWS - 1)), {"null": "often_null", "frozen": "constant", "training": "few_rows"}),
        (pl.Series([float(i) if i % 3 else float("nan") for i in range(ROWS)]), {"nan": "often_nan"}),
        (pl.Series([f"name {i}" for i in range(ROWS)]), {"unseen": "open_vocabulary", "outside": "undeclared"}),
    ],
    ids=["null", "null text", "nan", "constant", "constant text", "constant yes", "one value", "some nan", "names"],
)
def test_a_feature_that_teaches_little_is_told_with_its_reason_and_wakes_nobody(
    tmp_path: Path, values: pl.Series, expected: dict[str, str]
) -> None:
    rows = table(strange=values)
    config = begun(tmp_path, rows)
    is_number = values.dtype == pl.Float64
    assert gaps(config, "strange") == {
        check: why for check, why in expected.items() if check != "unseen" or not is_number
    }
    assert gaps(config, "usual") == {}
    nothing_is_wrong(config, rows)


def test_a_million_categories_are_an_open_vocabulary(tmp_path: Path) -> None:
    size = 1_000_000
    rows = pl.DataFrame(
        {
            "time": START_S + np.arange(size) * 3,
            "strange": pl.int_range(size, eager=True).cast(pl.String),
            "truth": np.where(np.arange(size) % 2 == 0, "yes", "no"),
        }
    )
    config = begun(tmp_path, rows)
    assert gaps(config, "strange") == {"unseen": "open_vocabulary", "outside": "undeclared"}
    feature = config.models["m"].profile.feature("strange")
    assert sum(feature.counts) == size
    assert feature.new_share == pytest.approx(1.0, abs=0.05)
    nothing_is_wrong(config, rows.with_columns(pl.col("strange") + "x"))


def test_a_reference_of_fifty_rows_is_compared_with_nothing_and_says_so(tmp_path: Path) -> None:
    config = begun(tmp_path, table(50, strange=["u", "v"] * 25))
    assert gaps(config, "strange") == {"training": "few_rows"}
    assert any("the reference has 50 rows with it, and 100 are needed" in why for why in told_of(config)["why_not"])


def test_a_table_of_one_row_is_refused_with_its_reason(tmp_path: Path) -> None:
    table(1).write_parquet(tmp_path / "past.parquet")
    argv = ["init", str(tmp_path / "past.parquet"), "--model", "m", "--target", "truth", "--out", str(tmp_path)]
    done = CliRunner().invoke(cli, argv)
    assert isinstance(done.exception, TableError)
    assert "has 1 rows with a 'truth'; 10 are needed" in done.exception.message


def test_a_column_of_unknown_type_is_refused_with_its_reason(tmp_path: Path) -> None:
    table(strange=pl.Series([None] * ROWS, dtype=pl.Null)).write_parquet(tmp_path / "past.parquet")
    argv = ["init", str(tmp_path / "past.parquet"), "--model", "m", "--target", "truth", "--out", str(tmp_path)]
    done = CliRunner().invoke(cli, argv)
    assert isinstance(done.exception, TableError)
    assert "strange (Null)" in done.exception.message


def changed(config: Config, **fields: Any) -> Config:
    """The configuration after the contract was edited: name to type, or None to take the field away."""
    path = config.models["m"].contract_path
    document = json.loads(path.read_text())
    kept = [f for f in document["fields"] if f["name"] not in fields]
    document["fields"] = kept + [
        {"name": name, "type": ["null", kind], "default": None} for name, kind in fields.items()
    ]
    path.write_text(json.dumps(document | {"version": 2}))
    return load_config(config.file)


def test_a_field_that_changed_its_type_or_is_new_is_not_compared_with_what_it_was(tmp_path: Path) -> None:
    before = begun(tmp_path, table(strange=RNG.normal(size=ROWS)))
    config = changed(before, strange="string", added="double")
    every = ("null", "frozen", "drift", "training")
    assert gaps(config, "strange") == dict.fromkeys((*every, "unseen"), "type_changed") | {"outside": "undeclared"}
    assert gaps(config, "added") == dict.fromkeys((*every, "nan"), "not_in_reference") | {"outside": "undeclared"}
    assert gaps(config, "usual") == {}
    rows = pl.DataFrame({"usual": [0.1, None], "strange": ["a", None], "added": [None, 2.0]})
    events = rows.with_columns(prediction_id=pl.Series(["a", "b"]), event_time=pl.Series([1, 2]))
    cells = plan_of(config, "m").inputs(events)["cells"]
    assert cells[:, 1].tolist() == [2, CELL_NULL]
    assert cells[:, 2].tolist() == [CELL_NULL, 4]


def test_a_model_without_a_reference_is_watched_by_its_contract_alone(tmp_path: Path) -> None:
    rows = table(strange=RNG.normal(size=ROWS))
    begun(tmp_path, rows)
    text = (tmp_path / "flywheel.toml").read_text()
    (tmp_path / "flywheel.toml").write_text(text.replace('profile = "m/profile.json"\n', ""))
    config = load_config(tmp_path / "flywheel.toml")
    assert gaps(config, "strange") == dict.fromkeys(("null", "nan", "frozen", "drift", "training"), "no_reference")
    assert plan_of(config, "m").profile.m == 0
    plan = plan_of(config, "m")
    start_us = START_S * 1_000_000 // HOUR_US * HOUR_US
    monitor = Monitor(config.models["m"].monitor, MonitorInfo("m", "1", "UTC"), plan.profile, start_us)
    served = rows.select("usual", "strange").with_columns(event_time=rows["time"] * 1_000_000)
    monitor.add(history_parts(served, plan.profile, version="1"))
    assert monitor.advance(int(served["event_time"].max()), None) == []  # type: ignore[arg-type]
    assert monitor.staleness() == ()


def test_a_monitor_says_what_it_does_not_judge_yet(tmp_path: Path) -> None:
    config = begun(tmp_path, table())
    monitor = Monitor(config.models["m"].monitor, MonitorInfo("m", "1", "UTC"), config.models["m"].profile, 0)
    assert monitor.learning() == {
        "drift": "0 of the 28 healthy days that it needs are known",
        "frozen": "0 of the 14 healthy days that it needs are known",
    }
    assert "every channel: not monitored yet, because no worker has judged an hour" in told_of(config)["why_not"]
