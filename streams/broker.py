"""The embedded broker: librdkafka's own mock cluster, inside the confluent-kafka wheel, in this process.

It speaks the real protocol over TCP, so that every client of ours (and of anybody else) works on it unchanged. What it
is not: it keeps everything in memory and forgets it on exit; it keeps a partition's newest 5 MiB of batches as they
were sent (compressed bytes count) and at most 100,000 batches, and drops older ones silently; it keeps producers'
timestamps, has no compaction, and cannot create topics on request (they are created here, or on first use with 4
partitions).
None of these limits can be set through its C API or its configuration.

Measured on 2 cores: 200-byte records in at 280,000 to 610,000 a second and out at 450,000 to 630,000; the first record
of a group after 0.13 s (KIP-848) or 0.22 s (classic). A classic group that comes back waits for its session timeout
less 1 s (aiokafka with 6 s: 3.5 s after an orderly end, 6 s after a kill), a KIP-848 one comes back at once. It looks
for an offset from the log's beginning, so reading back is quadratic in the number of batches: 80,000 batches of one
record take 20 s, 20,000 take 0.6 s; a producer that lingers 20 ms makes few.

Reached through ctypes, because the wheel does not expose the mock's functions in Python. Imports no other client.
"""

from __future__ import annotations

import ctypes
import secrets
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

from schemas.errors import FlywheelError
from schemas.events import NOUNS, partition_count, topic

RETENTION_BYTES_MAX = 5 * 1024 * 1024
"""What the mock keeps of a partition (``rd_kafka_mock_partition_init``), in bytes of the batches as they were sent."""
RETENTION_BATCHES_MAX = 100_000
REBALANCE_DELAY_MS = 100
"""How long a new classic group waits for more members; the mock's default of 3 s is only waiting."""
HEARTBEAT_INTERVAL_MS = 500
"""Of KIP-848 groups: a change of assignment reaches a member with its next heartbeat. The default is 3 s."""
SESSION_TIMEOUT_MS = 10_000
"""Of KIP-848 groups: a killed worker's partitions are free after this long. The default is 30 s."""
KNOCK_S = 0.005
PRODUCER_TYPE = 0
ERROR_CHARS = 512


class EmbeddedBrokerError(FlywheelError):
    """The embedded broker could not be started."""

    action = "Install confluent-kafka from a wheel, or use an Apache Kafka with --brokers."


