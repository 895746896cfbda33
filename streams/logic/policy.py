"""What the monitor watches, how far something must go before a person is woken, and how long it remembers.

The defaults are the values chosen on four months of a real stream and confirmed on five others; ``flywheel.toml`` may
set any of them under ``[models.NAME.monitor]``. Keeps no state; imports pydantic and no code of the streams.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from schemas.times import HOUR_US

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Hours = Annotated[tuple[Count, ...], Field(min_length=1)]


class MonitorPolicy(BaseModel):
    """``[models.NAME.monitor]``: the policy of the three channels that wake somebody, and of the meters beside them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    grace_s: int = Field(default=0, ge=0, description="an hour closes when the watermark is this far past its end")
    rows_min: Count = Field(default=20, description="a window with fewer rows says nothing")

    # Baseline: recent days at the same local hour; the newest never enter, so a fault is not in its own baseline.
    baseline_days: Count = Field(
        default=28, description="healthy days at the same local hour that are what is usual, at most"
    )
    baseline_gap_days: Count = Field(default=7, description="the newest days, which are never among them")
    baseline_days_min: Count = Field(default=14, description="with fewer healthy days there is no drift verdict")

    # Channel D: a change of a margin that also changes what the model answers.
    drift_hours: Hours = Field(default=(2, 4, 8, 24, 72), description="windows that are looked at")
    drift_z: Positive = Field(default=7.5, description="evidence of a candidate, in tempered standard deviations")
    impact: Positive = Field(
        default=0.05,
        description="mean change of the score with the feature put back, as a share of the answers' scale",
    )
    gross: Annotated[float, Field(ge=1)] = Field(
        default=1.5, description="times the record of settled days, beyond which a harmless change warns"
    )
    put_back_rows: Count = Field(default=150, description="rows of a window that the model answers once more, at most")
    put_back_draws: Count = Field(default=6, description="usual values that each of them is given")
    candidates_max: Count = Field(default=6, description="candidates put back in one hour, the strongest first")
    ask_again: Annotated[float, Field(ge=1)] = Field(
        default=1.1, description="evidence must grow by this factor before a harmless change is put back again"
    )
    spread_floor: Positive = Field(default=0.05, description="hours always differ by this many standard deviations")
    spread_factor: Positive = Field(
        default=1.3, description="times the spread that was seen: it is known of few days only"
    )
    spread_days: Positive = Field(default=10.0, description="days after which a direction's own spread outweighs")
    spread_step_hours: Count = Field(default=2, description="every so many hours a window is folded into the spread")
    spread_days_min: Count = Field(default=14, description="healthy days of spread that drift verdicts need")

    # Channel B: the model's bias on rows whose truth is due.
    bias_hours: Hours = Field(default=(8, 24, 72, 168), description="windows that are looked at")
    bias_z: Positive = Field(default=3.7, description="evidence over all rows, in tempered standard deviations")
    bias_slice_z: Positive = Field(default=4.5, description="the same of one slice, of which there are many")
    bias_slice_hours: Count = Field(
        default=24, description="what one slice shows in shorter windows only warns while every input is as usual"
    )
    bias_rows: Positive = Field(default=200.0, description="rows towards no bias that the baseline is shrunk by")
    bias_prior_icc: Positive = Field(default=0.05, description="spread of a day's bias before any day was seen")
    bias_days_min: int = Field(default=0, ge=0, description="days of honest scores that bias verdicts need")
    bias_prior_days: Positive = Field(default=60.0, description="days that the prior spread is worth")
    bias_mean_max: Positive = Field(default=0.5, description="a baseline bias is not believed beyond this")

    # Channel P: inputs that differ from what feedback says they were.
    paired_hours: Hours = Field(default=(2, 4, 8, 24), description="windows that are looked at")
    paired_z: Positive = Field(default=5.0, description="evidence of more than usual, in tempered standard deviations")
    paired_rows_min: Count = Field(default=10, description="compared rows; fewer say nothing")
    paired_differ_min: Count = Field(default=5, description="of those that differ; fewer say nothing")
    paired_share: Share = Field(default=0.05, description="of the compared rows; fewer that differ only warn")
    paired_usual: Share = Field(default=0.01, description="share that differs of a feed that is not known yet")
    paired_rows: Positive = Field(default=50.0, description="rows that this, or all rows to a slice, are worth")
    paired_prior_icc: Positive = Field(default=0.02, description="spread of a feed that is not known yet")

    # Channel C: the contract.
    null_share: Share = Field(default=0.8, description="less is for channel D to weigh")
    null_warn: Share = Field(
        default=0.05, description="beyond what the contract allows and training's emptiest window had: warns"
    )
    null_hours: Count = Field(default=2, description="window in which nulls are counted")
    null_record: Share = Field(default=0.2, description="only fields that training never saw emptier than this")
    nan_share: Share = Field(default=0.05, description="NaN or infinite, of a field that never was so in training")
    nan_hours: Count = Field(default=2, description="window in which they are counted")
    unseen_share: Share = Field(default=0.15, description="of the rows, with a category that training did not have")
    unseen_rows: Count = Field(default=5, description="rows with such a value; fewer are no broken feed yet")
    unseen_hours: Count = Field(default=4, description="window in which they are counted")
    outside_share: Share = Field(default=0.15, description="of the rows, outside the contract's range or domain")
    outside_hours: Count = Field(default=4, description="window in which they are counted")
    frozen_rows: Count = Field(default=30, description="rows in one cell before a field may be called frozen")
    frozen_factor: Positive = Field(default=3.0, description="times the longest such run of healthy days")
    still_factor: Positive = Field(default=6.0, description="the same of rows that repeat one value exactly")
    frozen_hours: Count = Field(default=3, description="hours that it must last")
    frozen_share: Share = Field(default=0.3, description="a cell that holds this share of training cannot freeze")

    # Channel C: what comes at all.
    volume_hours: Hours = Field(default=(1, 4, 24), description="windows that are looked at")
    volume_share: Share = Field(
        default=0.1, description="of the rows usual at these hours of the week; less is silence"
    )
    volume_rows: Count = Field(default=50, description="where fewer are usual nothing is called silent")
    volume_weeks: Count = Field(default=4, description="weeks whose median is what is usual")
    volume_weeks_min: Count = Field(default=2, description="weeks that must be known before anything is called silent")
    truth_wait_hours: Count = Field(default=6, description="that truths may be behind before they are called silent")
    late_hours: Count = Field(default=2, description="window in which it is seen how late records are")
    late_factor: Positive = Field(default=4.0, description="times as late as nine of ten records used to be")
    late_s_min: Positive = Field(default=300.0, description="seconds that a record may always take")
    duplicate_share: Share = Field(default=0.15, description="of records with an id that came before")
    duplicate_hours: Count = Field(default=4, description="window in which they are counted")
    type_share: Share = Field(default=0.05, description="of inputs with other types than the contract's")
    type_hours: Count = Field(default=2, description="window in which they are counted")
    unscored_share: Share = Field(default=0.05, description="of predictions without a finite score")
    unscored_hours: Count = Field(default=2, description="window in which they are counted")

    # The incident.
    critical_share: Share = Field(default=0.95, description="of all rows that break a rule which pages: critical")
    critical_impact: Positive = Field(default=0.2, description="mean change of the score: critical")
    quiet_hours: Count = Field(default=24, description="hours without evidence that close an incident")
    world_hours: Count = Field(default=24, description="drift this recent makes a bias the pipe's")

    # The staleness meter: the e-detector against training, and scores beside it.
    stationary: bool = Field(
        default=False, description="rows are like those of training until something breaks: the meter pages, too"
    )
    a_page: Positive = Field(default=10_000.0, description="hours for one false page of a stationary stream")
    a_warn: Positive = Field(default=200.0, description="hours for one false warning")
    alpha0: Share = Field(
        default=0.01, description="probability of ever calling a model drifted that never did since its deployment"
    )
    floor: Positive = Field(default=0.03, description="drift of fewer standard deviations never alarms")
    levels: Count = Field(default=8, description="starts that are kept, each twice as far back as the one before")

    # Quality.
    quality_alpha: Share = Field(
        default=0.05, description="intervals of quality hold with one less this probability, at all times together"
    )
    quality_rows_a_day: Count = Field(default=1000, description="rows at which an interval is made narrowest")

    def closed(self, watermark_us: int) -> int:
        """The first hour that is not over at a watermark."""
        return (watermark_us - self.grace_s * 1_000_000) // HOUR_US

    def closing(self, hour: int) -> int:
        """The watermark at which an hour is over, and none after it."""
        return (hour + 1) * HOUR_US + self.grace_s * 1_000_000

    @property
    def spread_delay_days(self) -> int:
        """A day is folded into the spread when it is older than the gap: by then it is known to be healthy."""
        return self.baseline_gap_days + 1

    @property
    def kept_days(self) -> int:
        """Days of hourly counts kept: the baseline of the oldest day that is still to be folded, and its windows."""
        window_days = -(-max(*self.drift_hours, 24) // 24)
        return self.spread_delay_days + self.baseline_gap_days + self.baseline_days + window_days + 1
