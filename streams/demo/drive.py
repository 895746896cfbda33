"""Drives a demo through the real parts: sends events at the pace of the worker, and waits for what it decides."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import polars as pl
import sqlalchemy as sa
from confluent_kafka import Consumer, TopicPartition

from labeling.store import LabelStore
from labeling.tables import item, label_event
from retrain.registry import Registry
from retrain.tables import label_fact, retrain_decision, retrain_run
from schemas.database import read
from schemas.database.outbox import outbox
from schemas.errors import FlywheelError
from schemas.events import SOURCES, topic
from schemas.parts import merge
from schemas.registry import Codec, FileRegistry
from streams.config import Config
from streams.demo.events import Batch
from streams.demo.service import PredictionService
from streams.kafka import consumer_settings
from streams.logic.quality import Quality, measure
from streams.supervisor import Supervisor
from streams.tables import progress, source_partition
from streams.windows import WindowReader

POLL_S = 0.02
PATIENCE_S = 120.0
SEND_PATIENCE_S = 60.0


class DemoStuckError(FlywheelError):
    """The worker does not come on."""

    action = "Look at worker.log in the demo's folder."


def figures(quality: Quality) -> dict[str, Any]:
    """Quality as the demo's JSON shows it."""
    names = ("auc", "log_loss", "accuracy", "bias")
    values = {name: getattr(quality, name) for name in names}
    rounded = {name: None if value is None else round(value, 4) for name, value in values.items()}
    return {"n": quality.rows, "n_truth": quality.matured, **rounded}


