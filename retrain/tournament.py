"""Recipes compete: all are trained from one dataset, all are judged on the same held-out rows against the champion."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from retrain.errors import TrainerFailedError
from retrain.gate import Case, Evidence, Healthy, Report, evaluate
from retrain.joined import BASE
from retrain.launch import OUTPUT, FitResult, Launcher
from retrain.manifest import ROWS, Manifest
from retrain.metrics import Judged, Numbers, judge, judge_scores
from retrain.paths import Paths
from retrain.policy import RetrainPolicy
from retrain.recipes import Incident, Recipe, change_us
from retrain.registry import Version
from retrain.train import Spec
from schemas.contract import Contract
from schemas.times import DAY_US, format_us

ID = "prediction_id"


@dataclass(frozen=True)
class Challenger:
    """One recipe's outcome; ``report`` is None when the trainer failed."""

    recipe: Recipe
    verdict: str
    reason: str
    report: Report | None = None
    fit: FitResult | None = None
    fixed: tuple[str, ...] = ()
    """Reviewed failures of the champion that it has right."""

    @property
    def loss(self) -> float:
        """Log loss on the held-out rows, by which the winner is chosen."""
        assert self.report is not None
        return float(self.report.metrics["challenger"]["log_loss"])


@dataclass(frozen=True)
class Setting:
    """What a tournament works on."""

    paths: Paths
    contract: Contract
    policy: RetrainPolicy
    manifest: Manifest
    recipes: tuple[Recipe, ...]
    champion: Version | None
    incidents: tuple[Incident, ...] = ()
    cases: Path | None = None
    boundaries: tuple[int, ...] = field(default=())


