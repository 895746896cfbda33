"""Settings of Kafka clients, and the topics: made, looked at, and checked before anything depends on them.

All clients of the project that are not Faust's are built from these settings. Keeps no state.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic, ResourceType

from schemas.errors import BrokerUnreachableError, TopicLayoutError
from schemas.events import COMPACTED, NOUNS, SINGLE, SOURCES, partition_count, topic

MESSAGE_BYTES_MAX = 16 * 1024 * 1024
"""Of a summary: 2,000 parts of 1,000 counters of 12 bytes are 24 MB before compression, a quarter of that after."""
ANSWER_TIMEOUT_S = 8.0
"""How long an operator waits for "no broker answers"."""
PARTITIONER = "murmur2_random"
"""Java's partitioner. librdkafka's default (CRC32) would put a Java service's feedback on another partition."""

# Nothing on stderr by itself: errors come through error_cb and exceptions, and an idle connection that a broker closes
# is no news.
QUIET: Mapping[str, Any] = {"log_level": 2, "log.connection.close": False}

PRODUCER: Mapping[str, Any] = {
    "acks": "all",
    "enable.idempotence": True,  # a retry must not reorder or double what the broker has
    "partitioner": PARTITIONER,
    "compression.type": "lz4",  # cheap; never "none": the embedded broker keeps 5 MiB of what is sent
    "linger.ms": 5,
    "message.max.bytes": MESSAGE_BYTES_MAX,
    "queue.buffering.max.messages": 200_000,
    "queue.buffering.max.kbytes": 128 * 1024,
    **QUIET,
}

CONSUMER: Mapping[str, Any] = {
    "enable.auto.commit": False,
    "auto.offset.reset": "error",  # records that are gone are told of, never skipped silently
    "fetch.queue.backoff.ms": 5,  # the default of 1000 makes catching up eight times slower on an idle CPU
    "fetch.wait.max.ms": 100,
    "queued.min.messages": 100_000,  # several micro-batches, so that consume() never waits for the network
    "fetch.message.max.bytes": 4 * 1024 * 1024,
    "partition.assignment.strategy": "range",  # classic protocol only: keeps partition p of all topics on one member
    **QUIET,
}

EMBEDDED_FETCH_WAIT_MS = 10
"""The embedded broker answers an empty fetch only after the whole wait."""

MOCK_CLUSTER = "mockCluster"
"""How the ids of librdkafka's mock clusters begin."""

BASE_TOPIC: Mapping[str, str] = {"message.timestamp.type": "LogAppendTime"}
RETENTION_MS = 7 * 24 * 3600 * 1000
"""Kafka's own default."""
TOPICS: Mapping[str, Mapping[str, str]] = {
    "summaries": {"max.message.bytes": str(MESSAGE_BYTES_MAX)},
    "labels": {"retention.ms": "-1"},  # small, and the audit trail of what models were trained on
    "retrain": {"retention.ms": "-1"},
    **{noun: {"cleanup.policy": "compact"} for noun in COMPACTED},
}


@dataclass(frozen=True)
class TopicInfo:
    """What a broker says of a topic; None is what it does not say (the embedded broker).

    Attributes
    ----------
    retention_ms
        How long a record stays; -1: for ever.
    """

    name: str
    partitions: int
    timestamp_type: str | None = None
    retention_ms: int | None = None


def producer_settings(bootstrap: str, **more: Any) -> dict[str, Any]:
    """Settings of a producer; ``more`` with ``_`` for ``.`` in the names wins."""
    return {**PRODUCER, "bootstrap.servers": bootstrap, **_dotted(more)}


def consumer_settings(bootstrap: str, group: str, *, is_embedded: bool = False, **more: Any) -> dict[str, Any]:
    """Settings of a group's consumer, with the group protocol that the broker has.

    The new protocol (KIP-848) with the server's ``range`` moves only what must move and has its first record after
    0.24 s (classic: 3.3 s).
    """
    settings = {**CONSUMER, "bootstrap.servers": bootstrap, "group.id": group}
    if is_embedded:
        settings["fetch.wait.max.ms"] = EMBEDDED_FETCH_WAIT_MS
    if is_embedded or has_consumer_protocol(bootstrap):
        del settings["partition.assignment.strategy"]
        settings |= {"group.protocol": "consumer", "group.remote.assignor": "range"}
    return settings | _dotted(more)


def _dotted(more: Mapping[str, Any]) -> dict[str, Any]:
    return {name.replace("_", "."): value for name, value in more.items()}


def admin(bootstrap: str) -> AdminClient:
    """A quiet admin client."""
    return AdminClient({"bootstrap.servers": bootstrap, "log_level": 0, "error_cb": lambda _error: None})


