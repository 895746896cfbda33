"""A Confluent-compatible schema registry for tests: Apicurio Registry."""

from __future__ import annotations

import urllib.request
from collections.abc import Mapping
from pathlib import Path

from streams.testing.server import Server, ServerMissingError, find_java, free_port, servers_dir

# Data in memory; in docker-compose.yml it is in PostgreSQL, and a test starts a registry with those settings too.
REGISTRY_SETTINGS: Mapping[str, str] = {"APICURIO_STORAGE_KIND": "sql", "APICURIO_STORAGE_SQL_KIND": "h2"}
REGISTRY_PATH = "/apis/ccompat/v7"


class RegistryServer(Server):
    """A Confluent-compatible schema registry: `RegistryServer().url` is its API.

    Parameters
    ----------
    directory
        See `Server`.
    settings
        Its environment; default: `REGISTRY_SETTINGS`, which keep the data in memory, so that a restart forgets it.
    """

    name = "registry"

    def __init__(self, directory: Path | None = None, settings: Mapping[str, str] = REGISTRY_SETTINGS) -> None:
        self._home = servers_dir() / "registry"
        if not (self._home / "COMPLETE").exists():
            raise ServerMissingError(f"The schema registry is not installed in {self._home}.")
        self._java = str(find_java(21))
        super().__init__(directory)
        self.port, self._management_port = free_port(), free_port()
        self._settings = dict(settings)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{REGISTRY_PATH}"

    def _environment(self) -> dict[str, str]:
        return self._settings

    def _command(self) -> list[str]:
        # Its management interface has a fixed port of its own, at which a second registry would not start.
        places = {"http": self.port, "management": self._management_port}
        address = [
            option
            for part, port in places.items()
            for option in (f"-Dquarkus.{part}.host=127.0.0.1", f"-Dquarkus.{part}.port={port}")
        ]
        return [self._java, "-Xmx512m", "-XX:+UseSerialGC", *address, "-jar", str(self._home / "quarkus-run.jar")]

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/subjects", timeout=5) as answer:  # noqa: S310 - our own address
                return bool(answer.status == 200)
        except OSError:
            return False
