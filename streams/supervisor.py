"""One machine, one command: the embedded broker here, a worker in a child that is started again when it dies.

Used by ``flywheel up`` and ``flywheel demo``. What other commands need to find the broker is in ``STATE/up.json``; a
lock on the state directory keeps a second one out, and the kernel ends the worker when this process dies.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from filelock import FileLock, Timeout

from schemas.errors import (
    BrokerUnreachableError,
    ConfigError,
    FlywheelError,
    PortBusyError,
    StateLockedError,
)
from schemas.times import now_us
from streams.broker import EmbeddedBroker
from streams.config import Config, config_to_json
from streams.log import get_logger

log = get_logger("supervisor")

UP_FILE = "up.json"
LOCK_FILE = "up.lock"
BACKOFF_S = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
HEALTHY_S = 30.0
"""A worker that lived this long did not fail to start: the next wait is the shortest again."""
FAILED_STARTS_MAX = 5
"""So many deaths in a row before a worker was healthy, and the supervisor gives up and says so."""
LAST_LINES = 20
STOP_TIMEOUT_S = 20.0
"""Flushing and committing take a second or two; a training run in the worker is ended, and starts again later."""
HALT_EXIT_CODE = 70
"""Of a supervised worker that met an error which another start cannot mend; between the two of them only."""
NOT_AGAIN = (2, HALT_EXIT_CODE)


class WorkerFailedError(FlywheelError):
    """The worker does not start."""

    action = "Its own last message says why."


class Endpoint(NamedTuple):
    """Where the broker is: its address, the id of its log, and whether it is the embedded one."""

    brokers: str
    cluster: str
    is_embedded: bool


def read_up_file(config: Config) -> dict[str, Any] | None:
    """What a running ``flywheel up`` says of itself; None when none runs."""
    try:
        content: dict[str, Any] = json.loads((config.state_dir / UP_FILE).read_text(encoding="utf-8"))
        with suppress(PermissionError):  # it lives, under another account
            os.kill(int(content["pid"]), 0)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return content


def resolve_brokers(config: Config) -> Endpoint:
    """The broker that the configuration means.

    Raises
    ------
    BrokerUnreachableError
        If the embedded one is meant and 'flywheel up' does not run, or the other one does not answer.
    """
    if not config.is_embedded:
        from streams.kafka import cluster_id

        return Endpoint(config.brokers, cluster_id(config.brokers), False)
    content = read_up_file(config)
    if content is None or not _answers(content["brokers"]):
        raise BrokerUnreachableError(
            f"Nothing runs on {config.state_dir}.",
            action="Start it with 'flywheel up', or name an Apache Kafka with --brokers.",
        )
    return Endpoint(content["brokers"], content["cluster"], bool(content["is_embedded"]))


def prepare_topics(config: Config, brokers: str, *, fixes: bool = False) -> None:
    """Create the topics that are missing on a real Kafka, and refuse a layout on which the join would be wrong.

    Parameters
    ----------
    fixes
        Give topics that keep the producers' timestamps the broker's, instead of refusing them.
    """
    from streams.kafka import check_topics, create_topics, fix_topics
    from streams.plane.horizon import kept_s

    create_topics(brokers, config.partitions, kept_s(config.join_horizon_s))
    if fixes:
        for name in fix_topics(brokers):
            log.warning("topic_fixed", topic=name, timestamps="LogAppendTime")
    check_topics(brokers)


def lock_state(config: Config, file: Path, timeout_s: float = 0.0) -> FileLock:
    """Take the lock of a state directory, or of a join store; the kernel frees it when its holder dies.

    Raises
    ------
    StateLockedError
        If another process has it; the message says which.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(file)
        lock.acquire(timeout=timeout_s)
    except OSError as error:
        if not isinstance(error, Timeout):
            reason = error.strerror or error
            raise ConfigError(f"The state directory {file.parent} cannot be used: {reason}.", action="") from error
        content = read_up_file(config)
        who = f" (process {content['pid']})" if content else ""
        raise StateLockedError(f"Another Flywheel{who} uses {file.parent}.") from None
    return lock


