"""``flywheel models``: versions, and the ledger of what served when."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from schemas.errors import UsageError
from streams.cli import Session, echo_json, echo_lines, json_option, pass_session
from streams.cli.retrain import model_option, open_workshop, times

if TYPE_CHECKING:
    from retrain.registry import AliasEvent, Version

at_option = click.option("--at", metavar="TIME", help="When it counts from (event time); default: the newest event.")
reason_option = click.option("--reason", required=True, help="Why; it stays in the ledger.")


@click.group()
def models() -> None:
    """Versions of a model: show, promote, roll back."""


def _document(version: Version, champion: str | None) -> dict[str, Any]:
    return asdict(version) | {"is_champion": version.version == champion}


@models.command(name="list")
@model_option
@json_option
@pass_session
def list_(session: Session, model: str | None, as_json: bool) -> None:
    """List all versions."""
    from retrain.registry import Registry

    with open_workshop(session, model) as shop:
        registry, name = Registry(shop.engine), shop.configured.name
        found = registry.versions(name)
        champion = registry.resolve(name)
    serving = champion.version if champion else None
    if as_json:
        echo_json({"model": name, "champion": serving, "versions": [_document(v, serving) for v in found]})
        return
    if not found:
        click.echo("No version yet: 'flywheel retrain run --initial TABLE' trains the first.")
    for version in found:
        mark = "*" if version.version == serving else " "
        loss = version.metrics.get("log_loss")
        figure = "-" if loss is None else f"{loss:.4f}"
        line = f"{mark} {version.version:<6} {version.approval:<9} {version.trainer:<17} log loss {figure:<8}"
        echo_lines([f"{line} {version.recipe['name']}"])


@models.command()
@click.argument("version", required=False)
@model_option
@json_option
@pass_session
def show(session: Session, version: str | None, model: str | None, as_json: bool) -> None:
    """Show one version with its lineage; without a name the champion."""
    from retrain.registry import Registry

    with open_workshop(session, model) as shop:
        registry, name = Registry(shop.engine), shop.configured.name
        champion = registry.resolve(name)
        found = registry.get(name, version) if version else champion
    if found is None:
        raise UsageError(
            f"The model '{name}' has no champion.", action="Train one with 'flywheel retrain run --initial TABLE'."
        )
    if as_json:
        echo_json(_document(found, champion.version if champion else None))
        return
    click.echo(f"{found.model} {found.version}{' (champion)' if found == champion else ''}")
    shown = {
        "approval": f"{found.approval}: {found.approval_reason}",
        "artifact": found.artifact_sha256,
        "dataset": found.dataset or "-",
        "parent": found.parent or "-",
        "run": found.run_id or "-",
        "trainer": found.trainer,
        "recipe": found.recipe["name"],
        "constants": found.constants or "-",
        "metrics": ", ".join(f"{k} {v:.4g}" for k, v in found.metrics.items()) or "-",
    }
    echo_lines(f"  {key:<10} {value}" for key, value in shown.items())


def _tell(event: AliasEvent, as_json: bool) -> None:
    if as_json:
        echo_json(asdict(event))
    else:
        click.echo(f"{event.model}: {event.alias} {event.previous or '-'} -> {event.version} ({event.action})")


@models.command()
@click.argument("version")
@model_option
@reason_option
@at_option
@click.option("--override", is_flag=True, help="Also a version whose approval a rollback revoked.")
@json_option
@pass_session
def promote(
    session: Session, version: str, model: str | None, reason: str, at: str | None, override: bool, as_json: bool
) -> None:
    """Make a version the champion."""
    from retrain.registry import Registry
    from streams.cli.labels import default_reviewer

    with open_workshop(session, model) as shop:
        event = Registry(shop.engine).promote(
            shop.configured.name,
            version,
            actor=default_reviewer(),
            reason=reason,
            time_us=times(at) or shop.event_now_us(),
            override=override,
        )
    _tell(event, as_json)


@models.command()
@model_option
@reason_option
@at_option
@click.option("--to", metavar="VERSION", help="Default: the newest earlier champion whose approval stands.")
@json_option
@pass_session
def rollback(session: Session, model: str | None, reason: str, at: str | None, to: str | None, as_json: bool) -> None:
    """Bring back the earlier champion and revoke the approval of this one."""
    from retrain.registry import Registry
    from streams.cli.labels import default_reviewer

    with open_workshop(session, model) as shop:
        event = Registry(shop.engine).rollback(
            shop.configured.name,
            actor=default_reviewer(),
            reason=reason,
            time_us=times(at) or shop.event_now_us(),
            to=to,
        )
    _tell(event, as_json)


@models.command()
@model_option
@click.option("--at", metavar="TIME", help="Only: which version was the champion then.")
@json_option
@pass_session
def history(session: Session, model: str | None, at: str | None, as_json: bool) -> None:
    """Show the ledger: every move of an alias, who, why and when."""
    from retrain.registry import Registry
    from schemas.times import format_us

    with open_workshop(session, model) as shop:
        registry, name = Registry(shop.engine), shop.configured.name
        moment = times(at)
        served = None if moment is None else registry.at(name, moment)
        events = registry.history(name) if moment is None else []
    if moment is not None:
        told = served.version if served else None
        if as_json:
            echo_json({"model": name, "at": moment, "champion": told})
        else:
            click.echo(told or "nothing")
        return
    if as_json:
        echo_json({"model": name, "history": [asdict(event) for event in events]})
        return
    for event in events:
        moved = f"{event.alias:<9} {event.previous or '-':>5} -> {event.version:<5}"
        echo_lines([f"{format_us(event.time_us)}  {moved} {event.action:<11} by {event.actor}: {event.reason}"])
    if not events:
        click.echo("No version was promoted yet.")
