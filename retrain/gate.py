"""The gate: may this challenger take the place of the champion?

Every check answers pass, fail or inconclusive, with its value, interval, threshold, number of rows and a reason. One
fail refuses; one inconclusive refuses too, because no gate passes on missing evidence. The rule towards the champion
is "not proven worse": over a real year "proven better" cost a quarter of what retraining gains, and could sit on a bad
model.
Pure: it sees arrays, and gives the same report for the same arrays.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from retrain.metrics import Blocks, Estimate, Judged, Numbers, auc, calibration_error, estimate, estimate_from_sums
from retrain.policy import GatePolicy

Verdict = Literal["pass", "fail", "inconclusive"]
ALL = "all"


@dataclass(frozen=True)
class Check:
    """One check's answer."""

    name: str
    slice: str
    verdict: Verdict
    value: float | None
    interval: tuple[float, float] | None
    threshold: float | None
    n: int
    reason: str


@dataclass(frozen=True)
class Healthy:
    """The champion's loss in the last healthy period, by block: sums and weights."""

    loss_sums: tuple[float, ...]
    weights: tuple[float, ...]
    where: str


@dataclass(frozen=True)
class Case:
    """A failure that was fixed once: has the challenger it right?"""

    prediction_id: str
    is_right: bool


@dataclass(frozen=True)
class Evidence:
    """What the gate judges by.

    Parameters
    ----------
    challenger, champion, majority
        On the same held-out rows; ``champion`` None when nothing is deployed or its answers are not known.
    blocks
        Block of every row (its local day).
    slices
        Name of every declared slice and its rows.
    cases
        None when they could not be scored.
    """

    challenger: Judged
    champion: Judged | None
    majority: Judged | None
    y: Numbers
    weights: Numbers
    blocks: NDArray[np.int64]
    slices: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    healthy: Healthy | None = None
    cases: Sequence[Case] | None = ()
    is_binary: bool = True


@dataclass(frozen=True)
class Report:
    """The gate's answer about one challenger."""

    verdict: Verdict
    reason: str
    checks: tuple[Check, ...]
    metrics: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """As a JSON document; what is not a number is null."""
        document: dict[str, Any] = _plain(asdict(self))
        return document


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value


def evaluate(policy: GatePolicy, evidence: Evidence, seed: int = 0) -> Report:
    """Judge one challenger."""
    gate = _Gate(policy, evidence, seed)
    checks = gate.checks()
    failed = [check for check in checks if check.verdict == "fail"]
    open_ = [check for check in checks if check.verdict == "inconclusive"]
    verdict: Verdict = "fail" if failed else "inconclusive" if open_ else "pass"
    told = [*failed, *open_]
    reason = "; ".join(_telling(check) for check in told[:3]) if told else "every check passed"
    if len(told) > 3:
        reason += f"; and {len(told) - 3} more"
    return Report(verdict, reason, tuple(checks), gate.metrics())


def _telling(check: Check) -> str:
    return check.reason if check.slice == ALL else f"{check.slice}: {check.reason}"


