"""What reviewers decided, folded from the events of the ``labels`` topic.

The agent of that topic hands every event to :func:`ingest`; a run folds those that are there. This package knows the
events' schema (``schemas/avro/labels.avsc``) and nothing of the store that they come from.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from retrain.recipes import Proposal
from retrain.tables import label_fact

OUT_VERDICTS = frozenset({"input_broken"})
"""Rows with such a verdict are neither trained on nor judged by."""
DOUBTED = "truth_wrong"
"""The truth does not count: the answer does, if one was given, else the row is left out."""


@dataclass(frozen=True)
class Decided:
    """What the reviewers of one prediction agree on."""

    answer: str | None
    verdict: str | None
    actors: tuple[str, ...]
    selection_probability: float


@dataclass(frozen=True)
class LabelFacts:
    """All that people decided about one model."""

    decided: Mapping[str, Decided] = field(default_factory=dict)
    proposals: tuple[Proposal, ...] = ()
    event_ids: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """SHA-256 over the event ids (each of which holds the start of its event's hash)."""
        return hashlib.sha256(json.dumps(self.event_ids).encode()).hexdigest()


def ingest(connection: sa.Connection, record: Mapping[str, Any]) -> bool:
    """Take in one event of the ``labels`` topic; False if it was there already."""
    known = sa.select(label_fact.c.event_id).where(label_fact.c.event_id == record["event_id"])
    if connection.execute(known).first() is not None:
        return False
    row = {"model": record["model"], "seq": record["seq"], "event_id": record["event_id"], "record": dict(record)}
    connection.execute(sa.insert(label_fact).values(row))
    return True


def load_facts(connection: sa.Connection, model: str) -> LabelFacts:
    """What is known now, in the order of the chain."""
    return fold(load_records(connection, model))


def load_records(connection: sa.Connection, model: str) -> list[dict[str, Any]]:
    """The model's events as they came, in the order of the chain."""
    query = sa.select(label_fact.c.record).where(label_fact.c.model == model).order_by(label_fact.c.seq)
    return list(connection.execute(query).scalars())


def load_proposals(connection: sa.Connection, model: str) -> tuple[Proposal, ...]:
    """The accepted proposals alone: asked for every hour of event time, however many labels there are."""
    kind = label_fact.c.record["kind"].as_string()
    query = sa.select(label_fact.c.record).where(label_fact.c.model == model, kind.like("proposal%"))
    return fold(connection.execute(query.order_by(label_fact.c.seq)).scalars()).proposals


def fold(records: Iterable[Mapping[str, Any]]) -> LabelFacts:
    """The state that the events lead to.

    A decision counts until it is undone. Of several reviewers of one prediction an adjudicator's word counts, else the
    majority; without one the prediction is undecided and its truth stands.
    """
    submitted: dict[str, Mapping[str, Any]] = {}
    proposals: dict[str, Proposal] = {}
    event_ids: list[str] = []
    for record in records:
        event_ids.append(record["event_id"])
        kind = record["kind"]
        if kind == "submitted":
            submitted[record["event_id"]] = record
        elif kind == "undone" and record.get("reverts"):
            submitted.pop(record["reverts"], None)
        elif kind == "proposal_accepted":
            name = record["proposal_id"]
            proposals[name] = Proposal(name, record["proposal_kind"], record.get("from_us"), record.get("to_us"))
        elif kind in {"proposal_refused", "proposal_withdrawn"}:
            proposals.pop(record["proposal_id"], None)
    votes: dict[str, list[Mapping[str, Any]]] = {}
    for record in submitted.values():
        votes.setdefault(record["prediction_id"], []).append(record)
    decided = {prediction_id: _consensus(given) for prediction_id, given in votes.items()}
    return LabelFacts(
        {name: found for name, found in decided.items() if found}, tuple(proposals.values()), tuple(event_ids)
    )


def _consensus(given: list[Mapping[str, Any]]) -> Decided | None:
    given = [record for record in given if record.get("is_adjudication")][-1:] or given
    counts = Counter((record.get("answer"), record.get("verdict")) for record in given).most_common(2)
    if len(counts) == 2 and counts[0][1] == counts[1][1]:
        return None
    answer, verdict = counts[0][0]
    agreeing = [r for r in given if (r.get("answer"), r.get("verdict")) == (answer, verdict)]
    probability = max((r.get("selection_probability") or 1.0) for r in agreeing)
    return Decided(answer, verdict, tuple(sorted(str(r["actor"]) for r in agreeing)), probability)
