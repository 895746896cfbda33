"""Apache Kafka for tests: one node, the settings of docker-compose.yml."""

from __future__ import annotations

import socket
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Mapping
from pathlib import Path

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import NewTopic

from streams.kafka import BASE_TOPIC, admin
from streams.testing.server import Server, ServerMissingError, find_java, free_port, servers_dir, wait_until

PARTITIONS = 4

# One KRaft node that is broker and controller: the same settings as in docker-compose.yml (a test compares them).
KAFKA_SETTINGS: Mapping[str, str] = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "inter.broker.listener.name": "PLAINTEXT",
    "num.partitions": str(PARTITIONS),
    "auto.create.topics.enable": "false",
    "offsets.topic.replication.factor": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "group.initial.rebalance.delay.ms": "0",
    "log.message.timestamp.type": "LogAppendTime",
}


class KafkaServer(Server):
    """One Apache Kafka node (KRaft): `KafkaServer().bootstrap` is what a client connects to.

    Parameters
    ----------
    directory
        See `Server`.
    settings
        Broker settings beside, or instead of, `KAFKA_SETTINGS`.
    """

    name = "kafka"

    def __init__(self, directory: Path | None = None, settings: Mapping[str, str] | None = None) -> None:
        self._jars = servers_dir() / "kafka" / "libs"
        if not (self._jars.parent / "COMPLETE").exists():
            raise ServerMissingError(f"Apache Kafka is not installed in {self._jars.parent}.")
        self._java = str(find_java(17))
        super().__init__(directory)
        self.port, self._controller_port = free_port(), free_port()
        self._settings = {**KAFKA_SETTINGS, **(settings or {})}

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self.port}"

    def tool(self, program: str, *arguments: str) -> list[str]:
        """The command line of one of Kafka's own programs, named by its Java class."""
        return [self._java, "-XX:TieredStopAtLevel=1", "-cp", f"{self._jars}/*", program, *arguments]

    def _properties(self) -> str:
        controller = f"127.0.0.1:{self._controller_port}"
        settings = {
            **self._settings,
            "controller.quorum.bootstrap.servers": controller,
            "listeners": f"PLAINTEXT://{self.bootstrap},CONTROLLER://{controller}",
            "advertised.listeners": f"PLAINTEXT://{self.bootstrap}",
            "log.dirs": str(self.directory / "data"),
        }
        return "".join(f"{key}={value}\n" for key, value in settings.items())

    def _prepare(self) -> None:
        properties = self.directory / "server.properties"
        properties.write_text(self._properties())
        if not (self.directory / "data" / "meta.properties").exists():
            cluster_id = urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()
            made = f"--cluster-id={cluster_id}"  # one in 64 ids begins with "-", which "-t ID" takes for an option
            self.run(self.tool("kafka.tools.StorageTool", "format", made, "-c", str(properties), "--standalone"))

    def _command(self) -> list[str]:
        memory = ["-Xms512m", "-Xmx512m", "-XX:+UseSerialGC"]
        logging = ["-Dorg.slf4j.simpleLogger.showDateTime=true", "-Dlog4j2.level=OFF"]
        properties = str(self.directory / "server.properties")
        return [self._java, *memory, *logging, "-cp", f"{self._jars}/*", "kafka.Kafka", properties]

    def _is_ready(self) -> bool:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", self.port)):
                return False
        try:
            return bool(admin(self.bootstrap).list_topics(timeout=5).brokers)
        except KafkaException:
            return False


def create_topics(
    bootstrap: str, names: Iterable[str], partitions: int = PARTITIONS, config: Mapping[str, str] | None = None
) -> None:
    """Create topics with LogAppendTime, unless they are there, and wait until each partition has a leader."""
    client = admin(bootstrap)
    names = list(names)
    topics = [NewTopic(name, partitions, 1, config={**BASE_TOPIC, **(config or {})}) for name in names]
    for future in client.create_topics(topics, operation_timeout=30).values():
        try:
            future.result(timeout=60)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise

    def have_leaders() -> bool:
        known = client.list_topics(timeout=10).topics
        return all(
            name in known and known[name].partitions and all(p.leader >= 0 for p in known[name].partitions.values())
            for name in names
        )

    wait_until(have_leaders, 30, f"leaders of {', '.join(names)}")
