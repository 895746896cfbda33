"""How items of one model are ordered, leased and decided: the ``[models.NAME.labeling]`` table of flywheel.toml."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr


class LabelingPolicy(BaseModel):
    """Settings of one model's review queue; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    required_n: int = Field(default=1, ge=1, le=25)
    """How many reviewers must answer an item before it is decided."""
    audit_share: float = Field(default=0.01, ge=0.0, le=1.0)
    """Probability with which any prediction is picked for the random audit, whatever came of it."""
    lease_s: int = Field(default=600, ge=1)
    """Lease while fewer than ten decisions were observed."""
    lease_s_min: int = Field(default=60, ge=1)
    """Shortest lease that follows from the observed time a decision takes."""
    lease_s_max: int = Field(default=1_800, ge=1)
    """Longest such lease."""
    proposal_after: int = Field(default=5, ge=2)
    """Equal verdicts with the same cause that make a proposal."""
    run_gap_s: int = Field(default=86_400, ge=0)
    """Two items of one cause further apart than this belong to two incidents."""
    oldest_every: int = Field(default=10, ge=2)
    """Every so many decisions the oldest open item comes next instead of the most urgent: nothing starves."""
    undo_depth: int = Field(default=10, ge=1, le=100)
    """How many decisions a reviewer can take back, the newest first."""
    owners: tuple[str, ...] = ()
    """Who may accept or refuse proposals; empty: every reviewer."""
    labels: tuple[str, ...] = ()
    """Labels to choose from when the model has no contract at hand."""
    sensitive: dict[str, Literal["personal", "secret"]] = Field(default_factory=dict)
    """Fields that are never stored as they are: personal ones as a keyed hash, secret ones not at all.
    The fields marked so in the contract are added to these."""
    hash_key: SecretStr = SecretStr("")
    """Key of the hashes of personal values and subjects; without it they are redacted."""
