"""One worker: the data plane's thread, the control plane's agents and the status page, in one Faust process."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import faust
import structlog
from mode import Service
from sqlalchemy.exc import DBAPIError

from schemas.database import checkpoint
from schemas.errors import FlywheelError
from streams import kafka, start
from streams.agents.handlers import Alerts, DeadLetters, Failures, Labels, Models, Requests, Summaries
from streams.agents.pump import pump
from streams.agents.recall import recall
from streams.agents.relay import Relay
from streams.agents.scheduler import Scheduler
from streams.agents.transport import ShortFetchApp
from streams.config import Config
from streams.membership import leave_for
from streams.merging import Merger
from streams.notify.send import Sender
from streams.plane.horizon import kept_s
from streams.plane.loop import DataPlane
from streams.runtime import Runtime
from streams.watch import Watch

RELAY_INTERVAL_S = 0.05
NOTIFY_INTERVAL_S = 1.0
LOOK_INTERVAL_S = 1.0
CHECKPOINT_INTERVAL_S = 1.0
FETCH_BYTES = 16 * 1024
"""Of each partition. What was fetched of one is handed on to its end before the next one's turn, so a backlog of
failures would keep an alert waiting for seconds. A larger event comes whole all the same (KIP-74)."""
POLL_RECORDS_MAX = 100
"""More at once would fill a topic's queue, and whatever came with them would wait until its handler is through: Faust
pauses a topic when its queue is half full, but not within what it has been given."""
SWITCH_INTERVAL_S = 0.001
"""So long the plane's thread keeps the interpreter when another wants it. An event of the control plane passes four
threads on its way, each of which waits so long; Python's own five milliseconds made an alert late, and give the plane
no more."""
THREADS = 16
"""For agents and timers, each of which takes one at a time: of six, which is the default on two cores, an alert might
have to wait for one."""
PLANE_NICENESS = 10
"""How far the plane's threads step back for the control plane's on Linux, where every thread has a niceness of its own:
an event passes five threads on its way, each of which would wait for a core. What is left over is all the plane's."""
NICENESS_MAX = 19
PLANE_STOP_S = 15.0
EXIT_FAILED = 1

log = structlog.get_logger("flywheel.worker")


class PlaneService(Service):  # type: ignore[misc]
    """Runs the data plane in a thread, and ends the worker when it ends."""

    def __init__(self, plane: DataPlane, **options: Any) -> None:
        self.plane = plane
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="plane", daemon=True)
        self.failure: BaseException | None = None
        super().__init__(**options)

    async def on_start(self) -> None:
        """Start the thread."""
        self._thread.start()

    async def on_stop(self) -> None:
        """Emit, commit and checkpoint once more; after a crash nothing depends on this."""
        self._stop.set()
        await asyncio.to_thread(self._thread.join, PLANE_STOP_S)

    def _run(self) -> None:
        if sys.platform == "linux":  # also of the threads that it starts; elsewhere it would be the whole process's
            niceness = min(os.getpriority(os.PRIO_PROCESS, 0) + PLANE_NICENESS, NICENESS_MAX)
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)
        try:
            self.plane.run(self._stop)
        except BaseException as error:
            self.failure = error
            log.error("plane_stopped", reason=str(error), exc_info=not isinstance(error, FlywheelError))
            os.kill(os.getpid(), signal.SIGTERM)


class Watched(faust.Worker):  # type: ignore[misc]
    """Remembers why it ended: after a failed start Faust leaves with exit code 0."""

    failure: Exception | None = None

    async def start(self) -> None:
        """Run until told to stop."""
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS, "control"))
        try:
            await super().start()
        except Exception as error:
            self.failure = error
            raise


