"""``flywheel up``: broker, worker, status page and scheduler in one command on one machine."""

from __future__ import annotations

import signal
import threading
from types import FrameType

import click

from streams.cli import Session, brokers_option, pass_session


@click.command()
@brokers_option
@click.option("--web-port", type=click.IntRange(0, 65_535), help="Of the status page (8321; 0: any free one).")
@pass_session
def up(session: Session, brokers: str | None, web_port: int | None) -> None:
    """Run broker, worker, status page and scheduler on this machine, until Ctrl-C.

    Without --brokers (or 'brokers' in flywheel.toml) the broker is embedded: it holds events in memory and forgets
    them at the end; what the worker has seen is in the archive.
    """
    config = session.load(brokers=brokers, web_port=web_port)
    from streams.log import configure
    from streams.supervisor import Supervisor

    configure(config.log_level)
    asked = threading.Event()

    def stop(_signal: int, _frame: FrameType | None) -> None:
        asked.set()

    with Supervisor(config) as supervisor:
        previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            kind = "embedded broker" if supervisor.is_embedded else "Kafka"
            click.echo(f"{kind}: {supervisor.brokers}", err=True)
            click.echo(f"status page: http://{config.web_host}:{supervisor.web_port}/", err=True)
            click.echo("Ctrl-C stops everything.", err=True)
            is_told = False
            while not asked.wait(0.2) and not supervisor.wait(0):
                if not is_told and supervisor.is_ready():
                    click.echo("The worker runs.", err=True)
                    is_told = True
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        click.echo("Stopping ...", err=True)
    click.echo("Stopped.", err=True)