def unreachable(bootstrap: str) -> BrokerUnreachableError:
    """The error that names the address."""
    return BrokerUnreachableError(f"No Kafka broker answers at {bootstrap}.")


def cluster_id(bootstrap: str, timeout_s: float = ANSWER_TIMEOUT_S) -> str:
    """The id of a cluster: which log an offset belongs to."""
    return str(_metadata(admin(bootstrap), bootstrap, timeout_s).cluster_id)


def _metadata(client: AdminClient, bootstrap: str, timeout_s: float) -> Any:
    try:
        return client.list_topics(timeout=timeout_s)
    except KafkaException as error:
        raise unreachable(bootstrap) from error


def topic_info(bootstrap: str, *, timeout_s: float = ANSWER_TIMEOUT_S) -> dict[str, TopicInfo]:
    """Flywheel's topics that exist, by noun.

    Raises
    ------
    BrokerUnreachableError
        If no broker answers within the time.
    """
    client = admin(bootstrap)
    metadata = _metadata(client, bootstrap, timeout_s)
    known = metadata.topics
    present = {noun: topic(noun) for noun in NOUNS if topic(noun) in known}
    can_tell = not str(metadata.cluster_id).startswith(MOCK_CLUSTER)  # it never answers a question for settings
    settings = _settings(client, list(present.values()), bootstrap, timeout_s) if can_tell else {}
    return {
        noun: TopicInfo(name, len(known[name].partitions), *settings.get(name, ())) for noun, name in present.items()
    }


def _settings(client: AdminClient, names: list[str], bootstrap: str, timeout_s: float) -> dict[str, tuple[str, int]]:
    """Of every topic the type of its time stamps, and its retention."""
    if not names:
        return {}
    resources = [ConfigResource(ResourceType.TOPIC, name) for name in names]
    try:
        answers = client.describe_configs(resources, request_timeout=timeout_s)
        found = {resource.name: future.result(timeout_s) for resource, future in answers.items()}
    except (KafkaException, TimeoutError) as error:
        raise unreachable(bootstrap) from error
    return {
        name: (values["message.timestamp.type"].value, int(values["retention.ms"].value))
        for name, values in found.items()
    }


def create_topics(bootstrap: str, partitions: int, kept_s: int = 0, *, timeout_s: float = 30.0) -> list[str]:
    """Create Flywheel's topics that are missing, on a real Kafka; existing ones stay as they are.

    Parameters
    ----------
    kept_s
        How long the source topics keep their records at least.

    Returns
    -------
    The names of those that were created.

    Raises
    ------
    BrokerUnreachableError
        If no broker answers.
    TopicLayoutError
        If the broker refuses a topic; the message says why.
    """
    client = admin(bootstrap)
    known = _metadata(client, bootstrap, ANSWER_TIMEOUT_S).topics
    missing = {topic(noun): noun for noun in NOUNS if topic(noun) not in known}
    if not missing:
        return []
    kept = {"retention.ms": str(max(kept_s * 1000, RETENTION_MS))}
    own = {**TOPICS, **{noun: kept for noun in SOURCES}}
    new = [
        NewTopic(
            name,
            num_partitions=partition_count(noun, partitions),
            replication_factor=-1,
            config={**BASE_TOPIC, **own.get(noun, {})},
        )
        for name, noun in missing.items()
    ]
    for name, future in client.create_topics(new, operation_timeout=timeout_s, request_timeout=timeout_s).items():
        try:
            future.result(timeout_s)
        except KafkaException as error:
            reason = error.args[0]
            if reason.code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise TopicLayoutError(
                    f"The topic {name} could not be created: {reason.str()}.",
                    action="Create it by hand, or give this client the right to.",
                ) from error
    return sorted(missing)


def check_topics(bootstrap: str) -> int:
    """Refuse topics on which the join would silently be wrong.

    Returns
    -------
    The number of partitions of the three source topics.

    Raises
    ------
    TopicLayoutError
        If a topic is missing, the source topics differ in their partitions, or one keeps producers' timestamps.
    """
    known = topic_info(bootstrap)
    missing = [topic(noun) for noun in NOUNS if noun not in known]
    if missing:
        raise TopicLayoutError(
            f"Topics are missing at {bootstrap}: {', '.join(missing)}.",
            action="'flywheel up' and 'flywheel worker' create them when they may.",
        )
    counts = {topic(noun): known[noun].partitions for noun in SOURCES}
    if len(set(counts.values())) > 1:
        largest = max(counts.values())
        shown = ", ".join(f"{name} has {n}" for name, n in counts.items())
        commands = "; ".join(
            f"kafka-topics.sh --bootstrap-server {bootstrap} --alter --topic {name} --partitions {largest}"
            for name, n in counts.items()
            if n < largest
        )
        raise TopicLayoutError(
            f"The three topics that are joined differ in their partitions: {shown}.",
            action=f"While nothing is produced, run: {commands}",
        )
    split = [known[noun].name for noun in NOUNS if noun in SINGLE and known[noun].partitions != 1]
    if split:
        raise TopicLayoutError(
            f"Topics that one worker must see whole have several partitions: {', '.join(split)}.",
            action="While no worker runs, delete them and let 'flywheel worker' create them again.",
        )
    wrong = [info.name for noun in SOURCES if (info := known[noun]).timestamp_type not in (None, "LogAppendTime")]
    if wrong:
        commands = "; ".join(
            f"kafka-configs.sh --bootstrap-server {bootstrap} --alter --entity-type topics --entity-name {name} "
            "--add-config message.timestamp.type=LogAppendTime"
            for name in wrong
        )
        raise TopicLayoutError(
            f"Topics keep the producers' timestamps instead of the broker's: {', '.join(wrong)}.",
            action=f"Start a worker with --fix-topics, or run: {commands}",
        )
    return next(iter(counts.values()))


