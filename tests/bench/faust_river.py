"""What one would write with Faust and river: three agents, a join in dictionaries, histograms and confusion matrices.

It is flattered: state in plain dictionaries (Faust's own tables cost twice as much and lose less), no slices, no
archive.
"""

from __future__ import annotations

import asyncio
import io
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import fastavro
import faust
from river import metrics, sketch

from schemas.events import SOURCES, topic
from schemas.registry import HEADER_BYTES, Codec, FileRegistry, split_header
from tests.bench.events import LABELS, SECOND_US, USUAL, WINDOW_S
from tests.bench.job import Job, Measured

CELLS = 20


class Monitor:
    """Join by prediction id, whatever comes first; counts by window and version."""

    def __init__(self) -> None:
        self.inputs: dict[str, dict[str, Any]] = {}
        self.predictions: dict[str, dict[str, Any]] = {}
        self.feedback: dict[str, dict[str, Any]] = {}
        self.histograms: dict[tuple[int, str, str], Any] = defaultdict(lambda: sketch.Histogram(max_bins=CELLS))
        self.counts: dict[tuple[int, str, str], Counter[str]] = defaultdict(Counter)
        self.confusion: dict[tuple[int, str], Any] = defaultdict(lambda: metrics.ConfusionMatrix(classes=list(LABELS)))

    def on_input(self, event: dict[str, Any]) -> None:
        self.inputs[event["prediction_id"]] = event
        self._profile(event["prediction_id"])

    def on_prediction(self, event: dict[str, Any]) -> dict[str, Any] | None:
        self.predictions[event["prediction_id"]] = event
        self._profile(event["prediction_id"])
        return self._score(event["prediction_id"])

    def on_feedback(self, event: dict[str, Any]) -> dict[str, Any] | None:
        self.feedback[event["prediction_id"]] = event
        return self._score(event["prediction_id"])

    def _profile(self, prediction_id: str) -> None:
        prediction = self.predictions.get(prediction_id)
        if prediction is None or prediction_id not in self.inputs:
            return
        window, version = prediction["event_time"] // SECOND_US // WINDOW_S * WINDOW_S, prediction["version"]
        features = self.inputs.pop(prediction_id)["features"]
        for name in USUAL.number_names:
            self.histograms[window, version, name].update(features[name])
        for name in USUAL.category_names:
            self.counts[window, version, name][features[name]] += 1

    def _score(self, prediction_id: str) -> dict[str, Any] | None:
        """Count an outcome; the failure, if it is one."""
        prediction = self.predictions.get(prediction_id)
        if prediction is None or prediction_id not in self.feedback:
            return None
        window, version = prediction["event_time"] // SECOND_US // WINDOW_S * WINDOW_S, prediction["version"]
        truth = self.feedback.pop(prediction_id)["label"]
        self.confusion[window, version].update(truth, prediction["label"])
        return None if truth == prediction["label"] else {"prediction_id": prediction_id, "truth": truth}

    def outcomes(self) -> dict[str, int]:
        return {
            f"{window}|{version}|{truth}|{label}": int(count)
            for (window, version), matrix in self.confusion.items()
            for truth, row in matrix.data.items()
            for label, count in row.items()
            if count
        }


def run(job: Job) -> Measured:
    return asyncio.run(_run(job))


async def _run(job: Job) -> Measured:
    app = faust.App(
        job.group,
        broker=f"kafka://{job.bootstrap}",
        store="memory://",
        web_enabled=False,
        topic_disable_leader=True,
        topic_allow_declare=False,
        consumer_auto_offset_reset="earliest",
        stream_buffer_maxsize=16_384,
        broker_max_poll_records=10_000,
    )
    codec = Codec(FileRegistry(Path(job.folder) / "registry.json"))
    monitor, measured, done = Monitor(), Measured(), asyncio.Event()
    failures = app.topic("bench.failures", value_serializer="raw", key_serializer="raw")
    seen = 0

    def decode(value: bytes) -> dict[str, Any]:
        nonlocal seen
        if not seen:
            measured.start()
        seen += 1
        record = fastavro.schemaless_reader(io.BytesIO(value[HEADER_BYTES:]), codec.parsed(split_header(value)), None)
        assert isinstance(record, dict)
        return record

    def agent(noun: str) -> None:
        source = app.topic(topic(noun), value_type=bytes, key_type=bytes, value_serializer="raw", key_serializer="raw")
        handle = {"inputs": monitor.on_input, "predictions": monitor.on_prediction, "feedback": monitor.on_feedback}[
            noun
        ]

        async def work(stream: Any) -> None:
            async for value in stream:
                failure = handle(decode(value))
                if failure is not None:
                    await failures.send(key=failure["prediction_id"].encode(), value=failure["truth"].encode())
                if seen == job.records:
                    done.set()

        app.agent(source, name=f"bench.{noun}")(work)

    for noun in SOURCES:
        agent(noun)
    app.finalize()
    await app.start()
    await done.wait()
    measured.stop()
    await app.stop()
    measured.is_exact = monitor.outcomes() == {k: n for k, n in job.expected().items() if k.count("|") == 3}
    return measured
