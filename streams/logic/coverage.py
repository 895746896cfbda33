"""What is not monitored, and why: every check that a feature could have and has not, with its reason.

A check is a rule of a channel on one feature. Most gaps follow from the training rows (a constant cannot freeze, an
open vocabulary has no unseen value); :class:`~streams.logic.invariants.Invariants` leaves out exactly those. What is
silent only because the monitor still learns is told once a model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from schemas.contract import Field
from schemas.profile import CELL_NULL, FeatureProfile, Profile, fitted
from streams.logic.policy import MonitorPolicy

NULL, NAN, UNSEEN, OUTSIDE, FROZEN, DRIFT, TRAINING = "null", "nan", "unseen", "outside", "frozen", "drift", "training"
CHECKS = (NULL, NAN, UNSEEN, OUTSIDE, FROZEN, DRIFT, TRAINING)
TRAINING_ROWS_MIN = 100
"""A reference of fewer rows cannot tell a change of half a standard deviation from chance: 2/sqrt(100) = 0.2."""
VOCABULARY_SHARE = 1 / 3
"""Of the share of unseen values that is an alert: training may expect no more than this of it."""

ABSENT = {
    "no_reference": "there is no reference profile ('flywheel init' makes one)",
    "not_in_reference": "the reference profile does not know the feature ('flywheel init' makes it again)",
    "type_changed": "the reference profile knows it as another type ('flywheel init' makes it again)",
    "no_rows": "the reference profile was made of no rows",
}


@dataclass(frozen=True)
class Gap:
    """A check that is not made.

    Attributes
    ----------
    feature, check
        Of which feature, and which of :data:`CHECKS`.
    code, reason
        Why, for programs and for people.
    """

    feature: str
    check: str
    code: str
    reason: str


@dataclass(frozen=True)
class Coverage:
    """What is monitored of one model's features.

    Attributes
    ----------
    features
        Of the contract.
    checks
        All that the features' kinds allow.
    gaps
        Those that are not made.
    """

    features: int
    checks: int
    gaps: tuple[Gap, ...]

    @property
    def monitored(self) -> int:
        """Checks that are made."""
        return self.checks - len(self.gaps)

    @property
    def whole_features(self) -> int:
        """Features of which every check is made, but for what a contract does not declare."""
        return self.features - len({gap.feature for gap in self.gaps if gap.check != OUTSIDE})

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "features": self.features,
            "features_whole": self.whole_features,
            "checks": self.checks,
            "checks_monitored": self.monitored,
            "not_monitored": [asdict(gap) for gap in self.gaps],
        }


def coverage(fields: Sequence[Field], profile: Profile | None, policy: MonitorPolicy) -> Coverage:
    """What the training rows and the contract allow to be monitored.

    Parameters
    ----------
    profile
        As it was made, for this contract or an older one; None: there is none.
    """
    whole = fitted(profile, fields, model="")
    checks, gaps = 0, []
    for field in fields:
        feature = whole.feature(field.name)
        absent = _absent(field, profile)
        for check in checks_of(field):
            checks += 1
            found = _undeclared(field) if check == OUTSIDE else gap(check, feature, policy)
            if found is not None and absent is not None and check != OUTSIDE:
                found = absent, ABSENT[absent]
            if found is not None:
                gaps.append(Gap(field.name, check, *found))
    return Coverage(len(fields), checks, tuple(gaps))


def checks_of(field: Field) -> tuple[str, ...]:
    """The checks that there are for a field of this kind."""
    without = {"number": (UNSEEN,), "category": (NAN,), "boolean": (NAN, UNSEEN, OUTSIDE)}[field.kind]
    return tuple(check for check in CHECKS if check not in without)


def gap(check: str, feature: FeatureProfile, policy: MonitorPolicy) -> tuple[str, str] | None:
    """Why a check cannot be made against these training rows (code, reason); None: it can."""
    rows = feature.rows
    if not rows:
        return "no_rows", ABSENT["no_rows"]
    ordinary = sum(feature.counts[feature.specials :])
    has_values = ordinary > 0 or (not feature.is_number and rows > feature.counts[CELL_NULL])
    if check == NULL:
        share = feature.counts[CELL_NULL] / rows
        return None if share < policy.null_record else ("often_null", f"{share:.0%} of the training rows are null")
    if check == NAN:
        share = sum(feature.counts[CELL_NULL + 1 : feature.specials]) / rows
        said = f"{share:.0%} of the training rows are NaN or infinite"
        return None if share < policy.nan_share * VOCABULARY_SHARE else ("often_nan", said)
    if not has_values:
        return "no_values", "no training row holds a value"
    if check == UNSEEN and feature.new_share >= policy.unseen_share * VOCABULARY_SHARE:
        return "open_vocabulary", f"{feature.new_share:.0%} of new rows may hold a value that training never saw"
    if check == FROZEN and max(feature.counts[feature.specials :], default=0) == ordinary + _rest(feature):
        return "constant", "it had one value in training, so that it may well stand still"
    if check == TRAINING and (valued := rows - feature.counts[CELL_NULL]) < TRAINING_ROWS_MIN:
        return "few_rows", f"the reference has {valued} rows with it, and {TRAINING_ROWS_MIN} are needed to compare"
    return None


def _rest(feature: FeatureProfile) -> int:
    """Training rows of a category without a cell of their own."""
    return 0 if feature.is_number else sum(feature.counts[CELL_NULL + 1 : feature.specials])


def _absent(field: Field, profile: Profile | None) -> str | None:
    if profile is None:
        return "no_reference"
    if field.name not in profile.index:
        return "not_in_reference"
    return "type_changed" if profile.feature(field.name).kind != field.kind else None


def _undeclared(field: Field) -> tuple[str, str] | None:
    is_declared = field.min is not None or field.max is not None or field.domain is not None
    what = "range" if field.kind == "number" else "domain"
    return None if is_declared else ("undeclared", f"the contract declares no {what}")


def in_words(gaps: Iterable[Mapping[str, Any]]) -> list[str]:
    """One sentence for each reason: which checks of which features.

    >>> in_words([{"feature": "a", "check": "frozen", "code": "constant", "reason": "it never moved"}])
    ['a (frozen): not monitored, because it never moved']
    """
    reasons: dict[str, dict[str, list[str]]] = {}
    for each in gaps:
        reasons.setdefault(each["reason"], {}).setdefault(each["feature"], []).append(each["check"])
    said = []
    for reason, features in reasons.items():
        by_checks: dict[str, list[str]] = {}
        for feature, checks in features.items():
            by_checks.setdefault(", ".join(checks), []).append(feature)
        where = "; ".join(f"{', '.join(names)} ({checks})" for checks, names in by_checks.items())
        said.append(f"{where}: not monitored, because {reason}")
    return said
