"""Which code made a model: the installed version, the commit if there is one, and the locked dependencies."""

from __future__ import annotations

import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from retrain.paths import file_sha256

ROOT = Path(__file__).parent.parent
DISTRIBUTION = "flywheel-ml"
GIT_LIMIT_S = 10


@cache
def code_version() -> dict[str, Any]:
    """Version, commit, whether files were changed since, and the hash of the lock file; what is unknown is None."""
    try:
        installed: str | None = version(DISTRIBUTION)
    except PackageNotFoundError:
        installed = None
    lock = ROOT / "requirements.lock"
    commit, changes = (
        (_git("rev-parse", "HEAD"), _git("status", "--porcelain", "-uno")) if _is_checkout() else (None, None)
    )
    return {
        "version": installed,
        "commit": commit,
        "is_dirty": None if changes is None else bool(changes),
        "lock_sha256": file_sha256(lock) if lock.exists() else None,
    }


def _is_checkout() -> bool:
    return (ROOT / ".git").exists()


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments],  # noqa: S607
            capture_output=True,
            text=True,
            timeout=GIT_LIMIT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
