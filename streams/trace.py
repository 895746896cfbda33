"""One prediction, from its input to the version that learnt from it; what is not found, and why.

Reads the archive first and the logs for what is not archived yet, the labeling store, the registry and the datasets.
Changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from labeling.items import REDACTED, public_id
from labeling.tables import annotation, item, label_event, proposal, proposal_support
from retrain.paths import Paths
from retrain.tables import regression_case
from schemas.contract import Contract
from schemas.errors import FlywheelError
from schemas.events import topic
from schemas.registry import Codec
from schemas.times import SECOND_US, format_us, now_us
from streams import lineage
from streams.config import Config
from streams.ends import LogEnds
from streams.records import Record, Records, features_of, find_records
from streams.status import looking_at, watermark
from streams.tables import alert
from streams.windows import WindowReader

LOSS_CLIP = 1e-6


@dataclass
class Tracer:
    """Follows predictions of one installation.

    Parameters
    ----------
    config, engine, codec
        Of the installation.
    ends
        What the broker said.
    """

    config: Config
    engine: sa.Engine
    codec: Codec
    ends: LogEnds

    def trace(self, prediction_id: str, model: str | None = None, *, asks: bool = True) -> dict[str, Any]:
        """Everything that is known of an id.

        Parameters
        ----------
        prediction_id
            Or an item's name, ``PREDICTION/RULE``.
        model
            Only this one's; default: every model that knows the id.
        asks
            Load the versions and ask each what it answers.

        Returns
        -------
        A JSON object: ``is_found``, ``traces`` (one a model), ``notes`` (what could not be looked at).
        """
        found = self._trace(prediction_id, model, asks)
        prefix, slash, _ = prediction_id.rpartition("/")
        if not found["is_found"] and slash and prefix:
            other = self._trace(prefix, model, asks)
            if other["is_found"]:
                return other
        return found

    def _trace(self, prediction_id: str, model: str | None, asks: bool) -> dict[str, Any]:
        records = find_records(self.config.archive_dir, prediction_id, self.codec, self.ends)
        with looking_at(self.engine) as connection:
            known = {row["model"] for rows in records.found.values() for row in rows}
            for table in (item, regression_case):
                query = sa.select(table.c.model).where(table.c.prediction_id == prediction_id)
                known |= set(connection.execute(query).scalars())
            names = sorted(known if model is None else known & {model})
            now = watermark(WindowReader(self.codec).logs(connection), self.ends)
            traces = [_Follower(self, connection, name, prediction_id, records, now, asks).told() for name in names]
        notes = list(records.notes)
        if not names:
            looked = ", ".join(f"{records.files[noun]} files of {noun}" for noun in records.files)
            notes.insert(0, f"Nothing is known of '{prediction_id}': not in the archive ({looked}), in no review item.")
            if model is not None and known:
                notes.insert(0, f"The id belongs to {', '.join(sorted(known))}, not to '{model}'.")
        return {"prediction_id": prediction_id, "is_found": bool(names), "traces": traces, "notes": notes}


@dataclass
class _Follower:
    """Follows one id of one model."""

    tracer: Tracer
    connection: sa.Connection
    model: str
    prediction_id: str
    records: Records
    watermark_us: int | None
    asks: bool

    def told(self) -> dict[str, Any]:
        """The trace, station by station."""
        missing: list[str] = []
        contract = self._contract(missing)
        own = {noun: [r for r in rows if r["model"] == self.model] for noun, rows in self.records.found.items()}
        inputs, predictions = (self._first(own[noun], noun, missing) for noun in ("inputs", "predictions"))
        features = features_of(inputs, contract.feature_names if contract else None) if inputs else {}
        feedback = [_feedback(row) for row in own["feedback"]]
        _say_which_count(feedback)
        items = self._items()
        outcome = _outcome(predictions, feedback, contract, self.watermark_us)
        if not feedback:
            missing.append(f"feedback: none came so far{_due(predictions)}")
        event_time = next((r["event_time"] for r in (predictions, inputs) if r), items[0]["_time"] if items else None)
        labels, proposals = self._labels(items)
        if not items:
            missing.append("review item: no rule and no audit picked it")
        elif not labels:
            missing.append("labels: nobody decided on it yet")
        row = lineage.Row(self.model, self.prediction_id, event_time, features)
        told = {
            "model": self.model,
            "input": _place(inputs, "inputs") | {"features": _shown(features, contract)} if inputs else None,
            "prediction": _prediction(predictions) if predictions else None,
            "duplicates": {noun: max(0, len(own[noun]) - 1) for noun in ("inputs", "predictions")},
            "feedback": feedback,
            "outcome": outcome,
            "alerts": self._alerts(event_time),
            "items": [{k: v for k, v in each.items() if not k.startswith("_")} for each in items],
            "labels": labels,
            "proposals": proposals,
        }
        return told | self._lineage(row, told, contract, missing) | {"missing": missing}

    def _contract(self, missing: list[str]) -> Contract | None:
        if self.model not in self.tracer.config.models:
            missing.append(f"contract: the model '{self.model}' is not configured")
            return None
        try:
            return self.tracer.config.model(self.model).contract
        except FlywheelError as error:
            missing.append(f"contract: {error}")
            return None

    def _first(self, rows: Sequence[Record], noun: str, missing: list[str]) -> Record | None:
        if rows:
            return rows[0]  # the first of an id counts, the others are duplicates
        files, tail = self.records.files[noun], self.records.tail
        missing.append(f"{noun.removesuffix('s')}: not in {files} archive files and {tail} newer records")
        return None

    def _items(self) -> list[dict[str, Any]]:
        query = sa.select(item).where(item.c.model == self.model, item.c.prediction_id == self.prediction_id)
        return [
            {
                "item_id": public_id(row.prediction_id, row.rule), "rule": row.rule, "policy": row.policy,
                "selection_probability": row.selection_probability, "kind": row.kind, "state": row.state,
                "answer": row.answer, "verdict": row.verdict, "suspect": row.suspect,
                "created": format_us(row.created_us), "is_leased": (row.lease_until_us or 0) > now_us(),
                "_id": row.id, "_time": row.event_time_us,
            }
            for row in self.connection.execute(query.order_by(item.c.id))
        ]  # fmt: skip

    def _labels(self, items: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        ids = {each["_id"]: each["item_id"] for each in items}
        query = sa.select(label_event).where(label_event.c.model == self.model, label_event.c.item.in_(ids))
        rows = self.connection.execute(query.order_by(label_event.c.seq)).all()
        standing = set(self.connection.execute(sa.select(annotation.c.seq).where(annotation.c.item.in_(ids))).scalars())
        events = [
            {
                "event_id": row.event_id, "seq": row.seq, "kind": row.kind, "item_id": ids[row.item],
                "actor": row.actor, "time": format_us(row.time_us), "answer": row.body.get("answer"),
                "verdict": row.body.get("verdict"), "reason": row.body.get("reason") or "",
                "cause": row.body.get("cause"), "is_standing": row.seq in standing,
            }
            for row in rows
        ]  # fmt: skip
        made = (
            sa.select(proposal)
            .join(proposal_support, proposal_support.c.proposal_id == proposal.c.proposal_id)
            .where(proposal_support.c.model == self.model, proposal_support.c.seq.in_([row.seq for row in rows]))
        )
        proposals = {
            row.proposal_id: {
                "proposal_id": row.proposal_id, "kind": row.kind, "verdict": row.verdict, "cause": row.cause,
                "state": row.state, "created": format_us(row.created_us), "decided_by": row.decided_by,
            }
            for row in self.connection.execute(made.order_by(proposal.c.seq))
        }  # fmt: skip
        return events, list(proposals.values())

    def _alerts(self, event_time: int | None) -> list[dict[str, Any]]:
        """Alerts whose window holds the prediction."""
        if event_time is None:
            return []
        query = sa.select(alert).where(alert.c.model == self.model, alert.c.time_us >= event_time)
        found = []
        for row in self.connection.execute(query.order_by(alert.c.time_us)):
            start, end = row.detail.get("window_start"), row.detail.get("window_end")
            if row.state != "closed" and start is not None and end is not None and start <= event_time < end:
                names = ("alert_id", "incident_id", "severity", "channel", "subject", "slice", "message")
                found.append({name: getattr(row, name) for name in names} | {"time": format_us(row.time_us)})
        return found

    def _lineage(
        self, row: lineage.Row, told: dict[str, Any], contract: Contract | None, missing: list[str]
    ) -> dict[str, Any]:
        paths, connection = Paths(self.tracer.config.state_dir), self.connection
        held = lineage.datasets_with(connection, paths, row)
        placed = [place for place in held if place["split"] is not None]
        runs = lineage.runs_of(connection, row, [place["dataset"] for place in placed])
        versions = lineage.versions_of(connection, self.model)
        if not placed:
            missing.append("dataset: none holds it" if versions or held else "dataset: nothing was trained here yet")
        learnt = lineage.learnt_from(versions, placed)
        truth = _decided(told)
        answers = []
        if self.asks and contract is not None:
            answers = lineage.asked_again(versions, paths, contract, row, truth)
        case = lineage.regression_of(connection, row)
        prediction = told["prediction"]
        served = prediction["version"] if prediction else None
        for place in held:
            if place.get("event_time_us") is not None:
                place["event_time"] = format_us(place.pop("event_time_us"))
        return {
            "datasets": held,
            "runs": runs,
            "versions": learnt,
            "answers": answers,
            "regression_case": case,
            "fixed_by": lineage.fixed_by(case, answers, served),
            "champions": [
                {k: v for k, v in each.items() if k != "time_us"} for each in lineage.champions(connection, self.model)
            ],
        }


def _shown(features: dict[str, Any], contract: Contract | None) -> dict[str, Any]:
    """Features as they may be seen: personal and secret ones are hidden."""
    hidden = {f.name for f in contract.fields if f.sensitivity != "none"} if contract else set()
    return {name: REDACTED if name in hidden and value is not None else value for name, value in features.items()}


def _decided(told: dict[str, Any]) -> Any:
    """The right answer: what a person gave goes before what came true."""
    given = [each["answer"] for each in told["items"] if each["answer"] is not None]
    if given:
        return given[0]
    outcome = told["outcome"]
    return outcome["truth"] if outcome else None


def _place(row: Record, noun: str) -> dict[str, Any]:
    names = ("cluster", "partition", "offset")
    return {"topic": topic(noun), **{name: row[name] for name in names}, "event_time": format_us(row["event_time"])}


def _prediction(row: Record) -> dict[str, Any]:
    due = row.get("truth_due")
    return _place(row, "predictions") | {
        "version": row.get("version"),
        "role": row.get("role"),
        "score": row.get("score"),
        "label": row.get("label"),
        "truth_due": None if due is None else format_us(due),
    }


def _due(row: Record | None) -> str:
    due = row.get("truth_due") if row else None
    return f"; the truth is due at {format_us(due)}" if due is not None else ""


def _feedback(row: Record) -> dict[str, Any]:
    facts = {name.removeprefix("fact_"): value for name, value in row.items() if name.startswith("fact_")}
    names = ("feedback_id", "kind", "label", "value", "note")
    return _place(row, "feedback") | {name: row.get(name) for name in names} | {"facts": facts}


def _say_which_count(feedback: list[dict[str, Any]]) -> None:
    """Of each kind the last distinct one counts; the same feedback id again is a duplicate."""
    seen: set[str] = set()
    last: dict[str, int] = {}
    for at, each in enumerate(feedback):
        each["counts"], each["why"] = False, "the same feedback id came before"
        if each["feedback_id"] not in seen:
            seen.add(each["feedback_id"])
            each["why"] = "a later one corrects it"
            last[each["kind"]] = at
    for at in last.values():
        feedback[at]["counts"], feedback[at]["why"] = True, "the last of its kind"


def _outcome(
    prediction: Record | None, feedback: Sequence[dict[str, Any]], contract: Contract | None, watermark_us: int | None
) -> dict[str, Any] | None:
    """What came of the prediction; None while nothing did."""
    if prediction is None:
        return None
    truth = next((each for each in feedback if each["kind"] == "truth" and each["counts"]), None)
    if truth is not None:
        value = truth["label"] if truth["label"] is not None else truth["value"]
        return {"truth": value, "by": truth["feedback_id"], **_judged(prediction, value, contract)}
    target, due = contract.target if contract else None, prediction.get("truth_due")
    if target is None or target.undecided is None or target.truth_timeout_s is None or due is None:
        return None
    deadline = due + target.truth_timeout_s * SECOND_US
    if watermark_us is None or watermark_us < deadline:
        return None
    by = f"no truth came until {format_us(deadline)}"
    return {"truth": target.undecided, "by": by, **_judged(prediction, target.undecided, contract)}


def _judged(prediction: Record, truth: Any, contract: Contract | None) -> dict[str, Any]:
    score, label, target = prediction.get("score"), prediction.get("label"), contract.target if contract else None
    is_number = isinstance(truth, float | int)
    told: dict[str, Any] = {"is_right": None if is_number or label is None else label == truth}
    if is_number and score is not None:
        told["error"] = score - truth
    if target is not None and target.kind == "binary" and score is not None:
        p = min(max(score, LOSS_CLIP), 1 - LOSS_CLIP)
        told["log_loss"] = -math.log(p if truth == target.positive else 1 - p)
    return told
