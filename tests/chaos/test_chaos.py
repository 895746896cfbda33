"""The short form of `make chaos`: twenty kills, and everything else that goes wrong, change nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from streams.testing import KafkaServer, PostgresServer

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 1_500.0


@pytest.mark.slow
@pytest.mark.timeout(1_600)
def test_no_difference_is_left_after_twenty_kills_and_every_other_fault(
    kafka: KafkaServer, postgres: PostgresServer, tmp_path: Path
) -> None:
    """``kafka`` and ``postgres`` only decide whether there can be servers: it kills its own."""
    output = tmp_path / "chaos.json"
    command = [
        sys.executable,
        "-m",
        "tests.chaos.run",
        "--short",
        "--json",
        str(output),
        "--keep",
        str(tmp_path / "state"),
    ]
    seed = os.environ.get("CHAOS_SEED")
    done = subprocess.run(
        [*command, "--seed", seed] if seed else command,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-3_000:]}"
    result: dict[str, Any] = json.loads(output.read_text())
    assert result["differences"] == 0
    assert all(each["found"] for each in result["comparisons"] if each["expected"])
    faults = result["faults"]
    assert faults["kill"] + faults["stop"] == 20
    assert all(faults[kind] for kind in ("broker", "database", "full disk", "delay", "cut", "halve"))
    assert result["ended by themselves"] == []
    events = result["events"]
    assert all(events[kind] for kind in ("duplicates", "corrections", "late", "malformed", "monitored"))
