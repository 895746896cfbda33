"""The one place where the parts of a running worker are put together; agents and pages are handed this, no globals."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import sqlalchemy as sa

from labeling.store import LabelStore
from retrain.artifacts import load_artifact
from retrain.paths import Paths
from retrain.predictor import Predictor
from retrain.registry import Registry as ModelRegistry
from retrain.registry import Version
from schemas.database import open_database, read
from schemas.errors import ConfigError
from schemas.registry import Codec, Registry
from schemas.times import SECOND_US
from streams.config import Config
from streams.plane.memory import MIB, Memory
from streams.plane.plan import ModelPlan
from streams.plane.settings import PlaneSettings
from streams.registry import open_registry, register_schemas
from streams.tables import source_partition


@dataclass
class Runtime:
    """Configuration, stores and connections of one worker."""

    config: Config
    bootstrap: str
    cluster: str
    is_embedded: bool
    engine: sa.Engine
    registry: Registry
    ids: Mapping[str, int]
    plans: Mapping[str, ModelPlan]
    _predictors: dict[str, Predictor] = field(default_factory=dict)

    @classmethod
    def open(cls, config: Config, bootstrap: str, cluster: str, *, is_embedded: bool) -> Runtime:
        """Open the database and the registry, and check every model's contract, profile and rules."""
        config.state_dir.mkdir(parents=True, exist_ok=True)
        engine = open_database(config.database_url)
        registry = open_registry(config)
        plans = {name: plan_of(config, name) for name in config.models}
        ids = register_schemas(registry, [plan.contract for plan in plans.values()])
        return cls(config, bootstrap, cluster, is_embedded, engine, registry, ids, plans)

    @cached_property
    def codec(self) -> Codec:
        """Encodes and decodes the control plane's events."""
        return Codec(self.registry)

    @cached_property
    def paths(self) -> Paths:
        """Folders of archive, datasets and artifacts."""
        return Paths(self.config.state_dir)

    @cached_property
    def models(self) -> ModelRegistry:
        """The model registry."""
        return ModelRegistry(self.engine)

    @cached_property
    def label_stores(self) -> dict[str, LabelStore]:
        """The labeling store of every model."""
        return {
            name: LabelStore(self.engine, name, self.config.model(name).labeling, contract=plan.contract)
            for name, plan in self.plans.items()
        }

    def predictor(self, version: Version) -> Predictor:
        """A registered version, loaded once."""
        if version.artifact_sha256 not in self._predictors:
            path = self.paths.root / version.path
            self._predictors[version.artifact_sha256] = load_artifact(
                path, version.artifact_sha256, key=self.paths.key()
            )
        return self._predictors[version.artifact_sha256]

    def plane_settings(self, *, accepts_loss: bool) -> PlaneSettings:
        """What the data plane needs of the configuration."""
        c = self.config
        rules = {name: dict(plan.rules) for name, plan in self.plans.items()}
        shares = {name: plan.audit_share for name, plan in self.plans.items()}
        text = json.dumps([rules, shares], sort_keys=True)
        return PlaneSettings(
            cluster=self.cluster,
            is_embedded=self.is_embedded,
            archive_dir=c.archive_dir,
            join_dir=c.join_dir,
            policy=hashlib.sha256(text.encode()).hexdigest()[:16],
            segment_records=c.segment_records,
            batch_records=c.batch_records,
            summary_interval_ms=c.summary_interval_ms,
            archive_interval_ms=c.archive_interval_ms,
            order_slack_ms=c.order_slack_ms,
            join_horizon_s=c.join_horizon_s,
            memory=Memory(c.memory_mb * MIB),
            disorder_ms=c.disorder_ms,
            future_skew_ms=c.future_skew_ms,
            emit_outcomes=c.emit_outcomes,
            accepts_loss=accepts_loss,
            earlier=self._earlier_logs() if self.is_embedded else {},
        )

    def _earlier_logs(self) -> dict[tuple[str, str, int], int]:
        """Where the logs of earlier embedded brokers end, as far as they were merged."""
        with read(self.engine) as connection:
            rows = connection.execute(sa.select(source_partition).where(source_partition.c.cluster != self.cluster))
            return {(row.cluster, row.topic, row.partition): row.end for row in rows}


def plan_of(config: Config, name: str) -> ModelPlan:
    """The plan of a configured model."""
    model = config.model(name)
    timeout_s = model.contract.target.truth_timeout_s
    if timeout_s is not None and timeout_s >= config.join_horizon_s:
        raise ConfigError(
            f"A truth of '{name}' may come until {timeout_s} s after it is due (truth_timeout_s), but predictions are "
            f"remembered for {config.join_horizon_s} s only (join_horizon_s).",
            action="Set a longer join_horizon_s in flywheel.toml.",
        )
    return ModelPlan(
        model.contract, model.profile, dict(model.failures), config.window_s * SECOND_US, model.labeling.audit_share
    )


def as_json(value: Any) -> str:
    """Canonical JSON text of evidence."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
