"""The benchmarks do what they claim: the events are as described, every peer's result is exact."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.bench.plot import bend, plot
from tests.bench.run import TRIALS
from tests.bench.trial import Result

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    output = tmp_path_factory.mktemp("bench") / "bench.json"
    peers = ["--only", "bare,plane,faust_river"]
    few = [*peers, "-n", "2000", "--brokers", "embedded", "--repeat", "1", "--output", str(output)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.run", *few], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "predictions/s" in done.stdout
    read: list[dict[str, Any]] = json.loads(output.read_text())["rows"]
    return read


@pytest.mark.slow
def test_every_peer_counts_exactly_what_was_sent(rows: list[dict[str, Any]]) -> None:
    assert {row["name"] for row in rows} >= {"bare", "plane", "faust_river"}
    assert {row["name"]: row["is_exact"] for row in rows} == {row["name"]: True for row in rows}


@pytest.mark.slow
def test_the_events_have_the_sizes_that_the_figures_are_quoted_for(rows: list[dict[str, Any]]) -> None:
    sizes = rows[0]["bytes"]
    assert 160 <= sizes["inputs"] <= 190
    assert 55 <= sizes["predictions"] <= 75
    assert 50 <= sizes["feedback"] <= 80
    assert 2.5 <= rows[0]["records"] / rows[0]["predictions"] <= 2.7


@pytest.mark.slow
@pytest.mark.usefixtures("kafka")
@pytest.mark.parametrize("name", TRIALS)
def test_a_small_form_of_every_trial_gives_its_figures(name: str, tmp_path: Path) -> None:
    output = tmp_path / "bench.json"
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.run", "--only", name, "--small", "--output", str(output)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (trial,) = json.loads(output.read_text())["trials"]
    assert trial["name"] == name
    assert trial["targets"].keys() <= trial["figures"].keys()
    slopes = {figure for figure in trial["figures"] if figure.startswith("slope")}  # of some milliseconds each: noise
    assert all(map(math.isfinite, trial["figures"].values()))
    assert all(value >= 0 for figure, value in trial["figures"].items() if figure not in slopes)
    assert trial["figures"].get("records not worked on", 0) == 0  # times and memory are for a quiet machine to say


def test_a_result_is_as_aimed_at_when_every_figure_is_within_its_target() -> None:
    assert Result({"a": 1.0, "b": 9.0}, {"a": 1.0}).is_met
    assert not Result({"a": 1.0, "b": 9.0}, {"a": 1.0, "b": 8.9}).is_met


def test_a_plot_is_an_svg_with_every_point() -> None:
    drawn = ElementTree.fromstring(plot([(1.0, 2.0), (4.0, 5.0), (16.0, 17.0)], "A & B", "n", "CPU s"))
    assert len(drawn.findall("{http://www.w3.org/2000/svg}circle")) == 3


def test_the_bend_of_a_straight_line_is_one_and_of_a_square_is_more() -> None:
    assert bend([(n, 3.0 + 2.0 * n) for n in (1.0, 4.0, 16.0)]) == pytest.approx(1.0)
    assert bend([(n, n * n) for n in (1.0, 4.0, 16.0)]) == pytest.approx(4.0)
