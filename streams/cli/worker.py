"""``flywheel worker``: one worker, beside a real Kafka or as the child of ``flywheel up``."""

from __future__ import annotations

import json
import signal

import click

from schemas.errors import Disposition, FlywheelError
from streams.cli import Session, brokers_option, pass_session, tell


@click.command()
@brokers_option
@click.option("--web-port", type=click.IntRange(0, 65_535), help="Of the status page (8321; 0: any free one).")
@click.option("--accept-loss", is_flag=True, help="Go on although records that were not worked on are gone.")
@click.option("--accept-misplaced", is_flag=True, help="Go on although most keys are misplaced: they are forwarded.")
@click.option("--fix-topics", is_flag=True, help="Give source topics the broker's timestamps where they have others.")
@click.option(
    "--parent", type=int, hidden=True, help="Of 'flywheel up': configuration on stdin, end with this process."
)
@pass_session
@click.pass_context
def worker(
    ctx: click.Context,
    session: Session,
    brokers: str | None,
    web_port: int | None,
    accept_loss: bool,
    accept_misplaced: bool,
    fix_topics: bool,
    parent: int | None,
) -> None:
    """Run one worker.

    Start as many as there are machines: with one Kafka they share the partitions. All need the same database and the
    same state directory (the archive, models and datasets are in it); each needs a 'join_store' of its own.
    """
    from streams.log import configure
    from streams.supervisor import (
        HALT_EXIT_CODE,
        STOP_TIMEOUT_S,
        check_port,
        die_with,
        lock_state,
        prepare_topics,
        resolve_brokers,
    )

    if parent is not None:
        die_with(parent)
        from streams.config import config_from_json

        message = json.loads(click.get_text_stream("stdin").read())
        config = config_from_json(message["config"])
        address, cluster = str(message["brokers"]), str(message["cluster"])
        configure(config.log_level)
        if message["is_embedded"]:  # the broker goes with the parent: there is nothing left to flush or to commit
            die_with(parent, signal.SIGKILL)
        # An orphan of a killed 'up' may still be stopping.
        lock = lock_state(config, config.worker_lock, STOP_TIMEOUT_S)
    else:
        config = session.load(brokers=brokers, web_port=web_port)
        configure(config.log_level)
        lock = lock_state(config, config.worker_lock)
        config = config.model_copy(update={"web_port": check_port(config.web_host, config.web_port)})
        address, cluster, is_embedded = resolve_brokers(config)
        if not is_embedded:
            prepare_topics(config, address, fixes=fix_topics)
    from streams.worker import run_worker

    try:
        ctx.exit(run_worker(config, address, cluster, accept_loss=accept_loss, accept_misplaced=accept_misplaced))
    except FlywheelError as error:
        if parent is None or error.disposition is not Disposition.HALT:
            raise
        tell(error)
        ctx.exit(HALT_EXIT_CODE)
    finally:
        lock.release()
