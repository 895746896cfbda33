"""A Confluent-compatible schema registry for tests: Apicurio Registry, with its data in memory."""

from __future__ import annotations

import urllib.request
from collections.abc import Mapping
from pathlib import Path

from streams.testing.server import Server, ServerMissingError, find_java, free_port, servers_dir

# What the registry needs beside its defaults, here and in docker-compose.yml.
REGISTRY_SETTINGS: Mapping[str, str] = {"APICURIO_STORAGE_KIND": "sql", "APICURIO_STORAGE_SQL_KIND": "h2"}
REGISTRY_PATH = "/apis/ccompat/v7"


class RegistryServer(Server):
    """A Confluent-compatible schema registry (Apicurio, in memory): `RegistryServer().url` is its API."""

    name = "registry"

    def __init__(self, directory: Path | None = None) -> None:
        self._home = servers_dir() / "registry"
        if not (self._home / "COMPLETE").exists():
            raise ServerMissingError(f"The schema registry is not installed in {self._home}.")
        self._java = str(find_java(21))
        super().__init__(directory)
        self.port = free_port()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{REGISTRY_PATH}"

    def _environment(self) -> dict[str, str]:
        return dict(REGISTRY_SETTINGS)

    def _command(self) -> list[str]:
        address = ["-Dquarkus.http.host=127.0.0.1", f"-Dquarkus.http.port={self.port}"]
        return [self._java, "-Xmx512m", "-XX:+UseSerialGC", *address, "-jar", str(self._home / "quarkus-run.jar")]

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/subjects", timeout=5) as answer:  # noqa: S310 - our own address
                return bool(answer.status == 200)
        except OSError:
            return False
