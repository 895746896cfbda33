"""One retraining run, from the lease to the promoted or refused version.

A run can be killed at any moment. What it wrote so far is content-addressed (dataset, fits, artifacts), so the next run
finds the parts and does not compute them again; its row is closed as ``dead`` by whoever claims the lease next; and
nothing of it is visible to serving before the one transaction at its end, which registers the version, moves the alias,
and puts the events into the outbox.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import sqlalchemy as sa

from retrain import lease as leases
from retrain import triggers
from retrain.artifacts import ArtifactStore
from retrain.cases import add_cases, case_rows, write_cases
from retrain.dataset import DatasetRequest, build_dataset
from retrain.errors import DatasetRefusedError, LeaseLostError, TrainerFailedError
from retrain.joined import Ends
from retrain.labels import LabelFacts, load_facts
from retrain.launch import FitResult
from retrain.manifest import ROWS, Manifest
from retrain.paths import Paths
from retrain.policy import RetrainPolicy
from retrain.recipes import Incident, Proposal, Recipe, candidates, parse_recipe, serving_constants
from retrain.registry import (
    APPROVED,
    CHAMPION,
    Version,
    add_version,
    current,
    find_version,
    move_alias,
    next_number,
)
from retrain.report import write_report
from retrain.tables import dataset, retrain_decision, retrain_run, run_candidate
from retrain.tournament import Challenger, Setting, Tournament, winner
from schemas.contract import Contract
from schemas.database import read, write
from schemas.errors import FlywheelError
from schemas.times import now_us

ACTOR = "flywheel"
MANUAL = "manual"
PROMOTED, PASSED, REFUSED, FAILED = "promoted", "passed", "refused", "failed"


@dataclass(frozen=True)
class RunRequest:
    """What is asked of a run.

    Parameters
    ----------
    ends
        How far the topics are read, see :func:`retrain.joined.archive_ends`.
    as_of_us
        Event time: what came later does not exist yet. It is also the time of the promotion.
    incidents
        Stretches in which something was wrong: an open one brings a recipe, all of them are kept out of the floor.
    recipes
        Instead of the policy's and those that follow from proposals and incidents.
    labels
        Truths and answers so far, kept for the next decision.
    decision_id
        The audit row that asked for it; without one the run writes its own.
    """

    trigger: str
    reason: str
    as_of_us: int
    ends: Ends
    incidents: tuple[Incident, ...] = ()
    recipes: tuple[Recipe, ...] | None = None
    gate_table: Path | None = None
    labels: int = 0
    decision_id: int | None = None
    actor: str = ACTOR
    promote: bool = True


@dataclass(frozen=True)
class CandidateResult:
    """One recipe's line in the table of a run."""

    recipe: str
    verdict: str
    reason: str
    metrics: dict[str, Any]
    seconds: float
    report: str


@dataclass(frozen=True)
class RunResult:
    """How a run ended: ``promoted``, ``passed`` (and not asked to promote), ``refused`` or ``failed``."""

    run_id: str
    model: str
    state: str
    reason: str
    dataset: str | None
    candidates: tuple[CandidateResult, ...]
    version: str | None
    champion_before: str | None
    champion_after: str | None
    seconds: float
    warnings: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """As a JSON document."""
        return asdict(self)


@dataclass(frozen=True)
class _Known:
    """What the database says when a run begins."""

    facts: LabelFacts
    champion: Version | None
    proposals: tuple[Proposal, ...]

    @property
    def boundaries(self) -> tuple[int, ...]:
        return self.champion.boundaries if self.champion else ()


def run_retrain(
    engine: sa.Engine,
    paths: Paths,
    contract: Contract,
    policy: RetrainPolicy,
    request: RunRequest,
    clock: Callable[[], int] = now_us,
) -> RunResult:
    """Build the dataset, let the recipes compete, and promote the winner if one passed the gate.

    Parameters
    ----------
    clock
        Processing time; only leases and the times of rows depend on it.

    Raises
    ------
    RunInProgressError
        If another run of the model is under way.
    LeaseLostError
        If another process took this run over.
    """
    run = _Run(engine, paths, contract, policy, request, clock)
    run.begin()
    with leases.kept(engine, run.lease, clock):
        try:
            return run.work()
        except LeaseLostError:
            raise
        except FlywheelError as error:
            return run.end(FAILED, str(error))
        except BaseException as error:
            run.end(FAILED, f"{type(error).__name__}: {error}")
            raise


