"""Whole workers as processes that are killed, stopped and started again."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from streams.config import Config, load_config
from streams.testing.server import dies_with_parent
from streams.testing.world import AUDIT_SHARE, CONTRACTS, World
from tests.chaos.disk import SmallDisk

ROOT = Path(__file__).resolve().parents[2]
STOP_DEADLINE_S = 60.0
LAST_BYTES = 3_000
HAS_PARTITIONS = re.compile(rb'"numbers": \[\d[^\n]*"partitions_assigned"')


def configure(folder: Path, world: World, brokers: str, database: str, segment_records: int) -> Config:
    """Write flywheel.toml and what it names."""
    lines = [
        "[flywheel]", f"brokers = {json.dumps(brokers)}", f"database = {json.dumps(database)}",
        f"segment_records = {segment_records}", "web_port = 0",
    ]  # fmt: skip
    for model in world.models:
        (folder / f"{model}.avsc").write_text(json.dumps(CONTRACTS[model]))
        (folder / f"{model}.json").write_text(world.profiles[model].to_json())
        lines += [f"[models.{model}]", f'contract = "{model}.avsc"', f'profile = "{model}.json"']
        lines += [f"[models.{model}.failures]"]
        lines += [f"{name} = {json.dumps(text)}" for name, text in world.rules(model).items()]
        lines += [f"[models.{model}.labeling]", f"audit_share = {AUDIT_SHARE[model]}"]
    (folder / "flywheel.toml").write_text("\n".join(lines))
    return load_config(folder / "flywheel.toml")


class Worker:
    """One `flywheel worker` with its own join store, on its own disk where that can be."""

    def __init__(self, folder: Path, number: int, disk_bytes: int | None) -> None:
        self._folder = folder
        self.name = f"worker {number}"
        self.log_file = folder / f"worker-{number}.log"
        store = folder / f"disk-{number}"
        self.disk = SmallDisk(store, disk_bytes) if disk_bytes is not None else None
        self._environment = os.environ | {"FLYWHEEL_JOIN_STORE": str(store / "join"), "PYTHONPATH": str(ROOT)}
        self.is_stopped = False
        self.start()

    def start(self) -> None:
        """Start it; it must not run."""
        command = [sys.executable, "-m", "streams.cli", "worker"]
        self._said_before = self.log_file.stat().st_size if self.log_file.exists() else 0
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                cwd=self._folder,
                stdout=log,
                stderr=log,
                env=self._environment,
                process_group=0,
                preexec_fn=dies_with_parent(signal.SIGKILL),
            )
        self.is_stopped = False

    @property
    def has_ended(self) -> bool:
        """Whether it ended, by itself or by a kill."""
        return self.process.poll() is not None

    @property
    def works(self) -> bool:
        """Whether it has had partitions since its start."""
        with self.log_file.open("rb") as log:
            log.seek(self._said_before)
            return HAS_PARTITIONS.search(log.read()) is not None

    def kill(self) -> None:
        """End it as a power cut would."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """Freeze it."""
        self.process.send_signal(signal.SIGSTOP)
        self.is_stopped = True

    def go_on(self) -> None:
        """Let it go on, not knowing what happened meanwhile."""
        self.process.send_signal(signal.SIGCONT)
        self.is_stopped = False

    def end(self) -> int:
        """End it in order; its exit code."""
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        try:
            return self.process.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return -signal.SIGKILL

    def told(self, event: str) -> int:
        """How often its log tells of an event."""
        return self.log_file.read_text(errors="replace").count(event)

    def last_words(self) -> str:
        """The end of its log."""
        return self.log_file.read_text(errors="replace")[-LAST_BYTES:]
