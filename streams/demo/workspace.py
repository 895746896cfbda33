"""A demo's folder: its configuration, contract, profile and state, and how far it came.

An unfinished run with the same settings is continued, a finished one is replaced; a run with other settings is never
mixed in: it is refused until somebody asks to start over.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.contract import Contract
from schemas.errors import UsageError
from streams.config import Config, load_config

PROGRESS = "progress.json"


class OtherRunError(UsageError):
    """The folder holds an unfinished run with other settings."""

    action = "Continue it with the same settings, or start over with --fresh."


@dataclass
class Workspace:
    """One demo's folder."""

    folder: Path
    settings: dict[str, Any]
    continues_from: str | None = None

    @classmethod
    def open(cls, folder: Path, settings: dict[str, Any], *, fresh: bool) -> Workspace:
        """Take the folder over.

        Raises
        ------
        OtherRunError
            If it holds an unfinished run with other settings and ``fresh`` was not asked for.
        """
        workspace = cls(folder, settings)
        held = workspace._read()
        if held is not None and not fresh and not held["is_finished"]:
            if held["settings"] != settings:
                theirs = " ".join(f"{key}={value}" for key, value in held["settings"].items())
                raise OtherRunError(f"{folder} holds an unfinished run with {theirs}.")
            workspace.continues_from = held["done"]
            return workspace
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        workspace.done(None)
        return workspace

    def _read(self) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = json.loads((self.folder / PROGRESS).read_text(encoding="utf-8"))
            return found if {"settings", "done", "is_finished"} <= found.keys() else None
        except (OSError, ValueError):
            return None

    def done(self, day: str | None, *, is_finished: bool = False) -> None:
        """Everything up to a day is worked on and can not be lost any more."""
        text = json.dumps({"settings": self.settings, "done": day, "is_finished": is_finished})
        temporary = self.folder / f"{PROGRESS}.tmp"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(self.folder / PROGRESS)

    def configure(self, contract: Contract, contract_file: Path, toml: str, **overrides: Any) -> Config:
        """Write the configuration if it is not there yet, and read it."""
        own = self.folder / f"{contract.model}.avsc"
        if not own.exists():
            shutil.copyfile(contract_file, own)
        file = self.folder / "flywheel.toml"
        if not file.exists():
            file.write_text(toml, encoding="utf-8")
        return load_config(file, **overrides)
