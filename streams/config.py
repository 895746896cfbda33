"""The configuration: one typed, frozen tree from ``flywheel.toml``, ``FLYWHEEL_*`` and command-line flags.

A later source wins: defaults, the file, the environment, flags. Unknown keys are refused with the nearest known one.
Paths in the file are relative to it. Keeps no state; must not import Kafka, Faust or polars (every command loads it).
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from labeling.policy import LabelingPolicy
from retrain.policy import ParityPolicy, RetrainPolicy
from schemas.errors import ConfigError
from streams.logic.policy import MonitorPolicy
from streams.notify.policy import NotifierConfig

if TYPE_CHECKING:
    from schemas.contract import Contract
    from schemas.profile import Profile

FILE_NAME = "flywheel.toml"
ENV_PREFIX = "FLYWHEEL_"
EMBEDDED = "embedded"
FILES = "files"
DAY_S = 86_400

KEYED = ("models", "notify")
"""Tables of tables, by name."""
TABLES = ("flywheel", *KEYED)

PositiveInt = Annotated[int, Field(gt=0)]
NaturalInt = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class ColumnsConfig(BaseModel):
    """``[models.NAME.columns]``: what the columns of the model's tables are called; the others are its features."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str | None = Field(default=None, description="prediction ids")
    time: str | None = Field(default=None, description="when each prediction was asked")
    target: str | None = Field(default=None, description="the truth")
    truth_time: str | None = Field(default=None, description="when each truth arrived")
    score: str | None = Field(default=None, description="what the model answered: see the prediction events")
    label: str | None = Field(default=None, description="the label that the model answered")