def check_port(host: str, port: int) -> int:
    """The port to listen on; 0 becomes a free one.

    Raises
    ------
    PortBusyError
        If another program listens there.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free
        try:
            probe.bind((host, port))
            return int(probe.getsockname()[1])
        except OSError as error:
            raise PortBusyError(f"The status page cannot listen on {host}:{port}: {error.strerror}.") from error


def _answers(brokers: str) -> bool:
    host, _, port = brokers.split(",")[0].rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=5):
            return True
    except (OSError, ValueError):
        return False


def die_with(parent: int, signal_number: int = signal.SIGTERM) -> None:
    """Ask the kernel for a signal when the parent process dies; ends at once when it is already dead.

    To be called by the child's main thread. Where the kernel cannot (not Linux), a thread looks once a second.
    """
    if sys.platform.startswith("linux"):
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal_number, 0, 0, 0)
    else:
        threading.Thread(target=_watch, args=(parent, signal_number), daemon=True).start()
    if os.getppid() != parent:
        os.kill(os.getpid(), signal_number)


def _watch(parent: int, signal_number: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os.kill(os.getpid(), signal_number)


def worker_command(parent: int) -> list[str]:
    """The child's command line; its configuration comes on stdin, so that secrets stand in no file and no list."""
    return [sys.executable, "-m", "streams.cli", "worker", "--parent", str(parent)]


