"""What a step has to say beyond counters: the predictions that a rule, the audit or a time-out picks, and outcomes.

Columns all the way: rules see every outcome of a step at once, and texts are looked up for the picked rows only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from streams.plane.join import Joined, Pairs
from streams.plane.plan import KIND_TRUTH, NO_LABEL, RULE_AUDIT, RULE_NO_TRUTH, ModelPlan, Versions
from streams.plane.sides import Indexes
from streams.plane.store import Hashes, Rows

PREFIX_SHIFT = np.uint64(48)
AUDIT_MIX = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Events:
    """Events of one kind as columns: lists or arrays with one entry each, or what all of them have."""

    keys: list[str]
    columns: dict[str, Any]


@dataclass
class Found:
    """Events to be sent."""

    failures: list[Events] = field(default_factory=list)
    outcomes: list[Events] = field(default_factory=list)
    orphans: list[tuple[str, int, int]] = field(default_factory=list)
    """Feedback whose prediction never came: id, offset, and the broker's time stamp in ms."""


@dataclass(frozen=True)
class Origin:
    """What all events of a partition number have in common."""

    cluster: str
    number: int
    policy: str


class Ids:
    """Texts of the ids of a batch, found by hash.

    Parameters
    ----------
    columns, rows
        Prediction ids and the rows made of them; None where there were no events.
    """

    def __init__(self, columns: list[pl.Series | None], rows: list[Rows]) -> None:
        self._given = [(column, own) for column, own in zip(columns, rows, strict=True) if column is not None]

    def texts(self, h1: Hashes, h2: Hashes) -> list[str]:
        """The text of every hash; all of them are in the batch."""
        asked, first, number = np.unique(h1, return_index=True, return_inverse=True)
        found: list[str] = [""] * len(asked)
        is_asked = np.zeros(2**16, bool)  # by 16 bits: few of the batch's ids are left to be searched for
        is_asked[asked >> PREFIX_SHIFT] = True
        for column, rows in self._given:
            hit = np.flatnonzero(is_asked.take((rows["h1"] >> PREFIX_SHIFT).view(np.int64)))
            some = rows.take(hit)
            at = np.minimum(asked.searchsorted(some["h1"]), len(asked) - 1)
            same = (asked[at] == some["h1"]) & (h2[first[at]] == some["h2"])
            for place, text in zip(at[same].tolist(), column[hit[same]].to_list(), strict=True):
                found[place] = text
        return [found[i] for i in number.tolist()]


def audited(number: int, offsets: Indexes, share: float) -> npt.NDArray[np.bool_]:
    """Which predictions the random audit picks: a fixed function of partition and offset (splitmix64).

    One of an earlier log, whose offset is negative, is never picked: where it was there is not known any more.

    >>> import numpy as np
    >>> int(audited(3, np.arange(100_000), 0.01).sum())
    1012
    """
    with np.errstate(over="ignore"):
        z = offsets.astype(np.uint64) * AUDIT_MIX + (np.uint64(number + 1) << np.uint64(40)) * AUDIT_MIX
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return np.asarray((z >> np.uint64(11)).astype(np.float64) * 2.0**-53 < share) & (offsets >= 0)


def pick(
    plan: ModelPlan, joined: Joined, ids: Ids, versions: Versions, origin: Origin, *, emit_outcomes: bool
) -> Found:
    """Failures, and outcomes if they are wanted, of a joined step."""
    found = Found()
    if len(joined.pairs) and plan.audit_share > 0:
        _audit(plan, joined.pairs, ids, versions, origin, found)
    added = np.flatnonzero(joined.truths.sign > 0)
    if len(added) and (plan.rules or plan.timeout_us is not None or emit_outcomes):
        _pick_truths(plan, joined, added, ids, versions, origin, found, emit_outcomes=emit_outcomes)
    return found


