"""The command line: a thin shell that imports click only; every command loads its work when it is called.

Data goes to stdout, everything else to stderr. Exit codes: 0 done, 1 failed, 2 usage or configuration, 3 gate refused,
4 contract incompatible, 130 interrupted. With ``--json`` an error is ``{"error": {...}}`` on stdout.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from schemas.errors import FlywheelError, UsageError

if TYPE_CHECKING:
    from streams.config import Config

EXIT_INTERRUPTED = 128 + signal.SIGINT

# name -> (module:object, what it does); in the order of --help. The module is imported when the command is called.
COMMANDS: dict[str, tuple[str, str]] = {
    "init": ("streams.cli.init:init", "Begin with a model: contract, profile and flywheel.toml from a table."),
    "up": ("streams.cli.up:up", "Run broker, worker, status page and scheduler on this machine."),
    "replay": ("streams.cli.replay:replay", "Send a table of past inputs, predictions and truths."),
    "status": ("streams.cli.status:status", "Show what flows, what is wrong, and what waits for people."),
    "quality": (
        "streams.cli.quality:quality",
        "How good the answers are, per version and slice, and how sure that is.",
    ),
    "alerts": ("streams.cli.alerts:alerts", "Incidents: list, show, acknowledge, close, silence."),
    "drift": ("streams.cli.drift:drift", "How far the features have moved from training, in figures and pictures."),
    "backtest": ("streams.cli.backtest:backtest", "What rules for alerts would have done, before they are turned on."),
    "parity": ("streams.cli.parity:parity", "Served inputs against the feature code of training."),
    "profile": ("streams.cli.profile:profile", "Cut a new reference profile from what was served."),
    "review": ("streams.cli.review:review", "Answer the questions of the review queue, one key a decision."),
    "labels": ("streams.cli.labels:labels", "Work with review items and labels from scripts."),
    "retrain": ("streams.cli.retrain:retrain", "Train again, and see why it was or was not promoted."),
    "models": ("streams.cli.models:models", "Versions of a model: show, promote, roll back."),
    "trace": ("streams.cli.trace:trace", "Follow one prediction from its input to the version that learnt from it."),
    "dead-letters": (
        "streams.cli.dead_letters:dead_letters",
        "Records that could not be worked on: list, show, replay, stats.",
    ),
    "schemas": ("streams.cli.schemas:schemas", "Contracts and event schemas: list, show, check, register."),
    "config": ("streams.cli.config:config", "Show, validate and describe the configuration."),
    "worker": ("streams.cli.worker:worker", "Run one worker (what 'up' runs; alone: beside a real Kafka)."),
    "demo": ("streams.cli.demo:demo", "Watch the whole loop turn once on real flights."),
}


class LazyGroup(click.Group):
    """A group that knows its commands by name and imports one only to call it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported now."""
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command), command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with the nearest known name in the message."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from difflib import get_close_matches

            near = get_close_matches(args[0], COMMANDS, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else " See 'flywheel --help'."
            raise click.UsageError(f"No such command '{args[0]}'.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """From the table, without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


class Session:
    """What the commands of one call share: the configuration, read when it is first needed."""

    def __init__(self, path: Path | None = None, **overrides: Any) -> None:
        self._path = path
        self.overrides = overrides

    def load(self, **overrides: Any) -> Config:
        """The configuration with a command's own flags; None means "not given"."""
        from streams.config import load_config

        given = {key: value for key, value in overrides.items() if value is not None}
        return load_config(self._path, **{**self.overrides, **given})

    @cached_property
    def config(self) -> Config:
        """The configuration with the flags that stand before the command."""
        return self.load()


pass_session = click.make_pass_decorator(Session, ensure=True)