class Driver:
    """Sends, waits, and reads what the worker wrote."""

    def __init__(
        self, config: Config, model: str, engine: sa.Engine, up: Supervisor, service: PredictionService
    ) -> None:
        self.config, self.model, self.engine, self.up, self.service = config, model, engine, up, service
        self.store = LabelStore(engine, model, config.model(model).labeling, contract=config.model(model).contract)
        self._consumer = Consumer(
            consumer_settings(up.brokers, f"demo-{model}", group_protocol="classic", fetch_wait_max_ms=10)
        )
        self._failures = [TopicPartition(topic("failures"), number, 0) for number in range(config.partitions)]
        self._consumer.assign(self._failures)
        self._newest_failure: dict[int, str] = {}
        self._codec = Codec(FileRegistry(config.registry_path))
        self._windows = WindowReader(self._codec)
        self.sent = dict.fromkeys(SOURCES, 0)

    def close(self) -> None:
        """Let go of the broker."""
        self._consumer.close()

    def send(self, batches: Sequence[Batch]) -> pl.DataFrame:
        """Let the service answer some hours' inputs at once, and send everything in event order; the answers.

        A model answers a hundred rows in the time of one; but no truth is sent late, because an hour of event time is
        judged when predictions of a later one have come.
        """
        inputs = pl.concat([batch.inputs for batch in batches])
        answers = self.service.answer(inputs) if inputs.height else pl.DataFrame()
        first = 0
        for batch in batches:
            if batch.inputs.height:
                self.service.log(batch.inputs, answers[first : first + batch.inputs.height])
                first += batch.inputs.height
            self._send_truths(batch.truths)
        self.sent["inputs"] += inputs.height
        self.sent["predictions"] += inputs.height
        return answers

    def _send_truths(self, truths: pl.DataFrame) -> None:
        names = [n for n in truths.columns if n not in ("feedback_id", "prediction_id", "event_time", "label")]
        for row in truths.iter_rows(named=True):
            facts = {name: row[name] for name in names if row[name] is not None}
            self.service.client.log_feedback(
                row["prediction_id"], row["event_time"], label=row["label"], facts=facts, feedback_id=row["feedback_id"]
            )
        self.sent["feedback"] += truths.height

    def settle(self) -> None:
        """Wait until everything that was sent is merged, judged and routed, and no training is under way."""
        left = self.service.client.flush(SEND_PATIENCE_S)
        if left:
            raise DemoStuckError(f"{left} events were not taken by the broker.")
        ends = self._ends(*SOURCES)
        self.wait(lambda: self._is_merged(ends), "merging")
        self.wait(self._is_decided, "deciding")
        self.wait(lambda: self._is_routed(self._ends("failures")), "routing")
        self.settle_labels()
        champion = Registry(self.engine).resolve(self.model)
        if champion is not None and champion.version != self.service.version:
            self.service.wait_for(champion.version)

    def settle_labels(self) -> None:
        """Wait until what people decided has reached retraining."""
        self.wait(self._is_told, "telling")

    def _ends(self, *nouns: str) -> dict[tuple[str, int], int]:
        places = [(topic(noun), number) for noun in nouns for number in range(self.config.partitions)]
        return {
            place: self._consumer.get_watermark_offsets(TopicPartition(*place), timeout=10.0)[1] for place in places
        }

    def wait(self, is_done: Callable[[], bool], what: str) -> None:
        """Wait for a condition; raises DemoStuckError when it does not come."""
        deadline = time.monotonic() + PATIENCE_S
        while not is_done():
            self.up.wait(POLL_S)
            if time.monotonic() > deadline:
                raise DemoStuckError(f"The worker has been {what} for {PATIENCE_S:.0f} s.")

    def _is_merged(self, ends: dict[tuple[str, int], int]) -> bool:
        query = sa.select(source_partition).where(source_partition.c.cluster == self.up.cluster)
        with read(self.engine) as connection:
            merged = {(row.topic, row.partition): row.end for row in connection.execute(query)}
        return all(merged.get(place, 0) >= end for place, end in ends.items() if end)

    def _is_routed(self, ends: dict[tuple[str, int], int]) -> bool:
        """Whether the newest failure of every partition is a review item."""
        for message in self._consumer.consume(10_000, 0.0):
            if message.error() is None:
                self._newest_failure[message.partition()] = self._codec.decode(message.value())["failure_id"]
        if any(max(at.offset, 0) < ends[at.topic, at.partition] for at in self._consumer.position(self._failures)):
            return False
        names = {tuple(name.rsplit("/", 1)) for name in self._newest_failure.values()}
        query = sa.select(item.c.prediction_id, item.c.rule).where(
            item.c.model == self.model, item.c.prediction_id.in_({identifier for identifier, _ in names})
        )
        with read(self.engine) as connection:
            return names <= {tuple(row) for row in connection.execute(query)}

    def _is_told(self) -> bool:
        """Whether no event waits to be sent, and all label events have reached retraining."""
        count = sa.select(sa.func.count())
        with read(self.engine) as connection:
            waiting = connection.execute(count.select_from(outbox)).scalar_one()
            given = connection.execute(count.select_from(label_event)).scalar_one()
            taken = connection.execute(count.select_from(label_fact)).scalar_one()
        return waiting == 0 and given == taken

    def _is_decided(self) -> bool:
        """Whether every full hour that is over was judged, and what was decided then has ended."""
        cluster = self.up.cluster
        merged = sa.select(source_partition.c.watermark_us).where(
            source_partition.c.cluster == cluster, source_partition.c.topic == topic("predictions")
        )
        decision = sa.select(retrain_decision).where(retrain_decision.c.model == self.model)
        with read(self.engine) as connection:
            reached = [at for at in connection.execute(merged).scalars() if at is not None]
            judged = connection.execute(sa.select(progress.c.judged_us).where(progress.c.cluster == cluster)).scalar()
            newest = connection.execute(decision.order_by(retrain_decision.c.id.desc()).limit(1)).first()
            runs = retrain_run.c
            state = sa.select(runs.state).where(runs.run_id == newest.run_id) if newest and newest.is_yes else None
            is_over = state is None or connection.execute(state).scalar() not in (None, "running")
        return is_over and (not reached or (judged is not None and judged >= max(reached)))

    def quality(self, start_us: int, end_us: int, version: str | None = None) -> Quality:
        """Quality over ``[start, end)`` of prediction time, all rows."""
        with read(self.engine) as connection:
            found = self._windows.parts(connection, self.model, from_us=start_us, until_us=end_us)
        codes, counts = merge((p.codes, p.counts) for p in found if version in (None, p.version))
        labels = self.config.model(self.model).contract.target.labels
        return measure(dict(zip(codes.tolist(), counts.tolist(), strict=True)), labels=labels)
