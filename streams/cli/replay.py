"""``flywheel replay``: the past of one's own model, through the client and the topics."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from schemas.errors import UsageError
from streams.cli import Session, brokers_option, echo_json, json_option, pass_session
from streams.cli.columns import column_options, columns_of, only_model, start_us_of

if TYPE_CHECKING:
    import polars as pl

    from streams.config import ColumnsConfig, Config
    from streams.past import Past
    from streams.replay import Answer, Champion, Follower, Progress
    from streams.supervisor import Endpoint

MAX = "max"
LINE_EVERY = 0.1


def _speed(_ctx: click.Context, _option: click.Parameter, text: str) -> float | None:
    if text == MAX:
        return None
    try:
        speed = float(text.removesuffix("x"))
    except ValueError:
        speed = 0.0
    if speed <= 0:
        raise click.BadParameter("it is 'max' or a factor above 0, such as 3600 (an hour a second).")
    return speed


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--model", help="Whose past; may be left out if there is only one model.")
@column_options
@click.option("--version", default="past", show_default=True, help="Which version gave the table's answers.")
@click.option("--champion", is_flag=True, help="Let the present champion answer instead.")
@click.option("--truth-delay", type=click.FloatRange(min=0), default=0.0, help="Seconds until a truth arrives (0).")
@click.option("--truth-due", type=click.FloatRange(min=0), help="Seconds until a truth is due (by the contract).")
@click.option("--speed", default=MAX, callback=_speed, help="A factor, or 'max': as the worker follows (max).")
@click.option("--again", is_flag=True, help="From the beginning, although it was sent: nothing counts twice.")
@click.option("--no-wait", is_flag=True, help="Do not wait at the end until the worker has counted everything.")
@brokers_option
@json_option
@pass_session
def replay(
    session: Session, /, file: Path, model: str | None, brokers: str | None, as_json: bool, **options: Any
) -> None:
    """Send a table of past inputs, predictions and truths (Parquet or CSV) in event order.

    Columns that are not named here are those of [models.NAME.columns] in flywheel.toml. The same command goes on where
    the last one stopped, and nothing counts twice.
    """
    from streams.past import prepare
    from streams.supervisor import resolve_brokers
    from streams.tabular import read_table

    config = session.load(brokers=brokers)
    name = model or only_model(config)
    contract = config.model(name).contract
    columns = _columns(config, name, options)
    past = prepare(
        read_table(file),
        contract,
        columns,
        start_us=start_us_of(options),
        step_s=options["step_s"],
        truth_delay_s=options["truth_delay"],
        truth_due_s=options["truth_due"],
    )
    if not past.has_answers and not options["champion"]:
        raise UsageError(
            f"{file} holds no predictions, and without them there is nothing to judge.",
            action="Name them with --score or --label, or let the present champion answer with --champion.",
        )
    for note in past.notes:
        click.echo(f"note: {note}", err=True)
    endpoint = resolve_brokers(config)
    told = _run(config, name, past, endpoint, options)
    if as_json:
        echo_json(told)
    else:
        click.echo(
            f"{told['sent']} events sent (predictions with their inputs, and truths: {told['records']} records), "
            f"{told['before']} were sent before; {told['waiting']} records are not counted yet."
        )


def _columns(config: Config, name: str, options: Mapping[str, Any]) -> ColumnsConfig:
    named = columns_of(config, name, options)
    return named.model_copy(update={"score": None, "label": None}) if options["champion"] else named


def _run(config: Config, name: str, past: Past, endpoint: Endpoint, options: Mapping[str, Any]) -> dict[str, Any]:
    from schemas.database import open_database
    from streams.client import FlywheelClient, SchemaRefused
    from streams.config import FILES
    from streams.replay import AHEAD_RECORDS_MAX, Position, Replay, ahead_of_embedded

    model = config.model(name)
    position = Position(config.state_dir / "replay" / f"{name}-{past.digest}.json")
    if options["again"]:
        position.write(0)
    before = position.read()
    ahead = ahead_of_embedded(past, config.partitions) if endpoint.is_embedded else AHEAD_RECORDS_MAX
    engine = open_database(config.database_url)
    try:
        with FlywheelClient(
            endpoint.brokers,
            name,
            contract=model.contract.document,
            registry=config.registry_path if config.registry == FILES else config.registry,
            strict=True,
        ) as client:
            replaying = Replay(
                past,
                model.contract,
                client,
                position,
                follower(endpoint, engine),
                version=options["version"],
                champion=champion(config, name, engine) if options["champion"] else None,
                speed=options["speed"],
                ahead_max=ahead,
            )
            last = None
            with _shown(past.events.height, before) as show:
                for last in replaying.run(wait=not options["no_wait"]):
                    show(last)
    except SchemaRefused as error:
        raise UsageError(
            f"The registry refuses the contract: {error}.", action="See 'flywheel schemas check'."
        ) from error
    finally:
        engine.dispose()
    end = before if last is None else last.sent
    return {
        "model": name,
        "events": past.events.height,
        "before": before,
        "sent": end - before,
        "records": past.records(before, end),
        "waiting": 0 if last is None else last.behind,
    }


def follower(endpoint: Endpoint, engine: Any) -> Follower:
    """How far the worker follows, from the broker's high watermarks and the merged summaries."""
    import sqlalchemy as sa

    from schemas.database import read
    from streams.ends import EndsReader
    from streams.replay import Follower
    from streams.tables import source_partition

    reader = EndsReader(endpoint.brokers, endpoint.cluster)
    table = source_partition

    def ends() -> dict[tuple[str, int], int]:
        found = reader.read()
        if found.error is not None:
            raise found.error
        return {place: high for place, (_low, high) in found.ends.items()}

    def merged() -> dict[tuple[str, int], int]:
        query = sa.select(table.c.topic, table.c.partition, table.c.end).where(table.c.cluster == endpoint.cluster)
        with read(engine) as connection:
            return {(topic, partition): end for topic, partition, end in connection.execute(query)}

    return Follower(ends, merged)


