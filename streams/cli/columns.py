"""Options that name the columns of a table of the past, for every command that reads one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

from schemas.errors import UsageError

if TYPE_CHECKING:
    from streams.config import ColumnsConfig, Config

OPTIONS = (
    click.option("--id", "id_column", metavar="COL", help="Prediction ids; without it they follow from the content."),
    click.option("--time", metavar="COL", help="When each row was asked."),
    click.option("--target", metavar="COL", help="The truth (empty: none came)."),
    click.option("--truth-time", metavar="COL", help="When each truth arrived."),
    click.option("--score", metavar="COL", help="The model's answer: probability of the positive label, or value."),
    click.option("--label", metavar="COL", help="The label that the model answered."),
    click.option("--start", metavar="TIME", help="Time of the first row, for a table without times."),
    click.option(
        "--every", "step_s", type=click.FloatRange(min=0), default=60.0, help="Seconds between such rows (60)."
    ),
)


def column_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def columns_of(config: Config, name: str, options: Mapping[str, Any]) -> ColumnsConfig:
    """The columns of a model's tables, as flywheel.toml names them and the options change it."""
    given = {
        "id": options["id_column"],
        **{key: options[key] for key in ("time", "target", "truth_time", "score", "label")},
    }
    changed = config.model(name).columns.model_copy(update={k: v for k, v in given.items() if v is not None})
    if options["start"] is not None and options["time"] is None:
        changed = changed.model_copy(update={"time": None})
    return changed


def start_us_of(options: Mapping[str, Any]) -> int | None:
    """The time of the first row.

    Raises
    ------
    UsageError
        If it is not a time.
    """
    from schemas.times import parse_time

    try:
        return None if options["start"] is None else parse_time(options["start"])
    except ValueError:
        raise UsageError(f"'{options['start']}' is not a time.", action="Such as 2024-03-01T12:00:00Z.") from None


def only_model(config: Config) -> str:
    """The one model that is configured.

    Raises
    ------
    UsageError
        If there are several, or none.
    """
    if len(config.models) == 1:
        return next(iter(config.models))
    known = ", ".join(sorted(config.models)) or "none; begin with 'flywheel init'"
    raise UsageError(f"Which model? Configured: {known}.", action="Say it with --model NAME.")
