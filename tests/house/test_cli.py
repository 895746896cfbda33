"""`flywheel --help` is quick, because a command imports its work only when it runs."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from streams.cli import COMMANDS, cli

HELP_MS_MAX = 250
ATTEMPTS = 20  # the least of them counts: other programs on the machine only ever add
FLYWHEEL = str(Path(sys.executable).parent / "flywheel")

LOADED_BY_HELP = """
import sys
before = set(sys.modules)
from streams.cli import main
try:
    main(["--help"])
except SystemExit as end:
    assert not end.code, end.code
sys.stderr.write("\\n".join(set(sys.modules) - before))
"""


def test_help_loads_click_and_ourselves_only() -> None:
    done = subprocess.run([sys.executable, "-c", LOADED_BY_HELP], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stderr.split()}
    assert loaded - set(sys.stdlib_module_names) <= {"click", "streams", "schemas"}
    assert "Usage" in done.stdout


def test_help_takes_less_than_250_ms() -> None:
    best_ms = float("inf")
    for _ in range(ATTEMPTS):
        start = time.perf_counter()
        subprocess.run([FLYWHEEL, "--help"], capture_output=True, check=True)
        best_ms = min(best_ms, (time.perf_counter() - start) * 1000)
        if best_ms < HELP_MS_MAX:
            break
    assert best_ms < HELP_MS_MAX


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    shown = CliRunner().invoke(cli, [command, "--help"], catch_exceptions=False)
    assert shown.exit_code == 0
    assert shown.output.startswith("Usage: ")
