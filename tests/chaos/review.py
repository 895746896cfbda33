"""A person who answers review items while everything fails, and what must be left of that."""

from __future__ import annotations

import os
import threading
from types import TracebackType
from typing import Self

import sqlalchemy as sa

from labeling.events import LabelEvent
from labeling.store import LabelStore
from schemas.database import open_database
from schemas.errors import FlywheelError
from schemas.events import partition_count
from schemas.registry import Codec, FileRegistry
from streams.config import Config
from streams.testing.effects import Tally
from streams.testing.outputs import read_logs
from streams.testing.worker import ROOT
from streams.testing.world import World

MODEL = "digit"
LABELS = ("0", "1", "2")
PAUSE_S = 0.5


class Reviewer:
    """Answers items of one model in a thread of its own, with its own connection to the database."""

    def __init__(self, config: Config, world: World) -> None:
        self.engine = open_database(config.database_url)
        self.environment = os.environ | {"PYTHONPATH": str(ROOT)}
        self._codec = Codec(FileRegistry(config.registry_path))
        self._store = LabelStore(self.engine, MODEL, config.model(MODEL).labeling, contract=world.contracts[MODEL])
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self.acknowledged: dict[str, str] = {}
        self.failed: list[BaseException] = []

    def _work(self) -> None:
        while not self._stop.wait(PAUSE_S):
            try:
                self._answer()
            except (sa.exc.DBAPIError, FlywheelError):  # the database is away, or the claim went with it
                continue
            except BaseException as error:
                self.failed.append(error)
                return

    def _answer(self) -> None:
        claim = self._store.next("ann")
        if claim is not None:
            answer = LABELS[len(self.acknowledged) % len(LABELS)]
            event = self._store.submit(claim.token, answer=answer).event
            self.acknowledged[event.event_id] = event.hash

    def stop(self) -> None:
        """Answer no more."""
        self._stop.set()
        self._thread.join()

    def tallies(self, bootstrap: str, partitions: int) -> list[Tally]:
        """What was acknowledged is stored; what is stored is on the topic, and nothing else is."""
        if self.failed:
            raise self.failed[0]
        self._store.verify_chain()
        stored: dict[str, LabelEvent] = {}
        after = 0
        while page := self._store.events(after):
            stored |= {event.event_id: event for event in page}
            after = page[-1].seq
        records = [
            self._codec.decode(record.value)
            for log in read_logs(bootstrap, partition_count("labels", partitions), ["labels"]).values()
            for record in log
        ]
        found = {record["event_id"]: record["hash"] for record in records}
        events = {name: event.hash for name, event in stored.items()}
        kept = {name: events[name] for name in self.acknowledged if name in events}
        return [
            Tally.of("label events on their topic", found, events),
            Tally.of("acknowledged answers", kept, self.acknowledged),
        ]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
        self.engine.dispose()
