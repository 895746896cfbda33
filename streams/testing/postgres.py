"""PostgreSQL for tests."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
from pathlib import Path

from streams.testing.server import Server, ServerMissingError, free_port


def _find_postgres() -> Path:
    """The folder of PostgreSQL's programs: FLYWHEEL_POSTGRES_BIN, else the newest that packages install, else PATH."""
    places = [Path(p) for p in (os.environ.get("FLYWHEEL_POSTGRES_BIN"),) if p]
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: int(p.parent.name), reverse=True)
    on_path = shutil.which("initdb")
    places += [Path(on_path).resolve().parent] if on_path else []
    for place in places:
        if (place / "initdb").exists() and (place / "postgres").exists():
            return place
    raise ServerMissingError("PostgreSQL is not installed (no initdb was found).")


class PostgresServer(Server):
    """PostgreSQL: `PostgresServer().url` for SQLAlchemy, `database(name)` for an empty database of one's own."""

    name = "postgres"
    stop_signal = signal.SIGINT  # "fast shutdown": ends sessions, writes a checkpoint
    kill_signal = (
        signal.SIGQUIT
    )  # "immediate shutdown": the postmaster ends its children and recovers at the next start

    def __init__(self, directory: Path | None = None) -> None:
        self._bin = _find_postgres()
        super().__init__(directory)
        self.port = free_port()

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://flywheel@127.0.0.1:{self.port}/postgres"

    def database(self, name: str) -> str:
        """Create an empty database and return its URL."""
        address = ["-h", "127.0.0.1", "-p", str(self.port), "-U", "flywheel"]
        self.run([str(self._bin / "createdb"), *address, name])
        return f"{self.url.rpartition('/')[0]}/{name}"

    def _user(self) -> str | None:
        if os.geteuid() != 0:
            return None
        accounts = {account.pw_name for account in pwd.getpwall()}
        return "postgres" if "postgres" in accounts else "nobody"  # PostgreSQL refuses to run as root

    def _prepare(self) -> None:
        user = self._user()
        if user:
            shutil.chown(self.directory, user)
        if not (self.directory / "data" / "PG_VERSION").exists():
            data = str(self.directory / "data")
            options = ["-A", "trust", "-U", "flywheel", "-E", "UTF8", "--locale=C", "--no-sync"]
            self.run([str(self._bin / "initdb"), "-D", data, *options])

    def _command(self) -> list[str]:
        settings = {"listen_addresses": "127.0.0.1", "unix_socket_directories": str(self.directory)}
        options = [option for key, value in settings.items() for option in ("-c", f"{key}={value}")]
        return [str(self._bin / "postgres"), "-D", str(self.directory / "data"), "-p", str(self.port), *options]

    def _is_ready(self) -> bool:
        check = [str(self._bin / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port), "-t", "5"]
        return subprocess.run(check).returncode == 0
