"""Served inputs beside what the feature code of training gives; the user's code may do what it likes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
import sqlalchemy as sa
from click.testing import CliRunner

from retrain.errors import NoParityError, ParityError
from retrain.parity import check, compare, recompute, sample_rows
from retrain.policy import ParityPolicy
from retrain.testing import START_US, small_contract
from schemas.contract import parse_contract
from schemas.database import read
from schemas.database.outbox import outbox
from schemas.times import DAY_US, HOUR_US
from streams.cli import cli
from streams.cli.status import lines as status_lines
from streams.config import load_config
from streams.ends import LogEnds
from streams.parity import DailyParity, last
from streams.status import StatusReader
from streams.tables import alert
from streams.testing import wait_until
from streams.testing.served import World

END_US = START_US + 7 * DAY_US
HEAD = "import polars as pl\n\n\ndef compute(rows: pl.DataFrame) -> pl.DataFrame:\n"
EXACT = "return rows.drop('event_time')"
LATER = "return rows.select('prediction_id', delay=pl.when(pl.col('route') == 'B').then(pl.col('delay') + 3)" \
    ".otherwise('delay'), load='load')"  # fmt: skip


def code(world: World, body: str, **more: Any) -> ParityPolicy:
    """Feature code beside flywheel.toml."""
    (world.root / "own_features.py").write_text(HEAD + f"    {body}\n")
    return ParityPolicy(function="own_features:compute", **more)


def checked(world: World, policy: ParityPolicy) -> Any:
    contract = world.config.model("small").contract
    return check(world.config.archive_dir, contract, policy, START_US, END_US, world.root)


def configured(world: World, body: str, more: str = "") -> list[str]:
    code(world, body)
    toml = world.root / "flywheel.toml"
    toml.write_text(f'{toml.read_text()}\n[models.small.parity]\nfunction = "own_features:compute"\n{more}\n')
    return [*world.argv, "parity"]


def run(world: World, *arguments: str) -> tuple[int, dict[str, Any]]:
    got = CliRunner().invoke(cli, [*world.argv, "parity", "--since", "2024-01-01", "--json", *arguments])
    return got.exit_code, json.loads(got.stdout)


def alerts_of(world: World) -> list[Any]:
    with read(world.engine) as connection:
        return list(connection.execute(sa.select(alert).order_by(alert.c.time_us, alert.c.alert_id)))


def test_what_the_feature_code_gives_again_is_equal_value_by_value(world: World) -> None:
    found = checked(world, code(world, EXACT, sample=10_000))
    assert found.sampled == found.recomputed == world.rows.height
    assert [(each.exact, each.beyond) for each in found.features] == [(world.rows.height, 0)] * 3
    assert found.absent == ()


def test_a_feature_that_is_computed_differently_is_told_with_its_rows(world: World) -> None:
    found = checked(world, code(world, LATER, sample=10_000))
    worst, other = found.features
    on_b = world.rows.filter(pl.col("route") == "B")
    assert (worst.feature, worst.beyond, worst.exact) == ("delay", on_b.height, world.rows.height - on_b.height)
    assert (other.feature, other.beyond) == ("load", 0)
    assert found.absent == ("route",)
    example = worst.examples[0]
    assert example["prediction_id"] in set(on_b["prediction_id"])
    assert example["recomputed"] == pytest.approx(example["served"] + 3)


def test_a_sample_is_the_same_at_a_second_look_and_holds_only_its_time(world: World) -> None:
    contract, root = world.config.model("small").contract, world.config.archive_dir
    one, two = (sample_rows(root, contract, START_US + DAY_US, START_US + 2 * DAY_US, 20) for _ in range(2))
    assert one.equals(two)
    assert one.height == 20
    assert one["event_time"].is_between(START_US + DAY_US, START_US + 2 * DAY_US, closed="left").all()


def test_missing_and_infinite_values_and_the_tolerance_are_looked_at() -> None:
    fields = [{"name": "delay", "type": ["null", "double"], "tolerance": 1.0}, {"name": "load", "type": "double"}]
    contract = parse_contract({**small_contract().document, "fields": fields})
    nan, inf = math.nan, math.inf
    served = [1.0, None, None, nan, nan, inf, inf, 1.0, 1.0]
    again = [1.5, None, 1.0, nan, 1.0, inf, -inf, 3.0, None]
    ids = [f"p{i}" for i in range(len(served))]
    rows = pl.DataFrame({"prediction_id": ids, "event_time": 0, "delay": served, "load": 0.0}, strict=False)
    given = pl.DataFrame({"prediction_id": ids, "delay": again, "load": 0}, strict=False)
    delay, load = compare(rows, given, contract).features
    assert (delay.feature, delay.exact, delay.beyond) == ("delay", 3, 5)
    assert (load.exact, load.beyond) == (9, 0), "a whole number is a number"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("raise KeyError('no such airport')", "KeyError: 'no such airport' (own_features.py, line 5)"),
        ("return None", "it gave NoneType, and not a polars DataFrame"),
        ("return rows.select('delay')", "a column prediction_id"),
        ("return pl.concat([rows, rows])", "stands in several rows"),
        ("import os; os._exit(7)", "ended with exit code 7"),
        ("import os; os.kill(os.getpid(), 9)", "was ended by SIGKILL"),
        ("raise SystemExit('never mind')", "ended with exit code 1: never mind"),
        ("return bytearray(1 << 40)", "it needed more than 4096 MB"),
        ("import threading; threading.Event().wait()", "took longer than 2 s"),
        ("return rows.with_columns(delay=pl.lit('late'))", "not of the contract's types"),
    ],
)
def test_whatever_the_users_code_does_is_an_error_that_says_so(world: World, body: str, words: str) -> None:
    limit = 2.0 if "wait()" in body else 60.0
    with pytest.raises(ParityError) as caught:
        checked(world, code(world, body, time_limit_s=limit))
    assert words in caught.value.message


def test_a_function_that_is_not_there_is_said_by_name(world: World) -> None:
    rows = sample_rows(world.config.archive_dir, small_contract(), START_US, END_US, 5)
    with pytest.raises(ParityError, match="No module named 'nowhere'"):
        recompute(rows, ParityPolicy(function="nowhere:compute"), world.root)
    with pytest.raises(NoParityError, match="No feature code is registered for 'small'"):
        checked(world, ParityPolicy())


def test_the_command_shows_the_rows_tells_of_them_once_and_when_they_agree_again(world: World) -> None:
    argv = configured(world, LATER)
    shown = CliRunner().invoke(cli, [*argv, "--since", "2024-01-01", "--sample", "200"])
    assert shown.exit_code == 1
    assert "small: 200 of 200 sampled inputs" in shown.stdout
    assert "served" in shown.stdout
    assert "not recomputed: route" in shown.stdout
    code_again, told = run(world)
    assert code_again == 1
    assert told["wrong"] == ["delay"]
    (row,) = alerts_of(world)
    assert (row.severity, row.channel, row.subject, row.state) == ("warn", "parity", "delay", "opened")
    assert row.detail["examples"]
    code(world, EXACT)
    assert run(world)[0] == 0
    opened, closed = sorted(alerts_of(world), key=lambda row: row.state, reverse=True)
    assert (opened.state, closed.state, opened.incident_id) == ("opened", "closed", closed.incident_id)
    assert opened.closed_us == closed.time_us
    with read(world.engine) as connection:
        assert len(connection.execute(sa.select(outbox)).all()) == 2


def test_a_share_that_is_allowed_is_no_alert(world: World) -> None:
    configured(world, LATER, "max_share = 0.6")
    assert run(world)[0] == 0
    assert not alerts_of(world)


def test_status_tells_the_last_check_and_one_that_failed(world: World) -> None:
    def status() -> str:
        reader = StatusReader(load_config(world.root / "flywheel.toml"), world.engine, world.codec)
        return " ".join(" ".join(status_lines(reader.gather(LogEnds("nowhere")))).split())

    assert "recomputed" not in status()
    configured(world, LATER)
    run(world)
    assert "300 of 300 sampled inputs recomputed" in status()
    assert "delay 6" in status()
    code(world, "raise ValueError('the warehouse is away')")
    assert CliRunner().invoke(cli, [*world.argv, "parity"]).exit_code == 1
    assert "the warehouse is away" in status()


def test_a_days_inputs_are_checked_when_the_day_is_over_and_an_error_ends_nothing(world: World) -> None:
    configured(world, "raise ValueError('the warehouse is away')")
    config = load_config(world.root / "flywheel.toml")
    plans = {"small": SimpleNamespace(contract=config.model("small").contract)}
    daily = DailyParity(SimpleNamespace(config=config, plans=plans, engine=world.engine))  # type: ignore[arg-type]

    def checked_until() -> int:
        return int((last(config.state_dir, "small") or {"until_us": 0})["until_us"])

    try:
        daily.look(START_US + DAY_US - HOUR_US)
        assert last(config.state_dir, "small") is None, "in the midst of a day"
        daily.look(START_US + 3 * DAY_US)
        wait_until(lambda: checked_until() == START_US + 3 * DAY_US, 60.0)
        assert "away" in (last(config.state_dir, "small") or {})["error"]
        code(world, LATER)
        daily.look(START_US + 4 * DAY_US)
        wait_until(lambda: bool(alerts_of(world)), 60.0)
        assert (last(config.state_dir, "small") or {})["wrong"] == ["delay"]
        (row,) = alerts_of(world)
        assert row.time_us == START_US + 4 * DAY_US
    finally:
        daily.stop()


def test_a_model_without_feature_code_costs_no_thread(tmp_path: Path) -> None:
    del tmp_path
    empty = SimpleNamespace(plans={}, config=None)
    DailyParity(empty).look(START_US)  # type: ignore[arg-type]
