"""``flywheel parity``: does the feature code of training give what the service read?"""

from __future__ import annotations

from typing import Any

import click

from streams.cli import Session, echo_json, json_option, moment, pass_session

EXAMPLES_SHOWN = 3


@click.command()
@click.option("--model", help="Which; may be left out if there is only one.")
@click.option("--sample", type=click.IntRange(1, 1_000_000), help="Rows; default: of flywheel.toml.")
@click.option("--since", "since_us", callback=moment, metavar="TIME", help="Default: a day before the end.")
@click.option("--until", "until_us", callback=moment, metavar="TIME", help="Default: the newest event.")
@json_option
@pass_session
def parity(
    session: Session, model: str | None, sample: int | None, since_us: int | None, until_us: int | None, as_json: bool
) -> None:
    """Recompute a sample of archived inputs with the feature code of training, and compare value by value.

    The function is named in flywheel.toml under [models.NAME.parity]. The worker does the same once a day. Ends with 1
    if more rows of a feature differ than the contract's tolerance and 'max_share' allow.
    """
    from retrain.errors import NoParityError
    from retrain.joined import newest_event_us
    from schemas.database import open_database
    from schemas.times import DAY_US
    from streams.parity import checked

    config = session.config
    name = model or _only(list(config.models))
    newest = newest_event_us(config.archive_dir, config.model(name).contract)
    if newest is None:
        raise NoParityError(f"The archive holds no event of '{name}'.", action="Log inputs first.")
    end_us = until_us if until_us is not None else newest + 1
    engine = open_database(config.database_url)
    try:
        start_us = since_us if since_us is not None else end_us - DAY_US
        told = checked(config, engine, name, start_us, end_us, sample=sample)
    finally:
        engine.dispose()
    if as_json:
        echo_json(told)
    else:
        click.echo("\n".join(lines(told)))
    if told["wrong"]:
        click.get_current_context().exit(1)


def _only(names: list[str]) -> str:
    if len(names) != 1:
        raise click.UsageError(f"Which model? Known: {', '.join(sorted(names)) or 'none'}. Say it with --model NAME.")
    return names[0]


def lines(told: dict[str, Any]) -> list[str]:
    """The result for people."""
    from labeling.render import plain

    found = [f"{told['model']}: {told['recomputed']} of {told['sampled']} sampled inputs, {told['since']} to "
             f"{told['until']}, recomputed by {told['function']}"]  # fmt: skip
    if told["features"]:
        found.append(f"  {'feature':<28}{'rows':>8}{'equal':>9}{'beyond the tolerance':>22}")
    for each in told["features"]:
        share = f"{each['exact_share']:.1%}"
        found.append(f"  {plain(each['feature']):<28}{each['rows']:>8,}{share:>9}{each['beyond']:>22,}")
        for row in each["examples"][:EXAMPLES_SHOWN]:
            pair = f"served {row['served']}, recomputed {row['recomputed']}"
            found.append(f"      {plain(str(row['prediction_id']))}: {plain(pair)}")
    if told["absent"]:
        found.append(f"  not recomputed: {', '.join(told['absent'])}")
    return found