class Tournament:
    """Fits, judges and compares the recipes of one run; a context manager, which ends its subprocesses."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        policy = setting.policy
        self.launcher = Launcher(
            setting.paths,
            time_limit_s=policy.time_limit_s,
            memory_limit_mb=policy.memory_limit_mb,
            parallel=policy.parallel,
        )
        self.rows_path = setting.paths.dataset(setting.manifest.hash) / ROWS
        self.rows = pl.read_parquet(self.rows_path)
        self.gate_rows = self.rows.filter(pl.col("@split") == "gate")
        train = self.rows.filter(pl.col("@split") == "train")
        self.train_y = train["@y"].to_numpy()
        deviation = float(np.std(self.train_y))
        self.scale = deviation if setting.contract.target.kind == "regression" and deviation > 0 else 1.0
        self.cases = pl.read_parquet(setting.cases) if setting.cases else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.launcher.__exit__()

    def compete(self) -> list[Challenger]:
        """Train and judge every recipe."""
        recipes = self.setting.recipes
        score = self._score_spec() if not self._is_served_by_champion() else None
        specs = [self.spec(recipe) for recipe in recipes] + ([score] if score else [])
        results = self.launcher.run_all(specs, self.setting.manifest.rows_sha256)
        champion = self._champion(results[len(recipes)] if score else None)
        return [self._judged(recipe, found, champion) for recipe, found in zip(recipes, results, strict=False)]

    def spec(self, recipe: Recipe, splits: tuple[str, ...] = ("train",)) -> Spec:
        """How a recipe is trained; with ``splits`` of both kinds, as the version that will serve."""
        setting, policy = self.setting, self.setting.policy
        champion = setting.champion
        goes_on = policy.trainer == "river_online" and champion is not None and champion.trainer == policy.trainer
        return Spec(
            job="fit",
            rows=str(self.rows_path),
            out="",
            key_file=self._key_file(),
            kinds=tuple((f.name, f.kind) for f in setting.contract.fields),
            target=self._target(),
            memory_limit_bytes=0,
            trainer=policy.trainer,
            params=dict(policy.params),
            seed=policy.seed,
            splits=splits,
            recipe=recipe.name,
            boundaries=recipe.boundaries(setting.boundaries),
            is_weighted=policy.weighting == "inverse",
            parent=self._artifact(champion) if goes_on and champion else None,
            parent_until_us=champion.trained_until_us if goes_on and champion else None,
            cases=str(setting.cases) if setting.cases else None,
        )

    def _score_spec(self) -> Spec | None:
        champion = self.setting.champion
        if champion is None or self.gate_rows.is_empty():
            return None
        return Spec(
            job="score",
            rows=str(self.rows_path),
            out="",
            key_file=self._key_file(),
            kinds=tuple((f.name, f.kind) for f in self.setting.contract.fields),
            target=self._target(),
            memory_limit_bytes=0,
            boundaries=champion.boundaries,
            parent=self._artifact(champion),
        )

    def _key_file(self) -> str:
        self.setting.paths.key()
        return str(self.setting.paths.root / "keys" / "artifact.key")

    def _target(self) -> dict[str, Any]:
        target: dict[str, Any] = json.loads(json.dumps(asdict(self.setting.contract.target)))
        return target

    def _artifact(self, version: Version) -> tuple[str, str]:
        return str(self.setting.paths.artifact(version.artifact_sha256)), version.artifact_sha256

    def _is_served_by_champion(self) -> bool:
        """Whether the log already holds what the champion answered on every held-out row."""
        if self.setting.contract.target.kind == "multiclass":  # the log holds one label's confidence, not all
            return False
        champion, rows = self.setting.champion, self.gate_rows
        if rows.is_empty() or rows["served_score"].null_count():
            return False
        return champion is None or bool((rows["served_version"] == champion.version).all())

    def _champion(self, scored: FitResult | TrainerFailedError | None) -> Judged | None:
        rows = self.gate_rows
        if isinstance(scored, FitResult):
            return self._outputs_judged(scored.outputs())
        if rows.is_empty() or scored is not None:
            return None
        return self._served_judged(rows)

    def _served_judged(self, rows: pl.DataFrame) -> Judged | None:
        """The answers in the log, judged; None where they are not all there."""
        kind, y = self.setting.contract.target.kind, rows["@y"].to_numpy()
        if rows["served_score"].null_count():
            return None
        scores = rows["served_score"].to_numpy()
        if kind == "binary":
            return judge_scores(scores, y)
        if kind == "regression":
            return judge(scores.reshape(-1, 1), y, self.setting.contract.target, self.scale)
        if rows["served_label"].null_count():
            return None
        return judge(self._spread(rows["served_label"], scores), y, self.setting.contract.target)

    def _spread(self, labels: pl.Series, confidence: Numbers) -> Numbers:
        """Probabilities from one label's confidence: what it leaves is shared evenly by the others."""
        names = self.setting.contract.target.labels
        numbers = {name: at for at, name in enumerate(names)}
        told = labels.replace_strict(numbers, default=0, return_dtype=pl.Int64).to_numpy()
        out = np.repeat(((1 - confidence) / (len(names) - 1)).reshape(-1, 1), len(names), axis=1)
        out[np.arange(len(told)), told] = confidence
        return out

    def judged(self, found: FitResult) -> Judged:
        """A fit's predictions of the held-out rows, judged."""
        return self._outputs_judged(found.outputs())

    def _outputs_judged(self, outputs: pl.DataFrame) -> Judged:
        numbers = outputs.select(pl.selectors.starts_with(OUTPUT)).to_numpy()
        assert outputs[ID].equals(self.gate_rows[ID]), "the trainer scored other rows"
        return judge(numbers, self.gate_rows["@y"].to_numpy(), self.setting.contract.target, self.scale)

    def _judged(self, recipe: Recipe, found: FitResult | TrainerFailedError, champion: Judged | None) -> Challenger:
        if isinstance(found, TrainerFailedError):
            return Challenger(recipe, "error", str(found))
        cases, fixed = self.case_results(found)
        evidence = Evidence(
            challenger=self._outputs_judged(found.outputs()),
            champion=champion,
            majority=self._majority(),
            y=self.gate_rows["@y"].to_numpy(),
            weights=self.gate_rows["@weight"].to_numpy(),
            blocks=self.gate_rows["@day"].to_numpy().astype(np.int64),
            slices=self._slices(),
            healthy=self.healthy(),
            cases=cases,
            is_binary=self.setting.contract.target.kind == "binary",
        )
        report = evaluate(self.setting.policy.gate, evidence, self.setting.policy.seed)
        return Challenger(recipe, report.verdict, report.reason, report, found, fixed)

    def _majority(self) -> Judged | None:
        """Always telling the shares of the training rows' labels (or their mean)."""
        target, n = self.setting.contract.target, self.gate_rows.height
        if not len(self.train_y):
            return None
        y = self.gate_rows["@y"].to_numpy()
        if target.kind == "binary":
            return judge_scores(np.full(n, self.train_y.mean()), y)
        if target.kind == "regression":
            return judge(np.full((n, 1), self.train_y.mean()), y, target, self.scale)
        shares = np.bincount(self.train_y.astype(np.int64), minlength=len(target.labels)) / len(self.train_y)
        return judge(np.tile(shares, (n, 1)), y, target)

    def _slices(self) -> dict[str, NDArray[np.bool_]]:
        rows = self.gate_rows
        return {
            s.name: (rows[s.field] == s.value).fill_null(value=False).to_numpy() for s in self.setting.contract.slices()
        }

    def case_results(self, found: FitResult) -> tuple[list[Case] | None, tuple[str, ...]]:
        """Fixed failures with whether they still are right, and the ids of reviewed ones that now are right."""
        if self.cases is None:
            return [], ()
        outputs = found.cases()
        if outputs is None:
            return None, ()
        numbers = outputs.select(pl.selectors.starts_with(OUTPUT)).to_numpy()
        right = judge(numbers, self.cases["@y"].to_numpy(), self.setting.contract.target, self.scale).is_right
        ids, was_fixed = self.cases[ID].to_list(), self.cases["@is_fixed"].to_list()
        told = list(zip(ids, was_fixed, right.tolist(), strict=True))
        fixed = tuple(name for name, before, now in told if now and not before)
        return [Case(name, now) for name, before, now in told if before], fixed

    def healthy(self) -> Healthy | None:
        """The deployed model's loss by day in the last healthy period, from the log, else from its approval."""
        setting, gate = self.setting, self.setting.policy.gate
        ends = [setting.manifest.document["split"]["held_out_from_us"]]
        ends += [change for change in (change_us(setting.recipes),) if change is not None]
        ends += [incident.start_us for incident in setting.incidents if incident.end_us is None]
        end = min(ends)
        start = end - gate.healthy_days * DAY_US
        time = pl.col("event_time")
        rows = self.rows.filter(
            pl.col("@split") == "train",
            pl.col("@source") != BASE,
            time.is_between(start, end, closed="left"),
            pl.col("served_score").is_not_null(),
        )
        for incident in setting.incidents:
            if incident.end_us is not None:
                rows = rows.filter(~time.is_between(incident.start_us, incident.end_us, closed="left"))
        judged = self._served_judged(rows) if rows.height else None
        if judged is not None and rows["@day"].n_unique() >= gate.min_days:
            sums = by_day(judged, rows["@weight"].to_numpy(), rows["@day"].to_numpy())
            where = f"{format_us(int(rows['event_time'].min()))} to {format_us(end)}"  # type: ignore[arg-type]
            return Healthy(sums[0], sums[1], where)
        reference = setting.champion.reference if setting.champion else {}
        if reference.get("loss_sums"):
            return Healthy(tuple(reference["loss_sums"]), tuple(reference["weights"]), "when it was approved")
        return None

    def reference(self, found: FitResult) -> dict[str, Any]:
        """Loss by day on the held-out rows, kept with the version."""
        if self.gate_rows.is_empty():
            return {}
        judged = self._outputs_judged(found.outputs())
        sums, weights = by_day(judged, self.gate_rows["@weight"].to_numpy(), self.gate_rows["@day"].to_numpy())
        return {"loss_sums": list(sums), "weights": list(weights)}


def by_day(judged: Judged, weights: Numbers, days: NDArray[Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Weighted loss and weight, summed by day."""
    unique, inverse = np.unique(days, return_inverse=True)
    sums = np.bincount(inverse, judged.loss * weights, len(unique))
    mass = np.bincount(inverse, weights, len(unique))
    return tuple(round(float(v), 6) for v in sums), tuple(float(v) for v in mass)


def winner(challengers: Sequence[Challenger]) -> Challenger | None:
    """Of those that passed, the one with the lowest loss on the held-out rows; the first on a tie."""
    passed = [challenger for challenger in challengers if challenger.verdict == "pass"]
    return min(passed, key=lambda challenger: challenger.loss) if passed else None
