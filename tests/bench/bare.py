"""The floor: take the records from librdkafka in batches and do nothing with them."""

from __future__ import annotations

from confluent_kafka import Consumer, TopicPartition

from schemas.events import SOURCES, topic
from streams.kafka import consumer_settings
from tests.bench.job import Job, Measured

BATCH_RECORDS = 10_000
IDLE_S_MAX = 30.0


def run(job: Job) -> Measured:
    consumer = Consumer(consumer_settings(job.bootstrap, job.group, auto_offset_reset="earliest", fetch_wait_max_ms=10))
    partitions = consumer.list_topics(timeout=30).topics
    names = [topic(noun) for noun in SOURCES]
    consumer.assign([TopicPartition(name, p, 0) for name in names for p in partitions[name].partitions])
    measured = Measured()
    seen = len(consumer.consume(1, IDLE_S_MAX))
    measured.start()
    while seen < job.records:
        batch = consumer.consume(BATCH_RECORDS, 0.05)
        seen += len(batch)
    measured.stop()
    consumer.close()
    measured.is_exact = seen == job.records
    return measured
