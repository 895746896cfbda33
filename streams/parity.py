"""Keeps what parity checks find, tells of features that differ, and makes a check of every day.

The last result of a model is a JSON file in the state directory. The check of a day runs in a thread, and the user's
code in a process, so that neither holds the worker up; while one is under way, the days after it wait.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy as sa
import structlog

from retrain.errors import ParityError
from retrain.joined import Ends
from retrain.parity import FeatureParity, Parity, check
from retrain.paths import Paths
from schemas.errors import FlywheelError
from schemas.times import format_us
from streams.config import Config
from streams.daily import Daily, Day, keep, kept
from streams.findings import Finding, Finds, tell
from streams.logic.counts import LocalHours
from streams.runtime import Runtime

CHANNEL = "parity"

log = structlog.get_logger("flywheel.parity")


def checked(
    config: Config,
    engine: sa.Engine,
    model: str,
    since_us: int,
    until_us: int,
    *,
    sample: int | None = None,
    ends: Ends | None = None,
) -> dict[str, Any]:
    """Check a model's inputs of ``[since, until)``, keep what was found, and tell of it; what was found.

    A check that fails is kept with its error, so that it does not go unseen.

    Parameters
    ----------
    ends
        Only inputs before; default: all that are in the archive.
    """
    known, path = config.model(model), Paths(config.state_dir).parity(model)
    policy = known.parity if sample is None else known.parity.model_copy(update={"sample": sample})
    told: dict[str, Any] = {
        "model": model, "function": known.parity.function, "since": format_us(since_us), "until": format_us(until_us),
        "until_us": until_us, "max_share": known.parity.max_share, "error": None, "wrong": [],
    }  # fmt: skip
    try:
        found = check(config.archive_dir, known.contract, policy, since_us, until_us, config.root, ends)
    except FlywheelError as error:
        keep(path, told | {"error": str(error)})
        raise
    wrong = found.wrong(known.parity.max_share)
    told |= found.as_dict() | {"wrong": [each.feature for each in wrong]}
    keep(path, told)
    if found.recomputed:
        tell(config, engine, _finds(model, found, wrong, (since_us, until_us)))
    return told


def last(state_dir: Path, model: str) -> dict[str, Any] | None:
    """The last result of a model; None if there is none that can be read."""
    return kept(Paths(state_dir).parity(model))


def _finds(model: str, found: Parity, wrong: list[FeatureParity], span: tuple[int, int]) -> Finds:
    """The features that differ."""
    well = f"All of {found.recomputed} sampled rows agree again."
    return Finds(CHANNEL, model, [_finding(each) for each in wrong], *span, well)


def _finding(each: FeatureParity) -> Finding:
    message = (
        f"{each.feature} differs from what the feature code of training gives in {each.beyond} of {each.rows}"
        f" sampled rows; {each.exact_share:.0%} are equal: training-serving skew."
    )
    detail = {"exact": each.exact, "beyond": each.beyond, "rows": each.rows, "examples": list(each.examples)}
    return Finding(each.feature, message, detail)


class DailyParity(Daily):
    """Checks every day's inputs of every model that has feature code."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        named = [name for name in runtime.plans if runtime.config.model(name).parity.function is not None]
        clocks = {name: LocalHours(runtime.plans[name].contract.timezone) for name in named}
        super().__init__("parity", runtime.config, clocks)

    def do(self, model: str, day: Day) -> None:
        """Check it; where the user's code fails nothing is told of the day, and the next one is checked."""
        config, engine = self._runtime.config, self._runtime.engine
        try:
            told = checked(config, engine, model, day.since_us, day.until_us, ends=day.cut.ends)
        except ParityError as error:
            log.error("parity_failed", model=model, until=format_us(day.until_us), reason=str(error))
            return
        log.info("parity_checked", model=model, rows=told["recomputed"], wrong=told["wrong"])
