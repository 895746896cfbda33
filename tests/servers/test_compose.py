"""docker-compose.yml: a compose implementation accepts it, and its servers run here with the settings it gives them.

Containers cannot be started everywhere, so each part is held against the real thing as far as it goes without them:
the broker's environment goes through the program that turns it into a configuration inside the image, the registry is
started with its environment, the worker's is read by Flywheel's own configuration.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient

from streams.cli import cli
from streams.config import load_config
from streams.testing import KAFKA_SETTINGS, REGISTRY_PATH, KafkaServer, PostgresServer, RegistryServer

ROOT = Path(__file__).resolve().parents[2]
# Addresses and places, which cannot be the same in a container and in a test.
PLACES = {
    "advertised.listeners",
    "controller.quorum.voters",
    "listener.security.protocol.map",
    "listeners",
    "log.dirs",
}


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    compose = [str(Path(sys.executable).parent / "podman-compose"), "--dry-run", "-f", str(ROOT / "docker-compose.yml")]
    done = subprocess.run([*compose, "config"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    read: dict[str, Any] = yaml.safe_load(done.stdout)["services"]
    return read


def test_it_has_kafka_a_registry_postgresql_and_one_worker(services: dict[str, Any]) -> None:
    assert set(services) == {"kafka", "postgres", "registry", "worker"}


def test_every_service_has_a_health_check_and_listens_on_this_machine_only(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["healthcheck"]["test"], name
        assert all(port.startswith("127.0.0.1:") for port in service["ports"]), name


def test_a_service_starts_when_what_it_needs_is_healthy(services: dict[str, Any]) -> None:
    assert set(services["worker"]["depends_on"]) == {"kafka", "postgres", "registry"}
    conditions = [need for service in services.values() for need in service.get("depends_on", {}).values()]
    assert all(need == {"condition": "service_healthy"} for need in conditions)


def test_the_images_own_program_makes_the_tests_broker_settings_of_it(
    services: dict[str, Any], kafka: KafkaServer, tmp_path: Path
) -> None:
    folders = [tmp_path / name for name in ("default", "mounted", "final")]
    for folder in folders:
        folder.mkdir()
    for name in ("server.properties", "log4j2.yaml", "tools-log4j2.yaml"):
        (folders[0] / name).touch()
    environment = services["kafka"]["environment"] | {"KAFKA_LOG_DIRS": str(tmp_path / "data")}
    options = [part for pair in zip(("-D", "-M", "-F"), map(str, folders), strict=True) for part in pair]
    subprocess.run(
        kafka.tool("kafka.docker.KafkaDockerWrapper", "setup", *options),
        env=os.environ | environment,
        check=True,
        capture_output=True,
    )
    lines = (folders[2] / "server.properties").read_text().split()
    made = dict(line.split("=", 1) for line in lines)
    assert {key: value for key, value in made.items() if key not in PLACES} == dict(KAFKA_SETTINGS)
    assert set(made) - set(KAFKA_SETTINGS) == PLACES
    assert (tmp_path / "data" / "meta.properties").exists(), "formatted, as the image does it"


def test_the_registry_keeps_schemas_in_postgresql_over_a_crash(
    services: dict[str, Any], registry_server: RegistryServer, postgres: PostgresServer
) -> None:
    settings = dict(services["registry"]["environment"])
    url = settings["APICURIO_DATASOURCE_URL"]
    assert "postgres:5432/" in url
    database = postgres.database("compose_registry").rpartition("/")[2]
    settings["APICURIO_DATASOURCE_URL"] = f"jdbc:postgresql://127.0.0.1:{postgres.port}/{database}"
    schema = Schema(json.dumps({"type": "record", "name": "R", "fields": [{"name": "a", "type": "long"}]}), "AVRO")
    with RegistryServer(settings=settings) as registry, SchemaRegistryClient({"url": registry.url}) as client:
        known = client.register_schema("compose", schema)
        registry.kill()
        registry.restart()
        assert client.get_latest_version("compose").schema_id == known


def test_the_worker_is_told_to_use_the_other_three(
    services: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    worker = services["worker"]
    program, *arguments = worker["command"]
    assert (program, arguments) == ("flywheel", ["worker"])
    context = cli.make_context(program, list(arguments))
    _, command, rest = cli.resolve_command(context, arguments)
    assert command is not None
    assert command.make_context("worker", rest, parent=context).params["brokers"] is None
    monkeypatch.chdir(tmp_path)
    for key, value in worker["environment"].items():
        monkeypatch.setenv(key, value)
    config = load_config()
    assert (config.brokers, config.is_embedded) == ("kafka:9092", False), "also of what is run in the container"
    assert config.registry == f"http://registry:8080{REGISTRY_PATH}"
    account = services["postgres"]["environment"]
    assert config.database_url == (
        f"postgresql+psycopg://{account['POSTGRES_USER']}:{account['POSTGRES_PASSWORD']}"
        f"@postgres:5432/{account['POSTGRES_DB']}"
    )
    assert f"{config.state_dir}" in [volume.split(":")[-1] for volume in worker["volumes"]]
    assert f"127.0.0.1:{config.web_port}:{config.web_port}" in worker["ports"]


def test_the_servers_that_ci_installs_are_of_the_same_versions(services: dict[str, Any]) -> None:
    kafka_version = services["kafka"]["image"].rpartition(":")[2]
    assert f"kafka_2.13-{kafka_version}.jar" in (ROOT / ".ci/kafka/libs.sha256").read_text()
    registry_version = services["registry"]["image"].rpartition(":")[2]
    assert f":{registry_version}:" in (ROOT / ".ci/registry/artifact").read_text()
