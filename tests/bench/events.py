"""The events of the benchmarks: 12 numbers and 8 categories, predictions of two versions, 60 % with truth."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import polars as pl
from confluent_kafka import Producer

from schemas.contract import load_contract
from schemas.events import SOURCES, envelope, subject, topic
from schemas.registry import HEADER, MAGIC, FileRegistry
from streams.kafka import producer_settings

MODEL = "bench"
DOMAIN = tuple("abcd" + letter for letter in "efghijklmn")
SLICES = DOMAIN[:3]
"""Values of the first category of which every summary has the counters, too."""
VERSIONS = ("1", "2")
LABELS = ("late", "soon")
SHARE_WITH_TRUTH = 0.6
SHARE_WRONG = 0.1
START_S = 1_700_000_100  # the start of a window; in the past, so that nothing comes from the future
SPAN_S = 3_600  # 12 windows, however many events: what merging costs does not depend on the number of events
WINDOW_S = 300
CHUNK = 10_000
SECOND_US = 1_000_000


@dataclass(frozen=True)
class Shape:
    """How many features of which kind a prediction has."""

    numbers: int = 12
    categories: int = 8

    @property
    def number_names(self) -> tuple[str, ...]:
        return tuple(f"n{i:02d}" for i in range(self.numbers))

    @property
    def category_names(self) -> tuple[str, ...]:
        return tuple(f"c{i}" for i in range(self.categories))


USUAL = Shape()


def contract_document(shape: Shape = USUAL) -> dict[str, Any]:
    numbers = [{"name": name, "type": "double", "min": -10.0, "max": 10.0} for name in shape.number_names]
    categories: list[dict[str, Any]] = [
        {"name": name, "type": "string", "domain": list(DOMAIN)} for name in shape.category_names
    ]
    categories[0]["slices"] = list(SLICES)
    return {
        "type": "record",
        "name": "Bench",
        "model": MODEL,
        "version": 1,
        "target": {"kind": "binary", "positive": LABELS[0], "labels": list(LABELS)},
        "fields": [*numbers, *categories],
    }


class Chunk:
    """Features, predictions and truths of consecutive predictions as columns; a function of the seed and the place."""

    def __init__(self, first: int, count: int, total: int, shape: Shape = USUAL) -> None:
        self.shape = shape
        random = np.random.default_rng([20, first])
        self.ids = [f"{number:016x}" for number in range(first, first + count)]
        self.times_us = (START_S * SECOND_US + np.arange(first, first + count) * (SPAN_S * SECOND_US) // total).tolist()
        self.numbers = random.normal(size=(count, shape.numbers))
        self.categories = random.integers(len(DOMAIN), size=(count, shape.categories))
        self.versions = [VERSIONS[v] for v in random.integers(len(VERSIONS), size=count)]
        self.scores = random.uniform(size=count).tolist()
        self.labels = [LABELS[score < 0.5] for score in self.scores]
        is_wrong = (random.uniform(size=count) < SHARE_WRONG).tolist()
        self.truths = [
            LABELS[(label == LABELS[0]) == wrong] for label, wrong in zip(self.labels, is_wrong, strict=True)
        ]
        self.has_truth = (random.uniform(size=count) < SHARE_WITH_TRUTH).tolist()

    def features(self) -> Iterator[dict[str, Any]]:
        names = (self.shape.number_names, self.shape.category_names)
        for numbers, categories in zip(self.numbers.tolist(), self.categories.tolist(), strict=True):
            yield dict(zip(names[0], numbers, strict=True)) | {
                name: DOMAIN[code] for name, code in zip(names[1], categories, strict=True)
            }

    def records(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Noun, key and record, in the order in which they happen."""
        for i, features in enumerate(self.features()):
            common = {"prediction_id": self.ids[i], "model": MODEL, "event_time": self.times_us[i]}
            yield "inputs", self.ids[i], {**common, "subject": None, "features": features}
            answer: dict[str, Any] = {
                "version": self.versions[i],
                "role": "champion",
                "score": self.scores[i],
                "label": self.labels[i],
            }
            yield "predictions", self.ids[i], {**common, **answer, "truth_due": None}
            if self.has_truth[i]:
                truth: dict[str, Any] = {
                    "kind": "truth",
                    "label": self.truths[i],
                    "value": None,
                    "facts": [],
                    "note": None,
                }
                yield "feedback", self.ids[i], {**common, **truth, "feedback_id": f"f{self.ids[i]}"}

    def confusion(self) -> Counter[str]:
        """Decided predictions by window, version, truth and label; those of a slice also under its value."""
        counts: Counter[str] = Counter()
        first = self.categories[:, 0].tolist()
        rows = zip(self.times_us, self.versions, self.truths, self.labels, first, self.has_truth, strict=True)
        for time, version, truth, label, category, is_decided in rows:
            if is_decided:
                cell = f"{time // SECOND_US // WINDOW_S * WINDOW_S}|{version}|{truth}|{label}"
                counts[cell] += 1
                if category < len(SLICES):
                    counts[f"{cell}|{SLICES[category]}"] += 1
        return counts

    def table(self) -> pl.DataFrame:
        return pl.DataFrame(list(self.features())).with_columns(
            target=pl.Series(self.truths), score=pl.Series(self.scores), label=pl.Series(self.labels)
        )


def prepare(folder: Path, shape: Shape = USUAL) -> dict[str, tuple[int, Any]]:
    """Write contract, sample and registry into a folder; the schema id and parsed schema of each noun."""
    folder.mkdir(parents=True)
    (folder / "contract.avsc").write_text(json.dumps(contract_document(shape)))
    Chunk(0, CHUNK, CHUNK, shape).table().write_parquet(folder / "sample.parquet")
    contract = load_contract(folder / "contract.avsc")
    registry = FileRegistry(folder / "registry.json")
    schemas = {noun: contract.input_schema() if noun == "inputs" else envelope(noun) for noun in SOURCES}
    return {
        noun: (registry.register(subject(noun, MODEL), schema), fastavro.parse_schema(schema))
        for noun, schema in schemas.items()
    }


def produce(bootstrap: str, predictions: int, folder: Path) -> dict[str, Any]:
    """Put the events on the three topics; how many records there are, and their mean sizes in bytes.

    Also writes `expected.json`.
    """
    schemas = prepare(folder)
    producer = Producer(producer_settings(bootstrap, linger_ms=20, queue_buffering_max_messages=1_000_000))
    failed: list[str] = []
    expected: Counter[str] = Counter()
    records: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    topics = {noun: topic(noun) for noun in SOURCES}
    headers = {noun: HEADER.pack(MAGIC, schema_id) for noun, (schema_id, _) in schemas.items()}
    for first in range(0, predictions, CHUNK):
        chunk = Chunk(first, min(CHUNK, predictions - first), predictions)
        expected += chunk.confusion()
        for noun, key, record in chunk.records():
            out = io.BytesIO()
            out.write(headers[noun])
            fastavro.schemaless_writer(out, schemas[noun][1], record)
            value = out.getvalue()
            records[noun] += 1
            sizes[noun] += len(value)
            producer.produce(
                topics[noun], value, key, on_delivery=lambda error, _: failed.append(str(error)) if error else None
            )
        producer.poll(0)
        while len(producer) > 500_000:
            producer.poll(0.1)
    left = producer.flush(120)
    if left or failed:
        raise RuntimeError(f"{left + len(failed)} events did not reach the broker: {failed[:1]}")
    (folder / "expected.json").write_text(json.dumps(expected))
    return {"records": records.total(), "bytes": {noun: round(sizes[noun] / records[noun]) for noun in SOURCES}}