def _audit(plan: ModelPlan, pairs: Pairs, ids: Ids, versions: Versions, origin: Origin, found: Found) -> None:
    at = np.flatnonzero(audited(origin.number, pairs.predictions["offset"], plan.audit_share))
    if len(at):
        rows = _Picked(pairs.inputs.take(at), pairs.predictions.take(at), -1, None, None)
        found.failures.append(_failures(plan, RULE_AUDIT, plan.audit_share, rows, ids, versions, origin))


def _pick_truths(
    plan: ModelPlan, joined: Joined, added: Indexes, ids: Ids, versions: Versions, origin: Origin, found: Found,
    *, emit_outcomes: bool,
) -> None:  # fmt: skip
    truths = joined.truths
    answers, facts, own = (rows.take(added) for rows in (truths.predictions, truths.truth, truths.rows))
    known, said = truths.has_truth[added] & (facts["undecided"] == 0), truths.has_user[added]
    truth = plan.words(np.where(known, facts["label"], NO_LABEL).astype(np.uint8))
    user = plan.user_words(np.where(said, truths.user["label"][added], NO_LABEL).astype(np.uint8))
    columns: dict[str, Any] = {
        "score": answers["score"],
        "value": np.where(known, facts["value"], np.nan),
        "label": plan.words(answers["label"]),
        "truth": truth,
        "user": user,
    }
    columns |= {name: np.where(known, facts["facts"][:, i], np.nan) for i, name in enumerate(plan.contract.facts)}
    picked = plan.failures(pl.DataFrame(columns, nan_to_null=True))
    is_over = own["undecided"] == 1
    if is_over.any():
        picked = {rule: flags & ~is_over for rule, flags in picked.items()}  # of a time-out only one thing is known
        picked[RULE_NO_TRUTH] = is_over
    offset = np.where(is_over, -1, own["offset"])

    def rows(at: Indexes) -> _Picked:
        return _Picked(truths.inputs.take(added[at]), answers.take(at), offset[at], truth[at], user[at])

    for rule, flags in picked.items():
        at = np.flatnonzero(flags)
        if len(at):
            found.failures.append(_failures(plan, rule, 1.0, rows(at), ids, versions, origin))
    at = np.flatnonzero(own["kind"] == KIND_TRUTH) if emit_outcomes else added[:0]
    if len(at):
        texts, columns = _columns(plan, rows(at), ids, versions, origin)
        names = [f"{text}/{place}" for text, place in zip(texts, offset[at].tolist(), strict=True)]
        found.outcomes.append(Events(texts, {**columns, "outcome_id": names, "value": own["value"][at]}))


@dataclass(frozen=True)
class _Picked:
    """Rows of which events are made; ``offset`` is the feedback's, -1 if there is none."""

    asked: Rows
    answers: Rows
    offset: Indexes | int
    truth: pl.Series | None
    user: pl.Series | None


def _failures(
    plan: ModelPlan, rule: str, probability: float, rows: _Picked, ids: Ids, versions: Versions, origin: Origin
) -> Events:
    texts, columns = _columns(plan, rows, ids, versions, origin)
    own = {
        "failure_id": [f"{text}/{rule}" for text in texts],
        "rule": rule,
        "policy": origin.policy,
        "selection_probability": probability,
        "user": None if rows.user is None else rows.user.to_list(),
        "cluster": origin.cluster,
    }
    return Events(texts, columns | own)


def _columns(
    plan: ModelPlan, rows: _Picked, ids: Ids, versions: Versions, origin: Origin
) -> tuple[list[str], dict[str, Any]]:
    """Prediction ids, and the columns that failures and outcomes have in common."""
    answers = rows.answers
    texts = ids.texts(answers["h1"], answers["h2"])
    names = [versions.names[number] for number in answers["version"].tolist()]
    return texts, {
        "prediction_id": texts,
        "model": plan.model,
        "version": [version for version, _ in names],
        "role": [role for _, role in names],
        "event_time": answers["event_us"],
        "score": answers["score"],
        "label": plan.words(answers["label"]).to_list(),
        "truth": None if rows.truth is None else rows.truth.to_list(),
        "partition": origin.number,
        "input_offset": rows.asked["offset"],
        "prediction_offset": answers["offset"],
        "feedback_offset": rows.offset,
    }