class _Run:
    def __init__(
        self,
        engine: sa.Engine,
        paths: Paths,
        contract: Contract,
        policy: RetrainPolicy,
        request: RunRequest,
        clock: Callable[[], int],
    ) -> None:
        self.engine, self.paths, self.contract, self.policy = engine, paths, contract, policy
        self.request, self.clock = request, clock
        self.model = contract.model
        self.manifest: Manifest | None = None
        self.challengers: list[Challenger] = []
        self.reports: dict[str, str] = {}
        self.known = _Known(LabelFacts(), None, ())
        self.lease: leases.Lease
        self.began_us = 0

    @property
    def run_id(self) -> str:
        return self.lease.run_id

    def begin(self) -> None:
        """Claim the lease, open the run's row and link it to its decision, in one transaction."""
        request, model = self.request, self.model
        self.began_us = self.clock()
        with write(self.engine) as connection:
            count = sa.select(sa.func.count()).select_from(retrain_run).where(retrain_run.c.model == model)
            run_id = f"{model}-r{int(connection.execute(count).scalar_one()) + 1}"
            self.lease, _dead = leases.claim(connection, model, run_id, self.began_us)
            decision_id = request.decision_id
            if decision_id is None:
                decision = triggers.Decision(True, request.trigger, request.reason, {"actor": request.actor})
                decision_id = triggers.write_decision(connection, model, decision, request.as_of_us)
            connection.execute(
                sa.update(retrain_decision).where(retrain_decision.c.id == decision_id).values(run_id=run_id)
            )
            connection.execute(
                sa.insert(retrain_run).values(
                    run_id=run_id,
                    model=model,
                    trigger=request.trigger,
                    reason=request.reason,
                    state="running",
                    as_of_us=request.as_of_us,
                    started_us=self.began_us,
                    detail={"labels": request.labels, "actor": request.actor},
                )
            )

    def work(self) -> RunResult:
        """Everything between the lease and the end."""
        self.known = self._look()
        recipes = self._recipes()
        manifest = self._dataset(recipes)
        with read(self.engine) as connection:
            rows = pl.read_parquet(self.paths.dataset(manifest.hash) / ROWS)
            cases = case_rows(connection, self.contract, rows, self.known.facts)
        setting = Setting(
            paths=self.paths,
            contract=self.contract,
            policy=self.policy,
            manifest=manifest,
            recipes=recipes,
            champion=self.known.champion,
            incidents=self.request.incidents,
            cases=write_cases(cases, self.paths.run(self.run_id)),
            boundaries=self.known.boundaries,
        )
        if self._is_all_known(rows, recipes):
            days = manifest.document["split"]["holdout_days"]
            return self.end(
                REFUSED,
                f"the champion knows every row but those of the {days} days that are held out: "
                "train less often, or hold out fewer days",
            )
        with Tournament(setting) as tournament:
            self.challengers = tournament.compete()
            for challenger in self.challengers:
                self._report(challenger)
            best = winner(self.challengers)
            if best is None:
                return self.end(REFUSED, self._refusal())
            return self._crown(tournament, best)

    def _look(self) -> _Known:
        with read(self.engine) as connection:
            facts = load_facts(connection, self.model)
            name = current(connection, self.model)
            champion = find_version(connection, self.model, name) if name else None
        known = champion.boundaries if champion else ()
        return _Known(facts, champion, tuple(p for p in facts.proposals if p.from_us not in known))

    def _recipes(self) -> tuple[Recipe, ...]:
        if self.request.recipes:
            return self.request.recipes
        standing = [parse_recipe(name) for name in self.policy.recipes]
        return candidates(standing, self.known.proposals, self.request.incidents, self.request.as_of_us)

    def _dataset(self, recipes: tuple[Recipe, ...]) -> Manifest:
        champion, policy = self.known.champion, self.policy
        base = self.paths.root / champion.base_table if champion and champion.base_table else None
        request = DatasetRequest(
            contract=self.contract,
            ends=self.request.ends,
            as_of_us=self.request.as_of_us,
            recipes=recipes,
            facts=self.known.facts,
            base=base,
            gate_table=self.request.gate_table,
            boundaries=self.known.boundaries,
            holdout_days=policy.holdout_days,
            seed=policy.seed,
            actor_share_max=policy.actor_share_max,
            leak_auc_max=policy.leak_auc_max,
        )
        manifest = build_dataset(self.paths, request)
        self.manifest = manifest
        with write(self.engine) as connection:
            leases.check(connection, self.lease)
            add_dataset(connection, self.paths, manifest, self.clock())
            connection.execute(
                sa.update(retrain_run).where(retrain_run.c.run_id == self.run_id).values(dataset=manifest.hash)
            )
        if manifest.failed_checks:
            told = "; ".join(check["reason"] for check in manifest.failed_checks)
            raise DatasetRefusedError(f"The dataset did not pass its own checks: {told}.")
        few = manifest.counts.get("train", 0)
        if few < policy.min_train_rows:
            raise DatasetRefusedError(
                f"There are {few} training rows, {policy.min_train_rows} are needed.", action="Wait for more feedback."
            )
        return manifest

    def _is_all_known(self, rows: pl.DataFrame, recipes: tuple[Recipe, ...]) -> bool:
        """Whether a training that nobody asked for would only make the champion again: nothing to be judged."""
        champion = self.known.champion
        if champion is None or self.request.trigger == MANUAL or champion.trainer != self.policy.trainer:
            return False
        newer = rows.filter(pl.col("@split") == "train", pl.col("event_time") > champion.trained_until_us)
        return newer.is_empty() and all(recipe.kind == "mixed" for recipe in recipes)

    def _report(self, challenger: Challenger) -> None:
        if challenger.report is None:
            return
        champion, manifest = self.known.champion, self.manifest
        head = {
            "run_id": self.run_id,
            "model": self.model,
            "recipe": challenger.recipe.name,
            "dataset": manifest.hash if manifest else None,
            "champion": champion.version if champion else None,
            "as_of_us": self.request.as_of_us,
        }
        name = f"gate-{len(self.reports) + 1}-{challenger.recipe.kind}"
        path = write_report(self.paths.run(self.run_id), name, challenger.report, head)
        self.reports[challenger.recipe.name] = self.paths.relative(path)

    def _refusal(self) -> str:
        return "; ".join(f"{c.recipe.kind}: {c.verdict} ({c.reason})" for c in self.challengers)

    def _crown(self, tournament: Tournament, best: Challenger) -> RunResult:
        """Make the winner a version, trained once more with the held-out rows if the policy says so."""
        fit, warnings = best.fit, []
        assert fit is not None
        if self.policy.refit:
            try:
                fit = self._refit(tournament, best)
            except TrainerFailedError as error:
                warnings.append(f"the winner was not trained again, the judged one serves: {error}")
                fit = best.fit
        assert fit is not None
        ArtifactStore(self.paths).adopt(fit.folder / "artifact", fit.told["artifact_sha256"])
        return self.end(
            PROMOTED if self.request.promote else PASSED,
            f"{best.recipe.name}: {best.reason}",
            best=best,
            fit=fit,
            reference=tournament.reference(best.fit) if best.fit else {},
            cases=tournament.cases,
            warnings=tuple(warnings),
        )

    def _refit(self, tournament: Tournament, best: Challenger) -> FitResult:
        """Train the winner's recipe on all rows; it must have every case right that the judged one has right.

        Raises
        ------
        TrainerFailedError
            If it does not, or gives what is no number.
        """
        manifest = self.manifest
        assert manifest is not None
        fit = tournament.launcher.run(tournament.spec(best.recipe, ("train", "gate", "tail")), manifest.rows_sha256)
        numbers = fit.outputs().drop("prediction_id").to_numpy()
        if not np.isfinite(numbers).all():
            raise TrainerFailedError("Some of its predictions are not numbers.")
        cases, _fixed = tournament.case_results(fit)
        broken = [case.prediction_id for case in cases or () if not case.is_right]
        if cases is None or broken:
            raise TrainerFailedError(f"Fixed failures are back: {', '.join(broken[:3])}.")
        return fit

    def end(
        self,
        state: str,
        reason: str,
        *,
        best: Challenger | None = None,
        fit: FitResult | None = None,
        reference: dict[str, Any] | None = None,
        cases: pl.DataFrame | None = None,
        warnings: tuple[str, ...] = (),
    ) -> RunResult:
        """Close the run in one transaction: candidates, version, alias, events, lease."""
        champion = self.known.champion.version if self.known.champion else None
        version: str | None = None
        with write(self.engine) as connection:
            leases.check(connection, self.lease)
            for challenger in self.challengers:
                connection.execute(sa.insert(run_candidate).values(self._candidate_row(challenger)))
            if best is not None and fit is not None:
                made = self._version(connection, best, fit, reference or {})
                add_version(connection, made)
                version = made.version
                if state == PROMOTED:
                    self._promote(connection, made, best, cases, reason)
            self._close(connection, state, reason, champion, version, warnings)
            leases.release(connection, self.lease)
        return RunResult(
            run_id=self.run_id,
            model=self.model,
            state=state,
            reason=reason,
            dataset=self.manifest.hash if self.manifest else None,
            candidates=tuple(self._candidate(challenger) for challenger in self.challengers),
            version=version,
            champion_before=champion,
            champion_after=version if state == PROMOTED else champion,
            seconds=round((self.clock() - self.began_us) / 1e6, 3),
            warnings=warnings,
        )

    def _candidate(self, challenger: Challenger) -> CandidateResult:
        row = self._candidate_row(challenger)
        seconds = float(challenger.fit.told.get("seconds", 0.0)) if challenger.fit else 0.0
        return CandidateResult(
            row["recipe"], row["verdict"], row["reason"], row["metrics"], round(seconds, 3), row["report"]
        )

    def _candidate_row(self, challenger: Challenger) -> dict[str, Any]:
        metrics = challenger.report.to_json()["metrics"] if challenger.report else {}
        if challenger.fit:
            metrics["fit"] = {k: v for k, v in challenger.fit.told.items() if k not in {"constants", "versions"}}
        return {
            "run_id": self.run_id,
            "recipe": challenger.recipe.name,
            "verdict": challenger.verdict,
            "reason": challenger.reason,
            "metrics": metrics,
            "artifact_sha256": challenger.fit.told.get("artifact_sha256") if challenger.fit else None,
            "report": self.reports.get(challenger.recipe.name, ""),
        }

    def _version(
        self, connection: sa.Connection, best: Challenger, fit: FitResult, reference: dict[str, Any]
    ) -> Version:
        assert best.report is not None
        assert self.manifest is not None
        number, champion = next_number(connection, self.model), self.known.champion
        boundaries = best.recipe.boundaries(self.known.boundaries)
        sha256 = fit.told["artifact_sha256"]
        return Version(
            model=self.model,
            version=f"v{number}",
            number=number,
            artifact_sha256=sha256,
            path=self.paths.relative(self.paths.artifact(sha256)),
            dataset=self.manifest.hash,
            base_table=champion.base_table if champion else None,
            base_sha256=champion.base_sha256 if champion else None,
            parent=champion.version if champion else None,
            run_id=self.run_id,
            trainer=self.policy.trainer,
            recipe={"name": best.recipe.name},
            columns={"boundaries": list(boundaries)},
            constants=serving_constants(boundaries),
            gate=best.report.to_json() | {"judged_artifact_sha256": _judged(best), "report": self._path_of(best)},
            metrics=best.report.to_json()["metrics"]["challenger"] | {"rows": fit.told["rows"]},
            reference=reference,
            trained_until_us=int(fit.told["trained_until_us"]),
            approval=APPROVED,
            approval_reason=best.reason,
            created_us=self.clock(),
        )

    def _path_of(self, challenger: Challenger) -> str:
        return self.reports.get(challenger.recipe.name, "")

    def _promote(
        self, connection: sa.Connection, made: Version, best: Challenger, cases: pl.DataFrame | None, reason: str
    ) -> None:
        champion = self.known.champion
        move_alias(
            connection,
            self.model,
            made.version,
            alias=CHAMPION,
            actor=self.request.actor,
            reason=reason,
            evidence={"run_id": self.run_id, "dataset": made.dataset, "report": self._path_of(best)},
            time_us=self.request.as_of_us,
            expected=champion.version if champion else None,
        )
        if cases is not None:
            add_cases(
                connection,
                self.contract,
                cases,
                best.fixed,
                self.known.facts,
                failed_version=champion.version if champion else "",
                fixed_version=made.version,
                moment_us=self.clock(),
            )

    def _close(
        self,
        connection: sa.Connection,
        state: str,
        reason: str,
        champion: str | None,
        version: str | None,
        warnings: tuple[str, ...],
    ) -> None:
        finished = {"state": state, "version": version, "champion": champion, "warnings": list(warnings)}
        told = [{"recipe": c.recipe.name, "verdict": c.verdict, "reason": c.reason} for c in self.challengers]
        connection.execute(
            sa.update(retrain_run)
            .where(retrain_run.c.run_id == self.run_id)
            .values(
                state=state,
                finished_us=self.clock(),
                champion=champion,
                version=version,
                detail={
                    "labels": self.request.labels,
                    "actor": self.request.actor,
                    "outcome": reason,
                    "warnings": list(warnings),
                },
            )
        )
        triggers.tell(
            connection,
            "finished",
            self.model,
            self.request.trigger,
            reason,
            self.run_id,
            self.request.as_of_us,
            finished | {"candidates": told},
        )


def _judged(best: Challenger) -> str | None:
    return best.fit.told.get("artifact_sha256") if best.fit else None


def add_dataset(connection: sa.Connection, paths: Paths, manifest: Manifest, moment_us: int) -> None:
    """Register a dataset once."""
    known = sa.select(dataset.c.hash).where(dataset.c.hash == manifest.hash)
    if connection.execute(known).first() is None:
        connection.execute(
            sa.insert(dataset).values(
                hash=manifest.hash,
                model=manifest.document["model"],
                path=paths.relative(paths.dataset(manifest.hash)),
                rows=manifest.document["parquet"][ROWS]["rows"],
                as_of_us=manifest.document["as_of_us"],
                created_us=moment_us,
            )
        )