brokers_option: Callable[..., Any] = click.option(
    "--brokers", metavar="HOST:PORT", help="An Apache Kafka instead of the embedded broker."
)
json_option: Callable[..., Any] = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def moment(_context: click.Context, _option: click.Parameter, text: str | None) -> int | None:
    """An option's callback: a time as microseconds."""
    from schemas.times import parse_time

    try:
        return None if text is None else parse_time(text)
    except ValueError:
        raise click.BadParameter(f"'{text}' is not ISO 8601, such as 2024-05-06 or 2024-05-06T07:30Z.") from None


def echo_json(value: Any) -> None:
    """Print data as JSON on stdout, which knows neither NaN nor infinity: such a figure is null."""
    text = json.dumps(value, indent=2, default=str)
    if "NaN" in text or "Infinity" in text:  # rarely, and then perhaps in a text only
        text = json.dumps(json.loads(text, parse_constant=lambda _: None), indent=2)
    click.echo(text)


def echo_lines(lines: Iterable[str]) -> None:
    """Print lines for people; what they quote of events or of people cannot steer the terminal."""
    from labeling.render import plain

    click.echo("\n".join(plain(line) for line in lines))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config", "path", type=click.Path(path_type=Path, dir_okay=False), help="Default: flywheel.toml, upwards."
)
@click.option("--state-dir", type=click.Path(path_type=Path, file_okay=False), help="Where Flywheel keeps its state.")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="Of diagnostics on stderr.")
@click.version_option(package_name="flywheel-ml", prog_name="flywheel")
@click.pass_context
def cli(ctx: click.Context, path: Path | None, state_dir: Path | None, log_level: str | None) -> None:
    """Close the loop of a model in production: watch, label, retrain, promote."""
    ctx.obj = Session(path, state_dir=state_dir, log_level=log_level)


def main(arguments: list[str] | None = None) -> NoReturn:
    """The console script: run a command, tell of an error in one way, end with its code."""
    is_json = "--json" in (sys.argv[1:] if arguments is None else arguments)
    try:
        code = cli.main(arguments, prog_name="flywheel", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except FlywheelError as error:
        sys.exit(tell(error, is_json=is_json))
    except click.ClickException as error:
        if not is_json:
            error.show()
            sys.exit(error.exit_code)
        sys.exit(_tell(UsageError.__name__, error.format_message(), "", error.exit_code, is_json))
    except (KeyboardInterrupt, click.Abort, EOFError):
        click.echo("Interrupted.", err=True)
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:  # the reader of our output went away, as in "| head"
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:  # a full disk, a folder that nobody may write to
        sys.exit(tell(_refused(error), is_json=is_json))
    except Exception as error:
        if not _is_of_database(error):
            raise
        sys.exit(tell(_database_refused(error), is_json=is_json))


def _refused(error: OSError) -> FlywheelError:
    where = f"{error.filename}: " if error.filename else ""
    return FlywheelError(
        f"{where}{error.strerror or error or type(error).__name__}.",
        action="What was to be written is not complete: see to the space and the rights there, and run it again.",
    )


def _is_of_database(error: Exception) -> bool:
    """Whether the database refused; one that was never opened needs no import to know that it did not."""
    loaded = sys.modules.get("sqlalchemy.exc")
    return loaded is not None and isinstance(error, loaded.OperationalError)


def _database_refused(error: Any) -> FlywheelError:
    reason = str(error.orig).strip().splitlines()[0] if error.orig else "no reason given"
    return FlywheelError(
        f"The database refused: {reason}.",
        action="Nothing of it was kept: see to the database, its space and its rights, and run it again.",
    )


def tell(error: FlywheelError, *, is_json: bool = False) -> int:
    """Tell of an error; its exit code."""
    return _tell(type(error).__name__, error.message, error.advice, error.exit_code, is_json)


def _tell(kind: str, message: str, action: str, exit_code: int, is_json: bool) -> int:
    if is_json:
        echo_json({"error": {"type": kind, "message": message, "action": action, "exit_code": exit_code}})
    else:
        click.echo(f"Error: {message}", err=True)
        if action:
            click.echo(f"  {action}", err=True)
    return exit_code
