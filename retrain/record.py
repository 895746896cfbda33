"""How a run is written down: its begin, its datasets and candidates, and the one transaction at its end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import polars as pl
import sqlalchemy as sa

from retrain import lease as leases
from retrain import triggers
from retrain.cases import add_cases
from retrain.labels import LabelFacts
from retrain.launch import FitResult
from retrain.manifest import ROWS, Manifest
from retrain.paths import Paths
from retrain.policy import RetrainPolicy
from retrain.provenance import code_version
from retrain.recipes import Proposal, serving_constants
from retrain.registry import APPROVED, CHAMPION, Version, add_version, move_alias, next_number
from retrain.report import write_report
from retrain.request import PROMOTED, CandidateResult, RunRequest, RunResult
from retrain.tables import dataset, retrain_decision, retrain_run, run_candidate
from retrain.tournament import Challenger
from schemas.contract import Contract
from schemas.database import write


@dataclass(frozen=True)
class Known:
    """What the database says when a run begins."""

    facts: LabelFacts
    champion: Version | None
    proposals: tuple[Proposal, ...]

    @property
    def boundaries(self) -> tuple[int, ...]:
        """Changes of meaning that the champion tells apart."""
        return self.champion.boundaries if self.champion else ()


class RunRecord:
    """One run's rows in the database and its reports on disk."""

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
        self.known = Known(LabelFacts(), None, ())
        self.lease: leases.Lease
        self.began_us = 0

    @property
    def run_id(self) -> str:
        """Name of the run."""
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
                    detail=self._detail(),
                )
            )

    def _detail(self) -> dict[str, Any]:
        return {"labels": self.request.labels, "actor": self.request.actor, "code": code_version()}

    def add_dataset(self, manifest: Manifest) -> None:
        """Register the run's dataset."""
        self.manifest = manifest
        with write(self.engine) as connection:
            leases.check(connection, self.lease)
            add_dataset(connection, self.paths, manifest, self.clock())
            connection.execute(
                sa.update(retrain_run).where(retrain_run.c.run_id == self.run_id).values(dataset=manifest.hash)
            )

    def report(self, challenger: Challenger) -> None:
        """Write the gate's report about a challenger."""
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
                detail=self._detail() | {"outcome": reason, "warnings": list(warnings)},
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
