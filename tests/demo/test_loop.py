"""The demo itself, as a newcomer runs it: everything through the real parts, in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from schemas.times import parse_time, to_us
from streams.testing import wait_until

DEMO_S = 900
"""Far above what it takes: a machine that runs other tests as well is slow."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(DEMO_S + 60)]


def demo(folder: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "streams.cli", "demo", *arguments, "--auto", "--json", "--folder", str(folder)]


def play(folder: Path, *arguments: str) -> dict[str, Any]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        demo(folder, *arguments), capture_output=True, text=True, timeout=DEMO_S, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("flights") / "demo"


@pytest.fixture(scope="module")
def flights(folder: Path) -> dict[str, Any]:
    return play(folder, "flights")


def test_every_event_is_counted_once(flights: dict[str, Any]) -> None:
    assert flights["events"] == {"inputs": 51_078, "predictions": 51_078, "feedback": 50_893}
    assert flights["monitored"] == 51_078
    assert flights["dead_letters"] == 0
    assert [flights["quality"][name]["n"] for name in ("before", "during", "after")] == [
        32_218,
        7_331,
        11_527,
    ]  # by prediction time: some departures of a day leave after midnight


def test_the_fault_is_paged_within_hours_and_names_the_field(flights: dict[str, Any]) -> None:
    pages = [alert for alert in flights["alerts"] if alert["subject"] == "dep_delay_known"]
    assert pages
    assert pages[0]["channel"] == "drift"
    assert "2013-05-06T05" < pages[0]["time"] < "2013-05-06T10"


def test_the_strike_is_the_world_and_not_the_pipe(flights: dict[str, Any]) -> None:
    pages = [alert for alert in flights["alerts"] if alert["time"].startswith("2013-04-22") and alert["slice"] == "all"]
    assert [alert["channel"] for alert in pages] == ["bias"]
    assert "the world, not the pipe" in pages[0]["message"]


def test_the_laboratory_says_of_the_past_what_the_worker_said_of_the_present(
    flights: dict[str, Any], folder: Path
) -> None:
    until, changes = (
        "2013-05-06T04:00:00Z",
        ["--set", "bias_z=99.0", "--set", "bias_slice_z=99.0", "--set", "drift_z=99.0"],
    )
    command = [sys.executable, "-m", "streams.cli", "--config", str(folder / "flywheel.toml"), "backtest", "--json"]
    done = subprocess.run(
        [*command, "--version", "v1", "--plant", "2", "--until", until, *changes],
        capture_output=True, text=True, timeout=DEMO_S, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True,
    )  # fmt: skip
    told = json.loads(done.stdout)["policies"]
    live = [
        (time, alert["message"])
        for alert in flights["alerts"]
        if alert["severity"] == "page" and alert["state"] == "opened"
        and (time := to_us(datetime.fromisoformat(alert["time"]))) < parse_time(until)
    ]  # fmt: skip
    pages = told["flywheel.toml"]["pages"]
    assert [(parse_time(page["time"]), page["message"]) for page in pages] == live
    assert len(pages) == 2
    assert told["changed"]["pages"] == [], "without the channels B and D there is nothing in a quiet month"
    assert len(told["changed"]["planted"]) == 2
    assert told["changed"]["planted"][0]["hurt"] == told["flywheel.toml"]["planted"][0]["hurt"]


def test_the_gate_refuses_what_is_worse_and_promotes_the_version_column(flights: dict[str, Any]) -> None:
    scheduled = [run for run in flights["runs"] if run["time"].startswith("2013-05-06") and run["trigger"] == "cron"]
    assert [run["verdict"] for run in scheduled] == ["refused"]
    promoted = [run for run in flights["runs"] if run["verdict"] == "promoted" and run["trigger"] == "proposal"]
    assert len(promoted) == 1
    verdicts = {recipe["recipe"].partition("(")[0]: recipe["verdict"] for recipe in promoted[0]["recipes"]}
    assert verdicts["mixed"] == "fail"
    assert verdicts["exclude"] == "fail"
    assert verdicts["version_column"] == "pass"
    assert flights["champion"] == {"before": "v1", "after": "v2"}


def test_quality_is_back(flights: dict[str, Any]) -> None:
    before, during, after = (flights["quality"][name] for name in ("before", "during", "after"))
    assert before["auc"] == pytest.approx(0.8878, abs=0.005)
    assert before["log_loss"] == pytest.approx(0.3225, abs=0.01)
    assert during["log_loss"] > before["log_loss"] + 0.15
    assert after["log_loss"] < 0.30
    assert abs(after["bias"]) < 0.05 < during["bias"]


def test_labels_of_a_person_close_the_loop_on_digits(tmp_path: Path) -> None:
    result = play(tmp_path / "demo", "digits")
    assert result["labels"]["total"] == 40
    assert result["champion"] == {"before": "v1", "after": "v2"}
    assert result["quality"]["before"] < 0.82
    assert result["quality"]["after"] > result["quality"]["before"] + 0.08


def test_a_demo_that_was_killed_goes_on_with_the_same_command_and_refuses_to_mix(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    with subprocess.Popen(
        demo(folder, "flights"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as first:
        progress = folder / "progress.json"
        wait_until(lambda: progress.exists() and '"2013-04-03"' in progress.read_text(), 300)
        os.killpg(first.pid, signal.SIGKILL)
    other = subprocess.run(
        demo(folder, "flights", "--fault", "none"), capture_output=True, text=True, timeout=120, check=False
    )
    assert other.returncode == 2
    assert "unfinished run" in other.stdout + other.stderr
    with subprocess.Popen(demo(folder, "flights"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as again:
        assert again.stderr is not None
        lines: list[str] = []
        for line in again.stderr:
            lines.append(line)
            if line.startswith("05 Apr"):
                break
        again.send_signal(signal.SIGINT)
        again.communicate(timeout=120)
    assert any("Continuing the run" in line for line in lines)
    shown = next(line for line in lines if line.startswith("04 Apr"))
    assert "  980 flights" in shown
