"""``flywheel backtest TABLE``: somebody's own table, without a broker, a worker or a registered model."""

from __future__ import annotations

import gzip
import json
import xml.dom.minidom
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner, Result

from schemas.contract import Target
from streams.cli import cli
from streams.history import as_counted

STEP = 300


def flow() -> pl.DataFrame:
    """Hourly flow of water through a pipe, with its time; a table that river ships."""
    text = files("river.datasets").joinpath("water-flow.csv").read_bytes()
    rows = pl.read_csv(text, try_parse_dates=True).rename({"Time": "asked", "Water flow [l/s]": "flow"})
    rows = rows.with_columns(pl.col("flow").cast(pl.Float64, strict=False))
    return rows.with_columns(
        before=pl.col("flow").shift(1), day_before=pl.col("flow").shift(24), hour=pl.col("asked").dt.hour()
    ).with_columns(answer=pl.col("before") * 0.7 + pl.col("day_before") * 0.3)


def shuttle(rows: int = 8_000) -> pl.DataFrame:
    """Sensor readings of a space shuttle, and what somebody's model said of them; without times."""
    data = gzip.decompress(files("river.datasets").joinpath("shuttle.csv.gz").read_bytes())
    table = pl.read_csv(data).head(rows)
    score = 1 / (1 + np.exp(-(table["f9"].to_numpy() / 20.0 - 2.0)))
    return table.with_columns(said=pl.Series(score))


class Place:
    """A folder with a model that was begun from a table."""

    def __init__(self, folder: Path, table: pl.DataFrame, *options: str) -> None:
        self.folder, self.table, self.config = folder, folder / "past.csv", str(folder / "flywheel.toml")
        table.write_csv(self.table)
        done = CliRunner().invoke(cli, ["init", str(self.table), "--model", "own", "--out", str(folder), *options])
        assert done.exit_code == 0, done.output

    def run(self, *options: str, table: pl.DataFrame | None = None) -> Result:
        if table is not None:
            table.write_csv(self.table)
        return CliRunner().invoke(cli, ["--config", self.config, "backtest", str(self.table), *options])

    def told(self, *options: str) -> dict[str, object]:
        done = self.run("--json", *options)
        assert done.exit_code == 0, (done.output, done.exception)
        told = json.loads(done.stdout)
        assert isinstance(told, dict)
        return told


@pytest.fixture
def pipe(tmp_path: Path) -> Place:
    return Place(tmp_path, flow(), "--target", "flow", "--time", "asked", "--drop", "answer")


@pytest.fixture
def sensors(tmp_path: Path) -> Place:
    return Place(tmp_path, shuttle(), "--target", "anomaly", "--positive", "1", "--drop", "said")


def test_a_table_with_scores_is_watched_and_a_stand_in_answers_for_what_is_changed(sensors: Place) -> None:
    options = ["--start", "2024-01-01", "--every", str(STEP), "--score", "said", "--plant", "3", "--kind", "shifted:2"]
    told = sensors.told(*options, "--feature", "f9", "--rule", "psi", "--rule", "w1:0.2:12h")
    own = told["policies"]["flywheel.toml"]  # type: ignore[index]
    assert "a stand-in answers" in told["notes"][-2]  # type: ignore[index]
    assert "The reference has" in told["notes"][-1]  # type: ignore[index]
    assert own["hurting"]["planted"] == len(own["planted"]) == 3
    assert all(each["hurt"] > 0.05 and each["size"] == 2.0 for each in own["planted"]), "its answers follow"
    assert list(told["rules"]) == ["psi:0.2:daily", "w1:0.2:12h"]  # type: ignore[call-overload]
    assert told["rules"]["w1:0.2:12h"]["within_24_h"] == 1.0  # type: ignore[index]
    assert not (sensors.folder / ".flywheel" / "flywheel.db").exists(), "nothing is opened that is not needed"


def test_the_same_table_gives_the_same_numbers_again(sensors: Place) -> None:
    options = ["--start", "2024-01-01", "--every", str(STEP), "--score", "said", "--plant", "1", "--rule", "psi"]
    assert sensors.told(*options) == sensors.told(*options)


def test_a_regression_with_times_and_a_reference_that_is_chosen(pipe: Place) -> None:
    options = ["--score", "answer", "--plant", "2", "--rule", "ks", "--kind", "missing:0.5"]
    told = pipe.told(*options, "--since", "2022-04-20", "--until", "2022-05-10", "--learn-from", "2022-03-25")
    own = told["policies"]["flywheel.toml"]  # type: ignore[index]
    assert own["months"] == pytest.approx(20 / 30.44, abs=0.02)
    assert "The reference has 26 days" in told["notes"][-1]  # type: ignore[index]


def test_a_table_without_scores_is_answered_by_a_model_of_the_truth(sensors: Place) -> None:
    options = ["--start", "2024-01-01", "--every", str(STEP), "--plant", "0", "--rule", "none"]
    done = sensors.run("--json", *options)
    told = json.loads(done.stdout)
    assert done.stderr.endswith("backtest: 1 of 1 runs over the rows\n"), "it says how far it is without a terminal"
    assert "has no scores" in told["notes"][0]
    assert told["rules"] == {}
    assert told["policies"]["flywheel.toml"]["pages"] == []


