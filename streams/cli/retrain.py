"""``flywheel retrain``: train now, see why a model was or was not replaced, and prove what it was trained on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from schemas.errors import GateRefusedError, UsageError
from streams.cli import Session, echo_json, echo_lines, json_option, pass_session

if TYPE_CHECKING:
    import sqlalchemy as sa

    from retrain.paths import Paths
    from retrain.registry import Version
    from retrain.run import RunResult
    from streams.config import Config, ModelConfig

model_option = click.option("--model", help="Which model; may be left out if there is only one.")
REASON_CHARS = 100


@dataclass(frozen=True)
class Workshop:
    """What the commands on one model need."""

    config: Config
    configured: ModelConfig
    engine: sa.Engine
    paths: Paths

    def event_now_us(self) -> int:
        """Newest event time in the archive; the wall clock where there is none."""
        from retrain.joined import newest_event_us
        from schemas.times import now_us

        return newest_event_us(self.config.archive_dir, self.configured.contract) or now_us()

    def reference(self) -> Path | None:
        """The rows for the first training, while there is no version yet."""
        from retrain.registry import Registry

        return None if Registry(self.engine).versions(self.configured.name) else self.configured.reference


@contextmanager
def open_workshop(session: Session, model: str | None) -> Iterator[Workshop]:
    """The configured model, its database and its folders.

    Raises
    ------
    UsageError
        If it is not clear which model is meant.
    """
    from retrain.paths import Paths
    from schemas.database import open_database

    config = session.config
    names = list(config.models)
    if model is None and len(names) != 1:
        known = f" Known: {', '.join(sorted(names))}." if names else " No model is configured."
        raise UsageError(f"Which model?{known}", action="Say it with --model NAME.")
    configured = config.model(model or names[0])
    engine = open_database(config.database_url)
    try:
        yield Workshop(config, configured, engine, Paths(config.state_dir))
    finally:
        engine.dispose()


def times(text: str | None) -> int | None:
    """An option's time, as microseconds.

    Raises
    ------
    UsageError
        If it is not ISO 8601.
    """
    from schemas.times import parse_time

    try:
        return None if text is None else parse_time(text)
    except ValueError as error:
        raise UsageError(f"'{text}' is not a time.", action="Write it as 2013-05-14T09:00:00Z.") from error


@click.group()
def retrain() -> None:
    """Train again, and see why it was or was not promoted."""


@retrain.command()
@model_option
@click.option(
    "--initial",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Train the first version from a table; default: from the model's reference in flywheel.toml, if it has one.",
)
@click.option("--label", default="label", show_default=True, help="Column of the table that holds the truth.")
@click.option("--time", "time_column", default="event_time", show_default=True, help="Column of the table with times.")
@click.option(
    "--recipe", "recipes", multiple=True, help="Instead of the policy's: mixed, since(TIME), ...; repeatable."
)
@click.option("--as-of", metavar="TIME", help="Know nothing that came later (event time); default: the newest event.")
@click.option("--gate-table", type=click.Path(path_type=Path, dir_okay=False), help="Labeled rows to judge by.")
@click.option("--no-promote", is_flag=True, help="Register a winner, but leave the champion where it is.")
@click.option("--reason", default="asked for on the command line", show_default=True)
@json_option
@pass_session
@click.pass_context
def run(
    ctx: click.Context,
    session: Session,
    model: str | None,
    initial: Path | None,
    label: str,
    time_column: str,
    recipes: tuple[str, ...],
    as_of: str | None,
    gate_table: Path | None,
    no_promote: bool,
    reason: str,
    as_json: bool,
) -> None:
    """Train challengers now, judge them, and promote the winner. Exit code 3: the gate refused."""
    with open_workshop(session, model) as shop:
        if initial is None and not (recipes or as_of or gate_table or no_promote):
            initial = shop.reference()
        if initial is not None:
            _tell_version(_initial(shop, initial, label, time_column, reason), as_json)
            return
        result = _run(shop, recipes, times(as_of), gate_table, label, time_column, not no_promote, reason)
    if as_json:
        echo_json(result.to_json())
    else:
        echo_lines(result_lines(result))
    if result.state == "refused":
        ctx.exit(GateRefusedError.exit_code)
    if result.state == "failed":
        ctx.exit(1)


def _initial(shop: Workshop, table: Path, label: str, time_column: str, reason: str) -> Version:
    from retrain.initial import register_initial
    from streams.tabular import read_table

    policy = shop.configured.retrain
    return register_initial(
        shop.engine,
        shop.paths,
        shop.configured.contract,
        policy,
        read_table(table),
        label=label,
        time_column=time_column,
        actor=_actor(),
        reason=reason,
    )


def _run(
    shop: Workshop,
    recipes: tuple[str, ...],
    as_of_us: int | None,
    gate_table: Path | None,
    label: str,
    time_column: str,
    promote: bool,
    reason: str,
) -> RunResult:
    from retrain.dataset import keep_table, standard_rows
    from retrain.joined import archive_ends, count_truths
    from retrain.recipes import parse_recipe
    from retrain.run import RunRequest, run_retrain
    from streams.tabular import read_table

    contract = shop.configured.contract
    try:
        chosen = tuple(parse_recipe(name) for name in recipes) or None
    except ValueError as error:
        raise UsageError(f"{error}.") from error
    kept = None
    if gate_table is not None:
        rows = standard_rows(read_table(gate_table), contract, label=label, time_column=time_column, source="gate")
        kept = keep_table(rows, shop.paths)[0]
    ends = archive_ends(shop.config.archive_dir)
    request = RunRequest(
        trigger="manual",
        reason=reason,
        as_of_us=as_of_us or shop.event_now_us(),
        ends=ends,
        recipes=chosen,
        gate_table=kept,
        labels=count_truths(shop.config.archive_dir, contract, ends),
        actor=_actor(),
        promote=promote,
    )
    return run_retrain(shop.engine, shop.paths, contract, shop.configured.retrain, request)


def _actor() -> str:
    from streams.cli.labels import default_reviewer

    return default_reviewer()


def _tell_version(version: Version, as_json: bool) -> None:
    if as_json:
        echo_json(
            {"state": "promoted", "version": version.version, "metrics": version.metrics, "run_id": version.run_id}
        )
        return
    click.echo(
        f"{version.model} {version.version} is the champion ({version.trainer}, {version.metrics['rows']} rows)."
    )
    if "log_loss" in version.metrics:
        figures = ", ".join(f"{k} {version.metrics[k]:.4f}" for k in ("log_loss", "accuracy", "bias", "ece", "auc")
                            if k in version.metrics)  # fmt: skip
        click.echo(f"A fit without the newest days scored on {version.metrics['held_out_rows']} of them: {figures}.")


def result_lines(result: RunResult) -> list[str]:
    """A run's result for a person: the table of recipes, then what became of it."""
    lines = [f"{'recipe':<40} {'verdict':<12} {'log loss':>9} {'champion':>9}  why"]
    for candidate in result.candidates:
        ours = candidate.metrics.get("challenger", {}).get("log_loss")
        theirs = candidate.metrics.get("champion", {}).get("log_loss")
        figures = " ".join(f"{'-' if v is None else format(v, '.4f'):>9}" for v in (ours, theirs))
        lines.append(f"{_short(candidate.recipe, 40):<40} {candidate.verdict:<12} {figures}  {candidate.reason}")
    lines += [f"Warning: {warning}" for warning in result.warnings]
    before, after = result.champion_before or "nothing", result.champion_after or "nothing"
    told = f"{before} -> {after}" if before != after else f"champion stays {before}"
    lines.append(f"{result.run_id}: {result.state} ({told}) in {result.seconds:.1f} s")
    if result.state == "failed":
        lines.append(result.reason)
    return lines


