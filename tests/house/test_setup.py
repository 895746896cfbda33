"""Setting up on a machine without a usable Python says so, and what to do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHOOSE = Path(__file__).resolve().parents[2] / ".ci" / "python"


@pytest.fixture
def too_old(tmp_path: Path) -> Path:
    """A folder whose only Python answers every question with no."""
    for name in ("python3", "python3.11"):
        (tmp_path / name).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    return tmp_path


def choose(*arguments: str, path: Path) -> subprocess.CompletedProcess[str]:
    shell = ["/bin/sh", str(CHOOSE), *arguments]
    return subprocess.run(shell, env={"PATH": str(path)}, capture_output=True, text=True, check=False)


def test_the_first_usable_interpreter_is_taken(too_old: Path) -> None:
    os.symlink(sys.executable, too_old / "python3.12")
    done = choose(path=too_old)
    assert (done.returncode, done.stdout, done.stderr) == (0, "python3.12\n", "")


def test_without_a_usable_interpreter_it_says_what_to_install(too_old: Path) -> None:
    done = choose(path=too_old)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "no Python 3.11 or later" in done.stderr
    assert "apt-get install python3 python3-venv" in done.stderr


def test_a_named_interpreter_that_is_too_old_is_refused_by_name(too_old: Path) -> None:
    done = choose("python3", path=too_old)
    assert done.returncode == 1
    assert "PYTHON=python3 is not a Python 3.11 or later" in done.stderr
