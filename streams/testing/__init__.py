"""Real servers for tests and benchmarks: Apache Kafka, a schema registry, PostgreSQL, on free ports of this machine.

`make servers` installs what is not there. Each server is a context manager that is ready when it is entered; its data
lives in a temporary directory (or the one given) and survives `kill()` and `restart()`. A server dies with the process
that started it, however that ends (on Linux; elsewhere unless that process is killed with -9).

This module is for users' tests too: it imports no test framework.
"""

from __future__ import annotations

from streams.testing.kafka import KAFKA_SETTINGS, PARTITIONS, KafkaCluster, KafkaServer, create_topics
from streams.testing.postgres import PostgresServer
from streams.testing.proxy import TcpProxy
from streams.testing.registry import REGISTRY_PATH, REGISTRY_SETTINGS, RegistryServer
from streams.testing.server import Server, ServerFailedError, ServerMissingError, free_port, wait_until

__all__ = [
    "KAFKA_SETTINGS",
    "PARTITIONS",
    "REGISTRY_PATH",
    "REGISTRY_SETTINGS",
    "KafkaCluster",
    "KafkaServer",
    "PostgresServer",
    "RegistryServer",
    "Server",
    "ServerFailedError",
    "ServerMissingError",
    "TcpProxy",
    "create_topics",
    "free_port",
    "wait_until",
]
