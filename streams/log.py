"""Diagnostics on stderr: structlog, for people on a terminal and JSON otherwise; fixed event names, no payloads.

The standard library's loggers (Faust's, SQLAlchemy's) go through the same renderer, and ours through theirs: a program
that never calls :func:`configure` still finds nothing of ours on stdout, where structlog by itself would print.
"""

from __future__ import annotations

import logging
import sys

import structlog

NOISY = {
    "faust": logging.WARNING,
    "mode": logging.WARNING,
    "mode.timers": logging.ERROR,
    "aiokafka": logging.WARNING,
    "alembic": logging.WARNING,
}
"""Libraries whose every rebalance is an INFO line, and whose timers warn of each tick of a busy machine."""
TRACEBACKS = structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False))
"""Without the values of local variables: they hold payloads."""
COMMON: tuple[structlog.typing.Processor, ...] = (
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
)


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """A logger: ``log.warning("worker_ended", code=1)``, an event's name and its values."""
    logger: structlog.stdlib.BoundLogger = structlog.wrap_logger(
        logging.getLogger(f"flywheel.{name}"),
        processors=[
            structlog.stdlib.filter_by_level,
            *COMMON,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    return logger


def configure(level: str = "info", *, is_json: bool | None = None) -> None:
    """Set up logging for a process; may be called again.

    Parameters
    ----------
    level
        ``debug``, ``info``, ``warning`` or ``error``.
    is_json
        Default: unless stderr is a terminal.
    """
    as_json = not sys.stderr.isatty() if is_json is None else is_json
    renderer: list[structlog.typing.Processor] = (
        [TRACEBACKS, structlog.processors.JSONRenderer(default=str)]
        if as_json
        else [
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)
        ]
    )
    structlog.configure(  # for loggers that were made with structlog.get_logger
        processors=[
            structlog.stdlib.filter_by_level,
            *COMMON,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,  # so that configuring again reaches loggers that were used before
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*COMMON, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name, least in NOISY.items():
        logging.getLogger(name).setLevel(logging.DEBUG if level == "debug" else max(least, root.level))