class ModelConfig(BaseModel):
    """``[models.NAME]``: one model under watch."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    name: str
    contract_path: Path = Field(alias="contract", description="the model's contract, an .avsc file")
    profile_path: Path | None = Field(
        default=None, alias="profile", description="the reference profile that serving is held against"
    )
    reference: Path | None = Field(
        default=None, description="past rows with their truth: what the first version is trained on"
    )
    columns: ColumnsConfig = Field(default=ColumnsConfig(), description="of the model's tables, for 'replay'")
    failures: dict[str, str] = Field(
        default_factory=dict, description="rule = SQL expression over score, label, truth, user and fact columns"
    )
    labeling: LabelingPolicy = Field(default=LabelingPolicy(), description="how failures become review items")
    retrain: RetrainPolicy = Field(default=RetrainPolicy(), description="when and how to retrain, and the gate")
    monitor: MonitorPolicy = Field(default=MonitorPolicy(), description="what wakes somebody")
    parity: ParityPolicy = Field(
        default=ParityPolicy(), description="served inputs against the feature code of training"
    )

    @field_validator("failures")
    @classmethod
    def _no_empty_rule(cls, rules: dict[str, str]) -> dict[str, str]:
        for rule, text in rules.items():
            if not text.strip():
                raise ValueError(f"the rule '{rule}' is empty")
        return rules

    @cached_property
    def contract(self) -> Contract:
        """The contract, read once.

        Raises
        ------
        ContractError
            If the file cannot be read or breaks a rule.
        """
        from schemas.contract import load_contract

        contract = load_contract(self.contract_path)
        if contract.model != self.name:
            raise ConfigError(
                f"[models.{self.name}] names {self.contract_path}, which is the contract of '{contract.model}'."
            )
        return contract

    @property
    def has_profile(self) -> bool:
        """Whether there is a reference profile to read."""
        return self.profile_path is not None and self.profile_path.exists()

    @cached_property
    def profile(self) -> Profile:
        """The reference profile, fitted to the contract: a field that it does not know has cells without rows.

        Raises
        ------
        ConfigError
            If one is configured and cannot be read.
        """
        from schemas.profile import fitted

        fingerprint = self.contract.fingerprint
        return fitted(self.own_profile, self.contract.fields, model=self.name, fingerprint=fingerprint)

    @cached_property
    def own_profile(self) -> Profile | None:
        """The reference profile as its file has it, read once; None: none is configured.

        Raises
        ------
        ConfigError
            If it cannot be read.
        """
        from schemas.profile_file import read_profile

        if self.profile_path is None:
            return None
        try:
            return read_profile(self.profile_path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"The profile {self.profile_path} of '{self.name}' cannot be read: {error}.",
                action="Make it again with 'flywheel init'.",
            ) from error


class Config(BaseSettings):
    """The whole configuration; the fields of ``[flywheel]`` are its own."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix=ENV_PREFIX, env_nested_delimiter="__", case_sensitive=False
    )

    root: Path = Field(description="the folder of flywheel.toml, to which its paths are relative")
    file: Path | None = Field(default=None, description="the flywheel.toml that was read")

    state_dir: Path = Field(default=Path(".flywheel"), description="where Flywheel keeps its state")
    join_store: Path | None = Field(
        default=None, description="a worker's own folder, on a local disk; default: in state_dir, for one worker"
    )
    brokers: str = Field(default=EMBEDDED, description='"embedded", or host:port[,host:port] of an Apache Kafka')
    partitions: PositiveInt = Field(default=4, le=1024, description="of topics that Flywheel creates")
    registry: str = Field(default=FILES, description='"files", or the URL of a Confluent-compatible schema registry')
    database: SecretStr | None = Field(
        default=None, description="SQLAlchemy URL (it may hold a password); default: SQLite in the state directory"
    )
    web_host: str = Field(default="127.0.0.1", description="where the status page listens")
    web_port: int = Field(default=8321, ge=0, le=65_535, description="port of the status page")
    group: str = Field(default="flywheel", min_length=1, description="Kafka consumer group, and prefix of all ids")
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="least that is logged")

    segment_records: PositiveInt = Field(
        default=16_384, description="records of a segment; never change it on a log that was already summarised"
    )
    batch_records: PositiveInt = Field(
        default=40_000, le=100_000, description="records of a micro-batch; fewer cost more CPU, more cost memory"
    )
    summary_interval_ms: PositiveInt = Field(default=1_000, description="how often the open segment is summarised")
    archive_interval_ms: PositiveInt = Field(default=1_000, description="how often the open segment is archived")
    order_slack_ms: NaturalInt = Field(default=500, description="more than the brokers' clocks differ")
    clock_skew_ms: PositiveInt = Field(
        default=250, description="a worker whose clock is further from a broker's does not start; below order_slack_ms"
    )
    memory_mb: int = Field(
        default=2_048,
        ge=384,
        description="bound of a worker's resident memory (MiB); near it, it reads less and slower",
    )
    join_horizon_s: PositiveInt = Field(
        default=7 * DAY_S, description="how far apart the records of one prediction id may come and still meet"
    )
    disorder_ms: NaturalInt = Field(default=60_000, description="allowed disorder of event times in a partition")
    future_skew_ms: NaturalInt = Field(default=300_000, description="events further ahead of the clock are set aside")
    window_s: PositiveInt = Field(default=300, description="length of a window of event time; divides a day")
    audit_share: Share = Field(default=0.01, description="share sent to review at random, where the model does not say")
    emit_outcomes: bool = Field(default=False, description="also write every outcome to its topic")

    models: dict[str, ModelConfig] = Field(default_factory=dict)
    notify: dict[str, NotifierConfig] = Field(default_factory=dict)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what is given: :func:`load_config` merges the sources, a test builds exactly what it says."""
        return (init_settings,)

    @field_validator("brokers")
    @classmethod
    def _is_address(cls, brokers: str) -> str:
        if brokers != EMBEDDED and not all(re.fullmatch(r"\S+:\d{1,5}", part.strip()) for part in brokers.split(",")):
            raise ValueError(f"must be '{EMBEDDED}' or host:port, several separated by commas")
        return ",".join(part.strip() for part in brokers.split(","))

    @field_validator("registry")
    @classmethod
    def _is_registry(cls, registry: str) -> str:
        if registry != FILES and not registry.startswith(("http://", "https://")):
            raise ValueError(f"must be '{FILES}' or an http(s) URL")
        return registry

    @field_validator("window_s")
    @classmethod
    def _divides_a_day(cls, window_s: int) -> int:
        if DAY_S % window_s:
            raise ValueError("must divide a day (86400)")
        return window_s

    @property
    def is_embedded(self) -> bool:
        """Whether 'flywheel up' runs the broker itself."""
        return self.brokers == EMBEDDED

    @property
    def database_url(self) -> str:
        """SQLAlchemy URL of the one database."""
        if self.database is not None:
            return self.database.get_secret_value()
        return f"sqlite:///{self.state_dir / 'flywheel.db'}"

    @property
    def archive_dir(self) -> Path:
        """Every event, decoded, as Parquet."""
        return self.state_dir / "archive"

    @property
    def join_dir(self) -> Path:
        """The join store, a cache of the logs: a worker's own, where the rest of the state is all workers'."""
        return self.join_store or self.state_dir / "join"

    @property
    def worker_lock(self) -> Path:
        """Held by the worker whose join store this is."""
        return self.join_dir.with_name(f"{self.join_dir.name}.lock")

    @property
    def artifacts_dir(self) -> Path:
        """Datasets, models and reports."""
        return self.state_dir / "artifacts"

    @property
    def registry_path(self) -> Path:
        """The file registry, or the cache of a registry by URL."""
        return self.state_dir / "registry.json"

    def model(self, name: str) -> ModelConfig:
        """The configuration of one model.

        Raises
        ------
        ConfigError
            If there is none of that name; the message names the nearest.
        """
        if name in self.models:
            return self.models[name]
        near = get_close_matches(name, self.models, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else f" Known: {', '.join(sorted(self.models)) or 'none'}."
        raise ConfigError(f"No model '{name}' is configured.{hint}", action="Add it with 'flywheel init'.")


def find_file(start: Path | None = None) -> Path | None:
    """The nearest ``flywheel.toml`` in a folder or those above it."""
    folder = (start or Path.cwd()).resolve()
    for place in (folder, *folder.parents):
        if (place / FILE_NAME).is_file():
            return place / FILE_NAME
    return None


def load_config(path: Path | None = None, **overrides: Any) -> Config:
    """Read the configuration.

    Parameters
    ----------
    path
        The file; default: the nearest ``flywheel.toml`` from the working directory upwards, or none.
    overrides
        Fields of ``[flywheel]`` from flags; None means "not given". Paths among them are relative to the working
        directory.

    Raises
    ------
    ConfigError
        If the file cannot be read, or a key or value is not valid; one line a problem.
    """
    file = path.resolve() if path else find_file()
    root = file.parent if file else Path.cwd()
    flags = {key: value for key, value in overrides.items() if value is not None}
    if "state_dir" in flags:
        flags["state_dir"] = Path(flags["state_dir"]).absolute()
    values = _merged(_read(file) if file else {}, _environment(), flags)
    _resolve_paths(values, root)
    try:
        return Config(root=root, file=file, **values)
    except ValidationError as error:
        raise ConfigError(_explain(error, file)) from None


def _read(file: Path) -> dict[str, Any]:
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"The configuration {file} cannot be read: {error.strerror}.", action="") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"The configuration {file} is not TOML: {error}.", action="") from error
    for table, content in document.items():
        if table not in TABLES:
            raise ConfigError(f"{file}: unknown table '{table}'.{_near(table, list(TABLES))}")
        if not isinstance(content, dict):
            raise ConfigError(f"{file}: '{table}' must be a table.")
    values = dict(document.get("flywheel", {}))
    for reserved in ("root", "file", *KEYED):
        if reserved in values:
            raise ConfigError(f"{file}: unknown key 'flywheel.{reserved}'.")
    for table in KEYED:
        for name, content in document.get(table, {}).items():
            if not isinstance(content, dict):
                raise ConfigError(f"{file}: '{table}.{name}' must be a table.")
    return values | {table: document[table] for table in KEYED if document.get(table)}


def _environment() -> dict[str, Any]:
    """What ``FLYWHEEL_*`` says; a variable that is nearly a known one is refused instead of ignored."""
    known = {f"{ENV_PREFIX}{name.upper()}" for name in Config.model_fields if name not in ("root", "file")}
    for name in os.environ:
        if name.startswith(ENV_PREFIX) and "__" not in name and name not in known:
            near = get_close_matches(name, known, n=1, cutoff=0.85)
            if near:
                raise ConfigError(f"Unknown environment variable {name}. Did you mean {near[0]}?")
    values = EnvSettingsSource(Config)()
    return {key: value for key, value in values.items() if key not in ("root", "file")}


def _merged(*layers: dict[str, Any]) -> dict[str, Any]:
    """Later layers win; tables are merged key by key."""
    result: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            old = result.get(key)
            result[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def _resolve_paths(values: dict[str, Any], root: Path) -> None:
    values["state_dir"] = root / Path(values.get("state_dir", Config.model_fields["state_dir"].default)).expanduser()
    if isinstance(values.get("join_store"), str):
        values["join_store"] = root / Path(values["join_store"]).expanduser()
    models = {}
    for name, given in values.get("models", {}).items():
        model = {"name": name} | dict(given)
        for key in ("contract", "profile", "reference"):
            if isinstance(model.get(key), str):
                model[key] = root / Path(model[key]).expanduser()
        labeling = model.get("labeling", {})
        if isinstance(labeling, dict) and "audit_share" in values:
            model["labeling"] = {"audit_share": values["audit_share"]} | labeling
        models[name] = model
    values["models"] = models
    notifiers = {name: dict(given) for name, given in values.get("notify", {}).items()}
    for notifier in notifiers.values():
        if isinstance(notifier.get("path"), str):
            notifier["path"] = root / Path(notifier["path"]).expanduser()
    values["notify"] = notifiers


def _near(key: str, known: list[str]) -> str:
    near = get_close_matches(key, known, n=1, cutoff=0.5)
    return f" Did you mean '{near[0]}'?" if near else ""


def _keys_at(place: tuple[Any, ...]) -> list[str]:
    """The known keys of the table that holds the last element of a place."""
    model: Any = Config
    steps = place[:-1]
    if steps and steps[0] in KEYED:
        model, steps = {"models": ModelConfig, "notify": NotifierConfig}[steps[0]], steps[2:]
    for step in steps:
        field = getattr(model, "model_fields", {}).get(step)
        model = field.annotation if field else None
    fields = getattr(model, "model_fields", {})
    return [field.alias or name for name, field in fields.items() if name not in ("root", "file", "name")]


def _explain(error: ValidationError, file: Path | None) -> str:
    lines = []
    for problem in error.errors(include_url=False):
        place = problem["loc"]
        name = ".".join(str(step) for step in place)
        shown = name if place and place[0] in KEYED else f"flywheel.{name}"
        if problem["type"] == "extra_forbidden":
            lines.append(f"unknown key '{shown}'.{_near(str(place[-1]), _keys_at(place))}")
        elif problem["type"] == "missing":
            lines.append(f"'{shown}' is missing.")
        else:
            lines.append(f"'{shown}': {problem['msg'].removeprefix('Value error, ')}.")
    return f"{file or 'The configuration'}: " + " ".join(lines)


def toml_schema() -> dict[str, Any]:
    """The JSON Schema of ``flywheel.toml``."""
    schema = Config.model_json_schema(by_alias=True)
    definitions: dict[str, Any] = schema.pop("$defs", {})
    settings = {name: text for name, text in schema["properties"].items() if name not in ("root", "file", *KEYED)}
    model = definitions["ModelConfig"]
    model["properties"].pop("name")
    model["required"].remove("name")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": FILE_NAME,
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "flywheel": {"type": "object", "additionalProperties": False, "properties": settings},
            "models": {"type": "object", "additionalProperties": {"$ref": "#/$defs/ModelConfig"}},
            "notify": {"type": "object", "additionalProperties": {"$ref": "#/$defs/NotifierConfig"}},
        },
        "$defs": definitions,
    }


def config_to_json(config: Config, **changes: Any) -> str:
    """The configuration with its secrets, for a child process's stdin; never for a file or a log."""
    document = config.model_copy(update=changes).model_dump(by_alias=True)

    def plain(value: Any) -> str:
        return value.get_secret_value() if isinstance(value, SecretStr) else str(value)

    return json.dumps(document, default=plain)


def config_from_json(text: str) -> Config:
    """The inverse of :func:`config_to_json`."""
    return Config(**json.loads(text))
