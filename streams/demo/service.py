"""The demo's prediction service: what a team's own service does, in its smallest complete form.

It learns of the champion from the ``models`` topic, loads it through the one place that loads artifacts, answers, and
logs what it was asked and what it answered through the client.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import polars as pl
import structlog
from confluent_kafka import Consumer, TopicPartition

from retrain.artifacts import load_artifact
from retrain.paths import Paths
from retrain.predictor import Predictor
from schemas.events import topic
from schemas.registry import Codec, FileRegistry
from streams.client import FlywheelClient
from streams.kafka import consumer_settings

POLL_S = 0.1
START_TIMEOUT_S = 60.0

log = structlog.get_logger("flywheel.service")


class PredictionService:
    """Serves the champion of one model.

    Parameters
    ----------
    state_dir
        Where artifacts, their key and the schemas are.
    """

    def __init__(self, brokers: str, model: str, state_dir: Path, registry: Path, contract: Path) -> None:
        self._model, self._paths = model, Paths(state_dir)
        self._codec = Codec(FileRegistry(registry))
        self.client = FlywheelClient(brokers, model, registry=registry, contract=contract)
        self._consumer = Consumer(consumer_settings(brokers, f"service-{model}", group_protocol="classic"))
        self._champion: tuple[str, Predictor] | None = None
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="models", daemon=True)

    def __enter__(self) -> Self:
        known = self._consumer.list_topics(topic("models"), timeout=10.0).topics[topic("models")].partitions
        self._consumer.assign([TopicPartition(topic("models"), number, 0) for number in known])
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join(5.0)
        self._consumer.close()
        self.client.close()

    @property
    def version(self) -> str | None:
        """The version that answers now."""
        return self._champion[0] if self._champion else None

    def wait_for(self, version: str) -> None:
        """Wait until a version answers; raises TimeoutError."""
        with self._changed:
            if not self._changed.wait_for(lambda: self.version == version, START_TIMEOUT_S):
                raise TimeoutError(f"the service did not load version {version} of {self._model}")

    def answer(self, inputs: pl.DataFrame) -> pl.DataFrame:
        """Answer a table of inputs: ``prediction_id``, ``score``, ``label``, and the ``version`` that answered."""
        assert self._champion is not None, "no champion is loaded"
        version, predictor = self._champion
        answers = predictor.predict(inputs)
        label = pl.lit(None, pl.String) if answers.labels is None else pl.Series(answers.labels, dtype=pl.String)
        scores = pl.Series(answers.scores, dtype=pl.Float64)
        return inputs.select("prediction_id", score=scores, label=label, version=pl.lit(version))

    def log(self, inputs: pl.DataFrame, answers: pl.DataFrame) -> None:
        """Log what was asked and what was answered, row by row."""
        names = [name for name in inputs.columns if name not in ("prediction_id", "event_time", "truth_due")]
        heads = inputs.select("prediction_id", "event_time", "truth_due").iter_rows()
        rows = zip(heads, inputs.select(names).iter_rows(named=True), answers.iter_rows(named=True), strict=True)
        for (identifier, event_time, due), features, answer in rows:
            self.client.log_input(identifier, features, event_time)
            self.client.log_prediction(
                identifier, event_time, score=answer["score"], label=answer["label"], version=answer["version"],
                truth_due=due,
            )  # fmt: skip

    def _follow(self) -> None:
        while not self._stopping.is_set():
            message = self._consumer.poll(POLL_S)
            if message is None or message.error() is not None:
                continue
            event = self._codec.decode(message.value())
            if event["model"] == self._model and event["alias"] == "champion":
                self._load(event)

    def _load(self, event: dict[str, Any]) -> None:
        path = self._paths.root / event["artifact"]
        predictor = load_artifact(path, event["artifact_sha256"], key=self._paths.key())
        with self._changed:
            self._champion = (event["version"], predictor)
            self._changed.notify_all()
        log.info("champion_loaded", version=event["version"], constants=json.loads(event["constants"]))