def _short(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."


@retrain.command()
@model_option
@click.option("--decisions", is_flag=True, help="Also the decisions not to train.")
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True)
@json_option
@pass_session
def history(session: Session, model: str | None, decisions: bool, limit: int, as_json: bool) -> None:
    """Show the newest runs and what became of them."""
    from retrain.history import list_decisions, list_runs
    from schemas.times import format_us

    with open_workshop(session, model) as shop:
        name = shop.configured.name
        runs = list_runs(shop.engine, name, limit)
        told = list_decisions(shop.engine, name, limit) if decisions else []
    if as_json:
        echo_json({"runs": runs, "decisions": told} if decisions else {"runs": runs})
        return
    for row in runs:
        made = f" -> {row['version']}" if row["version"] else ""
        click.echo(f"{row['run_id']}  {format_us(row['as_of_us'])}  {row['trigger']:<9} {row['state']}{made}")
        echo_lines([f"    {row['reason']}", f"    {row['outcome']}"])
    for row in told:
        answer = "yes" if row["is_yes"] else "no"
        when = format_us(row["time_us"])
        echo_lines([f"{when}  {answer:<3} x{row['times']:<4} {row['trigger']:<9} {row['reason']}"])
    if not runs and not told:
        click.echo("No run yet.")


@retrain.command()
@click.argument("run_id", metavar="RUN")
@model_option
@json_option
@pass_session
def show(session: Session, run_id: str, model: str | None, as_json: bool) -> None:
    """Show one run: its dataset, its recipes, every check of the gate."""
    import json

    from retrain.history import find_run

    with open_workshop(session, model) as shop:
        found = find_run(shop.engine, run_id)
        for candidate in found["candidates"]:
            path = shop.paths.root / candidate["report"]
            candidate["checks"] = (
                json.loads(path.read_text())["checks"] if candidate["report"] and path.exists() else []
            )
    if as_json:
        echo_json(found)
        return
    lines = [
        f"{found['run_id']}: {found['state']} ({found['trigger']}: {found['reason']})",
        f"dataset {found['dataset'] or '-'}, judged against {found['champion'] or '-'}",
    ]
    for candidate in found["candidates"]:
        lines.append(f"{candidate['recipe']}: {candidate['verdict']}")
        for check in candidate["checks"]:
            slice_ = "" if check["slice"] == "all" else f" [{check['slice']}]"
            lines.append(f"  {check['verdict']:<12} {check['name']}{slice_}: {check['reason']}")
        if not candidate["checks"]:
            lines.append(f"  {candidate['reason']}")
    echo_lines(lines)


@retrain.command()
@click.argument("dataset", metavar="DATASET")
@model_option
@json_option
@pass_session
def rebuild(session: Session, dataset: str, model: str | None, as_json: bool) -> None:
    """Build a dataset again from the archive and prove that it is the same."""
    from retrain.dataset import rebuild_dataset
    from retrain.history import find_dataset
    from retrain.labels import load_records
    from schemas.database import read

    with open_workshop(session, model) as shop:
        digest = find_dataset(shop.engine, dataset)
        with read(shop.engine) as connection:
            records = load_records(connection, shop.configured.name)
        manifest = rebuild_dataset(shop.paths, digest, shop.configured.contract, records)
    if as_json:
        echo_json({"dataset": digest, "same": True, "counts": manifest.counts})
    else:
        click.echo(f"{digest}: the same, {sum(manifest.counts.values())} rows.")
