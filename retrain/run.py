"""One retraining run, from the lease to the promoted or refused version.

A run can be killed at any moment. What it wrote so far is content-addressed (dataset, fits, artifacts), so the next run
finds the parts and does not compute them again; its row is closed as ``dead`` by whoever claims the lease next; and
nothing of it is visible to serving before the one transaction at its end, which registers the version, moves the alias,
and puts the events into the outbox.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import polars as pl
import sqlalchemy as sa

from retrain import lease as leases
from retrain.artifacts import ArtifactStore
from retrain.cases import case_rows, write_cases
from retrain.dataset import DatasetRequest, build_dataset
from retrain.errors import DatasetRefusedError, LeaseLostError, TrainerFailedError
from retrain.labels import load_facts
from retrain.launch import FitResult
from retrain.manifest import ROWS, Manifest
from retrain.paths import Paths
from retrain.policy import RetrainPolicy
from retrain.recipes import Recipe, candidates, parse_recipe, unsolved
from retrain.record import Known, RunRecord
from retrain.registry import current, find_version
from retrain.request import FAILED, MANUAL, PASSED, PROMOTED, REFUSED, CandidateResult, RunRequest, RunResult
from retrain.tournament import Challenger, Setting, Tournament, winner
from schemas.contract import Contract
from schemas.database import read
from schemas.errors import FlywheelError
from schemas.times import now_us

__all__ = ["CandidateResult", "RunRequest", "RunResult", "run_retrain"]


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


class _Run(RunRecord):
    """The work of a run; what is written down stands in its base."""

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
                self.report(challenger)
            best = winner(self.challengers)
            if best is None:
                return self.end(REFUSED, self._refusal())
            return self._crown(tournament, best)

    def _look(self) -> Known:
        with read(self.engine) as connection:
            facts = load_facts(connection, self.model)
            name = current(connection, self.model)
            champion = find_version(connection, self.model, name) if name else None
        known = champion.boundaries if champion else ()
        return Known(facts, champion, unsolved(facts.proposals, known))

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
        self.add_dataset(manifest)
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