def champion(config: Config, name: str, engine: Any) -> Champion:
    """Answers with the version that is the champion at that moment, loaded once.

    Raises
    ------
    UsageError
        If the model has none.
    """
    from retrain.artifacts import ArtifactStore
    from retrain.paths import Paths
    from retrain.registry import Registry
    from streams.replay import Answer

    registry, store = Registry(engine), ArtifactStore(Paths(config.state_dir))
    loaded: dict[str, Any] = {}

    def answer(features: pl.DataFrame) -> Answer:
        version = registry.resolve(name)
        if version is None:
            raise UsageError(
                f"The model '{name}' has no champion.",
                action=f"Train one: 'flywheel retrain run --model {name} --initial FILE'.",
            )
        if version.artifact_sha256 not in loaded:
            loaded.clear()
            loaded[version.artifact_sha256] = store.load(version.artifact_sha256)
        said = loaded[version.artifact_sha256].predict(features)
        return Answer(version.version, said.scores.tolist(), said.labels)

    return answer


@contextmanager
def _shown(total: int, before: int) -> Iterator[Callable[[Progress], None]]:
    """A bar on a terminal, a line every tenth elsewhere; both on stderr."""
    from schemas.times import format_us

    if not sys.stderr.isatty():
        told = [before / max(total, 1)]

        def line(progress: Progress) -> None:
            share = progress.sent / progress.total
            if share >= told[0] + LINE_EVERY or (share == 1.0 and told[0] < 1.0):
                told[0] = share
                click.echo(f"{share:4.0%} {format_us(progress.time)} {progress.behind} records to be counted", err=True)

        yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    sent, behind = "{task.completed}/{task.total} events", "{task.fields[behind]} records to be counted"
    texts = TextColumn("{task.fields[at]} " + f"{sent}, {behind}")
    with Progress(BarColumn(), texts, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total, completed=before, at="", behind=0)
        yield lambda now: bar.update(task, completed=now.sent, at=format_us(now.time), behind=now.behind)
