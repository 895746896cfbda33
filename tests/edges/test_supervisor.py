"""The supervisor: one a state directory, a worker that is started again, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from schemas.errors import BrokerUnreachableError, ConfigError, PortBusyError, StateLockedError
from streams import supervisor as supervisor_module
from streams.config import Config, config_from_json, config_to_json, load_config
from streams.supervisor import Supervisor, WorkerFailedError, check_port, read_up_file, resolve_brokers
from streams.testing import free_port, wait_until

# A worker that says what it was given, listens on its port, and then waits for its end.
WORKER = """
import json, os, signal, socket, sys
from pathlib import Path
message = json.loads(sys.stdin.read())
config = json.loads(message["config"])
here = Path(config["state_dir"])
with (here / "started").open("a") as file:
    file.write(f"{os.getpid()} {message['brokers']} {message['cluster']}\\n")
if len(sys.argv) > 1:
    sys.exit(int(sys.argv[1]))
signal.signal(signal.SIGTERM, lambda *_: ((here / "stopped").write_text("in order"), sys.exit(0)))
server = socket.create_server((config["web_host"], config["web_port"]))
while True:
    connection, _ = server.accept()
    connection.close()
"""


def fake(*arguments: str) -> Callable[[int], list[str]]:
    return lambda _parent: [sys.executable, "-c", WORKER, *arguments]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.chdir(tmp_path)
    return load_config(state_dir=tmp_path / "state", web_port=0, partitions=1)


def started(config: Config) -> list[list[str]]:
    file = config.state_dir / "started"
    return [line.split() for line in file.read_text().splitlines()] if file.exists() else []


def test_others_find_the_broker_while_it_runs_and_only_then(config: Config) -> None:
    with pytest.raises(BrokerUnreachableError, match="Nothing runs on"):
        resolve_brokers(config)
    with Supervisor(config, command=fake()) as up:
        assert resolve_brokers(config) == (up.brokers, up.cluster, True)
        content = read_up_file(config)
        assert content is not None
        assert (content["pid"], content["web_port"]) == (os.getpid(), up.web_port)
        up.wait_ready(20)
        assert started(config)[0][1:] == [up.brokers, up.cluster]
    assert (config.state_dir / "stopped").read_text() == "in order"
    assert read_up_file(config) is None
    with pytest.raises(BrokerUnreachableError):
        resolve_brokers(config)


def test_what_a_dead_process_left_is_not_believed(config: Config) -> None:
    config.state_dir.mkdir()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for text in (json.dumps({"pid": dead.pid, "brokers": "127.0.0.1:1"}), "{", "[]", "{}"):
        (config.state_dir / "up.json").write_text(text)
        assert read_up_file(config) is None


def test_a_second_one_on_the_same_state_is_refused_with_the_process(config: Config) -> None:
    with (
        Supervisor(config, command=fake()),
        pytest.raises(StateLockedError, match=rf"process {os.getpid()}\) uses"),
    ):
        Supervisor(config, command=fake()).start()
    with Supervisor(config, command=fake()):
        pass


def test_a_busy_port_is_told_before_anything_starts(config: Config) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortBusyError, match=f"127.0.0.1:{port}"):
            Supervisor(config.model_copy(update={"web_port": port}), command=fake()).start()
        with pytest.raises(PortBusyError):
            check_port("127.0.0.1", port)
    assert not (config.state_dir / "up.json").exists()
    assert check_port("127.0.0.1", port) == port
    assert started(config) == []


def test_a_worker_that_is_killed_is_started_again(config: Config) -> None:
    with Supervisor(config, command=fake()) as up:
        up.wait_ready(20)
        first = up.worker_pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: len(started(config)) == 2, 20, "the next worker")
        up.wait_ready(20)
        assert up.worker_pid != first
        assert up.restarts == 1


def test_a_worker_that_cannot_start_is_given_up(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "BACKOFF_S", (0.01,))
    with Supervisor(config, command=fake("1")) as up, pytest.raises(WorkerFailedError, match="exit code 1"):
        up.wait(20)
    assert len(started(config)) == supervisor_module.FAILED_STARTS_MAX


def test_what_a_failed_worker_wrote_to_its_log_is_told(config: Config, tmp_path: Path) -> None:
    def failing(_parent: int) -> list[str]:
        return [sys.executable, "-c", "import sys; print('the reason', file=sys.stderr); sys.exit(2)"]

    with (
        Supervisor(config, command=failing, log_file=tmp_path / "worker.log") as up,
        pytest.raises(WorkerFailedError, match=r"worker.log:\nthe reason"),
    ):
        up.wait(20)


@pytest.mark.parametrize("code", ["2", "70"])
def test_a_worker_that_another_start_cannot_mend_is_not_tried_again(config: Config, code: str) -> None:
    with Supervisor(config, command=fake(code)) as up, pytest.raises(WorkerFailedError, match=f"exit code {code}"):
        up.wait(20)
    assert len(started(config)) == 1


def test_a_state_directory_that_cannot_be_used_is_told(config: Config) -> None:
    config.state_dir.write_text("a file")
    with pytest.raises(ConfigError, match="cannot be used: File exists"):
        Supervisor(config, command=fake()).start()


def test_a_broker_that_is_not_there_is_told(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.kafka.ANSWER_TIMEOUT_S", 1.0)
    away = config.model_copy(update={"brokers": f"127.0.0.1:{free_port()}"})
    with pytest.raises(BrokerUnreachableError):
        Supervisor(away, command=fake()).start()
    with Supervisor(config, command=fake()):
        pass


def test_the_worker_gets_the_whole_configuration_with_its_secrets(tmp_path: Path) -> None:
    (tmp_path / "flywheel.toml").write_text(
        "[flywheel]\ndatabase = 'postgresql://me:hush@host/db'\ngroup = 'g'\n[models.m]\ncontract = 'm.avsc'\n"
        "[models.m.failures]\nwrong = \"label <> truth\"\n[models.m.labeling]\nhash_key = 'salt'\n"
    )
    config = load_config(tmp_path / "flywheel.toml", window_s=600)
    again = config_from_json(config_to_json(config, web_port=9))
    assert again == config.model_copy(update={"web_port": 9})
    assert again.database_url.endswith("me:hush@host/db")
    assert again.model("m").labeling.hash_key.get_secret_value() == "salt"


PARENT = """
import signal, sys
from pathlib import Path
from streams.config import load_config
from streams.supervisor import Supervisor
child = "import sys; from streams.supervisor import die_with; die_with(int(sys.argv[1])); import signal; signal.pause()"
config = load_config(state_dir=Path(sys.argv[1]), web_port=0)
up = Supervisor(config, command=lambda pid: [sys.executable, "-c", child, str(pid)])
up.start()
while up.worker_pid is None:
    up.wait(0.01)
print(up.worker_pid, flush=True)
signal.pause()
"""


def test_the_worker_dies_with_a_killed_supervisor(config: Config) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(config.state_dir)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()

    def is_gone() -> bool:
        try:
            return Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except FileNotFoundError:
            return True

    wait_until(is_gone, 20, "the end of the worker")
    with Supervisor(config, command=fake()):
        pass
