"""The README's ten-minute path on tables that are not the flights: init, first version, up, replay, status."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from streams.testing import wait_until

pytestmark = pytest.mark.slow
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def flywheel(folder: Path, *arguments: str) -> Any:
    """Run a command with --json; its data."""
    done = subprocess.run(
        [sys.executable, "-m", "streams.cli", *arguments, "--json"],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


@contextmanager
def up(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    with (folder / "up.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "streams.cli", "up", "--web-port", "0"],
            cwd=folder,
            env=ENVIRONMENT,
            stdout=log,
            stderr=log,
        )
    up_file = folder / ".flywheel" / "up.json"
    try:
        wait_until(lambda: up_file.exists() and f'"pid": {process.pid},' in up_file.read_text(), 60, "flywheel up")
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    said = (folder / "up.log").read_text()
    assert process.returncode in (0, -signal.SIGKILL), said
    assert "\x1b" not in said, "a log is no terminal"


def bananas(folder: Path) -> None:
    """Two-class points that river ships, given times: 40 minutes apart, each truth known an hour later."""
    from river import datasets

    start, rows = datetime(2024, 1, 1, tzinfo=UTC), []
    for i, (x, y) in enumerate(datasets.Bananas().take(2200)):
        at = start + timedelta(minutes=40 * i)
        first, second = x.values()
        rows.append({"when": at, "known": at + timedelta(hours=1), "first": first, "second": second, "kind": y})
    table = pl.DataFrame(rows)
    table.head(1200).write_parquet(folder / "past.parquet")
    table.tail(1000).write_csv(folder / "live.csv")


def test_a_model_of_one_s_own_is_watched_within_minutes(tmp_path: Path) -> None:
    bananas(tmp_path)
    made = flywheel(
        tmp_path, "init", "past.parquet", "--model", "bananas", "--target", "kind", "--time", "when",
        "--truth-time", "known",
    )  # fmt: skip
    assert (made["rows"], made["features"]) == (1200, ["first", "second"])
    flywheel(tmp_path, "retrain", "run", "--model", "bananas")
    with up(tmp_path):
        told = flywheel(tmp_path, "replay", "live.csv", "--champion")
        assert told == {"model": "bananas", "events": 2000, "before": 0, "sent": 2000, "records": 3000, "waiting": 0}
        assert flywheel(tmp_path, "replay", "live.csv", "--champion")["sent"] == 0
        wait_until(lambda: flywheel(tmp_path, "status")["models"]["bananas"]["staleness"], 60, "the staleness meter")
        status = flywheel(tmp_path, "status")
    model = status["models"]["bananas"]
    assert (model["monitored"], model["truths"]) == (1000, 1000), status
    assert model["staleness"]["windows"] > 0
    assert {each["level"] for each in model["staleness"]["features"]} <= {"quiet", "info", "warn"}
    assert model["champion"]["version"] == "v1"


def test_a_killed_machine_counts_nothing_twice_when_it_comes_back(tmp_path: Path) -> None:
    bananas(tmp_path)
    flywheel(
        tmp_path, "init", "past.parquet", "--model", "bananas", "--target", "kind", "--time", "when",
        "--truth-time", "known",
    )  # fmt: skip
    flywheel(tmp_path, "retrain", "run", "--model", "bananas")
    with up(tmp_path) as process:
        flywheel(tmp_path, "replay", "live.csv", "--champion", "--no-wait")
        process.kill()
        process.wait()
    with up(tmp_path):
        told = flywheel(tmp_path, "replay", "live.csv", "--champion", "--again")
        assert (told["sent"], told["waiting"]) == (2000, 0)
        status = flywheel(tmp_path, "status")
    model = status["models"]["bananas"]
    assert (model["monitored"], model["truths"]) == (1000, 1000), status
