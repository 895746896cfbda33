"""What must not be in the repository: places of one machine, registry hosts, unfinished marks, giant modules."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LINES_MAX = 700  # over 400 think, over 700 split
# Written so that this file does not hold them itself.
HOSTS = ["pypi" + r"\.org", "files.python" + "hosted", r"repo1?\.mav" + "en", "registry." + "npmjs", "deb." + "debian"]
PLACES = ["/wo" + "rk/", "/fa" + "rm/", "/ho" + "me/[a-z]", "/ro" + "ot/", "/Use" + "rs/"]
UNFINISHED = [r"\bTO" + r"DO\b", r"\bFIX" + r"ME\b", "NotImplemented" + "Error", "pass  # st" + "ub"]


def tracked(*patterns: str) -> list[Path]:
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run([git, "ls-files", "-z", *patterns], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()]


def hits(files: list[Path], patterns: list[str]) -> list[str]:
    wanted = re.compile("|".join(patterns))
    found = []
    for file in files:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue
        found += [
            f"{file.relative_to(ROOT)}:{n}: {line.strip()}" for n, line in enumerate(lines, 1) if wanted.search(line)
        ]
    return found


def test_no_registry_host_is_named_so_that_a_private_index_works() -> None:
    assert hits(tracked(), HOSTS) == []


def test_no_place_of_one_machine_is_named() -> None:
    assert hits(tracked(), PLACES) == []


def test_nothing_is_marked_unfinished() -> None:
    assert hits(tracked("*.py"), UNFINISHED) == []


def test_no_module_is_giant() -> None:
    giants = {file.name: n for file in tracked("*.py") if (n := len(file.read_text().splitlines())) > LINES_MAX}
    assert giants == {}


def test_no_test_sleeps() -> None:
    assert hits(tracked("tests/**/test_*.py"), [r"\btime\.sle" + r"ep\(", r"asyncio\.sle" + r"ep\([1-9]"]) == []


def test_the_changelog_begins_with_this_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    headings = re.findall(r"^## +\[?([^\s\]]+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] in (version, "Unreleased")


def test_every_dependency_is_locked_with_its_hashes() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)]
    lock = (ROOT / "requirements.lock").read_text()
    locked = re.findall(r"^([a-z0-9._-]+)==\S+ *(?:;[^\\]*)?\\\n +--hash=", lock, re.MULTILINE)
    names = {re.split(r"[\[<>=!~ ;]", d, maxsplit=1)[0].lower().replace("_", "-") for d in wanted}
    assert names <= set(locked)