def fix_topics(bootstrap: str, timeout_s: float = ANSWER_TIMEOUT_S) -> list[str]:
    """Give the source topics the broker's timestamps; what is on them keeps those that it has.

    Returns
    -------
    The names of those that were changed.

    Raises
    ------
    BrokerUnreachableError
        If no broker answers.
    TopicLayoutError
        If the broker refuses.
    """
    known = topic_info(bootstrap)
    wrong = [known[noun].name for noun in SOURCES if noun in known and known[noun].timestamp_type == "CreateTime"]
    if not wrong:
        return []
    entries = [ConfigEntry(*item, incremental_operation=AlterConfigOpType.SET) for item in BASE_TOPIC.items()]
    resources = [ConfigResource(ResourceType.TOPIC, name, incremental_configs=entries) for name in wrong]
    client = admin(bootstrap)
    for resource, future in client.incremental_alter_configs(resources, request_timeout=timeout_s).items():
        try:
            future.result(timeout_s)
        except TimeoutError as error:
            raise unreachable(bootstrap) from error
        except KafkaException as error:
            raise TopicLayoutError(
                f"The topic {resource.name} could not be changed: {error.args[0].str()}.",
                action="Change it by hand, or give this client the right to.",
            ) from error
    return wrong


def watermarks(consumer: Consumer, names: Mapping[str, int], timeout_s: float = ANSWER_TIMEOUT_S) -> dict[Any, Any]:
    """(low, high) offsets of every partition; ``names`` maps topics to their number of partitions."""
    return {
        (name, p): consumer.get_watermark_offsets(TopicPartition(name, p), timeout=timeout_s)
        for name, count in names.items()
        for p in range(count)
    }


API_VERSIONS = 18
CONSUMER_GROUP_HEARTBEAT = 68
HEARTBEAT_VERSION_MIN = 1
"""Version 1 came with Kafka 4.0, where the protocol is on; in 3.x it is there, but a preview that is off."""


def has_consumer_protocol(bootstrap: str, timeout_s: float = 5.0) -> bool:
    """Whether a broker has the group protocol of KIP-848, asked with one plain ApiVersions request.

    False when nobody answers in the clear: then the classic protocol is used, which every broker has.
    """
    return api_versions(bootstrap, timeout_s).get(CONSUMER_GROUP_HEARTBEAT, -1) >= HEARTBEAT_VERSION_MIN


def api_versions(bootstrap: str, timeout_s: float = 5.0) -> dict[int, int]:
    """The newest version of every request that the first broker that answers in the clear understands; else nothing."""
    for address in bootstrap.split(","):
        host, _, port = address.strip().rpartition(":")
        try:
            return _api_versions(host.strip("[]"), int(port), timeout_s)
        except (OSError, ValueError, struct.error):
            continue
    return {}


def _api_versions(host: str, port: int, timeout_s: float) -> dict[int, int]:
    """The newest version of every request that a broker understands (the protocol's ApiVersions, version 0)."""
    name = b"flywheel"
    body = struct.pack(">hhih", API_VERSIONS, 0, 1, len(name)) + name
    with socket.create_connection((host, port), timeout=timeout_s) as connection:
        connection.sendall(struct.pack(">i", len(body)) + body)
        stream = connection.makefile("rb")
        (size,) = struct.unpack(">i", stream.read(4))
        if not 10 <= size <= 1_000_000:
            raise ValueError("not a Kafka broker")
        answer = stream.read(size)
    _correlation, error, count = struct.unpack_from(">ihi", answer)
    if error:
        raise ValueError("the broker refuses")
    rows = (struct.unpack_from(">hhh", answer, 10 + 6 * i) for i in range(count))
    return {key: newest for key, _oldest, newest in rows}
