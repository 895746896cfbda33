"""The first champion, trained from a table of past rows: there is nothing yet to be judged against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import polars as pl
import sqlalchemy as sa

from retrain import lease as leases
from retrain import triggers
from retrain.artifacts import ArtifactStore
from retrain.dataset import DatasetRequest, build_dataset, keep_table, standard_rows
from retrain.errors import DatasetRefusedError, TrainerFailedError
from retrain.folds import write_scores
from retrain.launch import FitResult
from retrain.manifest import Manifest
from retrain.metrics import auc, calibration_error
from retrain.paths import Paths
from retrain.policy import RetrainPolicy
from retrain.provenance import code_version
from retrain.recipes import mixed
from retrain.record import add_dataset
from retrain.registry import APPROVED, Version, add_version, current, move_alias, next_number
from retrain.request import ACTOR, FAILED, PROMOTED
from retrain.tables import retrain_run
from retrain.tournament import Setting, Tournament
from schemas.contract import Contract
from schemas.database import write
from schemas.errors import FlywheelError, UsageError
from schemas.times import DAY_US, now_us


def register_initial(
    engine: sa.Engine,
    paths: Paths,
    contract: Contract,
    policy: RetrainPolicy,
    table: pl.DataFrame,
    *,
    label: str = "label",
    time_column: str = "event_time",
    actor: str = ACTOR,
    reason: str = "the first version",
    clock: Callable[[], int] = now_us,
) -> Version:
    """Train on the whole table, measure on its newest days with a second fit, register and promote.

    The second fit sees only the rows before its held-out days: what it scores there is the version's reference
    quality, the floor of its first successor. The version's own rows become the base of later datasets.

    Raises
    ------
    UsageError
        If the table does not fit the contract, or the model has a champion already.
    RunInProgressError
        If a run of the model is under way.
    """
    rows = standard_rows(table, contract, label=label, time_column=time_column)
    if rows.height < policy.min_train_rows:
        raise UsageError(f"The table has {rows.height} rows, {policy.min_train_rows} are needed.")
    as_of_us = int(rows["event_time"].max()) + 1  # type: ignore[arg-type]
    model = contract.model
    with write(engine) as connection:
        if current(connection, model) is not None:
            raise UsageError(
                f"The model '{model}' has a champion already.",
                action="Train its successor with 'flywheel retrain run'.",
            )
        count = sa.select(sa.func.count()).select_from(retrain_run).where(retrain_run.c.model == model)
        run_id = f"{model}-r{int(connection.execute(count).scalar_one()) + 1}"
        lease, _dead = leases.claim(connection, model, run_id, clock())
        decision = triggers.Decision(True, "initial", reason, {"actor": actor, "rows": rows.height})
        triggers.write_decision(connection, model, decision, as_of_us)
        connection.execute(
            sa.insert(retrain_run).values(
                run_id=run_id,
                model=model,
                trigger="initial",
                reason=reason,
                state="running",
                as_of_us=as_of_us,
                started_us=clock(),
                detail={"labels": 0, "actor": actor, "code": code_version()},
            )
        )
    with leases.kept(engine, lease, clock):
        try:
            return _first(engine, paths, contract, policy, rows, lease, as_of_us, actor, reason, clock)
        except BaseException as error:
            with write(engine) as connection:
                _close(
                    connection, lease, FAILED, str(error) if isinstance(error, FlywheelError) else repr(error), clock
                )
            raise


def _first(
    engine: sa.Engine,
    paths: Paths,
    contract: Contract,
    policy: RetrainPolicy,
    rows: pl.DataFrame,
    lease: leases.Lease,
    as_of_us: int,
    actor: str,
    reason: str,
    clock: Callable[[], int],
) -> Version:
    place, sha256 = keep_table(rows, paths)
    span_us = as_of_us - int(rows["event_time"].min())  # type: ignore[arg-type]
    # As long as a healthy period, so that a quiet week is no floor; a short table holds out a third of its days.
    days = min(max(policy.holdout_days, policy.gate.healthy_days), span_us // DAY_US // 3)
    request = DatasetRequest(
        contract=contract,
        ends={},
        as_of_us=as_of_us,
        recipes=(mixed(),),
        base=place,
        base_holdout="rows" if policy.gate.block == "row" or days == 0 else "days",
        holdout_days=max(days, 1),
        seed=policy.seed,
        leak_auc_max=policy.leak_auc_max,
    )
    manifest = build_dataset(paths, request)
    if manifest.failed_checks:
        raise DatasetRefusedError("; ".join(check["reason"] for check in manifest.failed_checks))
    setting = Setting(paths, contract, policy, manifest, (mixed(),), None)
    with Tournament(setting) as tournament:
        fit, reference, metrics = _fit_both(tournament, manifest)
        if policy.gate.block == "day":
            write_scores(tournament, rows, paths, fit.told["artifact_sha256"])
    ArtifactStore(paths).adopt(fit.folder / "artifact", fit.told["artifact_sha256"])
    with write(engine) as connection:
        leases.check(connection, lease)
        add_dataset(connection, paths, manifest, clock())
        number = next_number(connection, contract.model)
        digest = fit.told["artifact_sha256"]
        version = Version(
            model=contract.model,
            version=f"v{number}",
            number=number,
            artifact_sha256=digest,
            path=paths.relative(paths.artifact(digest)),
            dataset=manifest.hash,
            base_table=paths.relative(place),
            base_sha256=sha256,
            parent=None,
            run_id=lease.run_id,
            trainer=policy.trainer,
            recipe={"name": mixed().name},
            columns={"boundaries": []},
            constants={},
            gate={"verdict": "none", "reason": "the first version: nothing was deployed to be judged against"},
            metrics=metrics | {"rows": fit.told["rows"]},
            reference=reference,
            trained_until_us=int(fit.told["trained_until_us"]),
            approval=APPROVED,
            approval_reason=f"registered by {actor} as the first version",
            created_us=clock(),
        )
        add_version(connection, version)
        evidence = {"run_id": lease.run_id, "dataset": manifest.hash}
        move_alias(
            connection,
            contract.model,
            version.version,
            actor=actor,
            reason=reason,
            evidence=evidence,
            time_us=as_of_us,
            expected=None,
        )
        values = {"dataset": manifest.hash, "version": version.version}
        connection.execute(sa.update(retrain_run).where(retrain_run.c.run_id == lease.run_id).values(values))
        _close(connection, lease, PROMOTED, reason, clock)
    return version


def _fit_both(tournament: Tournament, manifest: Manifest) -> tuple[FitResult, dict[str, Any], dict[str, Any]]:
    """The version that will serve, and what a fit without the newest days scored on them."""
    serving = tournament.spec(mixed(), ("train", "gate"))
    specs = [serving]
    if not tournament.gate_rows.is_empty():
        specs.append(replace(serving, splits=("train",)))
    found = tournament.launcher.run_all(specs, manifest.rows_sha256)
    if isinstance(found[0], TrainerFailedError):
        raise found[0]
    if len(found) < 2 or isinstance(found[1], TrainerFailedError):
        return found[0], {}, {}
    return found[0], tournament.reference(found[1]), _figures(tournament, found[1])


def _figures(tournament: Tournament, held_out: FitResult) -> dict[str, Any]:
    """Quality of the fit that did not see the newest days, on them."""
    judged = tournament.judged(held_out)
    weights = tournament.gate_rows["@weight"].to_numpy()
    told = {
        "held_out_rows": len(judged.loss),
        "log_loss": float(judged.loss.mean()),
        "accuracy": float(judged.is_right.mean()),
        "bias": float((judged.predicted - judged.observed).mean()),
        "ece": calibration_error(judged, weights, tournament.setting.policy.gate.ece_bins),
    }
    if tournament.setting.contract.target.kind == "binary":
        told["auc"] = auc(tournament.gate_rows["@y"].to_numpy(), judged.predicted)
    return {name: round(value, 6) for name, value in told.items()}


def _close(connection: sa.Connection, lease: leases.Lease, state: str, reason: str, clock: Callable[[], int]) -> None:
    connection.execute(
        sa.update(retrain_run)
        .where(retrain_run.c.run_id == lease.run_id)
        .values(state=state, finished_us=clock(), detail={"labels": 0, "outcome": reason, "code": code_version()})
    )
    leases.release(connection, lease)
