"""Apache Kafka for tests: one node with the settings of docker-compose.yml, or several that replicate."""

from __future__ import annotations

import socket
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import NewTopic

from streams.kafka import BASE_TOPIC, admin
from streams.testing.server import (
    START_DEADLINE_S,
    Server,
    ServerMissingError,
    find_java,
    free_port,
    servers_dir,
    wait_until,
)

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
    advertised_port
        Clients that bootstrap from `behind_port` are sent to this port for everything else: a proxy's, which forwards
        to `behind_port`. Those that bootstrap from `bootstrap` are not disturbed.
    """

    name = "kafka"

    def __init__(
        self,
        directory: Path | None = None,
        settings: Mapping[str, str] | None = None,
        *,
        advertised_port: int | None = None,
    ) -> None:
        self._jars = servers_dir() / "kafka" / "libs"
        if not (self._jars.parent / "COMPLETE").exists():
            raise ServerMissingError(f"Apache Kafka is not installed in {self._jars.parent}.")
        self._java = str(find_java(17))
        super().__init__(directory)
        self.port, self.controller_port, self.behind_port = free_port(), free_port(), free_port()
        self._settings = {**KAFKA_SETTINGS, **(settings or {})}
        self._advertised_port = advertised_port

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self.port}"

    def tool(self, program: str, *arguments: str) -> list[str]:
        """The command line of one of Kafka's own programs, named by its Java class."""
        return [self._java, "-XX:TieredStopAtLevel=1", "-cp", f"{self._jars}/*", program, *arguments]

    def _properties(self) -> str:
        controller = f"127.0.0.1:{self.controller_port}"
        listeners = {"PLAINTEXT": self.bootstrap, "CONTROLLER": controller}
        advertised = {"PLAINTEXT": self.bootstrap}
        if self._advertised_port is not None:
            listeners["PROXY"] = f"127.0.0.1:{self.behind_port}"
            advertised["PROXY"] = f"127.0.0.1:{self._advertised_port}"
        settings = {
            "controller.quorum.bootstrap.servers": controller,
            "listeners": ",".join(f"{name}://{at}" for name, at in listeners.items()),
            "advertised.listeners": ",".join(f"{name}://{at}" for name, at in advertised.items()),
            "listener.security.protocol.map": ",".join(f"{name}:PLAINTEXT" for name in listeners),
            "log.dirs": str(self.directory / "data"),
            **self._settings,
        }
        return "".join(f"{key}={value}\n" for key, value in settings.items())

    def _prepare(self) -> None:
        properties = self.directory / "server.properties"
        properties.write_text(self._properties())
        if not (self.directory / "data" / "meta.properties").exists():
            self.run(self.tool("kafka.tools.StorageTool", "format", "-c", str(properties), *self._formatting()))

    def _formatting(self) -> list[str]:
        """How its storage is made: for a cluster of one."""
        # One in 64 ids begins with "-", which "-t ID" takes for an option.
        return [f"--cluster-id={new_cluster_id()}", "--standalone"]

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


class _Node(KafkaServer):
    """One of several nodes, which all know each other's controllers."""

    def __init__(self, number: int, settings: Mapping[str, str], cluster_id: str) -> None:
        super().__init__(settings={**settings, "node.id": str(number)})
        self._cluster_id = cluster_id

    def meet(self, voters: str) -> None:
        """Tell the node who votes."""
        self._settings |= {"controller.quorum.voters": voters, "controller.quorum.bootstrap.servers": ""}

    def _formatting(self) -> list[str]:
        return [f"--cluster-id={self._cluster_id}"]


class KafkaCluster:
    """Several Apache Kafka nodes that replicate everything; each can be killed and restarted.

    Attributes
    ----------
    nodes
        By node id, from 1.
    """

    def __init__(self, size: int = 3, settings: Mapping[str, str] | None = None) -> None:
        cluster_id = new_cluster_id()
        replicated = {name: str(size) for name in KAFKA_SETTINGS if name.endswith("replication.factor")}
        enough = {name: str(size // 2 + 1) for name in KAFKA_SETTINGS if name.endswith("min.isr")}
        own = {"default.replication.factor": str(size), "min.insync.replicas": str(size // 2 + 1)}
        self.nodes = {
            number: _Node(number, {**replicated, **enough, **own, **(settings or {})}, cluster_id)
            for number in range(1, size + 1)
        }
        voters = ",".join(f"{n}@127.0.0.1:{node.controller_port}" for n, node in self.nodes.items())
        for node in self.nodes.values():
            node.meet(voters)

    @property
    def bootstrap(self) -> str:
        """All nodes' addresses."""
        return ",".join(node.bootstrap for node in self.nodes.values())

    def leader(self, topic: str, partition: int) -> int:
        """The node that leads a partition; -1: none at the moment."""
        return int(admin(self.bootstrap).list_topics(topic, timeout=10).topics[topic].partitions[partition].leader)

    def __enter__(self) -> Self:
        try:
            for node in self.nodes.values():  # none is ready before most are there
                node.launch()
            for node in self.nodes.values():
                node.wait_ready()
            wait_until(self._is_whole, START_DEADLINE_S, "a cluster of all nodes")
        except BaseException:
            self.close()
            raise
        return self

    def _is_whole(self) -> bool:
        return len(admin(self.bootstrap).list_topics(timeout=5).brokers) == len(self.nodes)

    def close(self) -> None:
        """End all nodes."""
        for node in self.nodes.values():
            node.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def new_cluster_id() -> str:
    """A random id in Kafka's form."""
    return urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()


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
