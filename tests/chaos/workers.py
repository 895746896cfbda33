"""A worker whose join store lies on a small disk of its own."""

from __future__ import annotations

from pathlib import Path

from streams.testing.worker import WorkerProcess
from tests.chaos.disk import SmallDisk


class Worker(WorkerProcess):
    """One worker of several in a folder.

    Parameters
    ----------
    disk_bytes
        Of its disk; None: no disk of its own, because nothing can be mounted here.
    """

    def __init__(self, folder: Path, number: int, disk_bytes: int | None) -> None:
        place = folder / f"disk-{number}"
        self.disk = SmallDisk(place, disk_bytes) if disk_bytes is not None else None
        super().__init__(folder, f"worker-{number}", FLYWHEEL_JOIN_STORE=str(place / "join"))
        self.start()
