"""What is asked of a run, and what it answers."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from retrain.joined import Ends
from retrain.recipes import Incident, Recipe

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
