"""The data plane thread with all its work: decode, join, cells, outcomes, failures, summaries, archive, commit."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from confluent_kafka import Consumer, TopicPartition

from schemas.contract import load_contract
from schemas.events import NOUNS, SOURCES, envelope, subject, topic
from schemas.parts import ALL_SLICE, CONFUSION, CONFUSION_SIDE
from schemas.profile import build_profile
from schemas.registry import Codec, FileRegistry
from streams.config import Config
from streams.kafka import MOCK_CLUSTER, cluster_id, consumer_settings, producer_settings
from streams.plane.loop import DataPlane
from streams.plane.memory import MIB, Memory
from streams.plane.pick import audited
from streams.plane.plan import ModelPlan
from streams.plane.settings import PlaneSettings
from streams.testing import wait_until
from tests.bench.events import LABELS, SECOND_US, WINDOW_S
from tests.bench.job import Job, Measured

AUDIT_SHARE = Config.model_fields["audit_share"].default
DEADLINE_S = 600.0
POLL_S = 0.02


def run(job: Job) -> Measured:
    folder = Path(job.folder)
    registry = FileRegistry(folder / "registry.json")
    plane = make(job, registry)
    before = ends(job.bootstrap)
    stop, failed = threading.Event(), []

    def work() -> None:
        try:
            plane.run(stop)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    measured = Measured()
    thread.start()
    wait_until(lambda: bool("consume" in plane.stages.wall_s or failed), DEADLINE_S, "the first record", POLL_S)
    measured.start()
    wait_until(lambda: plane.metrics["worked"] >= job.records or bool(failed), DEADLINE_S, "all records", POLL_S)
    stop.set()
    thread.join()
    measured.stop()
    if failed:
        raise failed[0]
    per_prediction = 1e6 / job.predictions
    for stage, seconds in plane.stages.wall_s.items():
        measured.stages_us[stage] = (seconds * per_prediction, plane.stages.cpu_s[stage] * per_prediction)
    others = measured.cpu_s - sum(plane.stages.cpu_s.values())
    measured.stages_us["other threads"] = (0.0, others * per_prediction)
    cells = [(key.split("|"), count) for key, count in job.expected().items()]
    wrong = sum(count for cell, count in cells if len(cell) == 4 and cell[2] != cell[3])
    after = ends(job.bootstrap)
    failures = sum(after["failures", p] - before["failures", p] for p in range(4))
    audits = sum(int(audited(p, np.arange(after["predictions", p]), AUDIT_SHARE).sum()) for p in range(4))
    measured.is_exact = outcomes(job, registry, before) == job.expected() and failures == wrong + audits
    return measured


def make(job: Job, registry: FileRegistry, **changes: Any) -> DataPlane:
    """The plane of a job, with the product's own defaults but for the settings that are given."""
    folder = Path(job.folder)
    ids = {noun: registry.register(subject(noun), envelope(noun)) for noun in NOUNS if noun not in SOURCES}
    cluster = cluster_id(job.bootstrap)
    is_embedded = cluster.startswith(MOCK_CLUSTER)
    own = replace(settings(folder / job.group, cluster, is_embedded), **changes)
    return DataPlane(
        own,
        {"bench": plan(folder)},
        registry,
        ids,
        consumer_settings(job.bootstrap, job.group, is_embedded=is_embedded),
        producer_settings(job.bootstrap, queue_buffering_max_kbytes=own.memory.produced // 1024),
    )


def settings(state: Path, cluster: str, is_embedded: bool) -> PlaneSettings:
    """The product's own defaults."""
    config = Config(root=state, state_dir=state)
    return PlaneSettings(
        cluster=cluster,
        is_embedded=is_embedded,
        archive_dir=config.archive_dir,
        join_dir=config.join_dir,
        policy="bench",
        segment_records=config.segment_records,
        batch_records=config.batch_records,
        summary_interval_ms=config.summary_interval_ms,
        archive_interval_ms=config.archive_interval_ms,
        order_slack_ms=config.order_slack_ms,
        join_horizon_s=config.join_horizon_s,
        memory=Memory(config.memory_mb * MIB),
        disorder_ms=config.disorder_ms,
        future_skew_ms=config.future_skew_ms,
    )


def plan(folder: Path) -> ModelPlan:
    contract = load_contract(folder / "contract.avsc")
    sample = pl.read_parquet(folder / "sample.parquet")
    profile = build_profile(
        sample,
        contract.fields,
        model=contract.model,
        fingerprint=contract.fingerprint,
        score=sample["score"],
        label=sample["label"],
        labels=contract.target.labels,
    )
    return ModelPlan(contract, profile, {"wrong": "truth <> label"}, WINDOW_S * SECOND_US, AUDIT_SHARE)


def reader(job_bootstrap: str) -> Consumer:
    return Consumer(consumer_settings(job_bootstrap, "bench-check", is_embedded=True, auto_offset_reset="earliest"))


def ends(bootstrap: str) -> dict[tuple[str, int], int]:
    """End offsets of the predictions and of what the plane writes."""
    consumer = reader(bootstrap)
    topics = consumer.list_topics(timeout=30).topics
    found = {
        (noun, p): consumer.get_watermark_offsets(TopicPartition(topic(noun), p), timeout=30)[1]
        for noun in ("predictions", "summaries", "failures")
        for p in topics[topic(noun)].partitions
    }
    consumer.close()
    return found


def outcomes(job: Job, registry: FileRegistry, before: dict[tuple[str, int], int]) -> dict[str, int]:
    """The confusion counts that the emitted summaries add up to: of each segment the summary with the largest end."""
    newest: dict[tuple[str, int, int], dict[str, Any]] = {}
    for record in summaries(job, registry, before):
        for segment in record["segments"]:
            key = (segment["topic"], record["partition"], segment["start"])
            if key not in newest or segment["end"] >= newest[key]["end"]:
                newest[key] = segment
    counts: dict[str, int] = {}
    for segment in newest.values():
        for part in segment["parts"]:
            if part["axis"] != "event":
                continue
            of_slice = "" if part["slice"] == ALL_SLICE else "|" + part["slice"].partition("=")[2]
            codes = np.frombuffer(part["codes"], "<i4")
            for code, count in zip(codes.tolist(), np.frombuffer(part["counts"], "<i8").tolist(), strict=True):
                predicted, true = divmod(code - CONFUSION, CONFUSION_SIDE)
                if 0 <= predicted < len(LABELS) and 0 <= true < len(LABELS):
                    key_ = (
                        f"{part['window'] // SECOND_US}|{part['version']}|{LABELS[true]}|{LABELS[predicted]}{of_slice}"
                    )
                    counts[key_] = counts.get(key_, 0) + count
    return counts


def summaries(job: Job, registry: FileRegistry, before: dict[tuple[str, int], int]) -> Iterator[dict[str, Any]]:
    codec = Codec(registry)
    left = sum(end - before[key] for key, end in ends(job.bootstrap).items() if key[0] == "summaries")
    consumer = reader(job.bootstrap)
    consumer.assign(
        [TopicPartition(topic("summaries"), p, before["summaries", p]) for noun, p in before if noun == "summaries"]
    )
    while left:
        for message in consumer.consume(left, 1.0):
            yield codec.decode(message.value())
            left -= 1
    consumer.close()