class Supervisor:
    """Broker and worker of one state directory.

    Parameters
    ----------
    config
        The whole configuration; the worker gets the same.
    log_file
        Where the worker's diagnostics go; default: this process's stderr.
    command
        Of the worker, for tests.

    Examples
    --------
    ``with Supervisor(config) as up: ... up.brokers, up.cluster ...``
    """

    def __init__(
        self, config: Config, *, log_file: Path | None = None, command: Callable[[int], list[str]] = worker_command
    ) -> None:
        self.config = config
        self.brokers = ""
        self.cluster = ""
        self.web_port = config.web_port
        self.worker_pid: int | None = None
        self.restarts = 0
        self._log_file, self._command = log_file, command
        self._broker: EmbeddedBroker | None = None
        self._lock: FileLock | None = None
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._ended = threading.Event()
        self._error: FlywheelError | None = None

    @property
    def is_embedded(self) -> bool:
        """Whether the broker is in this process."""
        return self._broker is not None

    def start(self) -> Self:
        """Lock the state, start the broker, write ``up.json``, start the worker.

        Raises
        ------
        StateLockedError, PortBusyError, BrokerUnreachableError, TopicLayoutError
        """
        assert self._thread is None, "a supervisor is started once"
        self._lock = lock_state(self.config, self.config.state_dir / LOCK_FILE)
        try:
            self.web_port = check_port(self.config.web_host, self.config.web_port)
            if self.config.is_embedded:
                self._broker = EmbeddedBroker(self.config.partitions)
                self.brokers, self.cluster = self._broker.bootstrap, self._broker.cluster
            else:
                prepare_topics(self.config, self.config.brokers)
                self.brokers, self.cluster, _ = resolve_brokers(self.config)
            self._write_up_file()
            # All starts of the worker happen in this one thread: the kernel's signal to a child comes when the
            # thread that made it ends, not the process.
            self._thread = threading.Thread(target=self._keep_running, name="supervisor", daemon=True)
            self._thread.start()
        except BaseException:
            self.stop()
            raise
        return self

    def _write_up_file(self) -> None:
        content = {
            "pid": os.getpid(),
            "brokers": self.brokers,
            "cluster": self.cluster,
            "is_embedded": self.is_embedded,
            "web_host": self.config.web_host,
            "web_port": self.web_port,
            "started_us": now_us(),
        }
        file = self.config.state_dir / UP_FILE
        temporary = file.with_suffix(".tmp")
        temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
        temporary.replace(file)

    def _keep_running(self) -> None:
        failed_starts = 0
        try:
            while not self._stopping.is_set():
                started = time.monotonic()
                code = self._run_worker()
                if self._stopping.is_set():
                    return
                failed_starts = 0 if time.monotonic() - started >= HEALTHY_S else failed_starts + 1
                if code in NOT_AGAIN or failed_starts >= FAILED_STARTS_MAX:
                    self._error = WorkerFailedError(
                        f"The worker ended for good (exit code {code}).{self._last_words()}"
                    )
                    return
                wait_s = BACKOFF_S[min(max(failed_starts - 1, 0), len(BACKOFF_S) - 1)]
                log.warning("worker_ended", code=code, restart_in_s=wait_s)
                self.restarts += 1
                self._stopping.wait(wait_s)
        finally:
            self._ended.set()

    def _last_words(self) -> str:
        """The end of the worker's log, where that is not what the operator saw anyway."""
        if self._log_file is None or not self._log_file.exists():
            return ""
        lines = self._log_file.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(["", f"The end of {self._log_file}:", *lines[-LAST_LINES:]])

    def _run_worker(self) -> int:
        """Run one worker to its end; its exit code (negative: the signal that ended it)."""
        settings = {"brokers": self.brokers, "cluster": self.cluster, "is_embedded": self.is_embedded}
        message = json.dumps({"config": config_to_json(self.config, web_port=self.web_port), **settings})
        output = self._log_file.open("ab") if self._log_file else None
        try:
            worker = subprocess.Popen(
                self._command(os.getpid()),
                stdin=subprocess.PIPE,
                stdout=output or sys.stderr.fileno(),
                stderr=output,
                process_group=0,  # Ctrl-C in a terminal is for this process, which then stops the worker in order
            )
        finally:
            if output is not None:
                output.close()
        self.worker_pid = worker.pid
        log.info("worker_started", pid=worker.pid)
        try:
            assert worker.stdin is not None
            try:
                worker.stdin.write(message.encode())
                worker.stdin.close()
            except BrokenPipeError:
                log.debug("worker_ended_early", pid=worker.pid)
            while worker.poll() is None and not self._stopping.is_set():
                try:
                    worker.wait(0.2)
                except subprocess.TimeoutExpired:
                    continue
        finally:
            code = self._end(worker)
            self.worker_pid = None
        return code

    def _end(self, worker: subprocess.Popen[bytes]) -> int:
        if worker.poll() is None:
            worker.terminate()
            try:
                worker.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                log.warning("worker_killed", pid=worker.pid, after_s=STOP_TIMEOUT_S)
                worker.kill()
                worker.wait()
        if worker.stdin is not None:
            worker.stdin.close()
        return worker.returncode

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until it has ended; whether it has.

        Raises
        ------
        WorkerFailedError
            If the worker does not start, however often it is tried.
        """
        has_ended = self._ended.wait(timeout_s)
        if self._error is not None:
            raise self._error
        return has_ended

    def wait_ready(self, timeout_s: float = 120.0) -> None:
        """Wait until the worker's status page listens, which it does once its parts run.

        Raises
        ------
        WorkerFailedError
            If it does not within the time.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self.is_ready():
                return
            self.wait(0.1)
        raise WorkerFailedError(f"The worker did not start within {timeout_s:.0f} s.{self._last_words()}")

    def is_ready(self) -> bool:
        """Whether the worker's status page listens now."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.config.web_host, self.config.web_host)  # noqa: S104
        return self.worker_pid is not None and _answers(f"{host}:{self.web_port}")

    def stop(self) -> None:
        """Stop the worker in order, then the broker; may be called again."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(STOP_TIMEOUT_S + 10.0)
        if self._broker is not None:
            self._broker.stop()
            self._broker = None
        if self._lock is not None:
            (self.config.state_dir / UP_FILE).unlink(missing_ok=True)
            self._lock.release()
            self._lock = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