class _Gate:
    """The checks over one challenger's evidence."""

    def __init__(self, policy: GatePolicy, evidence: Evidence, seed: int) -> None:
        self.policy = policy
        self.evidence = evidence
        self.seed = seed
        self.n = len(evidence.y)
        names = evidence.blocks if policy.block == "day" else np.arange(self.n, dtype=np.int64)
        self.blocks = Blocks.of(names)

    def checks(self) -> list[Check]:
        """All of them, in the order of the report."""
        amount = self._amount()
        if self.n == 0:
            return amount
        finite = self._finite()
        if finite.verdict == "fail":
            return [*amount, finite]
        checks = [*amount, finite, self._against_champion(), *self._slices(), self._against_majority()]
        if self.policy.floor == "healthy":
            checks.append(self._floor())
        return [*checks, self._bias(), self._calibration(), self._cases()]

    def metrics(self) -> dict[str, Any]:
        """Figures of the challenger and the champion on the held-out rows."""
        told: dict[str, Any] = {"n": self.n, "days": len(np.unique(self.evidence.blocks))}
        for name, judged in (("challenger", self.evidence.challenger), ("champion", self.evidence.champion)):
            if judged is not None and self.n and judged.is_finite:
                told[name] = self._figures(judged)
        return told

    def _figures(self, judged: Judged) -> dict[str, float]:
        w = self.evidence.weights / self.evidence.weights.sum()
        figures = {
            "log_loss": float((w * judged.loss).sum()),
            "accuracy": float((w * judged.is_right).sum()),
            "bias": float((w * (judged.predicted - judged.observed)).sum()),
            "ece": calibration_error(judged, self.evidence.weights, self.policy.ece_bins),
        }
        if self.evidence.is_binary:
            figures["auc"] = auc(self.evidence.y, judged.predicted)
        return figures

    def _estimate(self, values: Numbers, rows: NDArray[np.bool_] | None = None, alpha: float | None = None) -> Estimate:
        weights, blocks = self.evidence.weights, self.blocks
        if rows is not None:
            values, weights, blocks = values[rows], weights[rows], Blocks.of(blocks.of_row[rows])
        return estimate(
            values,
            weights,
            blocks,
            alpha=self.policy.alpha if alpha is None else alpha,
            resamples=self.policy.resamples,
            seed=self.seed,
        )

    def _amount(self) -> list[Check]:
        days = len(np.unique(self.evidence.blocks))
        rows = _enough("matured_rows", self.n, self.policy.min_rows, "matured rows are held out")
        if self.policy.block == "row":
            return [rows]
        return [rows, _enough("matured_days", days, self.policy.min_days, "days are held out")]

    def _finite(self) -> Check:
        good = self.evidence.challenger.is_finite
        reason = "every prediction is a number" if good else "some predictions are not numbers"
        return Check("finite", ALL, "pass" if good else "fail", None, None, None, self.n, reason)

    def _against_champion(self) -> Check:
        champion = self.evidence.champion
        name, margin = "not_proven_worse", self.policy.margin
        if champion is None or not champion.is_finite:
            reason = "what the deployed champion answers on these rows is not known"
            return Check(name, ALL, "inconclusive", None, None, margin, self.n, reason)
        found = self._estimate(self.evidence.challenger.loss - champion.loss)
        text = f"{found.value:+.4f} loss against the champion, interval {_interval(found)}"
        if not math.isfinite(found.low):
            return _check(name, found, "inconclusive", margin, f"{text}: one block has no interval")
        if found.low > 0:
            return _check(name, found, "fail", margin, f"proven worse: {text}")
        if found.value > margin:
            return _check(name, found, "inconclusive", margin, f"worse by more than {margin:g}, not proven: {text}")
        return _check(name, found, "pass", margin, f"not proven worse: {text}")

    def _slices(self) -> list[Check]:
        champion, slices = self.evidence.champion, self.evidence.slices
        margin, alpha = self.policy.slice_margin, self.policy.alpha / max(len(slices), 1)
        checks = []
        for slice_, rows in slices.items():
            n, name = int(rows.sum()), "slice_not_proven_worse"
            if champion is None or n < self.policy.slice_min_rows:
                reason = f"{n} of the {self.policy.slice_min_rows} rows that are needed"
                checks.append(Check(name, slice_, "inconclusive", None, None, margin, n, reason))
                continue
            found = self._estimate(self.evidence.challenger.loss - champion.loss, rows, alpha)
            text = f"{found.value:+.4f} loss against the champion, interval {_interval(found)}"
            if not math.isfinite(found.low):
                checks.append(_check(name, found, "inconclusive", margin, f"{text}: one block", slice_))
            elif found.low > 0 and found.value > margin:
                checks.append(_check(name, found, "fail", margin, f"proven worse: {text}", slice_))
            else:
                checks.append(_check(name, found, "pass", margin, f"not proven worse: {text}", slice_))
        return checks

    def _against_majority(self) -> Check:
        name = "better_than_majority"
        if self.evidence.majority is None:
            return Check(name, ALL, "inconclusive", None, None, 0.0, self.n, "the shares of the labels are not known")
        found = self._estimate(self.evidence.challenger.loss - self.evidence.majority.loss)
        is_better = found.value < 0
        reason = f"{found.value:+.4f} loss against always telling the shares of the training rows"
        return _check(name, found, "pass" if is_better else "fail", 0.0, reason)

    def _floor(self) -> Check:
        healthy, name = self.evidence.healthy, "floor"
        found = self._estimate(self.evidence.challenger.loss)
        if healthy is None or len(healthy.loss_sums) < self.policy.min_days:
            reason = "there is no healthy period of the champion to take a floor from"
            return _check(name, found, "inconclusive", None, reason)
        usual = estimate_from_sums(
            np.array(healthy.loss_sums),
            np.array(healthy.weights),
            len(healthy.loss_sums),
            alpha=self.policy.alpha,
            resamples=self.policy.resamples,
            seed=self.seed,
            draw=max(self.blocks.count, 1) if self.policy.block == "day" else None,
        )
        floor = usual.high
        text = (
            f"loss {found.value:.4f}; in health ({healthy.where}) {usual.value:.4f}, as many days at most {floor:.4f}"
        )
        return _check(name, found, "pass" if found.value <= floor else "fail", floor, text)

    def _bias(self) -> Check:
        challenger = self.evidence.challenger
        found = self._estimate(challenger.predicted - challenger.observed)
        return self._bounded("bias", found, self.policy.bias_max)

    def _bounded(self, name: str, found: Estimate, bound: float) -> Check:
        text = f"{name} {found.value:+.4f}, interval {_interval(found)}, bound {bound:g}"
        if abs(found.value) <= bound:
            return _check(name, found, "pass", bound, text)
        is_proven = found.low > bound or found.high < -bound
        return _check(name, found, "fail" if is_proven else "inconclusive", bound, text)

    def _calibration(self) -> Check:
        value = calibration_error(self.evidence.challenger, self.evidence.weights, self.policy.ece_bins)
        bound = self.policy.ece_max
        verdict: Verdict = "pass" if value <= bound else "fail"
        reason = f"calibration error {value:.4f}, bound {bound:g}"
        return Check("calibration", ALL, verdict, value, None, bound, self.n, reason)

    def _cases(self) -> Check:
        cases, name = self.evidence.cases, "fixed_failures"
        if cases is None:
            return Check(name, ALL, "inconclusive", None, None, 0.0, 0, "the fixed failures could not be scored")
        broken = [case.prediction_id for case in cases if not case.is_right]
        if not cases:
            return Check(name, ALL, "pass", 0.0, None, 0.0, 0, "no failure was fixed before")
        if not broken:
            return Check(name, ALL, "pass", 0.0, None, 0.0, len(cases), f"all {len(cases)} stay fixed")
        shown = ", ".join(broken[:3]) + (", ..." if len(broken) > 3 else "")
        reason = f"{len(broken)} of {len(cases)} failures that were fixed are back: {shown}"
        return Check(name, ALL, "fail", float(len(broken)), None, 0.0, len(cases), reason)


def _enough(name: str, n: int, needed: int, what: str) -> Check:
    verdict: Verdict = "pass" if n >= needed else "inconclusive"
    return Check(name, ALL, verdict, float(n), None, float(needed), n, f"{n} {what}, {needed} are needed")


def _check(
    name: str, found: Estimate, verdict: Verdict, threshold: float | None, reason: str, slice_: str = ALL
) -> Check:
    if not math.isfinite(found.value):
        verdict, reason = "inconclusive", "no value could be computed"
    return Check(name, slice_, verdict, found.value, (found.low, found.high), threshold, found.n, reason)


def _interval(found: Estimate) -> str:
    return f"[{found.low:+.4f}, {found.high:+.4f}]"
