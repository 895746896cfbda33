"""The benchmarks do what they claim: the events are as described, every peer's result is exact."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    output = tmp_path_factory.mktemp("bench") / "bench.json"
    few = ["-n", "2000", "--brokers", "embedded", "--repeat", "1", "--output", str(output)]
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
