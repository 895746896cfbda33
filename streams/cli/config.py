"""``flywheel config``: what the configuration is, whether it is valid, what it may hold."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from streams.cli import Session, echo_json, json_option, pass_session

if TYPE_CHECKING:
    from streams.config import ModelConfig


@click.group()
def config() -> None:
    """Show, validate and describe the configuration."""


@config.command()
@json_option
@pass_session
def show(session: Session, as_json: bool) -> None:
    """Show every setting as it is in effect; secrets are hidden."""
    settings = session.config
    document = settings.model_dump(mode="json", by_alias=True)
    if as_json:
        echo_json(document)
        return
    click.echo(f"# {settings.file or 'no flywheel.toml was found: defaults, environment and flags'}")
    models = document.pop("models")
    for name in ("root", "file"):
        document.pop(name)
    _table("flywheel", document)
    for name, model in models.items():
        model.pop("name")
        _table(f"models.{name}", model)


def _table(name: str, content: dict[str, Any]) -> None:
    click.echo(f"\n[{name}]")
    tables = {key: value for key, value in content.items() if isinstance(value, dict) and value}
    for key, value in content.items():
        if key not in tables and value is not None:
            click.echo(f"{key} = {json.dumps(value)}")
    for key, value in tables.items():
        _table(f"{name}.{key}", value)


@config.command()
@json_option
@pass_session
def validate(session: Session, as_json: bool) -> None:
    """Check the configuration and every contract, profile and table that it names."""
    from schemas.errors import ConfigError

    settings = session.config
    for model in settings.models.values():
        _check_rules(model, settings.window_s)
        if model.reference is not None and not model.reference.is_file():
            raise ConfigError(
                f"[models.{model.name}] names the reference {model.reference}, which is not there.",
                action="Correct the path, or take it out: only the first training reads it.",
            )
    if as_json:
        echo_json({"file": settings.file, "models": sorted(settings.models), "is_valid": True})
    else:
        models = ", ".join(sorted(settings.models)) or "no model yet ('flywheel init' adds one)"
        click.echo(f"{settings.file or 'Defaults'}: valid; {models}.")


def _check_rules(model: ModelConfig, window_s: int) -> None:
    """Whether the profile fits the contract, and the failure rules are SQL over the columns that they may use."""
    from schemas.times import SECOND_US
    from streams.plane.plan import ModelPlan

    ModelPlan(model.contract, model.profile, model.failures, window_s * SECOND_US, model.labeling.audit_share)


@config.command()
def schema() -> None:
    """Print the JSON Schema of flywheel.toml."""
    from streams.config import toml_schema

    echo_json(toml_schema())
