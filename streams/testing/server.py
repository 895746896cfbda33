"""A server process of a test: started, waited for, stopped, killed, and never left behind."""

from __future__ import annotations

import atexit
import ctypes
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from schemas.errors import FlywheelError

START_DEADLINE_S = 90.0  # Kafka needs 3 s, the registry 5 s, on an idle machine; a busy one gets 20 times as long
STOP_DEADLINE_S = 30.0


class ServerMissingError(FlywheelError):
    """A server that this needs is not installed."""

    action = "Run 'make servers' (it needs Maven, a JDK 17 and a JDK 21, and PostgreSQL), or set FLYWHEEL_SERVERS."


class ServerFailedError(FlywheelError):
    """A server did not start."""

    action = "Read the end of its log, which the message quotes."


def wait_until(
    condition: Callable[[], bool], deadline_s: float, what: str = "the condition", pause_s: float = 0.02
) -> None:
    """Wait until `condition()` is true; raise TimeoutError, naming `what`, when that takes longer than `deadline_s`."""
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{what} did not come true within {deadline_s:g} s")
        time.sleep(pause_s)


def free_port() -> int:
    """A TCP port that nothing uses, below the range from which the system takes ports for outgoing connections."""
    for _ in range(1000):
        port = random.randint(20_000, 32_000)  # noqa: S311 - only to stay out of the way of other test runs
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise ServerFailedError("No free TCP port between 20000 and 32000.", action="Close programs that hold ports.")


def servers_dir() -> Path:
    """Where `make servers` installs: FLYWHEEL_SERVERS, else .servers in the repository."""
    return Path(os.environ.get("FLYWHEEL_SERVERS") or Path(__file__).resolve().parents[2] / ".servers")


def find_java(version_min: int) -> Path:
    """The oldest Java runtime on this machine that is at least `version_min`; ServerMissingError when there is none."""
    homes = [Path(home) for home in (os.environ.get("JAVA_HOME"),) if home]
    homes += sorted(Path("/usr/lib/jvm").glob("*"))
    homes += sorted(Path("/Library/Java/JavaVirtualMachines").glob("*/Contents/Home"))
    found: dict[int, Path] = {}
    for home in homes:
        release = home / "release"
        if (home / "bin" / "java").exists() and release.exists():
            for line in release.read_text().splitlines():
                if line.startswith("JAVA_VERSION="):
                    found.setdefault(int(line.split('"')[1].split(".")[0]), home / "bin" / "java")
    usable = [version for version in found if version >= version_min]
    if not usable:
        raise ServerMissingError(f"No Java runtime of version {version_min} or later was found.")
    return found[min(usable)]


def dies_with_parent(signal_number: int) -> Callable[[], None] | None:
    """What a child calls before it becomes its program, so that the kernel ends it when its parent dies."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl
    set_parent_death_signal = 1
    return lambda: prctl(set_parent_death_signal, signal_number, 0, 0, 0)


_running: weakref.WeakSet[Server] = weakref.WeakSet()


@atexit.register
def _kill_all() -> None:
    for server in list(_running):
        server.kill()


class Server(ABC):
    """A server process with a data directory: start, stop, kill, restart.

    Parameters
    ----------
    directory
        Where its data and log live; kept at the end. Default: a temporary directory, removed on exit.
    """

    name = "server"
    stop_signal = signal.SIGTERM
    kill_signal = signal.SIGKILL

    def __init__(self, directory: Path | None = None) -> None:
        self._is_temporary = directory is None
        self.directory = Path(directory or tempfile.mkdtemp(prefix=f"flywheel-{self.name}-"))
        self.directory.mkdir(parents=True, exist_ok=True)
        self.log_file = self.directory / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def _command(self) -> list[str]:
        """The server's command line."""

    @abstractmethod
    def _is_ready(self) -> bool:
        """Whether it answers."""

    def _prepare(self) -> None:  # noqa: B027 - not every server needs it
        """Make the data directory ready; called before each start."""

    def _environment(self) -> dict[str, str]:
        return {}

    def _user(self) -> str | None:
        """The account to run as, when it is not the present one."""
        return None

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} was not started"
        return self._process.pid

    def run(self, command: list[str], **environment: str) -> None:
        """Run one of the server's tools to its end; ServerFailedError with what it said when it fails."""
        done = subprocess.run(
            command, user=self._user(), env=os.environ | environment, cwd=self.directory, capture_output=True, text=True
        )
        if done.returncode:
            raise ServerFailedError(f"{Path(command[0]).name} failed: {(done.stderr or done.stdout)[-2000:]}")

    def start(self) -> Self:
        """Start the server and wait until it answers."""
        self.launch()
        return self.wait_ready()

    def launch(self) -> None:
        """Start the server, and do not wait; the calling thread must live as long as the server (Linux ties them)."""
        assert self._process is None, f"{self.name} runs already, or was not stopped after it ended"
        self._prepare()
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                env=os.environ | self._environment(),
                user=self._user(),
                process_group=0,  # Ctrl-C in a terminal is for the tests, which then stop the server in order
                preexec_fn=dies_with_parent(self.kill_signal),
            )
        _running.add(self)

    def wait_ready(self) -> Self:
        """Wait until the server answers."""
        assert self._process is not None, f"{self.name} was not started"
        try:
            wait_until(lambda: not self.is_running or self._is_ready(), START_DEADLINE_S, f"start of {self.name}")
        except TimeoutError as error:
            self.kill()
            raise ServerFailedError(f"{error}. {self._log_end()}") from None
        if not self.is_running:
            raise ServerFailedError(f"{self.name} ended with code {self._process.returncode}. {self._log_end()}")
        return self

    def _log_end(self) -> str:
        return f"End of {self.log_file}:\n{self.log_file.read_text(errors='replace')[-2000:]}"

    def stop(self) -> None:
        """End the server in order; by force when it takes longer than 30 s."""
        self._end(self.stop_signal)

    def kill(self) -> None:
        """End the server at once, as a crash would."""
        self._end(self.kill_signal)

    def _end(self, signal_number: int) -> None:
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(signal_number)
            try:
                self._process.wait(STOP_DEADLINE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process = None
        _running.discard(self)

    def restart(self) -> Self:
        """Start again on the same port and data, after `kill()` or instead of it and `stop()`."""
        self.stop()
        return self.start()

    def close(self) -> None:
        """End the server and remove its directory, if that is temporary."""
        self.kill() if self._is_temporary else self.stop()
        if self._is_temporary:
            shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
