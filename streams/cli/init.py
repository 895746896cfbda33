"""``flywheel init``: begin with a model from a table of its past."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from schemas.errors import UsageError
from streams.cli import echo_json, json_option

if TYPE_CHECKING:
    from streams.infer import Columns, Inference

FILE_NAME = "flywheel.toml"


@click.command()
@click.argument("table", type=click.Path(path_type=Path))
@click.option("--model", required=True, metavar="NAME", help="What the model is called.")
@click.option("--target", required=True, metavar="COL", help="The column with the truth.")
@click.option("--time", metavar="COL", help="When each row was asked; without it rows have no order.")
@click.option("--id", "id_column", metavar="COL", help="The prediction ids; without it they are made.")
@click.option("--truth-time", metavar="COL", help="When each truth arrived (no feature; 'replay' uses it).")
@click.option("--drop", metavar="COL", multiple=True, help="No feature. May be repeated.")
@click.option("--slice", "slices", metavar="COL", multiple=True, help="Also watch each value by itself.")
@click.option("--positive", metavar="LABEL", help="The label whose probability the score is.")
@click.option("--task", type=click.Choice(["binary", "multiclass", "regression"]), help="Default: by the target.")
@click.option("--timezone", default="UTC", show_default=True, help="Of times without a zone, and of the model's hours.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path(), help="Folder; default: here.")
@click.option("--force", is_flag=True, help="Replace the files of this model that exist.")
@json_option
def init(
    table: Path,
    model: str,
    target: str,
    time: str | None,
    id_column: str | None,
    truth_time: str | None,
    drop: tuple[str, ...],
    slices: tuple[str, ...],
    positive: str | None,
    task: str | None,
    timezone: str,
    out: Path,
    force: bool,
    as_json: bool,
) -> None:
    """Infer a model's contract and reference profile from TABLE (Parquet or CSV), and write flywheel.toml.

    Every column that is not named here is a feature. The table itself is kept as the rows that the first version is
    trained on.
    """
    from streams.infer import Columns, infer
    from streams.tabular import read_table

    _check_name(model)
    places = _places(out, model, force)
    rows = read_table(table)
    left_out = (*drop, *((truth_time,) if truth_time else ()))
    columns = Columns(target, time, id_column, left_out, slices)
    found = infer(rows, model, columns, positive=positive, task=task, timezone=timezone)
    table_text = _toml(model, columns, truth_time, found)
    _write(places, out, model, found, table_text)
    if as_json:
        echo_json(
            {
                "model": model,
                "files": {name: str(path) for name, path in places.items()},
                "rows": found.base.height,
                "features": [field["name"] for field in found.document["fields"]],
                "target": found.document["target"],
                "notes": found.notes,
            }
        )
    else:
        _tell(places, table, model, found, has_time=time is not None)


def _check_name(model: str) -> None:
    from schemas.contract import MODEL_NAME

    if not MODEL_NAME.fullmatch(model):
        raise UsageError(f"'{model}' is not a model name.", action="Use letters, digits, dots, _ and -.")


def _places(out: Path, model: str, force: bool) -> dict[str, Path]:
    """Where the files go; refuses to overwrite."""
    folder = out / model
    places = {
        "contract": folder / "contract.avsc",
        "profile": folder / "profile.json",
        "reference": folder / "base.parquet",
        "config": out / FILE_NAME,
    }
    there = [str(places[name]) for name in ("contract", "profile", "reference") if places[name].exists()]
    if there and not force:
        raise UsageError(f"{', '.join(there)} would be overwritten.", action="Say --force, or choose another --out.")
    return places


def _toml(model: str, columns: Columns, truth_time: str | None, found: Inference) -> str:
    """The model's table of flywheel.toml."""
    quoted = model if re.fullmatch(r"[A-Za-z0-9_-]+", model) else json.dumps(model)  # JSON's texts are TOML's too
    lines = [
        f"[models.{quoted}]",
        f"contract = {json.dumps(f'{model}/contract.avsc')}",
        f"profile = {json.dumps(f'{model}/profile.json')}",
        f"reference = {json.dumps(f'{model}/base.parquet')}",
        "",
        f"[models.{quoted}.columns]  # of tables for 'flywheel replay'",
    ]
    named = {"target": columns.target, "time": columns.time, "id": columns.id, "truth_time": truth_time}
    lines += [f"{key} = {json.dumps(name)}" for key, name in named.items() if name is not None]
    lines += ["", f"[models.{quoted}.failures]  # SQL over score, label, truth, value, user and facts"]
    lines += [f"{rule} = {json.dumps(text)}" for rule, text in found.failure_rules.items()]
    if columns.time is None:
        lines += ["", f"[models.{quoted}.retrain.gate]", 'block = "row"  # the rows have no time to hold out by']
    return "\n".join(lines) + "\n"


def _write(places: dict[str, Path], out: Path, model: str, found: Inference, table_text: str) -> None:
    from schemas.contract import parse_contract
    from schemas.profile import build_profile
    from streams.config import load_config

    contract = parse_contract(found.document, str(places["contract"]))
    profile = build_profile(
        found.base, contract.fields, model=model, fingerprint=contract.fingerprint, labels=contract.target.labels
    )
    config = load_config(places["config"]) if places["config"].exists() else None
    places["contract"].parent.mkdir(parents=True, exist_ok=True)
    _replace(places["contract"], contract_text(found.document))
    _replace(places["profile"], profile.to_json())
    temporary = places["reference"].with_suffix(".tmp")
    found.base.write_parquet(temporary, compression="zstd")
    temporary.replace(places["reference"])
    if config is None:
        head = '[flywheel]\nstate_dir = ".flywheel"\nbrokers = "embedded"  # or host:port of an Apache Kafka\n\n'
        _replace(places["config"], head + table_text)
    elif model not in config.models:
        before = places["config"].read_text(encoding="utf-8").rstrip("\n")
        _replace(places["config"], f"{before}\n\n{table_text}")
    load_config(places["config"]).model(model)


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def contract_text(document: dict[str, object]) -> str:
    """A contract as a person reads and edits it: one line a feature."""
    head = {key: value for key, value in document.items() if key != "fields"}
    fields = document["fields"]
    assert isinstance(fields, list)
    rows = ",\n".join(f"    {json.dumps(field, ensure_ascii=False)}" for field in fields)
    top = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in head.items())
    return f'{{\n{top},\n  "fields": [\n{rows}\n  ]\n}}\n'


def _tell(places: dict[str, Path], table: Path, model: str, found: Inference, *, has_time: bool) -> None:
    target = found.document["target"]
    labels = f" ({', '.join(target['labels'])})" if "labels" in target else ""
    click.echo(f"{model}: {found.base.height} rows, {len(found.document['fields'])} features, {target['kind']}{labels}")
    for name, text in (
        ("contract", "what is expected of each feature: read it and correct it"),
        ("profile", "how the features were distributed"),
        ("reference", "rows for the first training"),
        ("config", "the configuration"),
    ):
        click.echo(f"  {places[name]}  {text}")
    for note in found.notes:
        click.echo(f"  note: {note}")
    start = "" if has_time else " --start 2024-01-01"
    commands = {
        "flywheel up": "broker, worker and status page (in a terminal of its own)",
        f"flywheel retrain run --model {model}": "the first version, from these rows",
        f"flywheel replay TABLE --model {model} --champion{start}": "rows of the past, through the whole loop",
        "flywheel status": "what was seen",
    }
    click.echo("Next:")
    width = max(map(len, commands))
    for command, text in commands.items():
        click.echo(f"  {command:{width}}  {text}")
