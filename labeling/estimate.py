"""Quality of the model from what people reviewed, without the bias of looking mostly at failures.

References
----------
J. Hájek, comment on D. Basu, "An essay on the logical foundations of survey sampling", in *Foundations of Statistical
Inference*, 1971.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from labeling.items import AUDIT_RULE
from labeling.tables import item

Z_95 = 1.959964
"""Two-sided 95 % point of the normal distribution."""


@dataclass(frozen=True)
class Selected:
    """One prediction that was picked for review.

    ``rules`` maps each rule that picked it to the probability with which that rule picks such a prediction;
    ``is_correct`` is None while nobody has decided (or the decision takes the row out of quality).
    """

    rules: dict[str, float]
    is_correct: bool | None


@dataclass(frozen=True)
class Estimate:
    """Share of right predictions.

    ``unweighted`` is the share among the reviewed rows, which says little: failures are over-represented. ``weighted``
    counts each by the inverse of the probability with which it came to be reviewed; ``low`` and ``high`` bound it at
    95 %. All are None without data; ``audited`` is how many of the reviewed came by the random audit, and without any
    the weighted figure speaks of failures only, so there is none.
    """

    reviewed: int
    audited: int
    unweighted: float | None
    weighted: float | None
    low: float | None
    high: float | None


def hajek(selected: Iterable[Selected]) -> Estimate:
    """Weight every reviewed prediction by the inverse of its inclusion probability.

    The probability that any of the rules picks a prediction is 1 - prod(1 - p_rule). Of what a rule picked people have
    reviewed only a part; that part is taken as random within the rule (the queue's order depends on the score, not on
    whether a person will agree), so the probability is multiplied with the reviewed share of the rule.

    Examples
    --------
    Two flagged errors, and three right ones of an audit of 1 %: nearly everything is right.

    >>> rows = [Selected({"flag": 1.0}, False)] * 2 + [Selected({"audit": 0.01}, True)] * 3
    >>> estimate = hajek(rows)
    >>> round(estimate.unweighted, 3), round(estimate.weighted, 3)
    (0.6, 0.993)
    """
    chosen = [(_inclusion(s), _stratum(s), s) for s in selected]
    picked = Counter(stratum for _, stratum, _ in chosen)
    reviewed = Counter(stratum for _, stratum, s in chosen if s.is_correct is not None)
    rows = [
        (inclusion * reviewed[stratum] / picked[stratum], float(s.is_correct))
        for inclusion, stratum, s in chosen
        if s.is_correct is not None
    ]
    audited = sum(AUDIT_RULE in s.rules for _, _, s in chosen if s.is_correct is not None)
    if not rows:
        return Estimate(0, 0, None, None, None, None)
    unweighted = sum(y for _, y in rows) / len(rows)
    if not audited:
        return Estimate(len(rows), 0, unweighted, None, None, None)
    total = sum(1.0 / p for p, _ in rows)
    weighted = sum(y / p for p, y in rows) / total
    variance = sum((1.0 - p) / p**2 * (y - weighted) ** 2 for p, y in rows) / total**2
    margin = Z_95 * math.sqrt(variance)
    return Estimate(len(rows), audited, unweighted, weighted, max(weighted - margin, 0.0), min(weighted + margin, 1.0))


def _inclusion(selected: Selected) -> float:
    return 1.0 - math.prod(1.0 - p for p in selected.rules.values())


def _stratum(selected: Selected) -> str:
    """The rule that was surest to pick it."""
    return max(selected.rules, key=lambda rule: (selected.rules[rule], rule))


def selected_predictions(connection: sa.Connection, model: str, version: str | None = None) -> list[Selected]:
    """Every prediction in the queue once, with all the rules that picked it and whether it proved right.

    A given label wins over the recorded truth; a broken input takes the row out of quality.
    """
    query = sa.select(
        item.c.id,
        item.c.prediction_id,
        item.c.rule,
        item.c.selection_probability,
        item.c.same_as,
        item.c.state,
        item.c.answer,
        item.c.verdict,
    ).where(item.c.model == model)
    if version is not None:
        query = query.where(item.c.payload["version"].as_string() == version)
    rows = {row.id: row for row in connection.execute(query)}
    done = sa.select(item.c.id, item.c.payload).where(item.c.model == model, item.c.state == "done")
    payloads = {row.id: row.payload for row in connection.execute(done)}
    rules: dict[str, dict[str, float]] = {}
    correct: dict[str, bool | None] = {}
    for row in rows.values():
        rules.setdefault(row.prediction_id, {})[row.rule] = float(row.selection_probability)
        decided = rows.get(row.id if row.same_as is None else row.same_as, row)
        said = payloads.get(decided.id, {"label": None, "truth": None})
        verdict = is_right(decided.state, decided.answer, decided.verdict, said["label"], said["truth"])
        correct[row.prediction_id] = verdict if verdict is not None else correct.get(row.prediction_id)
    return [Selected(rules[name], correct[name]) for name in sorted(rules)]


def is_right(state: str, answer: str | None, verdict: str | None, label: str | None, truth: str | None) -> bool | None:
    """Whether the prediction proved right; None if that is not known or does not count.

    >>> is_right("done", None, "unpredictable", "late", "on_time")
    False
    """
    known = true_label(state, answer, verdict, truth)
    return None if known is None or label is None else known == label


def true_label(state: str, answer: str | None, verdict: str | None, truth: str | None) -> str | None:
    """What an item turned out to be; None if that is not known or does not count.

    >>> true_label("done", None, "truth_wrong", "late") is None
    True
    """
    if state != "done" or verdict == "input_broken":
        return None
    if answer is not None:
        return answer
    return None if verdict == "truth_wrong" else truth


@dataclass(frozen=True)
class AuditLabel:
    """One prediction that the random audit picked; ``truth`` is None while nobody has answered.

    ``features`` are as the store keeps them: personal ones hashed.
    """

    version: str
    event_time_us: int
    share: float
    score: float | None
    label: str | None
    truth: str | None
    features: dict[str, Any]


def audit_labels(connection: sa.Connection, model: str, since_us: int) -> list[AuditLabel]:
    """What people said of the random audit's predictions since an event time."""
    names = ("state", "answer", "verdict")
    decided = item.alias("decided")
    query = (
        sa.select(item.c.event_time_us, item.c.selection_probability, item.c.payload, *(decided.c[n] for n in names))
        .select_from(item.join(decided, decided.c.id == sa.func.coalesce(item.c.same_as, item.c.id)))
        .where(item.c.model == model, item.c.rule == AUDIT_RULE, item.c.event_time_us >= since_us)
    )
    found = []
    for row in connection.execute(query.order_by(item.c.id)):
        said = row.payload
        truth = true_label(row.state, row.answer, row.verdict, said["truth"])
        share = float(row.selection_probability)
        who = said["version"] or "", row.event_time_us, share
        found.append(AuditLabel(*who, said["score"], said["label"], truth, said["features"]))
    return found