def test_a_watch_too_short_for_planted_changes_says_so(pipe: Place) -> None:
    options = ["--score", "answer", "--since", "2022-04-20", "--until", "2022-04-26", "--rule", "psi:0.2:weekly"]
    done = pipe.run(*options)
    assert done.exit_code == 0, (done.output, done.exception)
    assert "Nothing was planted: 9 days are needed" in done.stderr
    (weekly,) = [line for line in done.stdout.splitlines() if line.startswith("psi:")]
    assert "  -" in weekly, "no week was whole"
    assert "not judged here: late, because a table does not say when a row came" in done.stdout
    done = pipe.run(*options, "--plot", str(pipe.folder / "a.svg"))
    assert "Nothing was planted" in str(done.exception)
    done = pipe.run("--score", "answer", "--kind", "renamed")
    assert "no feature can be changed" in done.stderr


def test_features_of_every_awkward_kind_are_run_over(tmp_path: Path) -> None:
    rng, n = np.random.default_rng(4), 3_000
    table = pl.DataFrame(
        {
            "asked": pl.datetime_range(pl.datetime(2024, 1, 1), pl.datetime(2024, 3, 1), "30m", eager=True)[:n],
        }
    )
    n = table.height
    table = table.with_columns(
        constant=pl.lit(1.0),
        nearly_null=pl.when(pl.int_range(n) % 50 == 0).then(pl.int_range(n).cast(pl.Float64)),
        wide=pl.Series([f"id{i}" for i in range(n)]),
        flag=pl.Series(rng.random(n) < 0.3),
        far=pl.Series(rng.standard_cauchy(n) * 1e12),
        said=pl.Series(rng.random(n)),
        truth=pl.Series(rng.random(n) < 0.5),
    )
    place = Place(tmp_path, table, "--target", "truth", "--time", "asked", "--drop", "said", "--positive", "true")
    told = place.told("--score", "said", "--plant", "6")
    assert len(told["rules"]) == 6  # type: ignore[arg-type]
    assert json.loads(json.dumps(told, allow_nan=False)) == told


def test_of_several_classes_the_truth_is_whether_the_answer_was_right() -> None:
    target = Target("multiclass", labels=("a", "b", "c"))
    rows = pl.DataFrame({"label": ["a", "b", "c", "a"], "y": [0.0, 2.0, 2.0, None]})
    assert as_counted(rows, target)["y"].to_list() == [1.0, 0.0, 1.0, None]
    assert as_counted(rows, Target("regression"))["y"].to_list() == [0.0, 2.0, 2.0, None]


class Tags(HTMLParser):
    """Names of a document's tags."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.feed(document)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not any(str(value).startswith("http:") and name != "xmlns" for name, value in attrs)


def test_the_trade_off_is_a_picture_that_stands_by_itself(sensors: Place) -> None:
    options = ["--start", "2024-01-01", "--every", str(STEP), "--score", "said", "--plant", "2", "--rule", "psi"]
    for suffix in ("svg", "html"):
        path = sensors.folder / f"rules.{suffix}"
        done = sensors.run(*options, "--plot", str(path))
        assert done.exit_code == 0, done.output
        assert "psi:0.2:daily" in done.stdout
        text = path.read_text()
        assert "prefers-color-scheme:dark" in text
        if suffix == "svg":
            drawn = xml.dom.minidom.parseString(text)
            assert len(drawn.getElementsByTagName("polyline")) == 2
            assert "alarms a month" in text
        else:
            assert {"svg", "table", "style"} <= set(Tags(text).tags)
            assert "script" not in Tags(text).tags


def test_what_cannot_be_used_is_refused_in_words(pipe: Place) -> None:
    whole = flow()
    cases = [
        (whole.drop("asked"), [], "no column 'asked' (time)"),
        (whole.drop("before"), [], None),
        (whole.with_columns(asked=pl.lit("yesterday")), [], "not times"),
        (whole, ["--score", "nothing"], "no column 'nothing' (score)"),
        (whole.head(150), ["--score", "answer"], "rows before"),
        (whole, ["--score", "answer", "--since", "2022-05-12T00:00Z"], "are needed to watch"),
        (whole, ["--score", "answer", "--since", "2022-03-21T00:00Z"], "100 are needed"),
        (whole, ["--score", "answer", "--until", "2000-01-01"], "No row of the table"),
        (whole.drop("flow"), ["--score", "answer"], "no column 'flow' (target)"),
        (whole.with_columns(before=pl.lit("x")), ["--score", "answer"], "do not fit the type"),
        (whole.head(0), [], "no rows"),
    ]
    for table, options, text in cases:
        done = pipe.run(*options, table=table)
        if text is not None:
            assert done.exit_code != 0
            assert text in f"{done.output}{done.exception}", (options, done.output, done.exception)
    done = CliRunner().invoke(cli, ["--config", pipe.config, "backtest", str(pipe.folder / "no.csv")])
    assert "There is no file" in str(done.exception)
    done = pipe.run("--feature", "colour", "--score", "answer", table=whole)
    assert "'colour' is not a feature" in done.output
