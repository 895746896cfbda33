"""``flywheel profile``: cut a new reference profile from what was served."""

from __future__ import annotations

from pathlib import Path

import click

from streams.cli import Session, echo_json, json_option, moment, pass_session

ROWS_MAX = 1_000_000


@click.command()
@click.option("--model", help="Which; may be left out if there is only one.")
@click.option("--since", "since_us", callback=moment, metavar="TIME", help="Rows asked from then on; default: all.")
@click.option("--until", "until_us", callback=moment, metavar="TIME", help="Rows asked before then; default: all.")
@click.option("--version", help="Only rows that this version answered.")
@click.option("--rows", type=click.IntRange(min=1), default=ROWS_MAX, show_default=True, help="At most, a sample.")
@click.option("--out", required=True, type=click.Path(path_type=Path, dir_okay=False), help="The profile's new file.")
@json_option
@pass_session
def profile(
    session: Session,
    model: str | None,
    since_us: int | None,
    until_us: int | None,
    version: str | None,
    rows: int,
    out: Path,
    as_json: bool,
) -> None:
    """Cut a reference profile from the archive's rows: exactly the one that training would have made of them.

    For a model that came without a reference, or whose world has moved for good. The cells of a profile are what the
    counts so far were made with, so --out never replaces a file; name the new one in flywheel.toml and restart the
    workers: drift and the contract's rules then learn anew.
    """
    from schemas.errors import UsageError
    from streams.reference import cut, distances, served_rows

    config = session.config
    if model is None and len(config.models) != 1:
        raise click.UsageError(f"Which model? Known: {', '.join(sorted(config.models)) or 'none'}.")
    known = config.model(model or next(iter(config.models)))
    if out.exists():
        raise UsageError(f"{out} is there already, and may be what counts were made with.", action="Name a new file.")
    if not out.parent.is_dir():
        raise UsageError(f"There is no folder {out.parent}.", action="Make it, or name a file elsewhere.")
    span = since_us or 0, until_us if until_us is not None else 1 << 62
    found = served_rows(config.archive_dir, known.contract, *span, version=version, rows_max=rows)
    made = cut(found, known.contract)
    psi = distances(found, known.profile) if known.has_profile else {}
    out.write_text(made.to_json(), encoding="utf-8")
    listed = [{"feature": f.name, "cells": f.cell_count, "psi": psi.get(f.name)} for f in made.features]
    if as_json:
        echo_json(
            {"model": known.name, "file": str(out), "profile": made.profile_id, "rows": made.m, "features": listed}
        )
        return
    click.echo(f"{out}: profile {made.profile_id} of {known.name}, from {made.m:,} served rows")
    click.echo(f"  {'feature':<28}{'cells':>7}{'PSI against the one in use':>29}")
    for each in listed:
        shown = "-" if each["psi"] is None else f"{each['psi']:.3f}"
        click.echo(f"  {each['feature']:<28}{each['cells']:>7}{shown:>29}")