@cache
def _library() -> ctypes.CDLL:
    """The librdkafka that the confluent-kafka wheel brings: the very library that our clients run on."""
    import confluent_kafka

    package = Path(confluent_kafka.__file__).parent
    folders = [package.parent / "confluent_kafka.libs", package / ".dylibs", package]
    candidates = [path for folder in folders for path in sorted(folder.glob("*rdkafka*")) if ".so" in path.name]
    candidates += [path for folder in folders for path in sorted(folder.glob("*rdkafka*.dylib"))]
    for path in candidates:
        try:
            library = ctypes.CDLL(str(path))
            return _declare(library)
        except (OSError, AttributeError):
            continue
    raise EmbeddedBrokerError("No librdkafka with a mock cluster was found beside confluent-kafka.")


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    pointer, text, integer = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
    signatures = {
        "rd_kafka_conf_new": (pointer, []),
        "rd_kafka_conf_set": (integer, [pointer, text, text, text, ctypes.c_size_t]),
        "rd_kafka_conf_destroy": (None, [pointer]),
        "rd_kafka_new": (pointer, [integer, pointer, text, ctypes.c_size_t]),
        "rd_kafka_destroy": (None, [pointer]),
        "rd_kafka_mock_cluster_new": (pointer, [pointer, integer]),
        "rd_kafka_mock_cluster_destroy": (None, [pointer]),
        "rd_kafka_mock_cluster_bootstraps": (text, [pointer]),
        "rd_kafka_mock_topic_create": (integer, [pointer, text, integer, integer]),
        "rd_kafka_mock_group_initial_rebalance_delay_ms": (None, [pointer, ctypes.c_int32]),
        "rd_kafka_mock_set_group_consumer_session_timeout_ms": (None, [pointer, integer]),
        "rd_kafka_mock_set_group_consumer_heartbeat_interval_ms": (None, [pointer, integer]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


class EmbeddedBroker:
    """A Kafka broker in this process, with Flywheel's topics.

    Parameters
    ----------
    partitions
        Of every topic that may have several.
    topics
        Names of the topics to create; default: one for every noun.

    Attributes
    ----------
    bootstrap
        Its address, ``127.0.0.1:PORT``.
    cluster
        A new id for every start, because offsets start anew: what is kept elsewhere under an older id is another log's.

    Examples
    --------
    >>> with EmbeddedBroker(partitions=2) as broker:
    ...     broker.bootstrap.split(":")[0], broker.cluster.split("-")[0]
    ('127.0.0.1', 'embedded')
    """

    def __init__(self, partitions: int = 4, topics: Iterable[str] | None = None) -> None:
        self._library = _library()
        self._client = self._new_client()
        self._mock = self._library.rd_kafka_mock_cluster_new(self._client, 1)
        if not self._mock:
            self._library.rd_kafka_destroy(self._client)
            raise EmbeddedBrokerError()
        self.cluster = f"embedded-{secrets.token_hex(8)}"
        self.bootstrap = self._library.rd_kafka_mock_cluster_bootstraps(self._mock).decode()
        self._library.rd_kafka_mock_group_initial_rebalance_delay_ms(self._mock, REBALANCE_DELAY_MS)
        self._library.rd_kafka_mock_set_group_consumer_heartbeat_interval_ms(self._mock, HEARTBEAT_INTERVAL_MS)
        self._library.rd_kafka_mock_set_group_consumer_session_timeout_ms(self._mock, SESSION_TIMEOUT_MS)
        with self._awake():
            ours = {topic(noun): partition_count(noun, partitions) for noun in NOUNS}
            for name in ours if topics is None else topics:
                self.create_topic(name, ours.get(name, partitions))

    def _new_client(self) -> int:
        """The client handle that the mock hangs on; it connects to nobody."""
        message = ctypes.create_string_buffer(ERROR_CHARS)
        settings = self._library.rd_kafka_conf_new()
        self._library.rd_kafka_conf_set(settings, b"log_level", b"2", message, ERROR_CHARS)
        client = self._library.rd_kafka_new(PRODUCER_TYPE, settings, message, ERROR_CHARS)
        if not client:
            self._library.rd_kafka_conf_destroy(settings)
            raise EmbeddedBrokerError(f"The embedded broker could not be started: {message.value.decode()}.")
        return int(client)

    @contextmanager
    def _awake(self) -> Iterator[None]:
        """Keep the mock's thread from sleeping for a second between two commands: it may miss their wake-up call, but
        never a connection.
        """
        is_done = threading.Event()
        host, _, port = self.bootstrap.rpartition(":")

        def knock() -> None:
            while not is_done.wait(KNOCK_S):
                with suppress(OSError):
                    socket.create_connection((host, int(port)), timeout=1).close()

        thread = threading.Thread(target=knock, name="embedded-broker", daemon=True)
        thread.start()
        try:
            yield
        finally:
            is_done.set()
            thread.join()

    def create_topic(self, name: str, partitions: int) -> None:
        """Create a topic.

        Raises
        ------
        EmbeddedBrokerError
            If it exists.
        """
        assert self._mock, "the broker was stopped"
        error = self._library.rd_kafka_mock_topic_create(self._mock, name.encode(), partitions, 1)
        if error:
            raise EmbeddedBrokerError(f"The topic {name} could not be created (error {error}); does it exist?")

    def stop(self) -> None:
        """End the broker; everything on it is forgotten. May be called again."""
        if self._mock:
            self._library.rd_kafka_mock_cluster_destroy(self._mock)
            self._library.rd_kafka_destroy(self._client)
            self._mock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
