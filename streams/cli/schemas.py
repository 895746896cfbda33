"""``flywheel schemas``: contracts and event schemas, and what of them is released."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from schemas.errors import ContractIncompatibleError, UsageError
from streams.cli import Session, echo_json, json_option, pass_session

if TYPE_CHECKING:
    from schemas.registry import Registry
    from streams.config import Config

files_argument = click.argument("files", nargs=-1, type=click.Path(path_type=Path), metavar="[FILE.avsc]...")
ADVICE = "Add features as nullable with a default, keep the types of the others, or begin a new model."


@click.group()
def schemas() -> None:
    """Contracts and event schemas: list, show, check, register."""


def _registry(config: Config) -> Registry:
    from streams.registry import open_registry

    return open_registry(config)


def _local(config: Config, files: tuple[Path, ...] = ()) -> dict[str, dict[str, Any]]:
    """Subject -> schema as it stands here: of the files, or of everything that is configured."""
    from schemas.contract import load_contract
    from schemas.events import NOUNS, envelope, subject

    if files:
        contracts = [load_contract(file) for file in files]
        return {subject("inputs", contract.model): contract.input_schema() for contract in contracts}
    found = {subject(noun): envelope(noun) for noun in NOUNS if noun != "inputs"}
    for name, model in config.models.items():
        found[subject("inputs", name)] = model.contract.input_schema()
    return found


def _state(registry: Registry, subject: str, schema: dict[str, Any]) -> tuple[str, list[str]]:
    """Whether a schema is released, new, compatible with what is released, or not and why."""
    from schemas.registry import canonical, incompatibilities

    ids = registry.versions(subject)
    if not ids:
        return "new", []
    released = [registry.schema(schema_id) for schema_id in ids]
    if canonical(schema) in map(canonical, released):
        return "released", []
    refusals = incompatibilities(schema, released[-1])
    if not refusals:
        return "compatible", []
    return "incompatible", _problems(schema, released[-1]) or refusals


def _problems(new: Any, released: Any, place: str = "") -> list[str]:
    """Avro's refusal in the words of the contract: one line a field, by name."""
    from schemas.registry import incompatibilities

    old = {f["name"]: f for f in released["fields"]}
    found = []
    for f in new["fields"]:
        name = f"{place}{f['name']}"
        if f["name"] not in old:
            found += [] if "default" in f else [f"'{name}' is new and has no default"]
            continue
        kinds = (f["type"], old[f["name"]]["type"])
        if all(isinstance(kind, dict) and kind.get("type") == "record" for kind in kinds):
            found += _problems(*kinds, f"{name}.")
        elif incompatibilities(*({"type": "record", "name": "R", "fields": [{"name": "f", "type": k}]} for k in kinds)):
            found.append(f"'{name}' was {_kind(kinds[1])} and is {_kind(kinds[0])}")
    return found


def _kind(schema: Any) -> str:
    if isinstance(schema, list):
        return " or ".join(map(_kind, schema))
    return str(schema["type"] if isinstance(schema, dict) else schema)


@schemas.command("list")
@json_option
@pass_session
def list_(session: Session, /, as_json: bool) -> None:
    """List subjects: what is released, and how what stands here relates to it."""
    registry, local = _registry(session.config), _local(session.config)
    rows = []
    for subject in sorted({*registry.subjects(), *local}):
        ids = registry.versions(subject)
        state = _state(registry, subject, local[subject])[0] if subject in local else "not here"
        rows.append({"subject": subject, "versions": len(ids), "ids": ids, "state": state})
    if as_json:
        echo_json(rows)
        return
    width = max(len(str(row["subject"])) for row in rows)
    for row in rows:
        click.echo(f"{row['subject']:{width}}  versions {row['versions']:3}  {row['state']}")


@schemas.command()
@click.argument("name")
@click.option("--id", "is_id", is_flag=True, help="NAME is a schema id of the registry.")
@pass_session
def show(session: Session, /, name: str, is_id: bool) -> None:
    """Print a schema: of a topic (predictions), a model's inputs (its name), a subject, or an id."""
    from difflib import get_close_matches

    from schemas.events import subject

    if is_id:
        if not name.isdigit():
            raise UsageError(f"'{name}' is not a schema id.")
        echo_json(_registry(session.config).schema(int(name)))
        return
    local = _local(session.config)
    for known in (name, f"flywheel.{name}.v1-value", subject("inputs", name)):
        if known in local:
            echo_json(local[known])
            return
    registry = _registry(session.config)
    if name in registry.subjects():
        echo_json(registry.schema(registry.versions(name)[-1]))
        return
    short = [known.removeprefix("flywheel.").removesuffix(".v1-value").removeprefix("inputs.v1-") for known in local]
    near = get_close_matches(name, short, n=1)
    raise UsageError(
        f"No schema '{name}'.{f' Did you mean {near[0]!r}?' if near else ''}", action=f"Known: {', '.join(short)}."
    )


@schemas.command()
@files_argument
@json_option
@pass_session
def check(session: Session, /, files: tuple[Path, ...], as_json: bool) -> None:
    """Hold contracts against what is released; exit code 4 when one could not read it.

    Without FILE: every configured contract, and the envelopes of this installation.
    """
    registry = _registry(session.config)
    rows, problems = [], []
    for subject, schema in _local(session.config, files).items():
        state, reasons = _state(registry, subject, schema)
        rows.append({"subject": subject, "state": state, "problems": reasons})
        problems += [f"{subject}: {reason}" for reason in reasons]
    if problems:
        raise ContractIncompatibleError(f"Not compatible with what is released: {'; '.join(problems)}.", action=ADVICE)
    if as_json:
        echo_json(rows)
    else:
        for row in rows:
            click.echo(f"{row['subject']}: {row['state']}")


@schemas.command()
@files_argument
@json_option
@pass_session
def register(session: Session, /, files: tuple[Path, ...], as_json: bool) -> None:
    """Release contracts (and, without FILE, the envelopes): producers and workers then find their ids."""
    registry = _registry(session.config)
    ids = {subject: registry.register(subject, schema) for subject, schema in _local(session.config, files).items()}
    if as_json:
        echo_json(ids)
    else:
        for subject, schema_id in ids.items():
            click.echo(f"{subject}: {schema_id}")