def make_app(runtime: Runtime, plane: DataPlane) -> tuple[faust.App, PlaneService]:
    """The Faust app with its agents, timers and services."""
    config = runtime.config
    app = ShortFetchApp(
        f"{config.group}-control",
        broker=";".join(f"kafka://{address}" for address in runtime.bootstrap.split(",")),
        store="memory://",
        autodiscover=False,
        origin="streams",
        processing_guarantee="at_least_once",
        topic_disable_leader=True,  # nothing runs on a leader: every timed job is idempotent
        topic_allow_declare=False,  # topics are made by streams.kafka
        topic_partitions=config.partitions,
        consumer_auto_offset_reset="earliest",
        consumer_max_fetch_size=FETCH_BYTES,
        broker_max_poll_records=POLL_RECORDS_MAX,
        broker_commit_interval=1.0,
        broker_session_timeout=10.0,
        broker_heartbeat_interval=2.0,
        stream_wait_empty=False,
        web_enabled=True,
        web_bind=config.web_host,
        web_port=config.web_port,
        web_in_thread=False,
        web_tables_enabled=False,
        datadir=config.state_dir / "faust",  # nothing stands in it, and it must be there
        loghandlers=[],
        logging_config={"version": 1, "disable_existing_loggers": False},
    )
    merger = Merger(runtime.engine, runtime.codec, runtime.ids["summaries"], runtime.config.notify)
    watch = Watch(runtime, merger)
    watch.start()
    scheduler = Scheduler(runtime, watch.truths)
    relay = Relay(runtime)
    service = PlaneService(plane)
    app.service(service)

    pump(app, runtime, "summaries", Summaries(runtime, watch, scheduler))
    pump(app, runtime, "failures", Failures(runtime))
    pump(app, runtime, "alerts", Alerts(runtime, watch))
    pump(app, runtime, "labels", Labels(runtime, watch, scheduler))
    pump(app, runtime, "retrain", Requests(scheduler))
    pump(app, runtime, "models", Models(watch))
    pump(app, runtime, "dead-letters", DeadLetters(runtime))

    is_sending = True

    @app.timer(interval=RELAY_INTERVAL_S, name="flywheel.outbox")  # type: ignore[untyped-decorator]
    async def send_outbox() -> None:
        nonlocal is_sending
        try:
            await asyncio.to_thread(relay)
            is_sending = True
        except Exception as error:  # the rows stay, and the next tick sends them
            if is_sending:  # once an outage, not twenty times a second
                log.warning("outbox_failed", reason=str(error), exc_info=not isinstance(error, DBAPIError))
            is_sending = False

    @app.timer(interval=LOOK_INTERVAL_S, name="flywheel.staleness")  # type: ignore[untyped-decorator]
    async def look() -> None:
        try:
            await asyncio.to_thread(watch.look)
        except Exception as error:  # the next tick looks again
            log.warning("look_failed", reason=str(error), exc_info=not isinstance(error, DBAPIError))

    @app.timer(interval=CHECKPOINT_INTERVAL_S, name="flywheel.checkpoint")  # type: ignore[untyped-decorator]
    async def copy_log() -> None:
        try:
            await asyncio.to_thread(checkpoint, runtime.engine)
        except Exception as error:  # a full disk: whoever commits is told, too
            log.warning("checkpoint_failed", reason=str(error), exc_info=not isinstance(error, DBAPIError))

    for name, notifier in config.notify.items():
        _tell_people(app, name, Sender(runtime.engine, name, notifier))

    from streams.web import page

    page.register(app, runtime)
    return app, service


def _tell_people(app: faust.App, name: str, sender: Sender) -> None:
    @app.timer(interval=NOTIFY_INTERVAL_S, name=f"flywheel.notify.{name}")  # type: ignore[untyped-decorator]
    async def tell() -> None:
        try:
            await sender()
        except Exception as error:  # the database is away: what waits stays
            log.warning("notifications_wait", notifier=name, reason=str(error))


def _heartbeat(runtime: Runtime, partitions: int) -> bytes:
    """A summary of nothing; its time is before all others, so that nobody listens to a clock that may be off."""
    record = {
        "cluster": runtime.cluster, "partition": 0, "partitions": partitions, "time": 0, "watermark": None,
        "is_idle": False, "segments": [],
    }  # fmt: skip
    return runtime.codec.encode(runtime.ids["summaries"], record)


def run_worker(
    config: Config, bootstrap: str, cluster: str, *, accept_loss: bool = False, accept_misplaced: bool = False
) -> int:
    """Run a worker until it is told to stop; its exit code.

    Raises
    ------
    FlywheelError
        If something is missing before the start (database, registry, contracts, topics), or would make the figures
        wrong (see ``streams.start``).
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    is_embedded = config.is_embedded
    partitions = config.partitions
    if not is_embedded:
        start.check_broker(bootstrap)
        partitions = kafka.check_topics(bootstrap)
        start.check_retention(bootstrap, kept_s(config.join_horizon_s))
        if not accept_misplaced:
            start.check_partitioner(bootstrap, partitions)
    runtime = Runtime.open(config, bootstrap, cluster, is_embedded=is_embedded)
    if is_embedded:
        recall(runtime)
    else:
        start.check_clock(bootstrap, _heartbeat(runtime, partitions), config.clock_skew_ms)
    settings = runtime.plane_settings(accepts_loss=accept_loss)
    plane = DataPlane(
        settings,
        runtime.plans,
        runtime.registry,
        runtime.ids,
        kafka.consumer_settings(bootstrap, f"{config.group}-plane", is_embedded=is_embedded),
        kafka.producer_settings(bootstrap, queue_buffering_max_kbytes=settings.memory.produced // 1024),
    )
    if not is_embedded:
        leave_for(config.join_dir, bootstrap)
    app, service = make_app(runtime, plane)
    worker = Watched(app, loglevel="WARNING", quiet=True, redirect_stdouts=False, override_logging=False)
    worker.spinner = None  # it shows the terminal's cursor again, in a log too
    log.info("worker_started", brokers=bootstrap, cluster=cluster, models=sorted(runtime.plans))
    try:
        worker.execute_from_commandline()
    except SystemExit as ended:
        code = int(ended.code or 0) if isinstance(ended.code, int | None) else EXIT_FAILED
        if service.failure is None and worker.failure is None and code == 0:
            return 0
    if isinstance(service.failure, FlywheelError):
        raise service.failure
    return 0 if service.failure is None and worker.failure is None else EXIT_FAILED
