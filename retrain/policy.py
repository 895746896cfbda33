"""When a model is trained again, how, and what a challenger must show: ``[models.NAME.retrain]`` of flywheel.toml.

And what its served inputs are held against: ``[models.NAME.parity]``.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from croniter import croniter
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator

Share = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
TrainerName = Literal["sklearn_hgb", "sklearn_logistic", "river_online"]


class GatePolicy(BaseModel):
    """Thresholds of the gate. Every one of them is shown in the report beside the value that it judged."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    """Two-sided: intervals hold 1 - alpha of the resampled values."""
    margin: Annotated[float, Field(ge=0)] = 0.01
    """Worse than the champion by more than this, though not proven, is inconclusive; proven worse fails (in loss)."""
    min_rows: PositiveInt = 500
    """Fewer matured rows in the held-out block than this, and the gate is inconclusive."""
    min_days: PositiveInt = 3
    """One quiet day misleads: on 13 May the mixed recipe lost to a broken champion, on the fortnight it won."""
    block: Literal["day", "row"] = "day"
    """What is resampled: days, because rows of one day are not independent; rows only where time has no part."""
    resamples: Annotated[int, Field(ge=200, le=100_000)] = 2000
    """How often the days are drawn again."""
    bias_max: Positive = 0.05
    """Mean predicted minus mean observed (of a regression: in standard deviations of the target)."""
    ece_max: Positive = 0.05
    """Expected calibration error of the candidate, at most."""
    ece_bins: Annotated[int, Field(ge=2, le=100)] = 15
    """Bins of equal width that it is computed in."""
    floor: Literal["healthy", "off"] = "healthy"
    """``healthy``: no worse than the champion was over as many days of the last healthy period."""
    healthy_days: PositiveInt = 28
    """Days of it at most."""
    slice_min_rows: PositiveInt = 100
    """Slices with fewer matured rows are not judged."""
    slice_margin: Annotated[float, Field(ge=0)] = 0.03
    """A declared slice may be worse than the champion by this much (in loss)."""


class RetrainPolicy(BaseModel):
    """When and how one model is trained again."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    cron: str | None = None
    """Five fields, in the contract's time zone; None: no schedule."""
    min_new_labels: PositiveInt | None = None
    """Train when so many truths and answers are newer than the last dataset; None: volume is no trigger."""
    on_alert: bool = True
    """Train on an open page."""
    on_proposal: bool = True
    """Train when an accepted change of meaning is old enough to be judged."""
    cooldown_s: Annotated[int, Field(ge=0)] = 6 * 3600
    """After a run, triggers other than cron, proposals and people wait this long (event time)."""
    min_train_rows: PositiveInt = 100
    """With fewer nothing is trained."""
    holdout_days: PositiveInt = 7
    """The newest days are held out for the gate. After a change of meaning at most half of the days since are."""
    recipes: tuple[str, ...] = ("mixed",)
    """Recipes that always compete; others follow from accepted proposals and open incidents."""
    trainer: TrainerName = "sklearn_hgb"
    """What trains: a name of the registry of trainers."""
    params: dict[str, Any] = Field(default_factory=dict)
    """Handed to the trainer."""
    seed: int = 0
    """Of the trainer: the same data, recipe and seed give the same model."""
    refit: bool = True
    """Train the winner's recipe once more with the held-out rows: the newest days are the most telling ones."""
    weighting: Literal["none", "inverse"] = "none"
    """``inverse``: a row that was picked for review with probability p weighs 1/p in training, as it
    always does in the gate."""
    actor_share_max: Share = 0.5
    """Rows labeled by one reviewer, as a share of the training rows."""
    leak_auc_max: Annotated[float, Field(gt=0.5, le=1)] = 0.9999
    """A single feature that ranks the truth better than this is the truth in disguise."""
    time_limit_s: Positive = 900
    """Of one training, which is a process of its own."""
    memory_limit_mb: Annotated[int, Field(ge=256)] = 4096
    """Of one training."""
    parallel: Annotated[int, Field(ge=1, le=16)] = 2
    """Trainings at a time."""
    gate: GatePolicy = GatePolicy()

    @field_validator("cron")
    @classmethod
    def _is_cron(cls, value: str | None) -> str | None:
        if value is not None and (len(value.split()) != 5 or not croniter.is_valid(value)):
            raise ValueError("not a cron expression of five fields, such as '0 6 * * mon'")
        return value

    @field_validator("recipes")
    @classmethod
    def _are_recipes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        from retrain.recipes import parse_recipe  # the recipes know nothing of policies

        if not value:
            raise ValueError("at least one recipe must compete, such as 'mixed'")
        return tuple(parse_recipe(text).name for text in value)


class ParityPolicy(BaseModel):
    """``[models.NAME.parity]``: the feature code of training, and how much it may differ from what was served."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    function: str | None = Field(
        default=None,
        description='"module:function": from served rows (prediction_id, event_time, features) to a table of '
        "prediction_id and the features as training computes them",
    )
    sample: PositiveInt = Field(default=500, description="rows a day")
    max_share: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, description="share of a feature's rows that may differ by more than the contract's tolerance"
    )
    time_limit_s: Annotated[float, Field(gt=0)] = Field(default=300.0, description="of one look at a day")
    memory_limit_mb: PositiveInt = Field(default=4096, description="of the process that recomputes the rows")

    @field_validator("function")
    @classmethod
    def _is_a_function(cls, text: str | None) -> str | None:
        if text is not None and not FUNCTION.fullmatch(text):
            raise ValueError(f"'{text}' is not module:function")
        return text
